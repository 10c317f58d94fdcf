"""What the request's ``model`` asks for: the ranked list, a list of the client's own, or one model.

Resolution order, first that fits: an exact catalog name (names may hold commas and colons), one of the aliases, a list
(there is a comma), one model. An alias may say what kind of model is wanted (policy.aliases), and ``:latency`` or
``:throughput`` at the end of a list orders it by own measurements. The platform's own suffixes are understood, never
invented: ``:latency`` and ``:throughput`` in any case, ``:THINKING`` in upper case at the very end, in the order
``a:latency:THINKING``.
"""

import re
from collections.abc import Iterable, Sequence, Set
from difflib import get_close_matches
from heapq import nlargest
from itertools import islice
from typing import Literal

from attrs import evolve, frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.alias_file import NO_ALIASES, OwnAliases
from chutes_autopilot.policy.aliases import ALIASES, ANY, Order, Wanted, read_composed_alias

MAX_MODEL_LENGTH = 1024
"""Characters of the longest ``model`` that is read."""

# C0, DEL and C1 controls; a lone surrogate cannot be encoded for the upstream
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
_THINKING = ":THINKING"
_ORDERINGS = (":latency", ":throughput")
_ASCII_SPACE = " \t\n\r\f\v"
# no model of that name need exist: it is the alias under which the platform's web page keeps a user's own pool
_USER_POOL = "default"

_SUGGESTED_FOR = 8
_SEARCHED_NAMES = 1000
_COMPARED_NAMES = 12
_COMPARED_LENGTH = 100


@frozen
class Alias:
    """The ranked list, narrowed to what is wanted, each of its models to be sent with ``suffix`` (or ``:THINKING``)."""

    suffix: str = ""
    wanted: Wanted = ANY


@frozen
class Direct:
    """One model by name: ``model`` is what goes upstream, ``base`` the same without the platform's suffixes."""

    model: str
    base: str


@frozen
class PreferenceList:
    """The client's own order: between one and ``max_items`` different items; an alias stands for the ranked list.

    :param order: by own measurements, what is not measured in the client's order; empty: the client's.
    """

    items: tuple[Direct | Alias, ...]
    order: Order = ""


ModelField = Alias | Direct | PreferenceList


def check_model_value(value: object) -> str:
    """Refuse what can never be a model name, before anything is looked up.

    :param value: the decoded JSON value of ``model``, None where it is absent or null.
    :raises ApiError: missing_model; invalid_model for what is not a string, blank, too long or unprintable.
    """
    if value is None:
        raise ApiError("missing_model", f'model is missing: name a model, or "{ALIASES[0]}".', param="model")
    if not isinstance(value, str):
        raise _invalid("must be a string")
    if len(value) > MAX_MODEL_LENGTH:
        raise _invalid(f"has {len(value)} characters; at most {MAX_MODEL_LENGTH} are allowed")
    if not value.strip():
        raise _invalid("is blank")
    if _UNPRINTABLE.search(value):
        raise _invalid("must not hold control characters or lone surrogates")
    return value


def base_of(model: str, known: Set[str]) -> str:
    """The name by which a model is remembered and counted: without suffixes, unless the catalog lists it with them."""
    if model in known:
        return model
    plain = model.removesuffix(_THINKING)
    if plain in known:
        return plain
    for ordering in _ORDERINGS:
        if plain.lower().endswith(ordering):
            plain = plain[: -len(ordering)]
            break
    return plain or model


def read_model_field(
    model: str,
    known: Set[str],
    *,
    max_items: int,
    unknown: Literal["refuse", "pass"],
    own: OwnAliases = NO_ALIASES,
) -> ModelField:
    """Tell what a checked ``model`` value asks for.

    :param model: what check_model_value returned.
    :param known: the catalog's names; with none of them nothing is validated.
    :param max_items: the longest list, counted as it is written after empties and repetitions are dropped.
    :param unknown: whether names outside the catalog are refused or passed to the upstream.
    :param own: the operator's aliases. What one stands for is read item by item, and takes its place, as one item of
        the list; a suffix of its last item is no suffix of the list.
    :raises ApiError: invalid_model_list, unknown_model.
    """
    if model in known:
        return Direct(model, model)
    items, ordering = own.ordered(model.strip(_ASCII_SPACE), known)
    if items:
        field: ModelField = _listed(items, known, _order(ordering))
    elif "," not in model:
        field = _read_item(model, known)
    elif base_of(model, known) in known:
        field = Direct(model, base_of(model, known))
    else:
        field = _read_list(model, known, max_items, own)
    if known and unknown == "refuse":
        asked = field.items if isinstance(field, PreferenceList) else (field,)
        strange = [i for i in asked if isinstance(i, Direct) and i.base not in known and i.base != _USER_POOL]
        if strange:
            raise _unknown_models(strange, known)
    return field


def _read_item(model: str, known: Set[str]) -> Alias | Direct:
    composed = read_composed_alias(model, known)
    if composed is not None:
        return Alias(composed.suffix, composed.wanted)
    base = base_of(model, known)
    suffix = model[len(base) :]
    if base in ALIASES and base not in known and suffix in ("", _THINKING):
        return Alias(suffix)
    return Direct(model, base)


def _listed(names: Sequence[str], known: Set[str], order: Order) -> Alias | PreferenceList:
    """What an alias of the operator's stands for; one model is a list, for its name has to be written into the body.

    :param order: what the client asks for.
    """
    if len(names) == 1 and isinstance(item := _read_item(names[0], known), Alias):
        return evolve(item, wanted=item.wanted & Wanted(order=order))
    return PreferenceList(_items(names, known), order)


def _read_list(text: str, known: Set[str], max_items: int, own: OwnAliases) -> PreferenceList:
    text = text.strip(_ASCII_SPACE)
    suffix = ""
    if text.endswith(_THINKING) and _last_item(text) not in known:
        text, suffix = text.removesuffix(_THINKING), _THINKING
    order: Order = ""
    last = _last_item(text)
    if last.lower().endswith(_ORDERINGS) and last not in known:
        text, _, word = text.rpartition(":")
        order = _order(":" + word.lower())
    names = [name for part in text.split(",") if (name := part.strip(_ASCII_SPACE))]
    if suffix:
        names = [n if n.endswith(suffix) and n not in known else n + suffix for n in names]
    meant = {name: own.items(name, known) for name in names}
    if order and names:  # which stands behind the last of them
        meant[names[-1]] = own.items(names[-1], known, unordered=True)
    written = len({name if items else _read_item(name, known) for name, items in meant.items()})
    if not 1 <= written <= max_items:
        raise ApiError(
            "invalid_model_list",
            f"The list in model names {written} different models; between 1 and {max_items} are allowed.",
            param="model",
        )
    return PreferenceList(_items([item for name in names for item in meant[name] or (name,)], known), order)


def _items(names: Sequence[str], known: Set[str]) -> tuple[Direct | Alias, ...]:
    # the two spellings of the alias are one item: they read as equal values
    return tuple(dict.fromkeys(_read_item(name, known) for name in names))


def _order(ordering: str) -> Order:
    return "throughput" if ordering == ":throughput" else "fast" if ordering else ""


def _last_item(text: str) -> str:
    return text.rpartition(",")[2].strip(_ASCII_SPACE)


def _invalid(fault: str) -> ApiError:
    return ApiError("invalid_model", f'model {fault}: name a model, or "{ALIASES[0]}".', param="model")


def _unknown_models(strange: list[Direct], known: Set[str]) -> ApiError:
    parts = []
    for number, item in enumerate(strange):
        close = _close_names(item.base, known) if number < _SUGGESTED_FOR else []
        hint = " (did you mean {}?)".format(" or ".join(f'"{name}"' for name in close)) if close else ""
        parts.append(f'"{item.model}"{hint}')
    noun = "Unknown model" if len(parts) == 1 else "Unknown models"
    return ApiError("unknown_model", f"{noun} {', '.join(parts)}. GET /v1/models lists all names.", param="model")


def _close_names(name: str, known: Set[str]) -> list[str]:
    """The catalog names most like an unknown one, best first, in a bounded time.

    A full comparison takes some 50 us, which a thousand names and a hostile list would turn into a blocked reactor; so
    counting the word's pieces, 20 times cheaper, picks the few that are compared.
    """
    word = name.lower()
    if len(word) > _COMPARED_LENGTH:
        return []
    pieces = [word[i : i + 3] for i in range(0, max(1, len(word) - 2), 1 + len(word) // 25)]
    pool: Iterable[str] = (*islice(known, _SEARCHED_NAMES), *ALIASES)
    lowered = {candidate.lower(): candidate for candidate in pool if len(candidate) <= _COMPARED_LENGTH}
    likely = nlargest(_COMPARED_NAMES, lowered, key=lambda other: (sum(piece in other for piece in pieces), other))
    close = get_close_matches(word, likely, n=3, cutoff=0.55)
    if not close and len(word) > 2:
        close = [other for other in likely if word in other][:3]
    return [lowered[match] for match in close]
