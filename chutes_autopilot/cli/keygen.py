"""``chutes-autopilot keygen FILE``: make the key file of the Chutes route, or rotate the keys in it."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NoReturn

from chutes_autopilot import __version__
from chutes_autopilot.e2ee.server_keys import ALGOS, KeyFileError, new_key_file, read_key_file
from chutes_autopilot.e2ee_keys import read_private_file
from chutes_autopilot.settings import SettingsError

MIN_OVERLAP_SECONDS = 60


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= MIN_OVERLAP_SECONDS):
        raise argparse.ArgumentTypeError(f"must be a whole number of seconds from {MIN_OVERLAP_SECONDS}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "chutes-autopilot keygen",
        description="Makes FILE, readable by its owner only, for E2EE_KEY_FILE, and prints the public keys. "
        "After --rotate send SIGHUP to the service: clients that know the old keys are served until their time is "
        "over. Keys whose time is over leave the file.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--rotate", action="store_true", help="put new keys in front of those in FILE")
    existing.add_argument(
        "--force", action="store_true", help="overwrite FILE: what was sealed to its keys can never be opened again"
    )
    parser.add_argument(
        "--overlap",
        type=_seconds,
        default=86_400,
        metavar="SECONDS",
        help="with --rotate: for how long the keys in FILE stay valid (default: %(default)s)",
    )
    parser.add_argument("--id", metavar="NAME", help="name of the new keys in logs (default: the present time)")
    parser.add_argument("--version", action="version", version=f"chutes-autopilot {__version__}")
    return parser


def keygen(arguments: Sequence[str], now: Callable[[], float] = time.time) -> None:
    """Make or rotate a key file, and print what clients may know of it.

    Whatever is wrong ends the process with a message on standard error and leaves the file as it was; the exit code
    is 2 where the options make no sense, else 1.
    """
    options = _parser().parse_args(arguments)
    try:
        data = _key_file(options, now())
        _write(options.file, data, replace=options.rotate or options.force)
    except FileExistsError:
        _refuse(f"{options.file!r} exists: --rotate puts new keys into it, --force overwrites it")
    except OSError as error:
        _refuse(f"cannot write {options.file!r}: {error.strerror}")
    except KeyFileError as error:
        _refuse(f"{options.file!r} would be no valid key file: {error}")
    except SettingsError as error:
        _refuse(f"cannot rotate {options.file!r}: {error.faults[0].removeprefix('E2EE_KEY_FILE: ')}")
    print("\n".join([f"wrote {options.file}", *_public_lines(data)]))


def _key_file(options: argparse.Namespace, now: float) -> bytes:
    name = options.id or datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H%M%SZ")
    old = _still_valid(read_private_file(options.file), now) if options.rotate else None
    return new_key_file(name, old, old_not_after=int(now) + options.overlap)


def _still_valid(data: bytes, now: float) -> bytes | None:
    """A key file without the keys whose time is over: what was sealed to them is then safe for good."""
    active = {key.id for key in read_key_file(data).keys if key.active(now)}
    document = json.loads(data)
    document["keys"] = [entry for entry in document["keys"] if entry["id"] in active]
    return json.dumps(document).encode() if active else None


def _write(path: str, data: bytes, *, replace: bool) -> None:
    """Put the file in place whole or not at all, readable by its owner only from its first byte on.

    :raises FileExistsError: it is there and not to be replaced.
    """
    if replace:
        path = os.path.realpath(path)  # a symbolic link stays one
        descriptor, draft = tempfile.mkstemp(prefix=".keygen.", dir=os.path.dirname(path))  # made with mode 0600
    else:
        descriptor, draft = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), path
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _public_lines(data: bytes) -> list[str]:
    keys = read_key_file(data).keys
    lines = []
    for algo in ALGOS:
        key = next(key for key in keys if key.algo == algo)
        lines += [f"{algo} public key {key.wire_hex}", f"{algo} address    {key.address}"]
    old = sorted({(key.id, key.not_after) for key in keys if key.not_after is not None}, key=lambda each: each[1])
    return [*lines, *(f"old key {id} is valid until {_date(not_after)}" for id, not_after in old)]


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _refuse(message: str) -> NoReturn:
    print(f"chutes-autopilot keygen: {message}", file=sys.stderr)
    raise SystemExit(1)
