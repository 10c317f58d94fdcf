"""Small records of the three sources for the explorer's tests."""

import json
from typing import Any

from chutes_autopilot.explorer.listing import ListedChute, Listing, read_listing
from chutes_autopilot.explorer.loads import LoadRow, Loads
from chutes_autopilot.explorer.models import ModelList, ModelRecord


def uuid(number: int) -> str:
    """A chute id that is easy to tell from others."""
    return f"{number:08x}-0000-4000-8000-000000000000"


def chute_json(number: int, name: str, **members: Any) -> dict[str, Any]:
    """An item of the listing as the platform writes it, cut down to what most tests need."""
    return {"chute_id": uuid(number), "name": name, "public": True, "standard_template": "vllm", **members}


def listing_body(*items: Any, **members: Any) -> bytes:
    return json.dumps({"total": len(items), "page": 0, "items": items, "cord_refs": {}, **members}).encode()


def listing_of(*items: Any, **members: Any) -> Listing:
    return read_listing(listing_body(*items, **members), show_private=False)


def chutes(*named: tuple[int, str] | ListedChute) -> Listing:
    """A listing of (number of the id, name)."""
    return Listing(tuple(x if isinstance(x, ListedChute) else ListedChute(x[1], uuid(x[0])) for x in named))


def models(*named: tuple[int | None, str] | ModelRecord) -> ModelList:
    """A catalog of (number of the id or None, name)."""
    return ModelList(
        tuple(
            x if isinstance(x, ModelRecord) else ModelRecord(x[1], None if x[0] is None else uuid(x[0])) for x in named
        )
    )


def loads(*named: tuple[int, str] | LoadRow) -> Loads:
    """A feed of (number of the id, name)."""
    return Loads(tuple(x if isinstance(x, LoadRow) else LoadRow(x[1], uuid(x[0])) for x in named))
