"""GET /v1/models: the aliases first, then the catalog's entries exactly as the platform wrote them."""

import json
from collections.abc import Callable

import attrs

from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.alias_file import NO_ALIASES, OwnAliases, listed_names
from chutes_autopilot.policy.aliases import ALIASES, read_composed_alias
from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.web.site import GatewayRequest

ALIAS_CREATED = 1763683200
"""The alias' ``created`` (Unix seconds); OpenAI's clients want one of every model, and it means nothing."""


@attrs.define(eq=False)
class ModelsRoute:
    """Answers from the current catalog; nothing is asked of the platform."""

    snapshots: SnapshotHolder
    own_aliases: Callable[[], OwnAliases] = lambda: NO_ALIASES

    def index(self, request: GatewayRequest) -> None:
        """``{"object": "list", "data": [...]}``; ApiError ``missing_allowlist`` before the first catalog."""
        catalog = self._catalog()
        aliases = map(_alias, listed_names(self.own_aliases(), catalog.ids))
        entries = [*aliases, *(entry.raw for entry in catalog.entries)]
        request.answer(200, b'{"object":"list","data":[' + b",".join(entries) + b"]}", b"application/json")

    def one(self, request: GatewayRequest, model: str) -> None:
        """The entry of one model, whose id may hold slashes; ApiError ``not_found`` for any other name."""
        catalog = self._catalog()
        entries = {entry.id: entry.raw for entry in catalog.entries}
        entry = entries.get(model) or (_alias(model) if self._is_alias(model, catalog) else None)
        if entry is None:
            raise ApiError("not_found", "The catalog has no such model; GET /v1/models lists all.", param="model")
        request.answer(200, entry, b"application/json")

    def _is_alias(self, model: str, catalog: Catalog) -> bool:
        if model in ALIASES or model in self.own_aliases().by_name:
            return True
        try:
            return read_composed_alias(model, catalog.ids) is not None
        except ApiError:
            return False  # a part that is none

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
