"""Finding and opening a request's encrypted fields, and the plaintext body built of them."""

import json
import re
from typing import Any

import pytest
from exchange_factory import ALGOS, MARKER, MODEL, NOW, exchange, policy, sealed_text, told
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.fields import FieldSealer
from chutes_autopilot.e2ee.request import SealedRequest, prepare_request
from chutes_autopilot.e2ee.request_headers import SealedExchange
from chutes_autopilot.e2ee.server_keys import ServerKeys, keys_from_secrets
from chutes_autopilot.e2ee.structured_content import MAX_NESTING, structured_content
from chutes_autopilot.errors import ApiError

NOT_HEX = "not hex"


def chat(*contents: Any, **members: Any) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return json.dumps({"model": MODEL, "messages": messages, **members}).encode()


def prepare(body: bytes, sealed: SealedExchange | None = None, **changes: Any) -> SealedRequest:
    return prepare_request(body, sealed or exchange(), policy(**changes), NOW)


def opened(body: bytes, sealed: SealedExchange | None = None, **changes: Any) -> bytes:
    request = prepare(body, sealed, **changes)
    request.first()
    return request.rest()


def error(body: bytes, sealed: SealedExchange | None = None, **changes: Any) -> ApiError:
    """The error of any step, after making sure that it says nothing of the body."""
    with pytest.raises(ApiError) as caught:
        opened(body, sealed, **changes)
    if caught.value.code not in ("invalid_json", "invalid_body"):
        assert caught.value.type == caught.value.code
        assert MARKER not in told(caught.value)
    return caught.value


def known_exchange(vectors: dict[str, Any], known: dict[str, Any], version: int, ts: int = 0) -> SealedExchange:
    """An exchange of the vectors' server."""
    algo, fixed = known["algo"], vectors["fixed"]
    secrets = [bytes.fromhex(fixed["server"][a]["private"]) for a in ALGOS]
    server_key = ServerKeys(keys_from_secrets("v", *secrets)).current(algo)
    replay = (fixed["nonce"], ts or fixed["timestamp"]) if version == 2 else (None, None)
    return SealedExchange(algo, 2 if version == 2 else 1, *replay, server_key, exchange(algo).sealer)


def test_known_requests_open_to_their_known_bodies(vectors: dict[str, Any]) -> None:
    """Every request vector opens to exactly its plaintext, and says how many fields it had."""
    for known in vectors["request_payloads"]:
        request = prepare(
            json.dumps(known["encrypted"]).encode(), known_exchange(vectors, known, int(known["version"]))
        )
        assert (request.model, request.fields) == (known["encrypted"]["model"], 5)
        request.first()
        assert json.loads(request.rest()) == known["decrypted"]


def test_known_bad_fields_do_not_open(vectors: dict[str, Any]) -> None:
    """Every negative vector fails with its type, ours where we differ, wherever its associated data puts it."""
    for known in vectors["negative_fields"]:
        at = re.search(r"\|m=(\d)\|.*\|ts=(\d+)", known["aad"] or "")
        index, ts = (int(at[1]), int(at[2])) if at else (0, 0)
        messages: list[Any] = [{"content": None}] * index + [{"content": known["ciphertext_hex"]}]
        body = json.dumps({"model": vectors["fixed"]["model"], "messages": messages}).encode()
        sealed = known_exchange(vectors, known, 2 if at else 1, ts)
        expected = known.get("ours", {"type": known["original_error_type"]})["type"]
        assert error(body, sealed).type == expected, known["name"]


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("version", [1, 2])
def test_fields_open_in_document_order(algo: Algo, version: int) -> None:
    """`first` opens the first field only; `rest` the others and gives the whole body."""

    def seal(text: str, m: int, c: int | str = "-") -> str:
        return sealed_text(text, m, c, algo, version)

    parts = [
        {"type": "image_url", "image_url": {"url": "data:,x"}},
        {"type": "text", "text": seal("b", 1, 1).upper()},
        {"type": "input_text", "text": "clear"},
        {"type": "text", "text": seal("ö \u2028", 1, 3)},
    ]
    bad = seal("c", 2)
    bad = bad[:-1] + ("0" if bad[-1] != "0" else "1")
    for last, well in ((seal("", 2), True), (bad, False)):
        request = prepare(chat(seal("a", 0), parts, last), exchange(algo, version))
        assert request.fields == 4
        request.first()
        if not well:
            with pytest.raises(ApiError) as caught:
                request.rest()
            assert caught.value.code == "e2ee_decryption_failed"
            continue
        contents = [message["content"] for message in json.loads(request.rest())["messages"]]
        assert contents == [
            "a",
            [parts[0], {"type": "text", "text": "b"}, parts[2], {**parts[3], "text": "ö \u2028"}],
            "",
        ]
    with pytest.raises(ApiError):
        prepare(chat(bad, seal("x", 1)), exchange(algo, version)).first()


def test_a_field_opens_in_its_own_place_only() -> None:
    """In version 2 a ciphertext of another message, part, model or time does not open; in version 1 it does."""
    a, b = sealed_text("a", 0), sealed_text("b", 1)
    assert error(chat(b, a)).code == "e2ee_decryption_failed"
    assert error(chat([{"type": "text", "text": a}])).code == "e2ee_decryption_failed"
    assert error(chat(a).replace(MODEL.encode(), b"other")).code == "e2ee_decryption_failed"
    assert error(chat(sealed_text("a", version=1))).code == "e2ee_decryption_failed"
    body = opened(chat(sealed_text("b", 1, version=1)), exchange(version=1))
    assert json.loads(body)["messages"][0]["content"] == "b"


@pytest.mark.parametrize(
    "field",
    ["", "00", "04" * 46, "05" + "11" * 100, "ff" * 60, "00" * 60],
)
def test_whatever_does_not_open_is_one_error(field: str) -> None:
    """Too short, no point, no key, wrong tag: the same status, type and message for both algos."""
    messages = {error(chat(field), exchange(algo)).message for algo in ALGOS}
    assert messages == {"An encrypted field does not open."}


def test_a_text_that_is_not_utf_8_does_not_open() -> None:
    """A field with other bytes in it fails as any other, and its bytes stay where they are."""

    class Bytes(str):
        def encode(self, encoding: str = "", errors: str = "") -> bytes:
            return MARKER.encode() + b"\xff"

    sealed = exchange(version=1)
    field = FieldSealer(sealed.algo, sealed.server_key.public).seal(Bytes(), b"")
    assert error(chat(field), sealed).code == "e2ee_decryption_failed"


@pytest.mark.parametrize(
    "numbers",
    ["1e400", "-0", "-0.0", "0.10000000000000000055", "1.50", "1E+2", "123456789012345678901234567890", "9" * 5000],
)
def test_numbers_reach_the_upstream_as_they_were_spelled(numbers: str) -> None:
    """No number is read, so none comes out as another one, at whatever depth."""
    spelled = f'{{"a":[{numbers},{{"b":{numbers}}}]}}'.encode()
    sealed = sealed_text("x", 0, 1).encode()
    body = (
        b'{"temperature":%s,"model":"%s","metadata":%s,"messages":[{"n":%s,"content":[{"type":"x","y":%s},'
        b'{"z":%s,"type":"text","text":"%s"}]}]}'
    )
    n = numbers.encode()
    given = body % (n, MODEL.encode(), spelled, n, n, n, sealed)
    assert opened(given) == body % (n, MODEL.encode(), spelled, n, n, n, b"x")


def test_everything_but_the_texts_stays() -> None:
    """Members nobody decrypts are copied, in their order; of one given twice the last counts."""
    body = chat(sealed_text("x"), stop=["ab"], user="u", response_format={"type": "json_object"}, stream=True)
    expected = json.loads(body)
    expected["messages"][0] |= {"content": "x", "name": "n"}
    body = body.replace(b'"content"', b'"name": "n", "content": "ab", "content"')
    body = body.replace(b'"messages"', b'"messages": [{"content": "clear"}], "messages"')
    got = opened(body)
    assert json.loads(got) == expected
    assert list(json.loads(got)) == list(expected)
    assert b"clear" not in got


@pytest.mark.parametrize(
    ("given", "left"),
    [("[]", False), ("[ \n ]", False), ("null", True), ('[{"id":"c"}]', True), ("{}", True)],
)
def test_an_empty_list_of_tool_calls_goes(given: str, left: bool) -> None:
    """Model servers refuse ``tool_calls: []``; nothing else is taken away."""
    body = chat(None, sealed_text("x", 1)).replace(
        b'"content": null', f'"content": null, "tool_calls": {given}'.encode()
    )
    first = json.loads(opened(body))["messages"][0]
    expected = {"role": "user", "content": None}
    assert first == (expected | {"tool_calls": json.loads(given)} if left else expected)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b'{"model":"m","messages":[],"x":NaN}', "invalid_json"),
        (b'{"model":"m\xff"}', "invalid_json"),
        (b"[]", "invalid_body"),
        (b'{"model":"m","x":' + b"[" * 300 + b"]" * 300 + b"}", "invalid_body"),
        (b'{"model":"m","model":"m","messages":[]}', "invalid_body"),
        (b'{"messages":[{"content":"00"}]}', "invalid_e2ee_request"),
        *(
            (json.dumps({"model": model, "messages": [{"content": "00"}]}).encode(), "invalid_e2ee_request")
            for model in (None, "", 5, ["m"], "a|b", "a\nb", "a\x7fb", "a\x85b", "\ud800")
        ),
        (b'{"model":"m"}', "invalid_e2ee_request"),
        *(
            (json.dumps({"model": "m", "messages": messages}).encode(), "invalid_e2ee_request")
            for messages in (
                None,
                {},
                "x",
                [],
                [None],
                [{"content": "00"}, "x"],
                [{"role": "user"}],
                [{"content": None}, {"content": []}],
                [{"content": 5}],
                [{"content": True}],
                [{"content": {"type": "text", "text": "00"}}],
                [{"content": "00"}, {"content": ["00"]}],
                [{"content": [{"type": "text"}]}],
                [{"content": [{"type": "text", "text": None}]}],
                [{"content": [{"type": "text", "text": ["00"]}]}],
                [{"content": [{"type": "image_url", "image_url": {}}]}],
                [{"content": MARKER}],
                [{"content": "00"}, {"content": "0"}],
                [{"content": "00"}, {"content": "00 00"}],
                [{"content": "0x00"}],
                [{"content": "00\n"}],
                [{"content": "\u0661\u0661"}],
                [{"content": [{"type": "text", "text": MARKER}]}],
            )
        ),
        (b'{"model":"m","messages":[{"content":"00"}],"user":"\\ud800"}', "invalid_e2ee_request"),
    ],
)
def test_a_request_of_another_form_is_refused(body: bytes, code: str) -> None:
    """What is not a chat with encrypted fields gets its error before any key is used."""
    with pytest.raises(ApiError) as caught:
        prepare(body)
    assert caught.value.code == code
    assert caught.value.status == 400
    assert error(body).code == code


def test_escapes_hide_nothing() -> None:
    """Keys, types and hex are compared as what they mean."""
    sealed = sealed_text("x", 0, 0)
    escaped = f"\\u{ord(sealed[0]):04x}{sealed[1:]}"
    body = chat([{"type": "text", "text": sealed}]).decode()
    body = body.replace("content", "cont\\u0065nt").replace('"text"', '"t\\u0065xt"').replace(sealed, escaped)
    assert json.loads(opened(body.encode()))["messages"][0]["content"][0]["text"] == "x"


def test_the_number_of_fields_is_limited() -> None:
    """As many fields as are allowed pass, one more is 413."""
    field = sealed_text("x", version=1)
    parts = [{"type": "text", "text": field}] * 2
    assert prepare(chat(parts, field), max_fields=3).fields == 3
    for body in (chat(parts, parts), chat(field, field, field, field), chat(parts * 2)):
        refused = error(body, max_fields=3)
        assert (refused.status, refused.code) == (413, "e2ee_too_many_fields")


def test_the_time_is_judged_in_version_2() -> None:
    """A timestamp outside the window, or from before the claims, is refused; version 1 has none."""
    body = chat(sealed_text("x"))
    for now, not_before, well in (
        (300, None, True),
        (301, None, False),
        (-301, None, False),
        (0, NOW, True),
        (0, NOW + 1, False),
    ):
        if well:
            prepare_request(body, exchange(), policy(), NOW + now, not_before=not_before)
            continue
        with pytest.raises(ApiError) as caught:
            prepare_request(body, exchange(), policy(), NOW + now, not_before=not_before)
        assert caught.value.code == "e2ee_invalid_timestamp"
    prepare_request(body, exchange(version=1), policy(), NOW + 10_000, not_before=NOW + 1)


def test_the_checks_have_one_order() -> None:
    """Of several faults the earliest step answers: JSON, model, messages, uncovered, time, fields, their form."""
    faults: list[tuple[dict[str, Any], int, str]] = [
        ({"model": ""}, 0, "model"),
        ({"messages": 5}, 0, "messages"),
        ({"tools": [{}]}, 0, "e2ee_uncovered_field"),
        ({}, 1000, "e2ee_invalid_timestamp"),
        ({"messages": [{"content": "00"}] * 3}, 0, "e2ee_too_many_fields"),
    ]
    for start, (_, _, expected) in enumerate(faults):
        members: dict[str, Any] = {"model": MODEL, "messages": [{"content": NOT_HEX}]}
        late = 0
        for fault, seconds, _ in reversed(faults[start:]):
            members |= fault
            late = max(late, seconds)
        with pytest.raises(ApiError) as caught:
            prepare_request(json.dumps(members).encode(), exchange(), policy(max_fields=2), NOW + late)
        assert expected in (caught.value.code, caught.value.param)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{}], "tool_choice": "auto"}, "tools"),
        ({"tools": [{}], "tool_choice": "none"}, None),
        ({"tools": [{}], "function_call": "none"}, "tools"),
        ({"tools": [{}], "tool_choice": {"type": "function"}}, "tools"),
        ({"tools": {"a": 1}}, "tools"),
        ({"tools": []}, None),
        ({"tools": None, "functions": None}, None),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"functions": [{"name": "f"}], "function_call": "none"}, None),
        ({"functions": [{"name": "f"}], "tool_choice": "none"}, "functions"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0}, "logprobs"),
        ({"logprobs": False}, None),
        ({"logprobs": None}, None),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"top_logprobs": 0.5}, "top_logprobs"),
        ({"top_logprobs": "2"}, "top_logprobs"),
        ({"top_logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 0, "prompt_logprobs": 0.0}, None),
        ({"prompt_logprobs": 5}, "prompt_logprobs"),
        ({"prompt_logprobs": None}, None),
        ({"audio": {"voice": "v"}}, "audio"),
        ({"audio": None}, None),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"modalities": "audio"}, "modalities"),
        ({"modalities": 7}, "modalities"),
        ({"modalities": ["text"]}, None),
    ],
)
def test_asking_for_what_cannot_be_encrypted(members: dict[str, Any], param: str | None) -> None:
    """By default such a request is refused and told the member; under the other policies it is taken as it is."""
    body = chat(sealed_text("x"), **members)
    for uncovered in ("drop", "clear"):
        assert json.loads(opened(body, uncovered=uncovered)).items() >= members.items()
    if param is None:
        opened(body)
    else:
        refused = error(body)
        assert (refused.code, refused.param) == ("e2ee_uncovered_field", param)


def test_an_unreadable_number_of_logprobs_is_one() -> None:
    """A number that no float holds asks as any other."""
    body = chat(sealed_text("x"), top_logprobs=1).replace(b'"top_logprobs": 1', b'"top_logprobs": 1e999')
    assert error(body).param == "top_logprobs"


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ('[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"u"},"x":1e400}]', True),
        (' \n[ {"text":"cut \\ud83d", "type":"text"} ]\t', True),
        ('[{"type":"x","deep":' + "[" * (MAX_NESTING - 2) + "]" * (MAX_NESTING - 2) + "}]", True),
        ('[{"type":"x","deep":' + "[" * (MAX_NESTING - 1) + "]" * (MAX_NESTING - 1) + "}]", False),
        ('[{"type":"x","not deep":"' + "[{" * 50 + '\\"]"}]', True),
        ("[" * 100_000, False),
        ("[1, 2, 3]", False),
        ("[]", False),
        ("[ ]", False),
        ("[[]]", False),
        ('[{"type":"text"},{"text":"no type"}]', False),
        ('[{"type":1}]', False),
        ('[{"type":"text"}, "x"]', False),
        ('{"type":"text"}', False),
        ('[{"type":"text","x":NaN}]', False),
        ('[{"type":"text"}] and more', False),
        ('[{"type":"text"}', False),
        ('"[{}]"', False),
        ("", False),
        ("\u00a0[{}]", False),
    ],
)
def test_only_a_list_of_typed_objects_becomes_structured(text: str, is_list: bool) -> None:
    """A whole content that is such a list replaces the string, spelled as it came; all else stays the text it is."""
    body = opened(chat(sealed_text(text, version=1)), exchange(version=1))
    content = text.encode() if is_list else json.dumps(text, ensure_ascii=False).encode()
    assert body.endswith(b'"content":' + content + b"}]}")


def test_items_of_a_list_are_not_read_again() -> None:
    """A text in a content list that looks like a list stays a text."""
    text = '[{"type":"text","text":"x"}]'
    body = json.loads(opened(chat([{"type": "text", "text": sealed_text(text, 0, 0)}])))
    assert body["messages"][0]["content"][0]["text"] == text


@settings(deadline=None)
@given(
    st.text(alphabet='[]{}":,\\ntype u08d\U0001f600', max_size=60)
    | st.lists(
        st.dictionaries(st.sampled_from(["type", "a", ""]), st.text() | st.none() | st.lists(st.integers())), max_size=3
    ).map(json.dumps)
)
def test_structured_content_is_what_a_json_reader_finds(text: str) -> None:
    """Whatever is typed: it is a list if and only if a JSON reader finds typed objects in it."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    typed = isinstance(value, list) and bool(value)
    typed = typed and all(isinstance(item, dict) and isinstance(item.get("type"), str) for item in value)
    assert (structured_content(text) is not None) is typed


def test_nothing_of_a_request_is_in_its_repr() -> None:
    """Neither sealed nor opened does a request print its texts."""
    request = prepare(chat(sealed_text(MARKER), user="Someone"))
    request.first()
    request.rest()
    assert not re.search("Top|Someone|" + MODEL, repr(request))
