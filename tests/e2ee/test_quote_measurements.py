import json
from typing import Any

import pytest

from chutes_autopilot.e2ee.measurements import MAX_ENTRIES, Measurements, MeasurementsError, read_measurements
from chutes_autopilot.e2ee.quote import QuoteRefused, parse_quote
from tests.e2ee.quote_factory import MEASUREMENTS, MRTD, RTMRS, machine

QUOTE = parse_quote(machine().quote().join())


def listed(*entries: Any, source: Any = "pinned") -> Measurements:
    return read_measurements(json.dumps(entries).encode(), source)


def entry(mrtd: bytes = MRTD, rtmrs: tuple[bytes, ...] = RTMRS, **changes: Any) -> dict[str, Any]:
    registers = {f"RTMR{number}": value.hex() for number, value in enumerate(rtmrs)}
    return {"mrtd": mrtd.hex(), "runtime_rtmrs": registers, "boot_rtmrs": {}} | changes


def test_one_entry_matches_whole() -> None:
    """MRTD and all four registers of the same entry, in hex of either case; its name is for people."""
    match = listed(*MEASUREMENTS).match(QUOTE)
    assert (match.name, match.mrtd, match.rtmrs) == ("tdx 2.0", MRTD, RTMRS)


@pytest.mark.parametrize("register", range(5))
def test_one_register_off_is_no_match(register: int) -> None:
    """Whichever of the five values differs, and although another entry has just that value."""
    right = [MRTD, *RTMRS]
    off, rest = ([b"\xee" * 48 if (i == register) is wrong else right[i] for i in range(5)] for wrong in (True, False))
    with pytest.raises(QuoteRefused, match="measurements"):
        listed(entry(off[0], tuple(off[1:])), entry(rest[0], tuple(rest[1:]))).match(QUOTE)


def test_the_registers_at_boot_do_not_count() -> None:
    """A match with boot_rtmrs alone is none."""
    registers = entry()["runtime_rtmrs"]
    with pytest.raises(QuoteRefused):
        listed(entry(rtmrs=(bytes(48),) * 4, boot_rtmrs=registers)).match(QUOTE)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (7, "entry 1: not an object"),
        (entry(mrtd=b"\1" * 47), "entry 1: mrtd is not 96 hexadecimal digits"),
        (entry(runtime_rtmrs=None), "entry 1: runtime_rtmrs is not an object"),
        (entry(rtmrs=RTMRS[:3]), "entry 1: runtime_rtmrs.RTMR3 is not 96 hexadecimal digits"),
        (entry() | {"mrtd": "zz" * 48}, "entry 1: mrtd is not 96 hexadecimal digits"),
        (entry() | {"mrtd": None}, "entry 1: mrtd is not 96 hexadecimal digits"),
    ],
)
def test_a_bad_entry_is_named_in_a_file_and_left_out_of_the_apis_list(bad: Any, text: str) -> None:
    """The operator hears what is wrong where; the API's other entries stay good."""
    with pytest.raises(MeasurementsError, match=text.replace(".", r"\.")):
        listed(entry(), bad)
    lenient = listed(bad, entry(), source="api")
    assert (len(lenient.entries), lenient.skipped, lenient.source) == (1, 1, "api")
    assert lenient.match(QUOTE)


@pytest.mark.parametrize("source", ["pinned", "api"])
@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"[" * 5000, b"\xff", json.dumps([0] * (MAX_ENTRIES + 1)).encode()]
)
def test_a_list_that_accepts_nothing_is_an_error(data: bytes, source: Any) -> None:
    """No JSON, no list, too long, or empty: told, instead of refusing everybody silently."""
    with pytest.raises(MeasurementsError):
        read_measurements(data, source)


def test_names_are_fit_for_a_log() -> None:
    """Control characters are replaced and long names cut."""
    assert listed(entry(name="a\nb" + "x" * 99, version=5)).match(QUOTE).name == ("a?b" + "x" * 99)[:64]
