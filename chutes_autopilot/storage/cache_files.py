"""The files of the disk cache: one JSON document each, with the time it was fetched. Everything here blocks."""

import contextlib
import os
import re
import time
from pathlib import Path
from tempfile import mkstemp

import attrs
import msgspec

MAX_FILE_BYTES = 128 * 1024 * 1024
"""A larger file is none of ours."""

_SAFE_NAME = re.compile(r"(?:models_p|chute_|v1_models_)[A-Za-z0-9._%~+=@-]{1,230}\.json", re.ASCII)
_HEAD = re.compile(rb'\s*\{\s*"timestamp"\s*:\s*([0-9]{1,15})\b')
_PART = ".part-"
_PART_SECONDS = 3600.0


class NotJson(ValueError):
    """Bytes that are no JSON object or array."""


@attrs.frozen
class CachedJson:
    """A JSON document that was fetched once.

    :param fetched_at: Unix time, seconds.
    :param data: exactly what the upstream sent, white space around it left out.
    :param items: how many records it has; see count_items.
    """

    fetched_at: float
    data: bytes = attrs.field(repr=False)
    items: int


class _Lists(msgspec.Struct):
    items: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    data: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET


class _File(msgspec.Struct):
    timestamp: float
    data: msgspec.Raw


def is_safe_name(name: str) -> bool:
    """Whether this is the name of a cache file: one of the documented kinds, and never a path."""
    return _SAFE_NAME.fullmatch(name) is not None


def count_items(data: bytes) -> int:
    """How many records a document holds: those of its ``items`` or ``data``, or of itself where it is a list; else 1.

    :raises NotJson: it is no JSON, or neither an object nor a list.
    """
    try:
        match msgspec.json.decode(data, type=_Lists | list[msgspec.Raw]):
            case list(records) | _Lists(items=list(records)) | _Lists(data=list(records)):
                return len(records)
    except msgspec.ValidationError:
        _check_object(data)
    except (ValueError, RecursionError):
        raise NotJson("no JSON") from None
    return 1


def _check_object(data: bytes) -> None:
    try:
        msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        raise NotJson("no JSON object or array") from None


def scan(directory: Path) -> list[tuple[str, float, int]]:
    """Make the directory where it is missing, find out whether it can be written, and list what is there.

    Only files that look like the cache's own are listed: (name, time fetched, size of the file), oldest first.

    :raises OSError, ValueError: it cannot be made or written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe, path = mkstemp(prefix=_PART, dir=directory)
    os.close(probe)
    os.unlink(path)
    found = []
    with os.scandir(directory) as files:
        for file in files:
            with contextlib.suppress(OSError):  # gone, or not ours to read
                if not file.is_file(follow_symlinks=False):
                    continue
                if file.name.startswith(_PART) and file.stat().st_mtime < time.time() - _PART_SECONDS:
                    os.unlink(file.path)  # left by a process that ended while it wrote
                elif is_safe_name(file.name) and (head := _HEAD.match(_start_of(file.path))):
                    found.append((file.name, int(head[1]) / 1000, file.stat().st_size))
    return sorted(found, key=lambda file: file[1])


def _start_of(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def read(path: Path) -> CachedJson | None:
    """A cached document; None where the file is gone, torn, or none of ours."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            return None
        parts = msgspec.json.decode(text, type=_File)
        del text
        data = bytes(parts.data)
        return CachedJson(parts.timestamp / 1000, data, count_items(data))
    except (OSError, ValueError, RecursionError):
        return None


def write(path: Path, document: CachedJson) -> None:
    """Put a document in the place of an older one, so that a reader finds either of them whole.

    :raises OSError: nothing was changed.
    """
    handle, part = mkstemp(prefix=_PART, dir=path.parent)  # readable by its owner alone
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(b'{"timestamp": %d, "data": ' % round(document.fetched_at * 1000))
            file.write(document.data)
            file.write(b"}")
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def remove(path: Path) -> None:
    """Forget a document; it may be gone already."""
    with contextlib.suppress(OSError):
        os.unlink(path)
