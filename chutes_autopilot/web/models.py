"""GET /v1/models: the alias first, then the catalog's entries exactly as the platform wrote them."""

import json

import attrs

from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.policy.model_field import ALIASES
from chutes_autopilot.web.site import GatewayRequest

ALIAS_CREATED = 1763683200
"""The alias' ``created`` (Unix seconds); OpenAI's clients want one of every model, and it means nothing."""


@attrs.define(eq=False)
class ModelsRoute:
    """Answers from the current catalog; nothing is asked of the platform."""

    snapshots: SnapshotHolder

    def index(self, request: GatewayRequest) -> None:
        """``{"object": "list", "data": [...]}``; ApiError ``missing_allowlist`` before the first catalog."""
        entries = [_alias(ALIASES[0]), *(entry.raw for entry in self._catalog().entries)]
        request.answer(200, b'{"object":"list","data":[' + b",".join(entries) + b"]}", b"application/json")

    def one(self, request: GatewayRequest, model: str) -> None:
        """The entry of one model, whose id may hold slashes; ApiError ``not_found`` for any other name."""
        entries = {entry.id: entry.raw for entry in self._catalog().entries}
        entry = entries.get(model) or (_alias(model) if model in ALIASES else None)
        if entry is None:
            raise ApiError("not_found", "The catalog has no such model; GET /v1/models lists all.", param="model")
        request.answer(200, entry, b"application/json")

    def _catalog(self) -> Catalog:
        catalog = self.snapshots.current.catalog
        if catalog is None:
            raise ApiError(
                "missing_allowlist", "The catalog of models has not been fetched yet; try again in a few seconds."
            )
        return catalog


def _alias(name: str) -> bytes:
    return json.dumps(
        {"id": name, "object": "model", "created": ALIAS_CREATED, "owned_by": "chutes-autopilot"}
    ).encode()
