"""Figures, lines, addresses and markup: the small parts of the page."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http import parse_qs

from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.address import FILTERS, Address
from chutes_autopilot.web.explorer.markup import element
from chutes_autopilot.web.explorer.static_files import accepts_gzip


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((0, "0"), (812.4, "812"), (999.9, "1k"), (14_200, "14.2k"), (99_960, "100k"), (131_072, "131k")),
        *((999_600, "1M"), (1_048_576, "1.05M"), (2.5e9, "2.5G")),
    ],
)
def test_counts_in_three_figures(value: float, said: str) -> None:
    """A count takes no more room than its unit needs."""
    assert figures.short(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.08, "0.08"), (0.010399999999999998, "0.0104"), (3, "3.00"), (0.00001, "1e-05"), (12345, "12,345"), (0, "0.00")],
)
def test_prices_as_short_as_is_exact(value: float, said: str) -> None:
    """Noise of floats is gone, and what costs something never reads as nothing."""
    assert figures.usd(value) == said


@given(st.floats(0, 1))
def test_a_share_that_is_not_zero_never_reads_as_zero(value: float) -> None:
    """Only nothing is 0%."""
    assert (figures.percent(value) == "0%") == (value == 0)


@given(st.lists(st.none() | st.floats(-1, 2), max_size=300))
def test_a_sparkline_stays_in_its_box_and_breaks_at_gaps(values: list[float | None]) -> None:
    """Whatever the values, the line is inside; each run of known values is one stroke."""
    line = re.findall(r' d="([^"]*)" class="line"', figures.sparkline(values))[0]
    for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", line):
        assert 0 <= float(x) <= 72
        assert 0 <= float(y) <= 18
    points = figures.thinned(values)
    runs = sum(point is not None and (n == 0 or points[n - 1] is None) for n, point in enumerate(points))
    assert line.count("M") == runs


@pytest.mark.parametrize("values", [[0.5], [None, 0.5, None], [None] * 47 + [0.5]])
def test_what_is_known_of_one_moment_only_is_seen(values: list[float | None]) -> None:
    """A point alone would have no length; it is a dash, within the box also at its right end."""
    (dash,) = re.findall(r' d="M([\d.]+) 9.0L([\d.]+) 9.0" class="line"', figures.sparkline(values))
    assert 0 <= float(dash[0]) < float(dash[1]) <= 72


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")))
def test_text_comes_back_as_it_went_in(value: str) -> None:
    """Any string is the same again once the markup is read, in an attribute and as content."""
    reader = _Texts()
    reader.feed(element("p", value, title=value))
    reader.close()
    assert reader.found == [("title", value)]
    assert "".join(reader.texts) == value


def test_attributes_that_are_not_there_are_not_written() -> None:
    """None and False leave an attribute out, True is its name alone."""
    assert element("input", type="text", checked=True, disabled=False, class_=None) == '<input type="text" checked>'


words = st.text(min_size=1, max_size=20).map(lambda s: s.strip().replace("\ufffd", "")).filter(bool)


@given(st.dictionaries(st.sampled_from(FILTERS), words.filter(lambda s: s.encode("utf-8", "ignore").decode() == s)))
def test_an_address_comes_back_from_its_own_link(filters: dict[str, str]) -> None:
    """The state is in the URL whole: what a link says is what is read from it."""
    address = Address("/").with_(**filters)
    path, _, query = address.href.partition("?")
    arguments = parse_qs(query.encode())
    assert Address.of(path, arguments) == address


def test_an_address_takes_only_what_it_knows() -> None:
    """Empty, unknown and oversized parameters are dropped; lists come by commas and by repetition."""
    given_arguments = {
        b"q": [b""],
        b"utm": [b"x"],
        b"owner": [b"x" * 300],
        b"compare": [b"a,b", b"b,c"],
        b"kind": [b"\xff"],
    }
    address = Address.of("/", given_arguments)
    assert address.all("compare") == ("a", "b", "c")
    assert [name for name, _ in address.parameters] == ["kind", "compare", "compare"]


@pytest.mark.parametrize(
    ("header", "takes"),
    [
        *((None, False), (b"gzip", True), (b"br, GZIP;q=0.1", True), (b"gzip;q=0", False), (b"gzip; q=0.0", False)),
        *((b"*", True), (b"identity", False), (b"x-gzip", False)),
    ],
)
def test_who_takes_gzip(header: bytes | None, takes: bool) -> None:
    """A weight of zero is a refusal."""
    assert accepts_gzip(header) is takes
