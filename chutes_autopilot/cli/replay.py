"""``chutes-autopilot replay DIR``: what a ranking would have done on the feeds that were recorded."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NoReturn

import attrs

from chutes_autopilot.cli.environment import command_parser
from chutes_autopilot.policy.catalog import Catalog, parse_catalog
from chutes_autopilot.policy.feed_json import FeedError
from chutes_autopilot.policy.herding import Herding, HerdingMeter
from chutes_autopilot.policy.ranking import Ranked, rank
from chutes_autopilot.policy.utilization import parse_utilization
from chutes_autopilot.policy.variants import VARIANTS
from chutes_autopilot.storage.feed_archive import ArchiveError, Kept, read_snapshot, snapshots_in

LONGEST_HOLD = 600.0
"""Seconds: a pause in the recording says nothing of what was between."""

DESCRIPTION = """Ranks each recorded utilization snapshot by the catalog of its time and says which model would have
been the first pick of each of many clients: how often that changed, and how evenly it spread them. Stickiness and
failures,
which keep or move clients in the gateway, are left out: this is about the order alone."""


@attrs.frozen
class _Moment:
    """A ranking and for how long it held, seconds."""

    at: float
    seconds: float
    ranking: tuple[Ranked, ...]


def replay(arguments: Sequence[str]) -> None:
    """Replay and print; exit code 1 where there is nothing to replay."""
    parser = command_parser("replay", DESCRIPTION)
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument(
        "--ranking",
        action="append",
        choices=list(VARIANTS),
        help="which order; may be repeated (default: default and rendezvous)",
    )
    parser.add_argument("--clients", type=_clients, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--top", type=_clients, default=8, metavar="N", help="models shown (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    names = list(dict.fromkeys(options.ranking or ["default", "rendezvous"]))
    keys = [blake2b(b"%d" % number, digest_size=32).digest() for number in range(options.clients)]
    meters = {name: HerdingMeter() for name in names}
    first = last = None
    unusable = 0
    try:
        for moment in _moments(options.directory):
            if moment is None:
                unusable += 1
                continue
            first, last = first or moment, moment
            for name, meter in meters.items():
                order = VARIANTS[name]
                meter.add(moment.ranking, [order(key, moment.ranking)[0] for key in keys], moment.seconds)
    except ArchiveError as error:
        _refuse(str(error))
    if first is None or last is None:
        _refuse(f"no usable snapshot in {str(options.directory)!r}")
    results = {name: meter.result() for name, meter in meters.items()}
    if options.json:
        report = {
            "from": _date(first.at),
            "to": _date(last.at),
            "clients": len(keys),
            "unusable": unusable,
            "rankings": {name: attrs.asdict(result) for name, result in results.items()},
        }
        print(json.dumps(report, indent=2))
    else:
        skipped = f", {unusable} unusable" if unusable else ""
        print(f"{results[names[0]].rankings} rankings from {_date(first.at)} to {_date(last.at)}{skipped}")
        print("\n".join(_table(results, options.top)))


def _moments(directory: Path) -> Iterator[_Moment | None]:
    """The rankings in the order of time; None for a snapshot that gives none, or none of the gateway's.

    Without a catalog the gateway would rank by names alone: that says nothing of an order by the catalog.
    """
    snapshots = snapshots_in(directory)
    feeds = [kept for kept in snapshots if kept.source == "utilization"]
    catalogs = [kept for kept in snapshots if kept.source == "catalog"]
    gaps = [later.at - kept.at for kept, later in pairwise(feeds)]
    gaps += [median(gaps) if gaps else 1.0] * (len(feeds) > 0)  # the last one held as long as usual
    known: tuple[Kept, Catalog | None] | None = None
    for kept, gap in zip(feeds, gaps, strict=True):
        # the first feed may have been a moment earlier than the first catalog
        wanted = next((each for each in reversed(catalogs) if each.at <= kept.at), catalogs[0] if catalogs else None)
        if wanted is not None and (known is None or known[0] is not wanted):
            known = wanted, _catalog(directory, wanted)
        catalog = known[1] if known else None
        body = read_snapshot(directory, kept) if catalog is not None else None
        try:
            ranking = rank(parse_utilization(body or b"").rows, catalog)
        except FeedError:
            ranking = ()
        yield _Moment(kept.at, min(max(gap, 0.001), LONGEST_HOLD), ranking) if ranking else None


def _catalog(directory: Path, kept: Kept) -> Catalog | None:
    body = read_snapshot(directory, kept)
    try:
        catalog = None if body is None else parse_catalog(body)
    except FeedError:
        return None
    return catalog if catalog is not None and catalog.ids else None


def _table(results: dict[str, Herding], top: int) -> Iterator[str]:
    rows = [
        ("changed first pick at a new ranking", [f"{result.churn:.1%}" for result in results.values()]),
        ("share of the most picked model", [f"{result.first_share:.1%}" for result in results.values()]),
        ("effective number of models", [f"{result.effective_models:.1f}" for result in results.values()]),
        ("pressure (1: as instances are free)", [f"{result.pressure:.1f}" for result in results.values()]),
    ]
    models = dict.fromkeys(model for result in results.values() for model in list(result.shares)[:top])
    shares = [(model, [f"{result.shares.get(model, 0):.1%}" for result in results.values()]) for model in models]
    width = max(len(name) for name, _ in [*rows, *shares])
    head = "  ".join(f"{name:>14}" for name in results)
    yield f"\n{'':<{width}}  {head}"
    for name, values in rows:
        yield f"{name:<{width}}  " + "  ".join(f"{value:>14}" for value in values)
    yield "\nshare of the first picks"
    for name, values in shares:
        yield f"{name:<{width}}  " + "  ".join(f"{value:>14}" for value in values)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _clients(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 100_000):
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 100000")
    return int(text)


def _refuse(message: str) -> NoReturn:
    print(f"chutes-autopilot replay: {message}", file=sys.stderr)
    raise SystemExit(1)
