"""Where the two catalogs disagree about one model."""

from collections.abc import Iterator
from typing import Any

from attrs import frozen

from chutes_autopilot.explorer.listing import ListedChute
from chutes_autopilot.explorer.models import ModelRecord
from chutes_autopilot.explorer.prices import TOKEN_PRICES, differ


@frozen
class FieldConflict:
    """One field on which the catalogs disagree.

    :param field: ``name``, ``tee`` or one of prices.TOKEN_PRICES, in USD per 1M tokens.
    :param delta_abs: the listing's number less the other one; None for what is no number.
    :param delta_pct: the same in percent of the other one; None too where that is 0.
    """

    chute_id: str
    name: str
    field: str
    chutes: Any
    v1: Any
    delta_abs: float | None = None
    delta_pct: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As the merge report shows it."""
        return {
            "chute_id": self.chute_id,
            "name": self.name,
            "field": self.field,
            "values": {"chutes": self.chutes, "v1": self.v1},
            "delta_abs": self.delta_abs,
            "delta_pct": self.delta_pct,
        }


def conflicts_of(chute: ListedChute, model: ModelRecord) -> Iterator[FieldConflict]:
    """The conflicts of one merged pair: names, TEE flags, and USD amounts that are more than noise apart."""
    if chute.name != model.name:
        yield FieldConflict(chute.chute_id, chute.name, "name", chute.name, model.name)
    if chute.tee is not None and model.tee is not None and chute.tee != model.tee:
        yield FieldConflict(chute.chute_id, chute.name, "tee", chute.tee, model.tee)
    for field in TOKEN_PRICES:
        ours, theirs = chute.prices.get(field), model.prices.get(field)
        if ours is not None and theirs is not None and differ(ours, theirs):
            delta = ours - theirs
            percent = 100 * delta / theirs if theirs else None
            yield FieldConflict(chute.chute_id, chute.name, field, ours, theirs, delta, percent)
