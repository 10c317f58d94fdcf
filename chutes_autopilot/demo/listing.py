"""The simulated chute listing: the owner's view of the same invented chutes, in the platform's 41 keys an item."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from chutes_autopilot.demo.catalog import TAO_PER_USD, SimulatedModel, prices

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

    :param query: the request's parameters; page, offset and limit are understood, others ignored.
    :raises ListingRefused: 422 for a parameter out of its range, 400 for page and offset together.
    """
    asked = {name: _bounded(name, query.get(name)) for name in _BOUNDS}
    if asked["page"] and asked["offset"]:
        raise ListingRefused(400, "Cannot specify both page and offset, select <= 1 of these.")
    limit = asked["limit"]
    start = asked["offset"] or asked["page"] * limit
    return {
        "total": len(models),
        "page": asked["page"],
        "limit": limit,
        "items": [_item(model, len(models) - place) for place, model in enumerate(models)][start : start + limit],
        "cord_refs": {_CORD_REF_ID: _cords()},
    }


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


def _item(model: SimulatedModel, popularity: int) -> dict[str, Any]:
    user = {
        "username": "simulated",
        "user_id": str(uuid5(NAMESPACE_OID, "user simulated")),
        "logo_id": None,
        "created_at": _CREATED,
        "logo": None,
    }
    gpus = ["h200"] if model.confidential else ["pro_6000"]
    hour = 4.0 if model.confidential else 1.8
    return {
        "chute_id": model.chute_id,
        "name": model.name,
        "tagline": "An invented model of the simulated platform.",
        "readme": f"# {model.name}\n\nThis model does not exist; the demo mode simulates it.",
        "public": True,
        "version": str(uuid5(NAMESPACE_OID, f"version of {model.name}")),
        "tool_description": None,
        "slug": "simulated-" + model.name.lower().replace("/", "-").replace(".", "-"),
        "standard_template": "vllm",
        "cords": None,
        "jobs": [],
        "cord_ref_id": _CORD_REF_ID,
        "created_at": _CREATED,
        "updated_at": _CREATED,
        "image": {
            "image_id": str(uuid5(NAMESPACE_OID, f"image {model.engine}")),
            "name": model.engine,
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
            "gpu_count": 8 if model.confidential else 2,
            "min_vram_gb_per_gpu": 96,
            "max_hourly_price_per_gpu": None,
            "exclude": None,
            "include": gpus,
            "dynamic": False,
            "compute_multiplier": 0.8,
            "supported_gpus": gpus,
        },
        "invocation_count": popularity * 1_000_000,
        "current_estimated_price": {
            "per_million_tokens": prices(model),
            "usd": {"hour": hour, "second": hour / 3600},
            "tao": {"hour": hour * TAO_PER_USD, "second": hour * TAO_PER_USD / 3600},
        },
        "instances": [
            {
                "instance_id": instance_id,
                "region": "n/a",
                "active": True,
                "verified": True,
                "last_verified_at": _CREATED,
            }
            for instance_id in model.instance_ids
        ],
        "logo_id": None,
        "openrouter": model.detailed,
        "chutes_version": "0.0.0",
        "revision": None,
        "concurrency": 32,
        "boost": None,
        "max_instances": None,
        "scaling_threshold": None,
        "shutdown_after_seconds": None,
        "preemptible": True,
        "allow_external_egress": False,
        "tee": model.confidential,
        "lock_modules": None,
        "effective_compute_multiplier": 0.8,
        "compute_multiplier_factors": {"base": 0.8},
        "bounty": None,
        "logo": None,
        "hot": model.instances > 0,
    }
