"""Reading and rewriting a chat request's body."""

import json
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.errors import ApiError
from chutes_autopilot.wire.body import MAX_NESTING, read_chat_body

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def code_of(body: bytes) -> str:
    with pytest.raises(ApiError) as raised:
        read_chat_body(body)
    return raised.value.code


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"model":"x","a":1}', b'{"model":"new/M","a":1}'),
        (b'\n{ "a" : [1.50, {"model":"in"}],\t"model" :  "x\\"y" , "z":1e999 }\r\n', None),
        (b'{"mod\\u0065l":"x"}', b'{"mod\\u0065l":"new/M"}'),
        (b'{"a":"\\ud800","model":"x","b":["\\udc00"]}', b'{"a":"\\ud800","model":"new/M","b":["\\udc00"]}'),
        (b'{"a":1,"a":12,"model":"x","a":[1]}', b'{"a":1,"a":12,"model":"new/M","a":[1]}'),
        ('{"ä":"é","model":"x"}'.encode(), '{"ä":"é","model":"new/M"}'.encode()),
        (b'{"model":"x","n":' + b"9" * 5000 + b"}", b'{"model":"new/M","n":' + b"9" * 5000 + b"}"),
    ],
)
def test_only_the_bytes_of_the_model_value_change(before: bytes, after: bytes | None) -> None:
    """A new model is spliced in: spelling, order and white space of everything else stay."""
    if after is None:
        after = before.replace(b'"x\\"y"', b'"new/M"')
    assert b"".join(read_chat_body(before).with_model("new/M")) == after


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=6), st.text(), st.booleans(), st.sampled_from([None, 1]))
def test_rewriting_changes_model_and_nothing_else(
    members: dict[str, object], model: str, ascii_only: bool, indent: int | None
) -> None:
    """For any JSON object with a model, the rewritten body reads as the same object with the new model."""
    members = {**members, "model": model}
    body = read_chat_body(json.dumps(members, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace"))
    assert json.loads(b"".join(body.with_model("new/M"))) == {**json.loads(body.data), "model": "new/M"}
    assert body.model == json.loads(body.data)["model"]


@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0123456789abcdefntr.eE+- model\n', max_size=40).map(str.encode)
)
def test_no_bytes_do_worse_than_an_api_error(data: bytes) -> None:
    """Whatever is sent, the answer is a body or an ApiError, and what is accepted is what a strict reader accepts."""
    try:
        body = read_chat_body(data)
    except ApiError:
        return
    assert isinstance(json.loads(data, parse_constant=pytest.fail), dict)
    assert body.data is data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b'{"model":"x"} x',
        b'{"model":"x"}{}',
        b"\xef\xbb\xbf{}",
        '{"model":"x"}'.encode("utf-16"),
        b'{"model":"\xff"}',
        b'{"a":["\xc0\x80"]}',
        b'{"a":NaN}',
        b'{"a":[-Infinity]}',
        b'{"a":01}',
        b'{"a":"\x01"}',
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":"\\ud800"',
    ],
)
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    """RFC 8259: UTF-8, no NaN or Infinity, nothing after the value, no control characters in strings."""
    assert code_of(body) == "invalid_json"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'"model"',
        b"null",
        b"1",
        b'{"model":"a","model":"b"}',
        b'{"model":"a","x":1,"mod\\u0065l":"a"}',
        b'{"a":' + b"[" * MAX_NESTING + b"]" * MAX_NESTING + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"m","a":' * MAX_NESTING + b"{}" + b"}" * MAX_NESTING,
        b'{"a":' * MAX_NESTING + b"{}" + b"}" * MAX_NESTING,
        b'{"a":' * MAX_NESTING + b'{"a":"' + b"x" * 9000 + b'"}' + b"}" * MAX_NESTING,
    ],
)
def test_what_is_json_but_no_chat_body_is_refused(body: bytes) -> None:
    """Not an object, two models in any spelling, or nested too deeply."""
    assert code_of(body) == "invalid_body"


def test_the_deepest_allowed_nesting_passes() -> None:
    """Brackets within strings do not count as levels, and neither do many shallow ones."""
    deep = b"[" * (MAX_NESTING - 1) + b"]" * (MAX_NESTING - 1)
    body = b'{"s":"' + b"[{" * 300 + b'","w":[' + b"[]," * 300 + b'1],"a":' + deep + b"}"
    assert read_chat_body(body).data == body


@pytest.mark.parametrize(
    ("body", "stream", "cache_key"),
    [
        (b'{"stream":true,"prompt_cache_key":"k\\u00e9"}', True, "ké"),
        (b'{"stream":false}', False, ""),
        (b'{"stream":null,"prompt_cache_key":7}', False, ""),
        (b'{"stream":"true"}', False, ""),
        (b'{"stream":false,"stream":true}', True, ""),
        (b'{"messages":[{"stream":true,"prompt_cache_key":"x"}]}', False, ""),
    ],
)
def test_stream_and_prompt_cache_key_are_read_from_the_top_level(body: bytes, stream: bool, cache_key: str) -> None:
    """Only a literal true streams, only a string is a cache key, and of repeated keys the last one counts."""
    read = read_chat_body(body)
    assert (read.stream, read.prompt_cache_key) == (stream, cache_key)


def test_a_repeated_key_costs_no_more_than_its_bytes() -> None:
    """The last of many equal keys holds half of the body: it is compared with each of them, but not copied."""
    repeated = b'"x":[1],' * 60_000 + b'"x":"' + b"y" * 500_000 + b'"'
    before = process_time()
    read_chat_body(b"{" + repeated + b',"model":"a","m":{"model":"b"}}')
    assert process_time() - before < 1.0  # a tenth of it; copying would take several


@pytest.mark.parametrize(("body", "model"), [(b"{}", None), (b'{"model":null}', None), (b'{"model":7}', 7)])
def test_the_model_is_given_as_it_was_decoded(body: bytes, model: object) -> None:
    """Judging the value is not the reader's business."""
    assert read_chat_body(body).model == model
