"""What was last seen of every model, kept in a file, so that what changes while the service is down is found too."""

import os
from hashlib import sha256
from pathlib import Path

import msgspec
from attrs import evolve, frozen

from chutes_autopilot.explorer.changes import Watch
from chutes_autopilot.observe import events
from chutes_autopilot.storage import cache_files
from chutes_autopilot.storage.cache_files import CachedJson
from chutes_autopilot.storage.disk_cache import InThread

FILE_NAME = "watch.json"


@frozen
class _Kept:
    """:param of: which lists it is of."""

    of: str
    watch: Watch


class WatchFile:
    """One file in CACHE_DIR. It never fails: without it, changes are looked for from the first state of a start on.

    :param lists: what the lists that are watched depend on; of others nothing is taken over.
    :param in_thread: where the file is read and written.
    """

    def __init__(self, directory: Path, lists: tuple[str, ...], in_thread: InThread) -> None:
        self._path = directory / FILE_NAME
        self._of = sha256("\0".join(lists).encode()).hexdigest()
        self._in_thread = in_thread
        self._written = b""
        self._said = False

    async def load(self) -> Watch:
        """What an earlier process saw; an empty watch where there was none, or its file is damaged or of other lists.

        Models that were missing begin to be missed anew: the same old answer may be what is read first.
        """
        watch: Watch = await self._in_thread(self._read)
        return watch

    async def save(self, watch: Watch, at: float) -> None:
        """Keep what was seen, where it is not what is kept.

        :param at: Unix time.
        """
        try:
            await self._in_thread(self._write, watch, at)
        except (OSError, ValueError) as error:
            if not self._said:
                self._said = True
                events.watch_not_kept(getattr(error, "strerror", None) or type(error).__name__)
        else:
            self._said = False

    def _read(self) -> Watch:
        found = cache_files.read(self._path)
        try:
            kept = None if found is None else msgspec.json.decode(found.data, type=_Kept)
        except (ValueError, RecursionError):
            kept = None
        if kept is None or kept.of != self._of:
            return Watch()
        models = {key: evolve(known, missing=0) if known.missing else known for key, known in kept.watch.models.items()}
        return Watch(models, kept.watch.sources)

    def _write(self, watch: Watch, at: float) -> None:
        data = msgspec.json.encode(_Kept(self._of, watch), order="sorted")
        if data == self._written:
            return
        os.makedirs(self._path.parent, mode=0o700, exist_ok=True)
        cache_files.write(self._path, CachedJson(at, data, 1))
        self._written = data
