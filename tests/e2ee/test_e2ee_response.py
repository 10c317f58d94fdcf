"""Sealing a whole answer, and what may leave of it in clear."""

import json
import re
from typing import Any

import pytest
from exchange_factory import ALGOS, MARKER, MODEL, Client, exchange, policy, told
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.e2ee.allow_list import COVERED, SealContext, SealFailed
from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.fields import FieldOpener
from chutes_autopilot.e2ee.request_headers import SealedExchange, Uncovered
from chutes_autopilot.e2ee.response import (
    applied_headers,
    generic_upstream_error,
    operator_error,
    plain_headers,
    seal_completion,
)

EXCHANGE = exchange()
MINTED = re.compile("chatcmpl-[0-9a-f]{32}")
POLICIES: list[Uncovered] = ["reject", "drop", "clear"]
UNKNOWN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([MARKER, "", "x" + MARKER, 1.5]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([MARKER, "a", "text"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def context(sealed: SealedExchange | None = None, uncovered: Uncovered = "reject", model: str = MODEL) -> SealContext:
    return SealContext(sealed or exchange(), model, uncovered)


def answer(**members: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "hi"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "served/M", "choices": choices, **members}


def sealed_of(plain: Any, ctx: SealContext | None = None) -> dict[str, Any]:
    """The sealed answer, after making sure that it is compact ASCII."""
    body, id = seal_completion(plain if isinstance(plain, bytes) else json.dumps(plain).encode(), ctx or context())
    value: dict[str, Any] = json.loads(body)
    assert body == json.dumps(value, separators=(",", ":")).encode("ascii")
    assert value["id"] == id
    return value


def test_known_answers_are_sealed_as_they_are_known(vectors: dict[str, Any]) -> None:
    """The client opens the vectors' answers, and ours to the same texts with the same members in clear."""
    fixed = vectors["fixed"]
    for known in vectors["response_payloads"]:
        algo, version = known["algo"], int(known["version"])
        client = Client(exchange(algo, version))
        ours = sealed_of(known["plain"], context(exchange(algo, version), "clear"))
        theirs = known["encrypted"]
        assert list(client.texts(ours)) == [
            (i, name, choice["message"][name])
            for i, choice in enumerate(known["plain"]["choices"])
            for name in COVERED
            if name in choice["message"]
        ]
        client.opener = FieldOpener(algo, bytes.fromhex(fixed["client"][algo]["private"]))
        assert [text for _, _, text in client.texts(theirs)] == ["Hello", "because", ""]
        for one in (ours, theirs):
            for choice in one["choices"]:
                for name in COVERED:
                    choice["message"].pop(name, None)
        assert ours == theirs


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("version", [1, 2])
def test_the_client_opens_every_text(algo: Algo, version: int) -> None:
    """All covered members of all choices open by the choice's position, null stays, the empty text is sealed."""
    sealed = exchange(algo, version)
    texts = [{"content": "ö \u2028\U0001f600", "reasoning": "r"}, {"content": None, "reasoning_content": ""}]
    choices = [{"index": 7 - i, "message": {"role": "assistant", **text}} for i, text in enumerate(texts)]
    got = sealed_of(answer(choices=choices), context(sealed))
    assert list(Client(sealed).texts(got)) == [
        (0, "content", "ö \u2028\U0001f600"),
        (0, "reasoning", "r"),
        (1, "content", None),
        (1, "reasoning_content", ""),
    ]
    assert [choice["index"] for choice in got["choices"]] == [7, 6]


EMPTIES: list[Any] = [None, False, "", [], {}]
TEXTS: list[Any] = [MARKER, True, 0, 5, 1.5, [MARKER], [0], {"a": None}]

# place, name, values that stay, values that go
ALLOWED: list[tuple[str, str, list[Any], list[Any]]] = [
    ("top", "created", [1700000000, 0, 10**30], [None, "1", 1.5, True, MARKER]),
    (
        "top",
        "usage",
        [None, {}, {"total_tokens": 1, "cost": 0.5, "d": {"x": None, "y": {}}}],
        [MARKER, 5, [], "", False],
    ),
    ("top", "system_fingerprint", [None, "fp_1.2:a-B", "x" * 128], ["", "x" * 129, MARKER, 1, "ä", "a b", "a\n", []]),
    ("top", "service_tier", [None, "default"], [MARKER, {}, False, ""]),
    ("top", "prompt_token_ids", EMPTIES, TEXTS),
    ("top", "prompt_logprobs", EMPTIES, TEXTS),
    ("top", "content", EMPTIES, TEXTS),
    ("top", "error", EMPTIES, TEXTS),
    ("top", "Upper", [], [*EMPTIES, *TEXTS]),
    ("top", "with1", [], EMPTIES),
    ("top", "x" * 64, EMPTIES, []),
    ("top", "x" * 65, [], EMPTIES),
    ("top", "", [], EMPTIES),
    ("top", "name\n", [], EMPTIES),
    ("choice", "index", [0, -3, 10**20], [None, "0", True, 1.0, MARKER]),
    (
        "choice",
        "finish_reason",
        [None, "stop", "tool_calls", "x" * 32],
        ["", "x" * 33, "Stop", "a b", MARKER, 5, [], "a\n"],
    ),
    ("choice", "stop_reason", [None, 5, -1], ["", "stop", MARKER, True, False, 1.5, []]),
    ("choice", "text", EMPTIES, TEXTS),
    ("choice", "content", EMPTIES, TEXTS),
    ("choice", "delta", EMPTIES, [{"content": MARKER}]),
    ("choice", "token_ids", EMPTIES, TEXTS),
    ("choice", "logprobs", EMPTIES, [{"content": [{"token": MARKER}]}, MARKER]),
    ("message", "role", ["assistant", "x" * 16], [None, "", "x" * 17, "Assistant", "a b", MARKER, 5, "a\n"]),
    ("message", "tool_calls", EMPTIES, [[{"function": {"arguments": MARKER}}], MARKER]),
    ("message", "function_call", EMPTIES, [{"name": MARKER}]),
    ("message", "refusal", EMPTIES, [MARKER]),
    ("message", "audio", EMPTIES, [{"data": MARKER}]),
    ("message", "annotations", EMPTIES, [[{"text": MARKER}]]),
    ("message", "name", EMPTIES, TEXTS),
    ("message", "logprobs", EMPTIES, TEXTS),
    ("message", MARKER, [], EMPTIES),
]


def with_member(place: str, name: str, value: Any) -> dict[str, Any]:
    plain = answer()
    holder = {"top": plain, "choice": plain["choices"][0], "message": plain["choices"][0]["message"]}[place]
    holder[name] = value
    return plain


@pytest.mark.parametrize(
    ("place", "name", "stays", "goes"), ALLOWED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_only_what_is_allowed_leaves(place: str, name: str, stays: list[Any], goes: list[Any]) -> None:
    """Each member leaves with the values that can hold no text, unchanged, and with no other."""
    ctx = context()
    for value, well in [*((v, True) for v in stays), *((v, False) for v in goes)]:
        got = sealed_of(with_member(place, name, value), ctx)
        holder = {"top": got, "choice": got["choices"][0], "message": got["choices"][0]["message"]}[place]
        assert (name in holder) is well, value
        if well:
            assert repr(holder[name]) == repr(value)  # False is not 0
        assert MARKER not in json.dumps(got)


def test_strings_and_speaking_names_leave_no_usage() -> None:
    """Of a usage the numbers, nulls and objects of them remain."""
    usage = {"a": 1, "b_2": None, "c": "x", "d": {"e": 1.5, "f": MARKER, MARKER: {}}, "g": [1], "h": True, MARKER: 1}
    assert sealed_of(answer(usage=usage))["usage"] == {"a": 1, "b_2": None, "d": {"e": 1.5}}


@pytest.mark.parametrize("uncovered", POLICIES)
def test_uncovered_content_leaves_in_clear_only_where_that_is_set(uncovered: Uncovered) -> None:
    """Tool calls and their like are removed, but under ``clear``; annotations are removed always."""
    message = {
        "content": "hi",
        "tool_calls": [{"function": {"arguments": "ä"}}],
        "function_call": {"name": "f"},
        "refusal": "no",
        "audio": {"data": "AA=="},
    }
    logprobs = {"content": [{"token": "hi", "logprob": -0.5}]}
    plain = answer(choices=[{"message": {**message, "annotations": ["x"]}, "logprobs": logprobs}])
    choice = sealed_of(plain, context(uncovered=uncovered))["choices"][0]
    del choice["message"]["content"], message["content"]
    assert choice == ({"message": message, "logprobs": logprobs} if uncovered == "clear" else {"message": {}})


@pytest.mark.parametrize(("id", "well"), [("chatcmpl-1", True), ("aZ09._:-" * 16, True), ("x" * 129, False)])
@pytest.mark.parametrize(("model", "good"), [("served/M 1.0 (x)~", True), ("x" * 256, True), ("x" * 257, False)])
def test_id_and_model_are_those_of_the_answer(id: str, well: bool, model: str, good: bool) -> None:
    """What can hold no text is taken over and is in the associated data; else it is minted, or the request's."""
    sealed = exchange()
    got = sealed_of(answer(id=id, model=model, object="other"), context(sealed))
    assert got["id"] == id if well else MINTED.fullmatch(got["id"])
    assert got["model"] == (model if good else MODEL)
    assert got["object"] == "chat.completion"
    assert list(Client(sealed).texts(got)) == [(0, "content", "hi")]


@pytest.mark.parametrize("value", [None, "", 5, ["x"], {}, "a b|", "ä", "a\n", "a\x7f", MARKER])
def test_other_ids_and_models_do_not_leave(value: Any) -> None:
    """Another type, another character, or none at all: replaced."""
    got = sealed_of(answer(id=value, model=value), context(model="requested/ü"))
    assert MINTED.fullmatch(got["id"])
    assert got["model"] == "requested/ü"
    del (absent := answer())["id"], absent["model"]
    assert sealed_of(absent)["model"] == MODEL
    assert sealed_of(absent)["id"] != got["id"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"Top|Secret",
        b'{"choices":[{"message":{"content":"Top|Secret"}}]',
        b'{"choices":[{"message":{"content":"Top|Secret\xff"}}]}',
        b'{"choices":[{"message":{"content":"Top|Secret\\ud800"}}]}',
        b'{"choices":[],"x":NaN,"y":"Top|Secret"}',
        b'{"choices":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'["Top|Secret"]',
        b'"Top|Secret"',
        b"null",
        b'{"error":{"message":"Top|Secret"}}',
        *(json.dumps({"choices": choices}).encode() for choices in (None, {}, MARKER, [MARKER], [{}, None])),
        *(
            json.dumps({"choices": [{"message": {name: value}}]}).encode()
            for name in COVERED
            for value in (5, True, False, [], {}, [{"type": "text", "text": MARKER}], {"a": MARKER})
        ),
    ],
)
def test_what_cannot_be_sealed_fails_as_a_whole(body: bytes) -> None:
    """No JSON, no object, no choices, or a text of another type: one error that says nothing of the answer."""
    with pytest.raises(SealFailed) as caught:
        seal_completion(body, context())
    assert caught.value.code == "e2ee_encryption_failed"
    assert MARKER not in told(caught.value)


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["usage", "id", "model", "system_fingerprint", "x", MARKER]), UNKNOWN_VALUES),
    st.dictionaries(st.sampled_from(["delta", "text", "finish_reason", "logprobs", MARKER]), UNKNOWN_VALUES),
    st.dictionaries(st.sampled_from([*COVERED, "tool_calls", "refusal", "role", "y", MARKER]), UNKNOWN_VALUES),
    st.sampled_from(["reject", "drop"]),
)
def test_the_marker_never_leaves(
    top: dict[str, Any], choice: dict[str, Any], message: dict[str, Any], uncovered: Uncovered
) -> None:
    """Whatever an upstream puts where: its text is sealed, or gone, or nothing leaves at all."""
    body = json.dumps(answer(choices=[{**choice, "message": {"content": MARKER, **message}}], **top)).encode()
    failed = sealed = None
    try:
        sealed, _ = seal_completion(body, context(EXCHANGE, uncovered))
    except SealFailed as error:
        failed = error
    assert failed is None or MARKER not in told(failed)
    if sealed is not None:
        assert MARKER.encode() not in sealed
        texts = [text for _, name, text in Client(EXCHANGE).texts(json.loads(sealed)) if name == "content"]
        assert texts == [message.get("content", MARKER)]


def test_a_sealed_answer_says_how_it_is_sealed() -> None:
    """The headers of both kinds of answer, in both spellings of the algo."""
    expected = {
        b"Content-Type": b"application/json",
        b"Cache-Control": b"no-store",
        b"X-E2EE-Applied": b"true",
        b"X-E2EE-Version": b"1",
        b"X-E2EE-Alg": b"ecdsa",
        b"X-E2EE-Algo": b"ecdsa",
        b"X-E2EE-Uncovered": b"drop",
    }
    sealed, settings = exchange("ecdsa", 1), policy(uncovered="drop")
    assert dict(applied_headers(sealed, settings, False)) == expected
    assert dict(applied_headers(sealed, settings, True)) == expected | {
        b"Content-Type": b"text/event-stream; charset=utf-8",
        b"X-Accel-Buffering": b"no",
    }
    assert plain_headers() == [(b"X-E2EE-Applied", b"false")]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error":{"code":"context_length_exceeded","message":"Top|Secret"}}', "context_length_exceeded"),
        (b'{"error":{"code":400,"type":"invalid_request_error"}}', "invalid_request_error"),
        (b'{"error":{"code":"x","type":"rate_limit_exceeded"}}', "rate_limit_exceeded"),
        (b'{"error":{"code":"model_not_found","type":"insufficient_quota"}}', "model_not_found"),
        (b'{"error":{"code":"Model_not_found Top|Secret"}}', "upstream_404"),
        (b'{"error":{"code":["model_not_found"],"type":{"a":"Top|Secret"}}}', "upstream_404"),
        (b'{"error":"Top|Secret"}', "upstream_404"),
        (b'{"detail":"Top|Secret"}', "upstream_404"),
        (b"Top|Secret", "upstream_404"),
        (b"\xff", "upstream_404"),
        (b"", "upstream_404"),
        (b"[" * 100_000, "upstream_404"),
    ],
)
def test_upstream_errors_keep_status_and_a_known_code(body: bytes, code: str) -> None:
    """Nothing else of an upstream's error answer is passed on."""
    error = generic_upstream_error(404, body, None)
    assert (error.status, error.type, error.code, error.headers) == (404, "upstream_error", code, ())
    shown = json.loads(error.body())["error"]
    assert shown == {"message": error.message, "type": "upstream_error", "param": None, "code": code}
    assert MARKER not in told(error)


@pytest.mark.parametrize(
    ("value", "passes"),
    [(b"30", True), (b"Wed, 21 Oct 2026 07:28:00 GMT", False), (b"3 Top|Secret", False), (b"", False)],
)
def test_retry_after_passes_as_digits(value: bytes, passes: bool) -> None:
    """A delay can hold no text, a date and anything else might."""
    error = generic_upstream_error(429, b"", value)
    assert error.headers == (((b"Retry-After", value),) if passes else ())


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, (502, "chutes_upstream_auth")),
        (403, (502, "chutes_upstream_auth")),
        (402, (503, "chutes_upstream_quota")),
        (400, (400, "upstream_error")),
        (599, (599, "upstream_error")),
        (302, (502, "upstream_error")),
        (204, (502, "upstream_error")),
    ],
)
def test_what_concerns_the_operators_key_is_not_the_clients_fault(status: int, expected: tuple[int, str]) -> None:
    """401, 402 and 403 of the upstream are the service's own trouble; no answer has a status that is no error's."""
    error = generic_upstream_error(status, b'{"error":{"code":"invalid_request_error"}}', None)
    assert (error.status, error.type) == expected
    own = operator_error(status)
    assert (own.type if own else "upstream_error") == expected[1]
