"""Where the service's own keys come from: a file, the dstack guest agent, or nowhere but this process.

Every source is a service of Twisted that holds the keys in force, so that whoever needs them sees a rotation with
its next request. Private keys come from no environment variable, and reach no log.
"""

import os
import stat
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chutes_autopilot.e2ee.curves import InvalidKey
from chutes_autopilot.e2ee.server_keys import (
    KeyFileError,
    ServerKey,
    ServerKeys,
    ephemeral_keys,
    keys_from_secrets,
    read_key_file,
)
from chutes_autopilot.errors import e2ee_error
from chutes_autopilot.observe import events
from chutes_autopilot.settings import SettingsError
from chutes_autopilot.upstream.dstack import DstackAgent, DstackError

Source = Literal["file", "dstack", "ephemeral"]

MAX_KEY_FILE_BYTES = 1024 * 1024

FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0
"""How soon the agent is asked again for keys it did not give: the pause doubles from the first to the second."""

_log = Logger()


class KeyHolder(Service):
    """The keys in force, wherever they come from.

    :ivar persistent: whether another process, or this service after a restart, has the same keys; then a request
        recorded before the start still opens, and the replay rules must look at its time.
    """

    persistent: ClassVar[bool]

    def __init__(self, keys: ServerKeys | None) -> None:
        self._keys = keys
        self.changed: Callable[[ServerKeys], None] | None = None
        """Told of keys that were not there before."""

    def take(self, keys: ServerKeys) -> None:
        """These are in force from now on."""
        self._keys = keys
        if self.changed is not None:
            self.changed(keys)

    @property
    def there(self) -> bool:
        """Whether there are any yet."""
        return self._keys is not None

    @property
    def current(self) -> ServerKeys:
        """The keys to use now; ApiError attestation_unavailable as long as there are none yet."""
        if self._keys is None:
            raise e2ee_error(
                "attestation_unavailable",
                "The keys of this service are not there yet: try again in a few seconds.",
                headers=((b"Retry-After", b"5"),),
            )
        return self._keys

    def reload(self, reason: str) -> None:
        """Read the keys again, where they are read from something that changes.

        :param reason: for the log: what asked for it, such as the name of a signal.
        """


class EphemeralKeys(KeyHolder):
    """Made at the start and forgotten at the end."""

    persistent = False

    def __init__(self) -> None:
        super().__init__(ephemeral_keys())

    def startService(self) -> None:
        """Say what that means."""
        super().startService()
        _log.warn(
            "the E2EE keys are ephemeral: they change at each restart and no other replica has them; "
            "chutes-autopilot keygen and E2EE_KEY_FILE make lasting ones"
        )


class FileKeys(KeyHolder):
    """In a file that only this process's user can read; it may be rotated while the service runs.

    :param path: E2EE_KEY_FILE.
    :raises SettingsError: the file cannot be used.
    """

    persistent = True

    def __init__(self, path: str) -> None:
        self._path = path
        super().__init__(read_keys(path))

    def startService(self) -> None:
        """Say which keys they are."""
        super().startService()
        _log.info("E2EE keys from the key file: {ids}", ids=", ".join(self.current.identity()))

    def reload(self, reason: str) -> None:
        """Take the file as it is now; a bad one changes nothing."""
        try:
            keys = read_keys(self._path)
        except SettingsError as error:
            _log.error(
                "{reason}: the E2EE keys stay as they were: {faults}", reason=reason, faults="; ".join(error.faults)
            )
        else:
            self.take(keys)
            _log.info("{reason}: E2EE keys from the key file: {ids}", reason=reason, ids=", ".join(keys.identity()))


class DstackKeys(KeyHolder):
    """Derived by the guest agent for this application: the same on every replica and after every restart.

    They are asked for from the start of the service on, again and again until they are there.

    :param generation: E2EE_KEY_GENERATION, from 1.
    :param previous_until: E2EE_PREVIOUS_KEY_UNTIL: until this Unix second the generation before is active too.
    :param now: Unix time.
    """

    persistent = True

    def __init__(
        self, agent: DstackAgent, generation: int, previous_until: int, clock: Any, now: Callable[[], float]
    ) -> None:
        super().__init__(None)
        self._agent = agent
        self._generation = generation
        self._previous_until = previous_until
        self._clock = clock
        self._now = now
        self._fetching: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin to ask."""
        super().startService()
        if self._keys is None:
            self._fetching = Deferred.fromCoroutine(self._fetch_until_there())

    def stopService(self) -> Deferred[None] | None:
        """Ask no more."""
        super().stopService()
        fetching, self._fetching = self._fetching, None
        if fetching is not None:
            fetching.cancel()
        return fetching

    async def _fetch_until_there(self) -> None:
        pause = FIRST_RETRY_SECONDS
        try:
            # a call that is cancelled may also end like one that failed
            while not await self._fetch() and self.running:
                await deferLater(self._clock, pause)
                pause = min(2 * pause, MAX_RETRY_SECONDS)
        except CancelledError:
            pass  # by stopService, which waits for this end

    async def _fetch(self) -> bool:
        """Ask once; whether the keys are there now."""
        try:
            keys = await self._fetched()
        except CancelledError:
            raise
        except DstackError as error:
            _log.warn("no E2EE keys yet: {error} ({reason})", error=str(error), reason=error.reason)
        except InvalidKey:
            _log.warn("no E2EE keys yet: what the dstack guest agent gave is no key")
        except Exception:  # noqa: BLE001 - reported, and the next try may do
            events.failed_unexpectedly(Failure(), "fetching the E2EE keys")
        else:
            self.take(keys)
            _log.info("E2EE keys from the dstack guest agent: {ids}", ids=", ".join(keys.identity()))
        return self._keys is not None

    async def _fetched(self) -> ServerKeys:
        keys = await self._of_generation(self._generation, None)
        if self._generation > 1 and self._previous_until > self._now():
            keys += await self._of_generation(self._generation - 1, self._previous_until)
        return ServerKeys(keys)

    async def _of_generation(self, generation: int, not_after: int | None) -> tuple[ServerKey, ...]:
        path = f"chutes-autopilot/e2ee/{generation}"
        ecdsa = await self._agent.get_key(f"{path}/ecdsa")
        seed = HKDF(SHA256(), 32, salt=None, info=b"chutes-autopilot/e2ee/ed25519").derive(
            await self._agent.get_key(f"{path}/ed25519")
        )
        return keys_from_secrets(f"dstack-{generation}", ecdsa, seed, not_after)


def key_source(wanted: Source | Literal["auto"], key_file: str | None, agent_present: bool) -> Source:
    """What E2EE_KEY_SOURCE means: ``auto`` is the file where there is a name of one, else dstack where there is an
    agent, else ephemeral.
    """
    if wanted != "auto":
        return wanted
    if key_file:
        return "file"
    return "dstack" if agent_present else "ephemeral"


def key_holder(
    wanted: Source | Literal["auto"],
    key_file: str | None,
    agent: DstackAgent,
    generation: int,
    previous_until: int,
    clock: Any,
    now: Callable[[], float],
) -> KeyHolder:
    """The holder that the settings ask for, not yet started.

    :raises SettingsError: the key file cannot be used.
    """
    match key_source(wanted, key_file, agent.present):
        case "file":
            return FileKeys(key_file or "")
        case "dstack":
            return DstackKeys(agent, generation, previous_until, clock, now)
        case "ephemeral":
            return EphemeralKeys()


def read_keys(path: str) -> ServerKeys:
    """The keys in a key file that nobody else can read.

    :raises SettingsError: one line that says what is wrong, and nothing of what is in the file.
    """
    try:
        return read_key_file(read_private_file(path))
    except KeyFileError as error:
        raise SettingsError((f"E2EE_KEY_FILE: {error}",)) from None


def read_private_file(path: str) -> bytes:
    """A key file's bytes, once it is sure that they are this user's alone.

    :raises SettingsError: it cannot be read, is no regular file, has another owner, permissions for others, or is
        larger than MAX_KEY_FILE_BYTES.
    """
    try:
        # what was opened is what is judged; without O_NONBLOCK a pipe would be waited for
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            fault = _fault_of(status)
            data = b"" if fault else file.read(MAX_KEY_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SettingsError((f"E2EE_KEY_FILE: cannot read the file: {reason}",)) from None
    if len(data) > MAX_KEY_FILE_BYTES:
        fault = f"must not be larger than {MAX_KEY_FILE_BYTES} bytes"
    if fault:
        raise SettingsError((f"E2EE_KEY_FILE: {fault}",))
    return data


def _fault_of(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "must be a regular file"
    if status.st_uid != os.geteuid():
        return "must be owned by the user that the service runs as"
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return "must not give group or others any permission (chmod 600)"
    return None
