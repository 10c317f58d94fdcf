"""Names that are alike though no rule makes them equal: worth a suggestion, and bounded work whatever the names are."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher

from attrs import frozen

from chutes_autopilot.explorer.names import Guard, NameForms, rounded

THRESHOLD = 90.0
"""The score from which on two names are alike."""

MAX_BLOCK_PAIRS = 20_000
"""Pairs with one guard that are looked at; a block with more is left out as a whole."""

MAX_WORK = 50_000_000
"""Products of the lengths of compared strings in all, some seconds; a block that would go beyond is left out."""

_LEAST_RATIO = THRESHOLD / 100 - 0.0006
"""Below this no ratio can be rounded up to the threshold."""

Candidate = tuple[int, int, float]
"""Two places and the score of their names."""


@frozen
class _Prepared:
    """One name, ready for many comparisons.

    :param letters: one bit for each occurrence of each character, so that common bits are common characters.
    """

    place: int
    text: str
    letters: int


class _Block:
    """The names of one guard, on both sides."""

    def __init__(self) -> None:
        self.v1: list[_Prepared] = []
        self.chutes: list[_Prepared] = []
        self._bits: dict[tuple[str, int], int] = {}

    @property
    def pairs(self) -> int:
        return len(self.v1) * len(self.chutes)

    def prepare(self, place: int, text: str) -> _Prepared:
        letters = 0
        for letter, count in Counter(text).items():
            for number in range(count):
                letters |= 1 << self._bits.setdefault((letter, number), len(self._bits))
        return _Prepared(place, text, letters)

    def promising(self) -> list[tuple[str, str, int, int]]:
        """The pairs whose lengths and letters allow the score: texts in reverse order, and places."""
        found = []
        for a in self.v1:
            for b in self.chutes:
                if 2 * (a.letters & b.letters).bit_count() >= _LEAST_RATIO * (len(a.text) + len(b.text)):
                    second, first = (b.text, a.text) if a.text <= b.text else (a.text, b.text)
                    found.append((second, first, a.place, b.place))
        found.sort()
        return found


def _alike(pairs: list[tuple[str, str, int, int]]) -> Iterator[Candidate]:
    matcher, held = SequenceMatcher(None, autojunk=False), ""
    for second, first, v1, chutes in pairs:
        if second != held:  # what is worked out about the second text is kept for the next pair
            held = second
            matcher.set_seq2(second)
        matcher.set_seq1(first)
        likeness = rounded(matcher.ratio())
        if likeness >= THRESHOLD:
            yield v1, chutes, likeness


def _blocks(v1: Mapping[int, NameForms], chutes: Mapping[int, NameForms]) -> Iterator[_Block]:
    by_guard: dict[Guard, _Block] = defaultdict(_Block)
    # two names without a single token have nothing in common
    for place, form in v1.items():
        if form.ordered:
            block = by_guard[form.guard]
            block.v1.append(block.prepare(place, form.ordered))
    for place, form in chutes.items():
        if form.ordered and form.guard in by_guard:
            block = by_guard[form.guard]
            block.chutes.append(block.prepare(place, form.ordered))
    for _, block in sorted(by_guard.items()):
        yield block


def likeliest(v1: Mapping[int, NameForms], chutes: Mapping[int, NameForms]) -> tuple[tuple[Candidate, ...], int]:
    """Pairs of alike names, one-to-one, and how many pairs were too many to be compared.

    A name's best candidate must be unique; the better score goes first, then the names decide.
    """
    candidates: dict[int, list[Candidate]] = defaultdict(list)
    skipped, work = 0, 0
    for block in _blocks(v1, chutes):
        if block.pairs > MAX_BLOCK_PAIRS:
            skipped += block.pairs
            continue
        pairs = block.promising()
        cost = sum(len(first) * len(second) for second, first, _, _ in pairs)
        if work + cost > MAX_WORK:
            skipped += block.pairs
            continue
        work += cost
        for candidate in _alike(pairs):
            candidates[candidate[0]].append(candidate)
    proposals = []
    for mine in candidates.values():
        best = max(likeness for _, _, likeness in mine)
        winners = [candidate for candidate in mine if candidate[2] == best]
        if len(winners) == 1:
            proposals.extend(winners)
    proposals.sort(key=lambda found: (-found[2], v1[found[0]].name, chutes[found[1]].name, found[0], found[1]))
    taken: set[int] = set()
    pairs_found = []
    for found in proposals:
        if found[1] not in taken:
            taken.add(found[1])
            pairs_found.append(found)
    return tuple(pairs_found), skipped
