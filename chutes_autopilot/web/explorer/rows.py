"""One merged record as the page shows it: the fields of the columns by their types, wherever they come from."""

from collections.abc import Mapping
from typing import Any

import attrs

from chutes_autopilot.explorer import prices
from chutes_autopilot.explorer.merge import MergedModel
from chutes_autopilot.explorer.provenance import BLENDED, FIRST_SEEN


@attrs.frozen
class Row:
    """What the columns show; None is unknown. Prices are USD per 1M tokens.

    :param key: what names the record in the page's addresses.
    :param tee_conflict: the sources disagree on it, so it does not count as protected.
    :param recorded_since: ``first_seen`` is when the history here begins for it; nobody says when it was made.
    :param sold_by: another price with its unit (``step``, ``request``, ``GPU hour``), where tokens are not the unit.
    :param record: all of it, for the panel.
    """

    key: str
    chute_id: str | None
    name: str
    tee: bool | None
    tee_conflict: bool
    kind: str | None
    inputs: tuple[str, ...] | None
    outputs: tuple[str, ...] | None
    modalities_inferred: bool
    recorded_since: bool
    context_length: float | None
    max_output_length: float | None
    input_price: float | None
    output_price: float | None
    cached_price: float | None
    blended_price: float | None
    sold_by: tuple[float, str] | None
    utilization: float | None
    rate_limited: float | None
    active_instances: float | None
    total_instances: float | None
    requests: float | None
    quantization: str | None
    engine: str | None
    first_seen: str | None
    template: str | None
    owner: str | None
    features: tuple[str, ...] | None
    gpus: tuple[str, ...] | None
    invocations: float | None
    hot: bool | None
    conflicts: tuple[str, ...]
    sources: tuple[str, ...]
    record: MergedModel = attrs.field(repr=False, eq=False)


_OTHER_PRICES = ((prices.PER_STEP, "step"), (prices.PER_REQUEST, "request"), (prices.PER_HOUR, "GPU hour"))


def row_of(record: MergedModel) -> Row:
    """The row of one record."""
    fields: Mapping[str, Any] = record.fields
    by_tokens = any(fields[name] is not None for name in prices.TOKEN_PRICES)
    others = ((fields[name], unit) for name, unit in _OTHER_PRICES)
    modalities, seen = (record.provenance.get(name) for name in ("output_modalities", FIRST_SEEN))
    return Row(
        key=record.key,
        chute_id=record.chute_id,
        name=record.name,
        tee=fields["tee"],
        tee_conflict="tee" in record.conflicts,
        kind=fields["kind"],
        inputs=fields["input_modalities"],
        outputs=fields["output_modalities"],
        modalities_inferred=modalities is not None and modalities.inferred,
        recorded_since=seen is not None and seen.source == "history",
        context_length=fields["context_length"],
        max_output_length=fields["max_output_length"],
        input_price=fields[prices.INPUT],
        output_price=fields[prices.OUTPUT],
        cached_price=fields[prices.CACHED],
        blended_price=fields[BLENDED],
        sold_by=None if by_tokens else next(((usd, unit) for usd, unit in others if usd is not None), None),
        utilization=fields["utilization_current"],
        rate_limited=fields["rate_limit_ratio_5m"],
        active_instances=fields["active_instance_count"],
        total_instances=fields["total_instance_count"],
        requests=fields["total_requests_1h"],
        quantization=fields["quantization"],
        engine=fields["engine"],
        first_seen=fields[FIRST_SEEN],
        template=fields["template"],
        owner=fields["owner"],
        features=fields["features"],
        gpus=fields["gpus"],
        invocations=fields["invocation_count"],
        hot=fields["hot"],
        conflicts=record.conflicts,
        sources=record.sources,
        record=record,
    )
