"""Which models one request tries, and in what order."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Literal

from attrs import field, frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.model_field import Alias, Direct, ModelField, PreferenceList

Mode = Literal["alias", "list", "direct"]

_PLAIN_ALIAS = Alias()
_NO_BASES: Mapping[str, str] = MappingProxyType({})


@frozen
class Plan:
    """The order of attempts of one request; every entry is the full string to be sent upstream, none comes twice.

    :param mode: what the client's ``model`` was; ``direct`` is never sticky.
    :param candidates: what is tried, the sticky model first.
    :param preferred: the order without stickiness.
    :param bases: entry -> name without the platform's suffixes, for those entries that have some.
    """

    mode: Mode
    candidates: tuple[str, ...]
    preferred: tuple[str, ...]
    bases: Mapping[str, str] = field(default=_NO_BASES, hash=False)

    def base(self, model: str) -> str:
        """The name by which one of the entries is remembered and counted (see model_field.base_of)."""
        return self.bases.get(model, model)


def make_plan(asked: ModelField, ranked: Sequence[str], sticky: str | None, *, limit: int) -> Plan:
    """Turn what was asked for into an order of attempts.

    A model comes once, at its first place: a list of ``a:latency`` and the alias does not try ``a`` again.

    :param ranked: base names, best first.
    :param sticky: base name to be tried first, wherever it stands; ignored where it is no candidate, and for direct.
    :param limit: attempts a request may make, at least 1; what lies behind can never be tried and is left out.
    :raises ApiError: no_candidates, when nothing can be tried.
    """
    if isinstance(asked, Direct):
        return Plan("direct", (asked.model,), (asked.model,), _bases([asked]))
    if asked == _PLAIN_ALIAS and ranked:
        return _alias_plan(ranked, sticky, limit)
    items = asked.items if isinstance(asked, PreferenceList) else (asked,)
    preferred = list(islice(_expanded(items, ranked), limit))
    if not preferred:
        raise ApiError(
            "no_candidates",
            "No model is available at the moment: try again in a second, or name a model.",
            headers=((b"Retry-After", b"1"),),
        )
    candidates = preferred
    first = None if sticky is None else _find(sticky, items, ranked)
    if first is not None:
        candidates = [first, *(entry for entry in preferred if entry.base != first.base)][:limit]
    return Plan(mode_of(asked), _models(candidates), _models(preferred), _bases([*candidates, *preferred]))


def mode_of(asked: ModelField) -> Mode:
    """What kind of thing was asked for."""
    if isinstance(asked, Direct):
        return "direct"
    return "list" if isinstance(asked, PreferenceList) else "alias"


def _alias_plan(ranked: Sequence[str], sticky: str | None, limit: int) -> Plan:
    """What the rest of make_plan would give for the bare alias, which is most of the traffic, without its work."""
    preferred = tuple(ranked[:limit])
    if sticky is None or sticky == preferred[0] or sticky not in ranked:
        return Plan("alias", preferred, preferred)
    return Plan("alias", (sticky, *[name for name in preferred if name != sticky])[:limit], preferred)


def _expanded(items: Sequence[Alias | Direct], ranked: Sequence[str]) -> Iterator[Direct]:
    seen = set()
    for item in items:
        entries = [item] if isinstance(item, Direct) else (Direct(name + item.suffix, name) for name in ranked)
        for entry in entries:
            if entry.base not in seen:
                seen.add(entry.base)
                yield entry


def _find(base: str, items: Sequence[Alias | Direct], ranked: Sequence[str]) -> Direct | None:
    # the first match has the suffix that the expanded order would give it
    for item in items:
        if isinstance(item, Direct):
            if item.base == base:
                return item
        elif base in ranked:
            return Direct(base + item.suffix, base)
    return None


def _models(entries: list[Direct]) -> tuple[str, ...]:
    return tuple(entry.model for entry in entries)


def _bases(entries: list[Direct]) -> Mapping[str, str]:
    return {entry.model: entry.base for entry in entries if entry.model != entry.base} or _NO_BASES
