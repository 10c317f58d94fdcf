"""What leaves the client: every text sealed, everything else as it was, or nothing at all."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed_exchange import MODEL, pair, seal

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee_client.errors import RequestRefused
from chutes_autopilot.e2ee_client.exchange import Exchange, Version
from chutes_autopilot.e2ee_client.sealing import read_chat_request

MARKER = "Marker-of-a-prompt"
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{MARKER}"}}


def body(*contents: Any, **members: Any) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return json.dumps({"model": MODEL, "messages": messages} | members).encode()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
def test_the_service_reads_what_the_program_sent(algo: Algo, version: Version) -> None:
    """Texts, whole lists with images, null and absent contents, in both versions and with both kinds of key."""
    of = pair(algo, version)
    messages = [
        {"role": "system", "content": MARKER},
        {"role": "user", "content": [{"type": "text", "text": MARKER}, IMAGE]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant"},
        {"role": "user", "content": []},
        {"role": "tool", "tool_call_id": "call-1", "content": ""},
    ]
    sent = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": 5, "stream_options": {"x": True}}
    sealed = seal(read_chat_request(json.dumps(sent).encode()), of)
    assert MARKER.encode() not in sealed
    expected = json.loads(json.dumps(sent))
    expected["messages"][2].pop("tool_calls")  # the service leaves an empty list of calls out
    assert of.opened_by_service(sealed) == expected


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_PARTS = st.lists(
    st.dictionaries(st.text(), _JSON, max_size=2).flatmap(
        lambda part: st.text().map(lambda kind: part | {"type": kind})
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60)
@given(st.lists(st.text() | _PARTS, min_size=1, max_size=4))
def test_any_content_arrives_as_it_was(contents: list[Any]) -> None:
    """Whatever Unicode and JSON a content is made of; the client's text is never taken for structure."""
    of = pair()
    arrived = of.opened_by_service(seal(read_chat_request(body(*contents)), of))
    assert [message["content"] for message in arrived["messages"]] == contents


@pytest.mark.parametrize("text", ['[{"type":"text","text":"x"}]', ' [{"type": "image_url"}] '])
def test_a_text_that_looks_like_a_list_arrives_as_text(text: str) -> None:
    """The service would take it for a list of parts, so it is sent as the one part of a list."""
    of = pair()
    arrived = of.opened_by_service(seal(read_chat_request(body(text)), of))
    assert arrived["messages"][0]["content"] == [{"type": "text", "text": text}]


def test_what_is_not_sealed_keeps_its_bytes() -> None:
    """Numbers above all: no parser in between gives them another spelling."""
    sent = (
        b'{"temperature": 0.70, "model": "m", "seed":123456789012345678901, "messages":[{"content":"x"}], "top_p":1e0}'
    )
    sealed = read_chat_request(sent).seal(pair().key.public, pair().client)
    assert sealed.startswith(b'{"temperature":0.70,"model":"m","seed":123456789012345678901,"messages":[{"content":"')
    assert sealed.endswith(b'"}],"top_p":1e0}')


def test_nothing_is_used_twice() -> None:
    """Each field has its own ephemeral key, each try its own nonce and its own key for the answer."""
    request = read_chat_request(body("same", "same"))
    fields, exchanges = [], []
    for _ in range(2):
        of = pair()
        exchanges.append(of.client)
        fields += [message["content"] for message in json.loads(seal(request, of))["messages"]]
    assert len({field[:64] for field in fields}) == 4
    assert len({e.nonce for e in exchanges}) == len({e.private for e in exchanges}) == 2


def test_no_key_or_text_is_in_a_repr() -> None:
    """What is printed by mistake holds neither the prompt nor the key of its answer."""
    exchange = Exchange.new("ed25519", 2, 0.0)
    shown = repr(exchange) + repr(exchange.opener()) + repr(read_chat_request(body(MARKER)))
    assert MARKER not in shown
    assert repr(exchange.private) not in shown
    assert exchange.private.hex() not in shown


UNCOVERED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"stop": ["END"]}, "stop"),
    ({"stop": "end"}, "stop"),
    ({"user": "somebody"}, "user"),
    ({"metadata": {"a": "b"}}, "metadata"),
    ({"prediction": {"type": "content", "content": MARKER}}, "prediction"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "A-B"}}}, "response_format"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"prompt_token_ids": [1, 2]}, "prompt_token_ids"),
    ({MARKER: True, "x": {MARKER: 1}}, "x"),
]


@pytest.mark.parametrize(("members", "name"), UNCOVERED, ids=[name for _, name in UNCOVERED])
def test_text_beside_the_contents_is_refused_unless_named(members: dict[str, Any], name: str) -> None:
    """What would go in clear goes only where the user said so."""
    with pytest.raises(RequestRefused) as refused:
        read_chat_request(body("x", **members))
    assert (refused.value.code, refused.value.param, refused.value.status) == ("e2ee_uncovered_field", name, 400)
    assert MARKER not in str(refused.value)
    assert read_chat_request(body("x", **members), frozenset({name})).texts == ((0, "x"),)


@pytest.mark.parametrize("tool_call", ["x y", "\u00e9", "x" * 129, ["call-1"]])
def test_what_is_no_id_of_a_call_is_refused_as_text(tool_call: object) -> None:
    """Ids alone may go in clear: whoever reads them learns nothing that is not in other ids."""
    sent = {"model": MODEL, "messages": [{"role": "tool", "tool_call_id": tool_call, "content": "x"}]}
    with pytest.raises(RequestRefused) as refused:
        read_chat_request(json.dumps(sent).encode())
    assert (refused.value.code, refused.value.param) == ("e2ee_uncovered_field", "messages.0.tool_call_id")
    assert read_chat_request(json.dumps(sent).encode(), frozenset({"tool_call_id"})).texts == ((0, "x"),)


@pytest.mark.parametrize("name", ["tool_calls", "reasoning_content", "refusal", "name", "audio"])
def test_text_in_a_message_is_refused_unless_named(name: str) -> None:
    """A history that repeats a model's calls or reasoning would show what was encrypted when it came."""
    message = {"role": "assistant", "content": "x", name: [{"id": MARKER}] if name == "tool_calls" else MARKER}
    sent = json.dumps({"model": MODEL, "messages": [message]}).encode()
    with pytest.raises(RequestRefused) as refused:
        read_chat_request(sent)
    assert refused.value.param == f"messages.0.{name}"
    assert MARKER not in str(refused.value)
    read_chat_request(sent, frozenset({name}))


def test_parameters_pass() -> None:
    """Numbers, switches and the API's own words are no text."""
    parameters = {
        "temperature": 0.5,
        "logprobs": False,
        "stop": None,
        "tools": [],
        "reasoning_effort": "high",
        "response_format": {"type": "json_object"},
        "modalities": ["text"],
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"enable_thinking": False},
        "user": "",
    }
    assert read_chat_request(body("x", **parameters)).model == MODEL


INVALID: list[tuple[bytes, str | None]] = [
    (b"", None),
    (b"[]", None),
    (b'{"model":"m"', None),
    (b'{"model":"m","messages":[{"content":"\\ud800"}]}', None),
    (b'{"model":"m","messages":[{"content":"\xff"}]}', None),
    (b'{"model":"m","temperature":NaN,"messages":[]}', None),
    (b"[" * 100_000, None),
    (b'{"messages":[{"content":"x"}]}', "model"),
    (b'{"model":1,"messages":[{"content":"x"}]}', "model"),
    (b'{"model":"","messages":[{"content":"x"}]}', "model"),
    (b'{"model":"a|b","messages":[{"content":"x"}]}', "model"),
    (b'{"model":"a\\nb","messages":[{"content":"x"}]}', "model"),
    (b'{"model":"m","stream":1,"messages":[{"content":"x"}]}', "stream"),
    (b'{"model":"m"}', "messages"),
    (b'{"model":"m","messages":{}}', "messages"),
    (b'{"model":"m","messages":["x"]}', "messages"),
    (b'{"model":"m","messages":[]}', "messages"),
    (b'{"model":"m","messages":[{"content":null}]}', "messages"),
    (b'{"model":"m","messages":[{"content":1}]}', "messages.0.content"),
    (b'{"model":"m","messages":[{"content":{}}]}', "messages.0.content"),
    (b'{"model":"m","messages":[{"content":["x"]}]}', "messages.0.content"),
    (b'{"model":"m","messages":[{"content":[{"type":1}]}]}', "messages.0.content"),
    (b'{"model":"m","messages":[{"content":[{"type":"x","y":' + b"[" * 40 + b"]" * 40 + b"}]}]}", "messages.0.content"),
]


@pytest.mark.parametrize(("sent", "param"), INVALID)
def test_what_cannot_be_sealed_whole_is_refused(sent: bytes, param: str | None) -> None:
    """A request that the service would refuse, or read otherwise, does not leave."""
    with pytest.raises(RequestRefused) as refused:
        read_chat_request(sent)
    assert (refused.value.code, refused.value.param) == ("invalid_e2ee_request", param)
