"""The table of refusals: what each answer of the API means for the nonces, the instance, the chute and the client."""

import json

import pytest

from chutes_autopilot.e2ee.chute_errors import CODES, TABLE, detail_of, judge


@pytest.mark.parametrize(
    ("status", "detail", "code", "then", "answer"),
    [
        (403, "Invalid or expired NONCE", "nonce_rejected", "same_chute", "no_session"),
        (403, "forbidden", "upstream_auth", "stop", "auth"),
        (401, "", "upstream_auth", "stop", "auth"),
        (402, "", "upstream_quota", "stop", "quota"),
        (429, "Quota exceeded", "upstream_quota", "stop", "rate_limit"),
        (429, "your balance is 0", "upstream_quota", "stop", "rate_limit"),
        (429, "Instance is at maximum capacity, try again later", "instance_full", "stop", "rate_limit"),
        (429, "Too many requests", "rate_limited", "stop", "rate_limit"),
        (404, "Instance not found", "instance_gone", "next_instance", "no_session"),
        (410, "Instance is no longer active", "instance_gone", "next_instance", "no_session"),
        (400, "Instance does not belong to the specified chute", "instance_gone", "next_instance", "no_session"),
        (404, "Chute not found", "chute_gone", "next_candidate", "no_session"),
        (404, "", "instance_failed", "next_instance", "failed"),
        (404, "Not Found", "instance_failed", "next_instance", "failed"),
        (503, "This chute is currently disabled.", "chute_disabled", "next_candidate", "no_session"),
        (400, "Non-streaming E2E requests require chutes >= 0.5.27 ...", "stream_only", "next_instance", "no_session"),
        (400, "Empty request body", "protocol", "stop", "protocol"),
        (422, "", "protocol", "stop", "protocol"),
        (400, "", "request_refused", "stop", "request"),
        (502, "Instance requires key exchange ...", "instance_gone", "next_instance", "no_session"),
        (500, "Internal error during E2E invocation", "instance_failed", "next_instance", "failed"),
        (502, "Instance returned status 500", "instance_failed", "next_instance", "failed"),
        (503, "", "instance_failed", "next_instance", "failed"),
        (302, "", "protocol", "stop", "protocol"),
    ],
)
def test_a_row(status: int, detail: str, code: str, then: str, answer: str) -> None:
    """As the transport's description has it, in any case of the letters."""
    for text in (detail, detail.upper()):
        refusal = judge(status, text)
        assert (refusal.code, refusal.then, refusal.answer) == (code, then, answer)


@pytest.mark.parametrize(
    ("status", "detail", "effects"),
    [
        (403, "nonce", {"drop": "answer"}),
        (404, "Instance not found", {"drop": "instance"}),
        (400, "does not belong", {"drop": "pool"}),
        (404, "Chute not found", {"drop": "pool", "refresh_catalog": True}),
        (503, "is currently disabled", {"chute_out": 60.0}),
        (400, "Non-streaming E2E requests require", {"stream_only": True}),
        (502, "key exchange", {"drop": "instance"}),
        (500, "", {"quarantine": 30.0, "only_once": True}),
        (429, "", {}),
    ],
)
def test_the_effects_of_a_row(status: int, detail: str, effects: dict[str, object]) -> None:
    """What is dropped or shut out for a while, and nothing else."""
    refusal = judge(status, detail)
    defaults = {"drop": "nothing", "only_once": False, "quarantine": 0.0, "chute_out": 0.0, "refresh_catalog": False}
    for name, default in {**defaults, "stream_only": False}.items():
        assert getattr(refusal, name) == effects.get(name, default)


def test_every_code_is_a_known_one() -> None:
    """They are labels of metrics: a closed set."""
    assert {refusal.code for _, _, refusal in TABLE} <= set(CODES)
    assert len(set(CODES)) == len(CODES)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (json.dumps({"detail": "Chute not found", "more": 1}).encode(), "Chute not found"),
        (b'{"detail": {"message": "x"}}', ""),
        (b'{"detail": null}', ""),
        (b"{}", ""),
        (b"[]", ""),
        (b"", ""),
        (b"\x00\xff gibberish", ""),
        (b"[" * 60_000, ""),
    ],
)
def test_the_detail_is_found_where_there_is_one(body: bytes, detail: str) -> None:
    """Errors of the model server come as bytes for somebody else."""
    assert detail_of(body) == detail
