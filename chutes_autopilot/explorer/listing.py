"""The listing of all chutes (GET /chutes/), reduced to what the merge and the page need."""

from collections.abc import Mapping
from typing import Any

import msgspec
from attrs import frozen

from chutes_autopilot.explorer.prices import (
    CACHED,
    HOURLY_MAX,
    HOURLY_MIN,
    INPUT,
    OUTPUT,
    PER_HOUR,
    PER_REQUEST,
    PER_STEP,
)
from chutes_autopilot.explorer.records import (
    CHUTES,
    Admission,
    Fields,
    Invalid,
    InvalidField,
    as_object,
    lenient_json,
    text_of,
)
from chutes_autopilot.policy.feed_json import MAX_RECORDS, FeedError


@frozen
class Cord:
    """One endpoint of a chute; for chutes without a template the only sign of what they do."""

    path: str | None
    function: str | None
    public_api_path: str | None
    output_content_type: str | None


@frozen
class ListedChute:
    """One chute of the listing; None is unknown. Times are ISO 8601 with zone.

    :param template: ``vllm``, ``diffusion``, ``tei``, ``embedding`` or None (a chute of another make).
    :param owner: the owner's user name.
    :param gpus: short names of the models of GPU it may run on.
    :param instances: how many are listed; ``instances_ready`` of them are active and verified.
    :param hot: some instance is ready; computed where the server does not say so.
    :param prices: USD by field (prices.UNITS), only what is known.
    """

    name: str
    chute_id: str
    tagline: str | None = None
    slug: str | None = None
    template: str | None = None
    version: str | None = None
    revision: str | None = None
    chutes_version: str | None = None
    owner: str | None = None
    public: bool | None = None
    tee: bool | None = None
    openrouter: bool | None = None
    preemptible: bool | None = None
    allow_external_egress: bool | None = None
    created_at: str | None = None
    updated_at: str | None = None
    gpus: tuple[str, ...] | None = None
    gpu_count: float | None = None
    min_vram_gb_per_gpu: float | None = None
    invocation_count: float | None = None
    concurrency: float | None = None
    max_instances: float | None = None
    instances: int | None = None
    instances_ready: int | None = None
    hot: bool | None = None
    prices: Mapping[str, float] = {}
    cords: tuple[Cord, ...] = ()


@frozen
class Listing:
    """What one answer of the listing said.

    :param items: the chutes that count, in the upstream's order.
    :param hidden: private chutes left out; nothing else of them is kept.
    :param total: how many chutes the upstream says there are.
    """

    items: tuple[ListedChute, ...] = ()
    invalid: tuple[Invalid, ...] = ()
    invalid_fields: tuple[InvalidField, ...] = ()
    hidden: int = 0
    total: float | None = None


class _Envelope(msgspec.Struct):
    items: list[msgspec.Raw]
    cord_refs: msgspec.Raw | None = None
    total: Any = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)

_PRICES = {
    INPUT: "per_million_tokens.input.usd",
    OUTPUT: "per_million_tokens.output.usd",
    CACHED: "per_million_tokens.input_cache_read.usd",
    PER_STEP: "per_step.usd",
    PER_REQUEST: "per_request.usd",
    PER_HOUR: "usd.hour",
    HOURLY_MIN: "hourly_price_range.usd.min",
    HOURLY_MAX: "hourly_price_range.usd.max",
}


def _members(body: bytes) -> tuple[list[Any], Any, Any]:
    try:
        found = _ENVELOPE.decode(body)
        return list(found.items), found.cord_refs, found.total
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # a number that is none, perhaps: see whether only strict JSON is missing
    try:
        whole = lenient_json(body)
    except (ValueError, RecursionError):
        raise FeedError("unexpected JSON: no listing") from None
    if type(whole) is not dict or type(whole.get("items")) is not list:
        raise FeedError("unexpected JSON: no list 'items'")
    return whole["items"], whole.get("cord_refs"), whole.get("total")


def _cord(value: Any) -> Cord:
    members = as_object(value)
    return Cord(
        text_of(members.get("path")),
        text_of(members.get("function")),
        text_of(members.get("public_api_path")),
        text_of(members.get("output_content_type")),
    )


def _cords(value: Any) -> tuple[Cord, ...]:
    return tuple(_cord(item) for item in value) if type(value) is list else ()


def _instances(fields: Fields) -> tuple[int | None, int | None]:
    found = fields.objects("instances")
    if found is None:
        return None, None
    ready = [(item.flag("active"), item.flag("verified")) == (True, True) for item in found]
    return len(ready), sum(ready)


def _prices(fields: Fields) -> dict[str, float]:
    found = ((name, fields.number(f"current_estimated_price.{path}")) for name, path in _PRICES.items())
    return {name: usd for name, usd in found if usd is not None}


def _chute(name: str, chute_id: str, fields: Fields, cords: tuple[Cord, ...]) -> ListedChute:
    count, ready = _instances(fields)
    hot = fields.flag("hot")
    return ListedChute(
        name=name,
        chute_id=chute_id,
        tagline=fields.text("tagline"),
        slug=fields.text("slug"),
        template=fields.text("standard_template"),
        version=fields.text("version"),
        revision=fields.text("revision"),
        chutes_version=fields.text("chutes_version"),
        owner=fields.text("user.username"),
        public=fields.flag("public"),
        tee=fields.flag("tee"),
        openrouter=fields.flag("openrouter"),
        preemptible=fields.flag("preemptible"),
        allow_external_egress=fields.flag("allow_external_egress"),
        created_at=fields.time("created_at"),
        updated_at=fields.time("updated_at"),
        gpus=fields.texts("supported_gpus"),
        gpu_count=fields.number("node_selector.gpu_count"),
        min_vram_gb_per_gpu=fields.number("node_selector.min_vram_gb_per_gpu"),
        invocation_count=fields.number("invocation_count"),
        concurrency=fields.number("concurrency"),
        max_instances=fields.number("max_instances"),
        instances=count,
        instances_ready=ready,
        hot=ready > 0 if hot is None and ready is not None else hot,
        prices=_prices(fields),
        cords=cords,
    )


def read_listing(body: bytes, *, show_private: bool) -> Listing:
    """The chutes in ``{"items": [...], "cord_refs": {...}, "total": ...}``; pure, and may run in a thread.

    A chute is private unless ``public`` is true, or absent (a server that does not know of private ones).
    Raises FeedError where the body is no such object, has more than MAX_RECORDS chutes, or has some and none is usable.
    """
    items, cord_refs, total = _members(body)
    if len(items) > MAX_RECORDS:
        raise FeedError(f"more than {MAX_RECORDS} records")
    refs = {key: _cords(value) for key, value in as_object(cord_refs).items()}
    admission = Admission(CHUTES)
    chutes, hidden = [], 0
    for name, chute_id, record, fields in admission.admit(items):
        if not show_private and record.get("public", True) is not True:
            hidden += 1
        elif chute_id is not None:
            ref = record.get("cord_ref_id")
            cords = _cords(record.get("cords")) or (refs.get(ref, ()) if isinstance(ref, str) else ())
            chutes.append(_chute(name, chute_id, fields, cords))
    return Listing(
        tuple(chutes),
        tuple(admission.invalid),
        tuple(admission.invalid_fields),
        hidden,
        total if type(total) is int and total >= 0 else None,
    )
