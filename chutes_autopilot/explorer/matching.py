"""Which records of the two catalogs are one and the same model: by id, and by name only where an id is missing."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from attrs import define, field, frozen

from chutes_autopilot.explorer.fuzzy import likeliest
from chutes_autopilot.explorer.names import NameForms, forms_of, score

Rule = Literal["chute_id", "name", "casefold", "norm_org", "norm", "joined", "fuzzy"]
Fuzzy = Literal["off", "suggest", "apply"]
"""What to do with names that are only alike."""

RULES: tuple[Rule, ...] = ("chute_id", "name", "casefold", "norm_org", "norm", "joined", "fuzzy")
"""In the order in which they are tried, each on what the earlier ones left."""

_KEYS: tuple[tuple[Rule, Callable[[NameForms], str]], ...] = (
    ("name", lambda forms: forms.name),
    ("casefold", lambda forms: forms.casefold),
    ("norm_org", lambda forms: forms.norm_org),
    ("norm", lambda forms: forms.norm),
    ("joined", lambda forms: forms.joined),
)


class Named(Protocol):
    """What a record needs for the matching."""

    @property
    def name(self) -> str:
        """The name, from 1 character."""

    @property
    def chute_id(self) -> str | None:
        """The id in lower case, unique within its list; None where it is missing."""


@frozen
class Pair:
    """Two records found by a rule: their places in the two lists."""

    rule: Rule
    v1: int
    chutes: int


@frozen
class Suggestion:
    """Two records that may be one model, for a person to judge; they are not merged.

    :param score: how alike the names are, 0 to 100.
    :param blocked: both have ids, which differ; otherwise the names are only alike.
    """

    rule: Rule
    v1: int
    chutes: int
    score: float
    blocked: bool


@frozen
class Ambiguity:
    """A key that names more than one record of a list, so that nothing is joined by it; all its holders."""

    rule: Rule
    key: str
    v1: tuple[int, ...]
    chutes: tuple[int, ...]


@frozen
class Matching:
    """What was found; all numbers are places in the two lists.

    :param pairs: at most one for each record.
    :param id_conflicts: one name, two ids.
    :param fuzzy_pairs_skipped: pairs of names that were not compared because they were too many.
    """

    pairs: tuple[Pair, ...] = ()
    id_conflicts: tuple[Pair, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()
    ambiguous: tuple[Ambiguity, ...] = ()
    fuzzy_pairs_skipped: int = 0


@define(eq=False)
class _Search:
    v1: Sequence[Named]
    chutes: Sequence[Named]
    open_v1: set[int] = field(init=False)
    open_chutes: set[int] = field(init=False)
    pairs: list[Pair] = field(factory=list)
    id_conflicts: list[Pair] = field(factory=list)
    suggestions: list[Suggestion] = field(factory=list)
    ambiguous: list[Ambiguity] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.open_v1 = set(range(len(self.v1)))
        self.open_chutes = set(range(len(self.chutes)))

    def close(self, v1: int, chutes: int) -> None:
        self.open_v1.discard(v1)
        self.open_chutes.discard(chutes)

    def by_id(self) -> None:
        places = {record.chute_id: place for place, record in enumerate(self.chutes) if record.chute_id is not None}
        for place, record in enumerate(self.v1):
            other = places.get(record.chute_id) if record.chute_id is not None else None
            if other is not None:
                self.pairs.append(Pair("chute_id", place, other))
                self.close(place, other)

    def both_have_ids(self, v1: int, chutes: int) -> bool:
        return self.v1[v1].chute_id is not None and self.chutes[chutes].chute_id is not None

    def by_names(self) -> tuple[list[NameForms], list[NameForms]]:
        forms_v1 = [forms_of(record.name) for record in self.v1]
        forms_chutes = [forms_of(record.name) for record in self.chutes]
        told: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        for rule, key_of in _KEYS:
            holders_v1 = _holders(forms_v1, key_of)
            holders_chutes = _holders(forms_chutes, key_of)
            for key in holders_v1.keys() & holders_chutes.keys():
                v1, chutes = holders_v1[key], holders_chutes[key]
                left = (
                    tuple(place for place in v1 if place in self.open_v1),
                    tuple(place for place in chutes if place in self.open_chutes),
                )
                if not left[0] or not left[1]:
                    continue
                if len(v1) == len(chutes) == 1:
                    self._found(rule, forms_v1[v1[0]], forms_chutes[chutes[0]], v1[0], chutes[0])
                elif left not in told:
                    told.add(left)
                    self.ambiguous.append(Ambiguity(rule, key, tuple(v1), tuple(chutes)))
        for v1_places, chute_places in told:
            self.open_v1.difference_update(v1_places)
            self.open_chutes.difference_update(chute_places)
        return forms_v1, forms_chutes

    def _found(self, rule: Rule, form_v1: NameForms, form_chutes: NameForms, v1: int, chutes: int) -> None:
        self.close(v1, chutes)
        if not self.both_have_ids(v1, chutes):
            self.pairs.append(Pair(rule, v1, chutes))
        elif rule in ("name", "casefold"):
            self.id_conflicts.append(Pair(rule, v1, chutes))
        else:
            self.suggestions.append(Suggestion(rule, v1, chutes, score(form_v1, form_chutes), blocked=True))

    def by_likeness(self, forms_v1: list[NameForms], forms_chutes: list[NameForms], *, apply: bool) -> int:
        found, skipped = likeliest(
            {place: forms_v1[place] for place in sorted(self.open_v1)},
            {place: forms_chutes[place] for place in sorted(self.open_chutes)},
        )
        for v1, chutes, likeness in found:
            blocked = self.both_have_ids(v1, chutes)
            if apply and not blocked:
                self.pairs.append(Pair("fuzzy", v1, chutes))
            else:
                self.suggestions.append(Suggestion("fuzzy", v1, chutes, likeness, blocked))
        return skipped


def _holders(forms: Iterable[NameForms], key_of: Callable[[NameForms], str]) -> dict[str, list[int]]:
    holders: dict[str, list[int]] = defaultdict(list)
    for place, form in enumerate(forms):
        if key := key_of(form):
            holders[key].append(place)
    return holders


def match(v1: Sequence[Named], chutes: Sequence[Named], *, fuzzy: Fuzzy = "suggest") -> Matching:
    """Join the two lists. Equal ids join whatever the names say; nothing joins two records with different ids.

    A key of a name counts only if exactly one record of each whole list has it. The result does not depend on the
    order of the lists, but for records without id that have one and the same name. Time is linear but for names
    that are only alike (explorer/fuzzy.py); may run in a thread.
    """
    search = _Search(v1, chutes)
    search.by_id()
    skipped = 0
    if search.open_v1 and search.open_chutes:
        forms_v1, forms_chutes = search.by_names()
        if fuzzy != "off":
            skipped = search.by_likeness(forms_v1, forms_chutes, apply=fuzzy == "apply")
    return Matching(
        tuple(search.pairs),
        tuple(search.id_conflicts),
        tuple(search.suggestions),
        tuple(search.ambiguous),
        skipped,
    )
