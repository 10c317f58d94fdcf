"""Two replicas and a real Redis: what one knows, the other knows too, and what happens while Redis is away."""

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from loopback_peers import Gateway, ScriptedUpstream, StartGateway, answer
from redis_process import RedisLog, RedisProcess
from sealing_client import AS_ALICE, CHAT, echo, settings
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher

from chutes_autopilot import shared_composition
from chutes_autopilot.cli.keygen import keygen
from chutes_autopilot.storage import shared_sticky

ALIAS = "chutesai/AutoPilot"
ALICE, BOB = b"Authorization: Bearer alice", b"Authorization: Bearer bob"
SECRET = "the-secret-of-all-replicas"
BUSY = answer(b"busy", b"503 Service Unavailable")

Replicas = Callable[..., Awaitable[tuple[Gateway, ...]]]


@pytest.fixture(scope="module")
def redis_at() -> Iterator[tuple[RedisProcess, int]]:
    """One Redis for all tests here, each of which uses a database of its own, and its port."""
    with TemporaryDirectory(prefix="redis-") as directory, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.close()
        process = RedisProcess(Path(directory), "--port", str(port), "--bind", "127.0.0.1", "--databases", "64")
        process.start()
        yield process, port
        process.kill()


@pytest.fixture
def redis_log() -> Iterator[RedisLog]:
    from twisted.internet import reactor

    log = RedisLog(reactor)
    globalLogPublisher.addObserver(log)
    yield log
    globalLogPublisher.removeObserver(log)


_databases = iter(range(64))


@pytest.fixture
def replicas(start_gateway: StartGateway, redis_at: tuple[RedisProcess, int]) -> Replicas:
    """Starts so many gateways that share a database, and waits until they do."""
    url = f"redis://127.0.0.1:{redis_at[1]}/{next(_databases)}"

    async def start(count: int = 2, **environ: str) -> tuple[Gateway, ...]:
        shared = {"REDIS_URL": url, "CLIENT_KEY_SECRET": SECRET, "E2EE_REDIS_TIMEOUT_MS": "5000"}
        started = [await start_gateway(**{**shared, **environ}) for _ in range(count)]
        for each in started:
            await until(lambda each=each: says(each, b"ready"))
        return tuple(started)

    return start


async def says(gateway: Gateway, wanted: bytes) -> bool:
    return (await gateway.get("/readyz")).body == wanted


async def in_trouble(gateway: Gateway) -> bool:
    response = await gateway.get("/readyz")
    assert response.status == 200
    return response.body.startswith(b"ready; nothing is shared with other replicas: Redis: ")


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that comes by itself; the test's own time limit ends it."""
    from twisted.internet import reactor

    while not await holds():
        await deferLater(reactor, 0.005)


async def served_by(gateway: Gateway, *headers: bytes) -> str:
    response = await gateway.chat({"model": ALIAS}, *headers)
    assert response.status == 200
    return str(response.header("x-chutes-autopilot-selected"))


async def test_a_client_has_the_same_model_everywhere(scripted: ScriptedUpstream, replicas: Replicas) -> None:
    """Whichever replica it comes to, also when one of them has just sent it to another model; strangers are apart."""
    one, two, three = await replicas(3)
    scripted.scripts["a/A"] = BUSY
    assert await served_by(one, ALICE) == "b/B"
    del scripted.scripts["a/A"]
    assert [await served_by(each, ALICE) for each in (two, three, one)] == ["b/B"] * 3
    assert await served_by(two, BOB) == "a/A"
    scripted.scripts["a/A"] = scripted.scripts["b/B"] = BUSY
    assert await served_by(three, ALICE) == "c/C"
    scripted.scripts.clear()
    # the others hear of it on a connection of its own
    await until(lambda: moved(one))
    await until(lambda: moved(two))
    assert {await served_by(each, ALICE) for each in (one, two, three)} == {"c/C"}


async def moved(gateway: Gateway) -> bool:
    return await served_by(gateway, ALICE) == "c/C"


async def test_a_decision_is_found_at_the_other_replica(scripted: ScriptedUpstream, replicas: Replicas) -> None:
    """All of it but the number of the snapshot, by its client alone."""
    one, two = await replicas()
    scripted.scripts["a/A"] = BUSY
    await one.chat({"model": ALIAS}, ALICE, b"X-Request-Id: r1")
    here = json.loads((await one.get("/v1/autopilot/decisions/r1", ALICE)).body)

    async def found() -> bool:
        return (await two.get("/v1/autopilot/decisions/r1", ALICE)).status == 200

    await until(found)
    there = json.loads((await two.get("/v1/autopilot/decisions/r1", ALICE)).body)
    del here["snapshot"]
    assert there == here
    assert [attempt["model"] for attempt in there["attempts"]] == ["a/A", "b/B"]
    assert (await two.get("/v1/autopilot/decisions/r1", BOB)).status == 404


async def test_signature_and_receipt_are_found_at_the_other_replica(
    scripted: ScriptedUpstream, replicas: Replicas, tmp_path: Path
) -> None:
    """With the same keys both give the same, to the caller alone."""
    keygen([str(tmp_path / "keys.json")])
    scripted.scripts.update(dict.fromkeys(scripted.names, echo))
    keys = {"E2EE_KEY_SOURCE": "file", "E2EE_KEY_FILE": str(tmp_path / "keys.json")}
    one, two = await replicas(**settings(scripted.url, **keys))
    body = {"model": ALIAS, "messages": [{"role": "user", "content": "Hello"}]}
    assert (await one.chat(body, AS_ALICE, target=CHAT)).status == 200
    for path in ("/v1/signature/chatcmpl-1", "/v1/receipts/chatcmpl-1"):
        asked = path + "?signing_algo=ed25519"  # of which a signature is always the same
        here = json.loads((await one.get(asked, AS_ALICE)).body)

        async def found(asked: str = asked, here: dict[str, Any] = here) -> bool:
            return json.loads((await two.get(asked, AS_ALICE)).body) == here

        await until(found)
        assert (await two.get(path, b"Authorization: Bearer bob-token")).status == 404


async def test_a_model_that_fails_is_left_alone_everywhere(scripted: ScriptedUpstream, replicas: Replicas) -> None:
    """What one replica found failing no other tries first; when it works again there, it is tried everywhere."""
    one, two = await replicas(COOLDOWN_FAILURES="1", COOLDOWN_MS="300000")
    scripted.scripts["a/A"] = BUSY
    assert await served_by(one, ALICE) == "b/B"
    del scripted.scripts["a/A"]

    async def would_begin_with(model: str) -> bool:
        plan = json.loads((await two.chat({"model": ALIAS}, target=b"/v1/autopilot/route")).body)
        return plan["order"][0] == model

    await until(lambda: would_begin_with("b/B"))
    assert (await one.chat({"model": "a/A"})).status == 200  # asked for by its name, which nothing forbids
    await until(lambda: would_begin_with("a/A"))


async def test_one_replica_asks_the_platform(
    scripted: ScriptedUpstream, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed that one fetches renews the ranking of all; when that one stops, another goes on."""
    monkeypatch.setattr(shared_composition, "BEAT", 0.05)
    one, two = await replicas(UTILIZATION_REFRESH_MS="40")

    async def taken(gateway: Gateway) -> float:
        return (await gateway.metrics()).get('refresh_total{outcome="ok",source="utilization"}', 0)

    def fetched() -> int:
        return sum(head.startswith(b"GET /chutes/utilization ") for head in scripted.heads)

    async def since(count: int) -> bool:
        return fetched() >= count

    async def twos(count: float) -> bool:
        return await taken(two) >= count

    settled = fetched() + 3
    await until(lambda: since(settled))  # by then it is settled who asks
    before, fetches = (await taken(one), await taken(two)), fetched()
    await until(lambda: twos(before[1] + 6))
    counted = fetched() - fetches
    assert counted <= await taken(one) - before[0] + 2
    await maybeDeferred(one.service.stopService)
    more_of_two = fetched() + 3
    await until(lambda: since(more_of_two))


@asynccontextmanager
async def load(gateways: tuple[Gateway, ...]) -> AsyncIterator[list[int]]:
    """Clients old and new who ask all the time, each on a connection of its own, and the statuses they get."""
    statuses: list[int] = []
    over = False

    async def ask(gateway: Gateway, number: int) -> None:
        count = 0
        while not over:
            count += 1
            session = b"X-Session-Id: %d-%d" % (number, count // 4)
            statuses.append((await gateway.chat({"model": ALIAS}, session)).status)

    asking = [Deferred.fromCoroutine(ask(gateway, number)) for number, gateway in enumerate(gateways * 2)]
    try:
        yield statuses
    finally:
        over = True
        await gatherResults(asking)


async def test_redis_may_go_and_come_back(
    replicas: Replicas, redis_at: tuple[RedisProcess, int], redis_log: RedisLog
) -> None:
    """Under load no plain request fails; readyz says so and stays 200, the metrics too, the log in one line each."""
    redis, _ = redis_at
    (one,) = await replicas(1)
    redis_log.lines.clear()

    async with load((one,)) as statuses:
        assert (await one.metrics())["redis_up"] == 1
        redis.kill()
        await until(lambda: in_trouble(one))
        assert (await one.metrics())["redis_up"] == 0
        seen = len(statuses)
        await until(lambda: more(statuses, seen + 20))
        redis.start()
        await until(lambda: says(one, b"ready"))
        seen = len(statuses)
        await until(lambda: more(statuses, seen + 20))
    assert set(statuses) == {200}
    (lost, back) = redis_log.lines
    assert lost.startswith("Redis cannot be used: ")
    assert back == "Redis is connected"
    metrics = await one.metrics()
    assert metrics["redis_up"] == 1
    assert sum(value for name, value in metrics.items() if name.startswith("redis_errors_total")) > 0


async def more(statuses: list[int], count: int) -> bool:
    return len(statuses) >= count


async def test_a_redis_that_is_late_is_told_of_like_one_that_is_gone(
    replicas: Replicas, redis_at: tuple[RedisProcess, int], redis_log: RedisLog
) -> None:
    """By readyz, which stays 200, by the metrics and in the log; requests go on, and nothing has to be done later."""
    (one,) = await replicas(1, E2EE_REDIS_TIMEOUT_MS="300")
    redis_log.lines.clear()
    redis_at[0].pause()
    try:
        served = await served_by(one, ALICE)
        await until(lambda: in_trouble(one))
        assert await served_by(one, ALICE) == served
        metrics = await one.metrics()
    finally:
        redis_at[0].resume()
    assert (metrics["redis_up"], metrics['redis_errors_total{kind="timeout"}'] > 0) == (0, True)
    await until(lambda: says(one, b"ready"))
    assert redis_log.lines[0].startswith("Redis cannot be used: ")


async def test_a_redis_that_does_not_answer_keeps_nobody_long(
    scripted: ScriptedUpstream,
    replicas: Replicas,
    redis_at: tuple[RedisProcess, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new client waits a moment for what the others know, and is served without; one that leaves meanwhile costs no
    upstream a request."""
    (one,) = await replicas(1)

    async def counts(name: str, value: float) -> bool:
        return (await one.metrics()).get(name) == value

    redis_at[0].pause()
    try:
        assert await served_by(one, ALICE) == "a/A"
        monkeypatch.setattr(shared_sticky, "RECALL_SECONDS", 60.0)
        impatient = await one.connect()
        impatient.post(b'{"model": "%b"}' % ALIAS.encode(), BOB)
        await until(lambda: counts("requests_active", 1))
        impatient.transport.abortConnection()
        await until(lambda: counts('requests_total{status="499"}', 1))
    finally:
        redis_at[0].resume()
    assert [seen.model for seen in scripted.requests] == ["a/A"]
