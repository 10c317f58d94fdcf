"""Where the service's keys come from: the file and its rules, the guest agent, rotation, and what the log says."""

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.fields import FieldSealer
from chutes_autopilot.e2ee.server_keys import ServerKeys, keys_from_secrets, new_key_file
from chutes_autopilot.e2ee_keys import (
    FIRST_RETRY_SECONDS,
    MAX_KEY_FILE_BYTES,
    MAX_RETRY_SECONDS,
    DstackKeys,
    EphemeralKeys,
    FileKeys,
    Source,
    key_holder,
    key_source,
    read_private_file,
)
from chutes_autopilot.errors import ApiError
from chutes_autopilot.settings import SettingsError
from chutes_autopilot.upstream.dstack import DstackAgent, DstackError

NOW = 1_800_000_000


def write(path: Path, data: bytes, mode: int = 0o600) -> str:
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A good key file."""
    path = tmp_path / "keys.json"
    write(path, new_key_file("first"))
    return path


@pytest.fixture
def log() -> Iterator[Callable[[], str]]:
    """Everything that was logged, as text."""
    with capturedLogs() as events:

        def text() -> str:
            logged: list[LogEvent] = events
            return "\n".join(f"{event['log_level'].name} {formatEvent(event)}" for event in logged)

        yield text


def public_keys(keys: ServerKeys) -> list[bytes]:
    return [key.public for key in keys.keys]


def test_a_key_file_outlives_the_process(key_file: Path) -> None:
    """The same file gives the same keys at every start, so requests from before must be looked at for replays."""
    before, after = FileKeys(str(key_file)), FileKeys(str(key_file))
    assert public_keys(before.current) == public_keys(after.current)
    assert before.persistent


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
def test_rotation_keeps_old_clients_working_until_the_overlap_ends(key_file: Path, algo: Algo) -> None:
    """A field sealed to the old key opens up to the last second, and new clients get the new key at once."""
    holder = FileKeys(str(key_file))
    old = holder.current.current(algo)
    sealed = FieldSealer(algo, old.public).seal("still here", b"")
    write(key_file, new_key_file("second", key_file.read_bytes(), old_not_after=NOW + 3600))
    assert holder.current.current(algo).public == old.public
    holder.reload("SIGHUP")
    assert holder.current.current(algo).id == "second"
    clock = Clock()
    clock.advance(NOW + 3600)
    found = holder.current.find(algo, old.public, clock.seconds())
    assert found is not None
    assert found.opener.open(sealed, b"") == "still here"
    clock.advance(1)
    assert holder.current.find(algo, old.public, clock.seconds()) is None


def test_a_bad_new_file_keeps_the_old_keys(key_file: Path, log: Callable[[], str]) -> None:
    """And the log says which entry is wrong, and nothing of what is in it."""
    holder = FileKeys(str(key_file))
    before = public_keys(holder.current)
    secret = "5" * 63 + "Z"
    entry = {"id": "a", "ecdsa": secret, "ed25519": "5" * 64, "not_after": None}
    write(key_file, json.dumps({"version": 1, "keys": [entry]}).encode())
    holder.reload("SIGHUP")
    assert public_keys(holder.current) == before
    assert "error SIGHUP: the E2EE keys stay as they were: E2EE_KEY_FILE: entry 1, ecdsa" in log()
    assert "5555" not in log()


def test_the_log_names_keys_and_shows_none(key_file: Path, log: Callable[[], str]) -> None:
    """At the start and at each reading."""
    holder = FileKeys(str(key_file))
    holder.startService()
    holder.reload("SIGHUP")
    assert "info E2EE keys from the key file: first" in log()
    assert "info SIGHUP: E2EE keys from the key file: first" in log()
    (entry,) = json.loads(key_file.read_bytes())["keys"]
    for secret in (entry["ecdsa"], entry["ed25519"]):
        assert secret not in log()
        assert secret not in repr(holder.current)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o601, 0o660])
def test_a_file_that_others_may_touch_is_refused(key_file: Path, mode: int) -> None:
    """Whatever it is that they may do."""
    key_file.chmod(mode)
    with pytest.raises(SettingsError, match="E2EE_KEY_FILE: must not give group or others any permission"):
        FileKeys(str(key_file))


def test_a_file_of_somebody_else_is_refused(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it could be read."""
    monkeypatch.setattr(os, "geteuid", lambda: key_file.stat().st_uid + 1)
    with pytest.raises(SettingsError, match="must be owned by the user that the service runs as"):
        FileKeys(str(key_file))


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A pipe would be waited for, and its content be gone after the first reading."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SettingsError, match="must be a regular file"):
        read_private_file(str(tmp_path / "pipe"))
    with pytest.raises(SettingsError, match="cannot read the file: Is a directory"):
        read_private_file(str(tmp_path))
    with pytest.raises(SettingsError, match="cannot read the file: No such file or directory"):
        read_private_file(str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="cannot read the file: ValueError"):
        read_private_file("a\0b")


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    """Before it is read."""
    path = write(tmp_path / "huge", b" " * (MAX_KEY_FILE_BYTES + 1))
    with pytest.raises(SettingsError, match="must not be larger"):
        read_private_file(path)
    assert len(read_private_file(write(tmp_path / "large", b" " * MAX_KEY_FILE_BYTES))) == MAX_KEY_FILE_BYTES


def test_a_link_to_a_private_file_is_followed(key_file: Path, tmp_path: Path) -> None:
    """Orchestrators mount secrets that way."""
    (tmp_path / "link").symlink_to(key_file)
    assert read_private_file(str(tmp_path / "link")) == key_file.read_bytes()


def test_ephemeral_keys_are_new_each_time(log: Callable[[], str]) -> None:
    """And the log warns of that."""
    one, other = EphemeralKeys(), EphemeralKeys()
    assert not set(public_keys(one.current)) & set(public_keys(other.current))
    assert not one.persistent
    one.startService()
    assert "warn the E2EE keys are ephemeral" in log()


def path_key(path: str) -> bytes:
    return hashlib.sha256(path.encode()).digest()


class Agent:
    """Gives keys by path, or what ``answers`` holds first."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.paths: list[str] = []

    def get_key(self, path: str) -> Any:
        self.paths.append(path)
        return self.answers.pop(0) if self.answers else succeed(path_key(path))


def seed_of(key: bytes) -> bytes:
    """HKDF-SHA256 of RFC 5869, written out."""
    extracted = hmac.digest(bytes(32), key, "sha256")
    return hmac.digest(extracted, b"chutes-autopilot/e2ee/ed25519" + b"\x01", "sha256")


def dstack(agent: Any, clock: Clock, generation: int = 1, previous_until: int = 0) -> DstackKeys:
    return DstackKeys(agent, generation, previous_until, clock, lambda: NOW)


def test_dstack_keys_are_those_of_their_generation() -> None:
    """The agent's 32 bytes are the scalar; the seed is derived. The generation before is there for as long as said."""
    agent = Agent()
    keys = dstack(agent, Clock(), 3, NOW + 60)
    keys.startService()
    prefix = "chutes-autopilot/e2ee"
    expected = [
        key
        for generation, not_after in ((3, None), (2, NOW + 60))
        for key in keys_from_secrets(
            f"dstack-{generation}",
            path_key(f"{prefix}/{generation}/ecdsa"),
            seed_of(path_key(f"{prefix}/{generation}/ed25519")),
            not_after,
        )
    ]
    assert list(keys.current.keys) == expected
    assert keys.persistent


@pytest.mark.parametrize(("generation", "previous_until"), [(1, NOW + 60), (2, 0), (2, NOW)])
def test_no_previous_generation(generation: int, previous_until: int) -> None:
    """Before the first there is none, and a time that is over asks for none."""
    agent = Agent()
    keys = dstack(agent, Clock(), generation, previous_until)
    keys.startService()
    assert len(keys.current.keys) == 2
    assert len(agent.paths) == 2


def test_an_agent_that_is_not_up_yet(log: Callable[[], str]) -> None:
    """Requests are told to come again; the agent is asked at growing intervals, until it answers."""
    clock, agent = Clock(), Agent(*[fail(DstackError("absent")) for _ in range(9)], succeed(bytes(32)))
    keys = dstack(agent, clock)
    keys.startService()
    with pytest.raises(ApiError) as caught:
        keys.current  # noqa: B018
    assert (caught.value.status, caught.value.code) == (503, "attestation_unavailable")
    assert (b"Retry-After", b"5") in caught.value.headers
    pauses = [min(FIRST_RETRY_SECONDS * 2**n, MAX_RETRY_SECONDS) for n in range(9)]
    assert pauses[-1] == MAX_RETRY_SECONDS
    for tries, pause in enumerate(pauses, start=2):
        clock.advance(pause - 0.5)
        assert len(agent.paths) == tries - 1
        clock.advance(0.5)
        assert agent.paths[:1] * tries == agent.paths[:tries]
    assert "what the dstack guest agent gave is no key" in log()  # 32 zero bytes
    clock.advance(MAX_RETRY_SECONDS)
    assert keys.current.identity() == ("dstack-1",)
    assert "warn no E2EE keys yet: the dstack guest agent gave no usable answer (absent)" in log()
    assert "info E2EE keys from the dstack guest agent: dstack-1" in log()
    assert not clock.getDelayedCalls()
    assert path_key(agent.paths[-2]).hex() not in log()


def test_the_service_stops_while_it_waits_for_keys() -> None:
    """For an answer or for the next try: nothing is left, and nothing is asked any more."""
    clock, answer = Clock(), Deferred[bytes]()
    agent = Agent(fail(DstackError("absent")), answer)
    keys = dstack(agent, clock)
    keys.startService()
    assert keys.stopService().called  # type: ignore[union-attr]
    assert not clock.getDelayedCalls()
    keys.startService()
    answer.addErrback(lambda failure: DstackError("network"))  # HTTP's own way to end when it is cancelled
    assert keys.stopService().called  # type: ignore[union-attr]
    assert not clock.getDelayedCalls()
    assert len(agent.paths) == 2


@pytest.mark.parametrize(
    ("wanted", "file", "agent", "source"),
    [
        ("auto", "f", True, "file"),
        ("auto", None, True, "dstack"),
        ("auto", None, False, "ephemeral"),
        ("ephemeral", "f", True, "ephemeral"),
        ("dstack", "f", False, "dstack"),
        ("file", "f", True, "file"),
    ],
)
def test_which_source(wanted: Any, file: str | None, agent: bool, source: Source) -> None:
    """``auto`` prefers what lasts."""
    assert key_source(wanted, file, agent) == source


@pytest.mark.parametrize(("wanted", "kind"), [("file", FileKeys), ("dstack", DstackKeys), ("ephemeral", EphemeralKeys)])
def test_the_holder_of_a_source(key_file: Path, wanted: Source, kind: type) -> None:
    """What the settings name is what is made."""
    agent = DstackAgent(Clock(), "/none", 1.0)
    assert type(key_holder(wanted, str(key_file), agent, 1, 0, Clock(), lambda: NOW)) is kind
