"""What encryption costs by itself: the CPU time of its single steps, in this process, without a socket."""

import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from statistics import median

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from chutes_autopilot.demo.chute_sealing import StreamSealing, outer_event
from chutes_autopilot.e2ee.allow_list import SealContext
from chutes_autopilot.e2ee.chute import ResponseSecret, Wishes, seal_request
from chutes_autopilot.e2ee.chute_stream import ChuteStreamOpener
from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.request import prepare_request
from chutes_autopilot.e2ee.request_headers import E2EEPolicy, SealedExchange, read_e2ee_headers
from chutes_autopilot.e2ee.server_keys import ServerKeys, ephemeral_keys
from chutes_autopilot.e2ee.stream import StreamSealer
from chutes_autopilot.e2ee_client.exchange import Exchange
from chutes_autopilot.e2ee_client.sealing import read_chat_request

MODEL = "vendor/Model"
FIELDS = 64
FIELD_TEXT = "p" * 1024
EVENTS = 500
BIG = 1024 * 1024
POLICY = E2EEPolicy(require=True, allow_v1=True, strict=True, uncovered="reject", max_fields=256, window=300, skew=30)

Cost = tuple[str, float]
"""What was done, and the CPU microseconds it took once."""


def costs(rounds: int) -> Iterator[Cost]:
    """Each step with the median of its rounds."""
    keys = ephemeral_keys()
    for algo in ("ecdsa", "ed25519"):
        yield f"check a request's headers and key, {algo}", _median(rounds, 50, lambda a=algo: _read_headers(a, keys))
    for algo in ("ecdsa", "ed25519"):
        yield f"open one {algo} field of 1 KB", _median(rounds, FIELDS, lambda a=algo: _open_fields(a, keys))
    for algo in ("ecdsa", "ed25519"):
        yield f"seal one event for the client, {algo}", _median(rounds, EVENTS, lambda a=algo: _seal_events(a, keys))
    key_text = b64encode(MLKEM768PrivateKey.generate().public_key().public_bytes_raw()).decode()
    for name, size in (("1 KB", 1024), ("1 MiB", BIG)):
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": _prose(size)}]}).encode()
        times = 20 if size == BIG else 200
        yield f"seal a request of {name} to the instance", _median(rounds, times, lambda b=body: _seal(key_text, b))
    yield "open one event of the instance (2 records)", _median(rounds, EVENTS, _open_records)


def _median(rounds: int, units: int, prepare: Callable[[], Callable[[], None]]) -> float:
    """CPU microseconds a unit; what ``prepare`` does is not measured, and its result is called once.

    A result that does a single unit is called for each of them.
    """
    taken = []
    for _ in range(rounds):
        work = prepare()
        calls = units if getattr(work, "single", False) else 1
        begun = time.process_time()
        for _ in range(calls):
            work()
        taken.append((time.process_time() - begun) / units * 1e6)
    return median(taken)


def exchange_of(algo: Algo, keys: ServerKeys) -> tuple[Exchange, SealedExchange]:
    """An exchange as the client and as the service has it."""
    client = Exchange.new(algo, 2, time.time())
    key = keys.current(algo)
    values = {name.lower(): [value] for name, value in client.headers(key.wire_hex)}
    service = read_e2ee_headers(values, keys, POLICY, time.time())
    assert service is not None
    return client, service


def _read_headers(algo: Algo, keys: ServerKeys) -> Callable[[], None]:
    client = Exchange.new(algo, 2, time.time())
    values = {name.lower(): [value] for name, value in client.headers(keys.current(algo).wire_hex)}

    def work() -> None:
        read_e2ee_headers(values, keys, POLICY, time.time())

    work.single = True  # type: ignore[attr-defined]
    return work


def _open_fields(algo: Algo, keys: ServerKeys) -> Callable[[], None]:
    client, service = exchange_of(algo, keys)
    messages = [{"role": "user", "content": FIELD_TEXT}] * FIELDS
    body = json.dumps({"model": MODEL, "messages": messages}).encode()
    sealed = read_chat_request(body).seal(keys.current(algo).public, client)

    def work() -> None:
        request = prepare_request(sealed, service, POLICY, time.time())
        request.first()
        request.rest()

    return work


def _seal_events(algo: Algo, keys: ServerKeys) -> Callable[[], None]:
    _, service = exchange_of(algo, keys)
    sealer = StreamSealer(SealContext(service, MODEL, "reject"), max_event_bytes=BIG)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    choice = {"index": 0, "delta": {"content": " token"}, "finish_reason": None}
    event = b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"

    def work() -> None:
        for _ in range(EVENTS):
            sealer.feed(event)

    return work


def _seal(key_text: str, body: bytes) -> Callable[[], None]:
    def work() -> None:
        seal_request(key_text, body, MODEL)

    work.single = True  # type: ignore[attr-defined]
    return work


def _open_records() -> Callable[[], None]:
    private = MLKEM768PrivateKey.generate()
    sealing = StreamSealing(private.public_key())
    wishes = Wishes(stream=True, usage=False, continuous_usage=False)
    opener = ChuteStreamOpener(ResponseSecret(private), wishes, max_event_bytes=BIG, max_records=BIG)
    opener.feed(outer_event("e2e_init", sealing.ciphertext))
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    events = []
    for tokens in range(EVENTS):
        choice = {"index": 0, "delta": {"content": " token"}, "finish_reason": None}
        chunk = {**head, "choices": [choice], "usage": {"completion_tokens": tokens}}
        lines = (b"data: " + json.dumps(chunk).encode() + b"\n", b"\n")
        events.append(b"".join(outer_event("e2e", sealing.record(line)) for line in lines))

    def work() -> None:
        for event in events:
            opener.feed(event)

    return work


def _prose(size: int) -> str:
    """Text that gzip finds as hard as it does prose."""
    words = [f"word{number * 7919 % 10007}" for number in range(size // 7)]
    return " ".join(words)[:size]
