"""Aliases of the operator's own, from a file: a name that stands for another ``model`` value.

The file is one JSON object. Each value is a list of models in the order of preference, which may hold aliases of the
gateway (never of this file), or the parts of a composed alias::

    {
      "house/coder": ["org/big-TEE", "org/small-TEE", "chutesai/AutoPilot:tools"],
      "house/private": ":tee:ctx>=128k"
    }
"""

import json
import re
from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType
from typing import Any

from attrs import frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.aliases import ALIASES, EXAMPLES, read_composed_alias, read_parts
from chutes_autopilot.policy.feed_json import model_name

MAX_FILE_BYTES = 256 * 1024
"""The largest file that is read."""
MAX_ALIASES = 500
"""The most names it may define."""
MAX_ITEMS = 20
"""The most models one of them may list; the platform's own limit for its pools."""

_NAME = re.compile(r"[\x21-\x2b\x2d-\x39\x3b-\x7e]{1,64}")
_SPACE = " \t\n\r\f\v"
_THINKING = ":THINKING"
_ORDERINGS = (":latency", ":throughput")
_SHOWN_FAULTS = 20


class AliasesError(ValueError):
    """A file that cannot be used; the message names every faulty entry, at most 20 of them."""


@frozen
class OwnAliases:
    """The operator's aliases.

    :param by_name: name to the ``model`` values it stands for, in order; there is at least one.
    """

    by_name: Mapping[str, tuple[str, ...]]

    def expand(self, model: str, known: Set[str]) -> str:
        """A ``model`` value as it is told of, each of these aliases in it replaced; unchanged where it names none.

        Not to be read again: what stands at the end of a list of the client's own may hold for all of it.

        :param known: the catalog's names, which win.
        """
        if not self.by_name or model in known:
            return model
        if "," not in model:
            items, ordering = self.ordered(model.strip(_SPACE), known)
            if len(items) == 1:
                return _with_ordering(items[0], ordering)
            return ",".join(items) + ordering if items else model
        parts = [part.strip(_SPACE) for part in model.split(",")]
        expanded = [self.items(part, known) for part in parts]
        if not any(expanded):
            return model
        return ",".join(name for part, items in zip(parts, expanded, strict=True) for name in items or (part,))

    def items(self, name: str, known: Set[str], *, unordered: bool = False) -> tuple[str, ...]:
        """What an item of a list stands for; nothing where it is none of these aliases.

        A suffix behind it goes to each of its models, in the place of their own.

        :param known: the catalog's names, which win.
        :param unordered: without orderings of their own, as one stands behind it that holds for the whole list.
        """
        items, ordering = self.ordered(name, known)
        if unordered and not ordering:
            items = _without_orderings(items, known)
        return tuple(_with_ordering(item, ordering) for item in items)

    def ordered(self, name: str, known: Set[str]) -> tuple[tuple[str, ...], str]:
        """What a name stands for, and which of ``:latency`` and ``:throughput`` stands behind it, if any.

        ``:THINKING`` behind an alias goes to each of its models, and such an ordering takes the place of their own.

        :param known: the catalog's names, which win.
        :returns: no items where it is none of these aliases.
        """
        if not self.by_name:
            return (), ""
        plain, thinking, ordering = parted(name)
        if {name, plain + ordering, plain} & known:
            return (), ""
        items = self.by_name.get(plain, ())
        if thinking:
            items = tuple(item if item.endswith(_THINKING) else item + _THINKING for item in items)
        if ordering and items:
            items = _without_orderings(items, known)
        return items, ordering.lower() if items else ""


@frozen
class AliasFile:
    """A file of aliases as it was read: ALIASES_FILE."""

    path: str
    aliases: OwnAliases

    def __str__(self) -> str:
        return self.path


NO_ALIASES = OwnAliases(MappingProxyType({}))
"""What there is without a file."""


def read_alias_file(data: bytes) -> OwnAliases:
    """The aliases that the file's content defines.

    :raises AliasesError: names each faulty entry.
    """
    if len(data) > MAX_FILE_BYTES:
        raise AliasesError(f"has {len(data)} bytes; at most {MAX_FILE_BYTES} are allowed")
    try:
        pairs = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_Pairs)
    except UnicodeDecodeError as fault:
        raise AliasesError(f"is not UTF-8 (byte {fault.start})") from None
    except json.JSONDecodeError as fault:
        raise AliasesError(f"is not valid JSON: {fault.msg} (line {fault.lineno}, column {fault.colno})") from None
    except ValueError:
        raise AliasesError("holds a number of thousands of digits") from None
    except RecursionError:
        raise AliasesError("is nested too deeply") from None
    if not isinstance(pairs, _Pairs):
        raise AliasesError("must be one JSON object of names to lists or filters")
    if len(pairs) > MAX_ALIASES:
        raise AliasesError(f"defines {len(pairs)} aliases; at most {MAX_ALIASES} are allowed")
    names = [name for name, _ in pairs]
    by_name: dict[str, tuple[str, ...]] = {}
    faults = []
    for name, value in pairs:
        try:
            _check_name(name, repeated=name in by_name)
            by_name[name] = _read_value(value, set(names))
        except ValueError as fault:
            faults.append(f"{_quoted(name)} {fault}")
    if faults:
        more = len(faults) - _SHOWN_FAULTS
        raise AliasesError("; ".join(faults[:_SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else ""))
    return OwnAliases(MappingProxyType(by_name))


def parted(name: str) -> tuple[str, str, str]:
    """A name without its suffixes; then ``:THINKING``, and ``:latency`` or ``:throughput``, as written or empty."""
    plain = name.removesuffix(_THINKING)
    thinking = name[len(plain) :]
    length = next((len(suffix) for suffix in _ORDERINGS if plain.lower().endswith(suffix)), 0)
    cut = len(plain) - length
    return plain[:cut], thinking, plain[cut:]


def listed_names(own: OwnAliases = NO_ALIASES, known: Set[str] = frozenset()) -> tuple[str, ...]:
    """The aliases that GET /v1/models shows before the catalog: the bare one, one of each part, the operator's own.

    :param known: the catalog's names, which win and are not shown twice.
    """
    names = (ALIASES[0], *(f"{ALIASES[0]}:{part}" for part in EXAMPLES), *own.by_name)
    return tuple(name for name in names if name not in known)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its members, repeated ones too."""


def _check_name(name: str, *, repeated: bool) -> None:
    if repeated:
        raise ValueError("is defined twice")
    if not _NAME.fullmatch(name):
        raise ValueError("is no name: 1 to 64 printable ASCII characters without blanks, commas and colons")
    if name in ALIASES:
        raise ValueError("is the gateway's own alias")


def _read_value(value: object, names: Set[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        if not value.startswith(":"):
            raise ValueError(f'must be a list of models, or a filter that begins with a colon, like ":{EXAMPLES[0]}"')
        return (ALIASES[0] + read_parts(value).parts,)
    if isinstance(value, _Pairs) or not isinstance(value, list):
        raise ValueError("must be a list of models, or a filter in quotes")
    if not 1 <= len(value) <= MAX_ITEMS:
        raise ValueError(f"lists {len(value)} models; between 1 and {MAX_ITEMS} are allowed")
    items = tuple(_read_item(number, item, names) for number, item in enumerate(value, 1))
    if len(set(items)) < len(items):
        raise ValueError("lists a model twice")
    return items


def _read_item(number: int, item: object, names: Set[str]) -> str:
    if model_name(item) is None or not isinstance(item, str):
        raise ValueError(f"item {number} is no model name: 1 to 256 characters without control characters")
    if "," in item or item != item.strip(_SPACE):
        raise ValueError(f"item {number} ({_quoted(item)}) holds a comma or blanks around it, which no list can")
    if parted(item)[0] in names:
        raise ValueError(f"item {number} ({_quoted(item)}) is an alias of this file, which cannot be nested")
    try:
        composed = read_composed_alias(item, frozenset())
    except ApiError as fault:
        raise ValueError(f"item {number} ({_quoted(item)}): {fault.message.removeprefix('model: ')}") from None
    return composed.name if composed is not None else item


def _without_orderings(items: Iterable[str], known: Set[str]) -> tuple[str, ...]:
    """The items, none of them sent or ranked by such a suffix of its own; those that are then the same, once."""
    return tuple(dict.fromkeys(_without_ordering(item, known) for item in items))


def _without_ordering(item: str, known: Set[str]) -> str:
    plain, thinking, own = parted(item)
    if own and plain + own in known:
        plain += own
    if plain.partition(":")[0] in ALIASES:
        plain = plain.removesuffix(":fast")
    return plain + thinking


def _with_ordering(item: str, ordering: str) -> str:
    """An item that has none of its own, to be sent, or ranked, by such a suffix."""
    plain = item.removesuffix(_THINKING)
    return plain + ordering + item[len(plain) :]


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")
