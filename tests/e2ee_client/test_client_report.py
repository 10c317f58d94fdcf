"""What a report must show at each level of trust, and what is said of it."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quote_factory import MEASUREMENTS, NOW, machine
from scripted_gateway import bound_quote, report_data, report_of

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.measurements import read_measurements
from chutes_autopilot.e2ee.server_keys import ephemeral_keys
from chutes_autopilot.e2ee_client.errors import ReportRefused
from chutes_autopilot.e2ee_client.report import (
    TRUSTS,
    CheckedReport,
    Trust,
    TrustPolicy,
    check_report,
    new_report_nonce,
)

KEYS = ephemeral_keys()
NONCE = "5a" * 32
OTHER = "a5" * 32
DEBUG = b"\x01\x00\x00\x10" + bytes(4)


def quote_for(algo: Algo, nonce: str = NONCE, **changes: Any) -> bytes:
    return bound_quote(machine(), report_data(KEYS.current(algo), nonce), **changes)


def check(report: object, trust: Trust = "any", algo: Algo = "ed25519", **policy: Any) -> CheckedReport:
    how = TrustPolicy(trust, root_spki_sha256=machine().root_spki_sha256, **policy)
    return check_report(json.dumps(report).encode(), algo, NONCE, how, NOW)


def good(algo: Algo = "ed25519", quote: bytes | None = None, **changes: Any) -> dict[str, Any]:
    return report_of(KEYS.current(algo), NONCE, quote, **changes)


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
def test_a_quoted_key_passes_at_every_level(algo: Algo, trust: Trust) -> None:
    """A quote of a genuine machine that names key and nonce is enough for all that can be asked for."""
    checked = check(good(algo, quote_for(algo)), trust, algo)
    key = KEYS.current(algo)
    assert (checked.public, checked.address, checked.trust, checked.attested) == (key.public, key.address, trust, True)
    assert checked.wire_hex == key.wire_hex


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
def test_a_key_without_a_quote_passes_as_the_gateways_word_only(algo: Algo) -> None:
    """Where nothing attests the key it may be used by those who asked for no more, and this is said."""
    checked = check(good(algo), "any", algo)
    assert not checked.attested
    assert any("nothing was attested" in line for line in checked.lines())
    assert not any(line.startswith("checked") for line in checked.lines())
    for trust in ("bound", "quote"):
        with pytest.raises(ReportRefused, match="has no quote"):
            check(good(algo), trust, algo)


def test_no_more_is_said_than_was_checked() -> None:
    """Intel's signatures, debug mode and measurements are spoken of as checked at the level that checks them."""
    report = good(quote=quote_for("ed25519"))
    bound = "\n".join(check(report, "bound").lines())
    assert "anybody could have written it" in bound
    assert "checked: Intel" not in bound
    quoted = "\n".join(check(report, "quote").lines())
    assert "checked: Intel's signatures" in quoted
    assert "not checked: which software" in quoted
    pinned = read_measurements(json.dumps(MEASUREMENTS).encode(), "pinned")
    measured = check(report, "quote", measurements=pinned)
    assert measured.measured_as == "tdx 2.0"
    assert "pinned as 'tdx 2.0'" in "\n".join(measured.lines())
    debuggable = check(good(quote=quote_for("ed25519", td_attributes=DEBUG)), "bound")
    assert any("debug mode" in line for line in debuggable.lines())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("another algo", {"signing_algo": "ecdsa"}, "not about a key for ed25519"),
    ("no nonce", {"request_nonce": None}, "no request_nonce"),
    ("an old report", {"request_nonce": OTHER}, "does not answer our nonce"),
    ("no key", {"signing_public_key": None}, "no signing_public_key"),
    ("a key that is no hex", {"signing_public_key": "zz" * 32}, "public key is none"),
    ("a low-order key", {"signing_public_key": "00" * 32}, "public key is none"),
    ("another address", {"signing_address": "ab" * 32}, "not that of its public key"),
    ("an ended key", {"not_after": int(NOW)}, "no longer in use"),
    ("an end that is no time", {"not_after": "tomorrow"}, "not_after is no time"),
    ("an end that is a switch", {"not_after": True}, "not_after is no time"),
    ("attested without a quote", {"attested": True}, "has no quote, or the reverse"),
    ("a quote that is no hex", {"attested": True, "quote": "zz", "intel_quote": None}, "cannot be read"),
    ("a quote that is none", {"attested": True, "quote": "00" * 700, "intel_quote": None}, "cannot be read"),
    (
        "two quotes",
        {"attested": True, "quote": quote_for("ed25519").hex(), "intel_quote": quote_for("ed25519", OTHER).hex()},
        "two different quotes",
    ),
    (
        "a quote for another nonce",
        {"attested": True, "quote": quote_for("ed25519", OTHER).hex(), "intel_quote": None},
        "for another key or another nonce",
    ),
    (
        "a quote for another key",
        {"attested": True, "quote": quote_for("ecdsa").hex(), "intel_quote": None},
        "for another key or another nonce",
    ),
    ("a quote and no word of it", {"attested": False, "quote": quote_for("ed25519").hex()}, "or the reverse"),
]


@pytest.mark.parametrize(("changes", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_report_that_contradicts_itself_is_refused_at_every_level(changes: dict[str, Any], message: str) -> None:
    """Also by those who asked for nothing: what is there must fit."""
    with pytest.raises(ReportRefused, match=message):
        check(good() | changes)


def test_an_ecdsa_address_of_another_key_is_refused() -> None:
    """The quote binds 20 bytes of an address only, so the key itself is hashed and compared."""
    quote = quote_for("ecdsa")
    other = ephemeral_keys().current("ecdsa")
    with pytest.raises(ReportRefused, match="not that of its public key"):
        check(good("ecdsa", quote, signing_public_key=other.wire_hex), "bound", "ecdsa")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"td_attributes": DEBUG}, r"\(debug\)"),
        ({"signature": bytes(63) + b"\1"}, r"\(quote_signature\)"),
        ({"qe_changes": ((128, bytes(32)),)}, r"\(qe_identity\)"),
    ],
)
def test_a_quote_that_does_not_stand_is_refused_where_it_is_looked_at(changes: dict[str, Any], message: str) -> None:
    """At ``quote`` every signature and the debug bit count; at ``bound`` none of it was claimed."""
    report = good(quote=quote_for("ed25519", **changes))
    assert check(report, "bound").attested
    with pytest.raises(ReportRefused, match=message):
        check(report, "quote")


def test_a_quote_of_a_root_of_ones_own_is_refused() -> None:
    """Only Intel's root counts unless a program says otherwise."""
    report = json.dumps(good(quote=quote_for("ed25519"))).encode()
    with pytest.raises(ReportRefused, match=r"\(root\)"):
        check_report(report, "ed25519", NONCE, TrustPolicy("quote"), NOW)


def test_measurements_that_are_not_listed_are_refused() -> None:
    """A genuine trust domain that runs something else is none of ours."""
    pinned = read_measurements(json.dumps(MEASUREMENTS[:1]).encode(), "pinned")
    with pytest.raises(ReportRefused, match="not among those of the measurements file"):
        check(good(quote=quote_for("ed25519")), "quote", measurements=pinned)


@given(
    st.one_of(
        st.binary(), st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
    )
)
def test_what_is_no_report_is_refused(body: bytes) -> None:
    """Whatever comes, it is a refusal and never another error."""
    with pytest.raises(ReportRefused):
        check_report(body, "ed25519", NONCE, TrustPolicy(), NOW)


@given(
    st.dictionaries(
        st.sampled_from(sorted(good())),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.none()) | st.just({}),
        min_size=1,
    )
)
def test_members_of_any_kind_never_break_the_check(changes: dict[str, Any]) -> None:
    """A report with members replaced passes with the same key or is refused."""
    with suppress(ReportRefused):
        assert check(good() | changes).public == KEYS.current("ed25519").public


def test_every_call_has_a_nonce_of_its_own() -> None:
    """64 hex characters from the operating system."""
    nonces = {new_report_nonce() for _ in range(8)}
    assert len(nonces) == 8
    assert all(len(bytes.fromhex(nonce)) == 32 for nonce in nonces)
