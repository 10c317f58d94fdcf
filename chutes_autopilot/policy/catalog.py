"""The catalog of models that the platform lists: the allowlist of what may be asked for."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from attrs import field, frozen

from chutes_autopilot.policy.feed_json import (
    FeedError,
    Sliced,
    chute_id,
    finish,
    model_name,
    read_record,
    records_of_data,
    standard_json,
)


class CatalogEntry(msgspec.Struct, frozen=True, gc=False):
    """One model of the catalog; a msgspec Struct, which spares the garbage collector long walks.

    :param chute_id: lower case; None in old shapes of the catalog.
    :param raw: the whole record as the upstream wrote it, valid JSON, so that nothing is lost on the way to a client.
    """

    id: str
    chute_id: str | None
    raw: bytes


@frozen
class Catalog:
    """What one answer of the catalog said.

    :param entries: in the upstream's order, ids distinct.
    :param skipped: records left out: malformed, too large, or repeating an id.
    """

    entries: tuple[CatalogEntry, ...]
    skipped: int = 0
    ids: frozenset[str] = field(init=False, eq=False, repr=False)
    """The allowlist."""
    by_chute_id: Mapping[str, str] = field(init=False, eq=False, repr=False)
    """Chute id to model id; where two models share a chute, the first."""

    chute_ids: Mapping[str, str] = field(init=False, eq=False, repr=False)
    """Model id to chute id, where there is one."""

    @ids.default
    def _ids(self) -> frozenset[str]:
        return frozenset(entry.id for entry in self.entries)

    @by_chute_id.default
    def _by_chute_id(self) -> Mapping[str, str]:
        pairs = ((entry.chute_id, entry.id) for entry in reversed(self.entries))
        return MappingProxyType({chute: model for chute, model in pairs if chute is not None})

    @chute_ids.default
    def _chute_ids(self) -> Mapping[str, str]:
        pairs = ((entry.id, entry.chute_id) for entry in self.entries)
        return MappingProxyType({model: chute for model, chute in pairs if chute is not None})


class _Record(msgspec.Struct, gc=False):
    id: Any = None
    chute_id: Any = None


_RECORD = msgspec.json.Decoder(_Record)


def parse_catalog_in_slices(body: bytes) -> Sliced[Catalog]:
    """The catalog in ``{"data": [{"id": ..., "chute_id": ...}, ...]}``.

    Raises FeedError where the body is no such object, or where it has records and none is usable.
    """
    entries: dict[str, CatalogEntry] = {}
    count = 0
    for raw in records_of_data(body):
        if raw is None:
            yield
            continue
        count += 1
        record = read_record(raw, _RECORD)
        name = model_name(record.id) if record else None
        if record and name and name not in entries and (whole := standard_json(raw)):
            entries[name] = CatalogEntry(name, chute_id(record.chute_id), whole)
    if count and not entries:
        raise FeedError(f"none of {count} records is a model")
    return Catalog(tuple(entries.values()), skipped=count - len(entries))


def parse_catalog(body: bytes) -> Catalog:
    """parse_catalog_in_slices in one go."""
    return finish(parse_catalog_in_slices(body))
