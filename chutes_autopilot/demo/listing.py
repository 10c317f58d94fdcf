"""The simulated chute listing: the same invented chutes and others, in the platform's 39 keys an item.

It disagrees with the catalog where the platform's does: names, prices, and a chute that was deployed anew.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from chutes_autopilot.demo.catalog import TAO_PER_USD, SimulatedModel, prices
from chutes_autopilot.demo.other_chutes import OTHER_CHUTES, OtherChute

RENAMED = {"placeholder/Prairie-RP-24B": "placeholder/Prairie-Roleplay-24B"}
"""Listed under another name than in the catalog."""

REDEPLOYED = {"mockingbird/Quill-Translate-9B": "mockingbird/Quill-Translate-9B-FP8"}
"""Listed as another chute; the catalog still has the one before."""

DEARER = {"mockingbird/Heron-12B-it": 1.2, "fictional/Isthmus-R1-TEE": 1.1}
"""By how much the listing's prices differ: it reckons now, the catalog's are some minutes old."""

_CREATED = "2025-01-01T00:00:00.000000"
_CORD_REF_ID = str(uuid5(NAMESPACE_OID, "cords of a language model"))
_BOUNDS = {"page": (0, 100, 0), "offset": (0, 5000, 0), "limit": (1, 5000, 25)}
"""Least, greatest and default value of each paging parameter."""


class ListingRefused(Exception):
    """The paging parameters were refused; ``detail`` is the platform's explanation."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


def listing_answer(models: Sequence[SimulatedModel], query: Mapping[str, str]) -> dict[str, Any]:
    """The answer of ``GET /chutes/``, one page of it.

    :param query: the request's parameters; page, offset, limit, template and name are understood, others ignored.
    :raises ListingRefused: 422 for a parameter out of its range, 400 for page and offset together.
    """
    asked = {name: _bounded(name, query.get(name)) for name in _BOUNDS}
    if asked["page"] and asked["offset"]:
        raise ListingRefused(400, "Cannot specify both page and offset, select <= 1 of these.")
    limit = asked["limit"]
    start = asked["offset"] or asked["page"] * limit
    items = [item for item in _items(models) if _wanted(item, query)]
    return {
        "total": len(items),
        "page": asked["page"],
        "limit": limit,
        "items": items[start : start + limit],
        "cord_refs": {_CORD_REF_ID: _cords(), **{other.cord_ref_id: other.cords() for other in OTHER_CHUTES}},
    }


def chute_answer(models: Sequence[SimulatedModel], asked: str) -> dict[str, Any] | None:
    """The answer of ``GET /chutes/{chute_id or name}``; None where there is no such chute."""
    others = {other.chute_id: other for other in OTHER_CHUTES}
    for item in _items(models):
        if asked in (item["chute_id"], item["name"]):
            other = others.get(item["chute_id"])
            return {**item, "cord_ref_id": None, "cords": _cords() if other is None else other.cords()}
    return None


def _items(models: Sequence[SimulatedModel]) -> list[dict[str, Any]]:
    listed = [_item(model, len(models) - place) for place, model in enumerate(models)]
    return listed + [_other_item(other, 1 / (2 + place)) for place, other in enumerate(OTHER_CHUTES)]


def _wanted(item: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    template, name = query.get("template"), query.get("name")
    if template is not None and item["standard_template"] != (None if template == "other" else template):
        return False
    return name is None or name.lower() in item["name"].lower()


def _bounded(name: str, text: str | None) -> int:
    least, greatest, default = _BOUNDS[name]
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        wrong = {"type": "int_parsing", "msg": "Input should be a valid integer, unable to parse string as an integer"}
    else:
        if least <= number <= greatest:
            return number
        word, bound = ("less", greatest) if number > greatest else ("greater", least)
        wrong = {"type": f"{word}_than_equal", "msg": f"Input should be {word} than or equal to {bound}"}
    raise ListingRefused(422, [{"type": wrong["type"], "loc": ["query", name], "msg": wrong["msg"], "input": text}])


def _cords() -> list[dict[str, Any]]:
    kinds = (("chat_stream", True, "text/event-stream"), ("chat", False, "application/json"))
    return [
        {
            "method": "POST",
            "path": f"/{function}",
            "function": function,
            "stream": stream,
            "passthrough": True,
            "public_api_path": "/v1/chat/completions",
            "public_api_method": "POST",
            "output_content_type": content_type,
        }
        for function, stream, content_type in kinds
    ]


def _item(model: SimulatedModel, popularity: float) -> dict[str, Any]:
    name = RENAMED.get(model.name) or REDEPLOYED.get(model.name) or model.name
    hour = 4.0 if model.confidential else 1.8
    dearer = DEARER.get(model.name, 1.0)
    tokens = {kind: {unit: amount * dearer for unit, amount in price.items()} for kind, price in prices(model).items()}
    return _chute(
        name,
        str(uuid5(NAMESPACE_OID, name)) if model.name in REDEPLOYED else model.chute_id,
        popularity,
        template="vllm",
        owner="simulated",
        engine=model.engine,
        gpus=["h200"] if model.confidential else ["pro_6000"],
        gpu_count=8 if model.confidential else 2,
        cord_ref_id=_CORD_REF_ID,
        price={"per_million_tokens": tokens, **_gpu_time(hour)},
        instance_ids=model.instance_ids,
        openrouter=model.detailed,
        tee=model.confidential,
    )


def _other_item(other: OtherChute, popularity: float) -> dict[str, Any]:
    price: dict[str, Any] = _gpu_time(other.hour)
    if other.step is not None:
        price["per_step"] = _money(other.step)
    if other.request is not None:
        price["per_request"] = _money(other.request)
    return _chute(
        other.name,
        other.chute_id,
        popularity,
        template=other.template,
        owner=other.owner,
        engine=other.template or "custom",
        gpus=[other.gpu],
        gpu_count=1,
        cord_ref_id=other.cord_ref_id,
        price=price,
        instance_ids=tuple(str(uuid5(NAMESPACE_OID, f"instance {n} of {other.name}")) for n in range(other.instances)),
        openrouter=False,
        tee=False,
    )


def _money(usd: float) -> dict[str, float]:
    return {"usd": usd, "tao": usd * TAO_PER_USD}


def _gpu_time(hour: float) -> dict[str, Any]:
    return {
        "usd": {"hour": hour, "second": hour / 3600},
        "tao": {"hour": hour * TAO_PER_USD, "second": hour * TAO_PER_USD / 3600},
    }


def _chute(
    name: str,
    chute_id: str,
    popularity: float,
    *,
    template: str | None,
    owner: str,
    engine: str,
    gpus: list[str],
    gpu_count: int,
    cord_ref_id: str,
    price: dict[str, Any],
    instance_ids: Sequence[str],
    openrouter: bool,
    tee: bool,
) -> dict[str, Any]:
    user = {
        "username": owner,
        "user_id": str(uuid5(NAMESPACE_OID, f"user {owner}")),
        "logo_id": None,
        "created_at": _CREATED,
        "logo": None,
    }
    created = f"2025-{1 + len(name) % 12:02d}-{1 + sum(name.encode()) % 28:02d}T00:00:00.000000"
    return {
        "chute_id": chute_id,
        "name": name,
        "tagline": "An invented model of the simulated platform.",
        "readme": f"# {name}\n\nThis model does not exist; the demo mode simulates it.",
        "public": True,
        "version": str(uuid5(NAMESPACE_OID, f"version of {name}")),
        "tool_description": None,
        "slug": "simulated-" + name.lower().replace("/", "-").replace(".", "-"),
        "standard_template": template,
        "cords": None,
        "jobs": [],
        "cord_ref_id": cord_ref_id,
        "created_at": created,
        "updated_at": created,
        "image": {
            "image_id": str(uuid5(NAMESPACE_OID, f"image {engine}")),
            "name": engine,
            "readme": "",
            "tag": "0.0.0-simulated",
            "public": True,
            "status": "built and pushed",
            "created_at": _CREATED,
            "build_started_at": _CREATED,
            "build_completed_at": _CREATED,
            "user": user,
            "logo_id": None,
            "patch_version": "initial",
            "chutes_version": "0.0.0",
            "logo": None,
        },
        "user": user,
        "supported_gpus": gpus,
        "node_selector": {
            "gpu_count": gpu_count,
            "min_vram_gb_per_gpu": 96 if gpu_count > 1 else 24,
            "max_hourly_price_per_gpu": None,
            "exclude": None,
            "include": gpus,
            "dynamic": False,
            "compute_multiplier": 0.8,
            "supported_gpus": gpus,
        },
        "invocation_count": int(popularity * 1_000_000),
        "current_estimated_price": price,
        "instances": [
            {
                "instance_id": instance_id,
                "region": "n/a",
                "active": True,
                "verified": True,
                "last_verified_at": _CREATED,
            }
            for instance_id in instance_ids
        ],
        "logo_id": None,
        "openrouter": openrouter,
        "chutes_version": "0.0.0",
        "revision": None,
        "concurrency": 32,
        "boost": None,
        "max_instances": None,
        "scaling_threshold": None,
        "shutdown_after_seconds": None,
        "preemptible": True,
        "allow_external_egress": False,
        "tee": tee,
        "lock_modules": None,
        "effective_compute_multiplier": 0.8,
        "compute_multiplier_factors": {"base": 0.8},
        "bounty": None,
        "logo": None,
        "hot": bool(instance_ids),
    }
