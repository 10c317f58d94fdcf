"""Snapshots of catalog and utilization in a directory, to try another ranking on later. Everything here blocks.

One gzip file for each, named by source and time; the names alone are the truth. ``index.json`` says the same in one
place, with the number of records, for other tools.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast, get_args

from attrs import define, field, frozen
from twisted.python.lockfile import FilesystemLock

Source = Literal["catalog", "utilization"]

MAX_BODY_BYTES = 64 * 1024 * 1024
"""What a snapshot may hold, unzipped."""

INDEX = "index.json"
_LOCK = ".lock"
_PART = ".part"
_NAME = re.compile(rf"({'|'.join(get_args(Source))})-([0-9]{{8}}T[0-9]{{6}}\.[0-9]{{3}})Z\.json\.gz")
_TIME = "%Y%m%dT%H%M%S.%f"


class ArchiveError(Exception):
    """The directory cannot be used; the message is for people."""


@frozen
class Kept:
    """One snapshot.

    :param at: when it was fetched, Unix time, whole milliseconds.
    :param size: of its file, bytes.
    :param records: how many models or chutes it has; None for one that only its file tells of.
    """

    source: Source
    at: float
    size: int
    records: int | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.source}-{datetime.fromtimestamp(self.at, UTC).strftime(_TIME)[:-3]}Z.json.gz"


def snapshots_in(directory: Path) -> list[Kept]:
    """What the directory holds, oldest first; a name with a time that there is not is none of ours.

    :raises ArchiveError: it cannot be read.
    """
    try:
        with os.scandir(directory) as files:
            found = [
                Kept(cast(Source, match[1]), at, file.stat().st_size)
                for file in files
                if (match := _NAME.fullmatch(file.name))
                and (at := _time(match[2])) is not None
                and file.is_file(follow_symlinks=False)
            ]
    except OSError as error:
        raise ArchiveError(f"cannot read {str(directory)!r}: {_reason(error)}") from error
    return sorted(found, key=lambda kept: kept.at)


def read_snapshot(directory: Path, kept: Kept) -> bytes | None:
    """The body of a snapshot; None where its file is gone, torn or too large."""
    try:
        unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        body = unzip.decompress((directory / kept.name).read_bytes(), MAX_BODY_BYTES)
    except (OSError, zlib.error):
        return None
    return body if unzip.eof else None


@define(eq=False)
class FeedArchive:
    """A directory that one process adds to, within a bound: the oldest snapshots go first.

    :param max_bytes: of all snapshots together.
    """

    _directory: Path
    _max_bytes: int
    _lock: FilesystemLock = field(init=False)
    _kept: list[Kept] = field(factory=list, init=False)

    def open(self) -> None:
        """Make the directory where it is missing, take it for this process, and go on with what is there.

        :raises ArchiveError: it cannot be used, or another process is at work there.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = FilesystemLock(str(self._directory / _LOCK))
            if not self._lock.lock():
                raise ArchiveError(f"another process records into {str(self._directory)!r}")
            for part in self._directory.glob(f"*{_PART}"):
                part.unlink()
        except OSError as error:
            raise ArchiveError(f"cannot use {str(self._directory)!r}: {_reason(error)}") from error
        known = self._known_records()
        self._kept = [
            Kept(kept.source, kept.at, kept.size, known.get(kept.name)) for kept in snapshots_in(self._directory)
        ]

    def close(self) -> None:
        """Let another process have it."""
        self._lock.unlock()

    @property
    def kept(self) -> tuple[Kept, ...]:
        """What is there, oldest first."""
        return tuple(self._kept)

    def latest(self, source: Source) -> Kept | None:
        """The newest of a source."""
        return next((kept for kept in reversed(self._kept) if kept.source == source), None)

    def read(self, kept: Kept) -> bytes | None:
        """The body of a snapshot; None where its file is gone, torn or too large."""
        return read_snapshot(self._directory, kept)

    def add(self, source: Source, at: float, body: bytes, records: int) -> Kept:
        """Keep a body: its file is there whole or not at all. What is then too much goes.

        :param at: Unix time.
        :raises ArchiveError: it cannot be written.
        """
        latest = self.latest(source)
        milliseconds = round(at * 1000)
        if (
            latest is not None
        ):  # also where the clock was set back: names are told apart, and their order is that of time
            milliseconds = max(milliseconds, round(latest.at * 1000) + 1)
        zipped = gzip.compress(body, mtime=0)
        kept = Kept(source, milliseconds / 1000, len(zipped), records)
        try:
            self._write(kept.name, zipped)
            self._kept.append(kept)
            self._kept.sort(key=lambda kept: kept.at)
            for surplus in self._surplus():
                self._kept.remove(surplus)
                with suppress(FileNotFoundError):
                    os.unlink(self._directory / surplus.name)
            self._write(INDEX, _index_of(self._kept))
        except OSError as error:
            raise ArchiveError(f"cannot write into {str(self._directory)!r}: {_reason(error)}") from error
        return kept

    def _surplus(self) -> list[Kept]:
        """What must go, the oldest utilization first; a catalog goes once nothing that is left was ranked by it.

        Where one utilization is left, which is asked for in vain or hardly changes, catalogs alone may be too much: the
        oldest of them go, but for the last one and the one that it was ranked by.
        """
        size = sum(kept.size for kept in self._kept)
        feeds = [kept for kept in self._kept if kept.source == "utilization"]
        surplus: list[Kept] = []
        while size > self._max_bytes and len(feeds) > 1:
            surplus.append(feeds.pop(0))
            size -= surplus[-1].size
            old = [kept for kept in self._kept if kept.source == "catalog" and kept.at <= feeds[0].at][:-1]
            for catalog in old:
                if catalog not in surplus:
                    surplus.append(catalog)
                    size -= catalog.size
        catalogs = [kept for kept in self._kept if kept.source == "catalog" and kept not in surplus]
        ranked_by = [kept for kept in catalogs if feeds and kept.at <= feeds[0].at][-1:] or catalogs[:1]
        for catalog in catalogs[:-1]:
            if size > self._max_bytes and catalog not in ranked_by:
                surplus.append(catalog)
                size -= catalog.size
        return surplus

    def _write(self, name: str, data: bytes) -> None:
        part = self._directory / (name + _PART)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._directory / name)

    def _known_records(self) -> dict[str, int]:
        try:
            entries = json.loads((self._directory / INDEX).read_bytes())["snapshots"]
            return {entry["file"]: int(entry["records"]) for entry in entries if entry["records"] is not None}
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
            return {}


def _index_of(snapshots: Iterable[Kept]) -> bytes:
    entries = [
        {
            "file": kept.name,
            "source": kept.source,
            "at": datetime.fromtimestamp(kept.at, UTC).isoformat(timespec="milliseconds"),
            "bytes": kept.size,
            "records": kept.records,
        }
        for kept in snapshots
    ]
    return json.dumps({"version": 1, "snapshots": entries}, indent=1).encode()


def _time(text: str) -> float | None:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
