"""What a visitor asks of the merged models: which of them, in which order, and how many at once."""

from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias
from urllib.parse import quote, urlencode

from attrs import evolve, fields, frozen

from chutes_autopilot.explorer.kinds import KINDS
from chutes_autopilot.explorer.parameters import BadQuery as BadQuery
from chutes_autopilot.explorer.parameters import Parameters
from chutes_autopilot.explorer.prices import CACHED, INPUT, OUTPUT, TOKEN_PRICES
from chutes_autopilot.explorer.provenance import BLENDED, FIELDS
from chutes_autopilot.explorer.records import SOURCES

DEFAULT_LIMIT = 100
MAX_LIMIT = 5000
MAX_OFFSET = 1_000_000
MAX_SEARCH = 200
MAX_SORT_KEYS = 8

Tristate: TypeAlias = Literal["true", "false", "unknown"]
TRISTATE = ("true", "false", "unknown")
CONFLICTS = ("true", "false", "name", "tee", *TOKEN_PRICES)
"""Any conflict at all, none, or one on this field."""

SORT_KEYS: Mapping[str, str] = {
    "modality": "input_modalities",
    "price_input": INPUT,
    "price_output": OUTPUT,
    "price_cached": CACHED,
    "price_blended": BLENDED,
    "utilization": "utilization_current",
    "rate_limited": "rate_limit_ratio_5m",
    "instances": "active_instance_count",
    "requests": "total_requests_1h",
    "invocations": "invocation_count",
    **{field: field for field in FIELDS if field != "instances"},
}
"""What may be sorted by, with the field it is; besides some shorter names, every field by its own."""


@frozen
class SortKey:
    """One key to sort by; models without a value come last in both directions."""

    name: str
    descending: bool = False

    @property
    def field(self) -> str:
        """The merged models' field."""
        return SORT_KEYS[self.name]

    def __str__(self) -> str:
        return f"-{self.name}" if self.descending else self.name


@frozen
class Query:
    """Filters, order and page; each attribute is the URL parameter of its name.

    Of several values one is enough for what a model has one of (kind, template, quantization, owner, conflict), and
    all are needed of what it has several of (modality, feature, source).

    :param q: words, all of which must occur in names, ids, owner or tagline.
    :param modality: what comes in or goes out.
    :param template: ``other`` is a listed chute of none, as it is in the platform's own parameter.
    :param tee: ``true`` only where no source says otherwise.
    :param conflict: see CONFLICTS.
    :param context_min: tokens of context that are served.
    :param price_max: USD per 1M input tokens.
    """

    q: str = ""
    kind: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    feature: tuple[str, ...] = ()
    template: tuple[str, ...] = ()
    quantization: tuple[str, ...] = ()
    owner: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    conflict: tuple[str, ...] = ()
    tee: Tristate | None = None
    hot: Tristate | None = None
    context_min: int | None = None
    price_max: float | None = None
    sort: tuple[SortKey, ...] = ()
    limit: int | None = None
    offset: int = 0

    @property
    def parameters(self) -> tuple[tuple[str, str], ...]:
        """The query as URL parameters, in one spelling only."""
        given = ((field.name, getattr(self, field.name), field.default) for field in fields(Query))
        return tuple((name, _text(value)) for name, value, default in given if value != default)

    def href(self, path: str, *further: tuple[str, str]) -> str:
        """The query as an address on this site."""
        encoded = urlencode((*self.parameters, *further), safe=",/:", quote_via=quote)
        return f"{path}?{encoded}" if encoded else path


QUERY_PARAMETERS: tuple[str, ...] = tuple(field.name for field in fields(Query))
"""The names of all parameters."""


def read_query(given: Parameters, *, further: Collection[str] = ()) -> Query:
    """The query that URL parameters stand for.

    :param further: parameters that something else reads.
    :raises BadQuery: one of them cannot be understood, or is none.
    """
    given.refuse_others((*QUERY_PARAMETERS, *further))
    tee, hot = given.word("tee", TRISTATE), given.word("hot", TRISTATE)
    return Query(
        q=" ".join((given.text("q", longest=MAX_SEARCH) or "").split()),
        kind=given.words("kind", KINDS),
        modality=given.texts("modality"),
        feature=given.texts("feature"),
        template=given.texts("template"),
        quantization=given.texts("quantization"),
        owner=given.texts("owner"),
        source=given.words("source", SOURCES),
        conflict=given.words("conflict", CONFLICTS),
        tee=tee,  # type: ignore[arg-type]
        hot=hot,  # type: ignore[arg-type]
        context_min=given.integer("context_min", 0, 999_999_999),
        price_max=given.amount("price_max"),
        sort=_sort(given.texts("sort")),
        limit=given.integer("limit", 1, MAX_LIMIT),
        offset=given.integer("offset", 0, MAX_OFFSET) or 0,
    )


def _sort(given: tuple[str, ...]) -> tuple[SortKey, ...]:
    keys = tuple(SortKey(key.removeprefix("-"), key.startswith("-")) for key in given)
    if len(keys) > MAX_SORT_KEYS:
        raise BadQuery("sort", f"may have at most {MAX_SORT_KEYS} keys.")
    if any(key.name not in SORT_KEYS for key in keys):
        raise BadQuery("sort", "must be fields by commas, such as -requests,name: a minus is descending.")
    return keys


def links(query: Query, total: int, path: str, *further: tuple[str, str]) -> dict[str, str]:
    """Addresses of this page of the result and of those around it, by their relation (RFC 8288)."""
    limit = query.limit or DEFAULT_LIMIT
    last = (total - 1) // limit * limit if total else 0
    offsets = {"self": query.offset, "first": 0, "last": last}
    if query.offset > 0:
        offsets["prev"] = max(0, min(query.offset - limit, last))
    if query.offset + limit < total:
        offsets["next"] = query.offset + limit
    return {relation: evolve(query, offset=offset).href(path, *further) for relation, offset in offsets.items()}


def _text(value: object) -> str:
    match value:
        case tuple():
            return ",".join(map(str, value))
        case float():
            return f"{value:.9f}".rstrip("0").rstrip(".")
    return str(value)
