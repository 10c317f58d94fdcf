"""Of several replicas one tells the receivers of webhooks what happened."""

from collections.abc import Sequence

from attrs import define, field

from chutes_autopilot.explorer.changes import Change
from chutes_autopilot.explorer_composition import of_one


@define(eq=False)
class Lock:
    held: bool = False


@define(eq=False)
class Sharing:
    locks: dict[str, Lock] = field(factory=dict)

    def lock(self, name: str) -> Lock:
        return self.locks.setdefault(name, Lock())


def test_only_who_has_the_lock_is_told() -> None:
    """At each change anew; where replicas do not share, each is."""
    told: list[Sequence[Change]] = []
    sharing = Sharing()
    listener = of_one(told.append, sharing)  # type: ignore[arg-type]
    listener([])
    assert told == []
    sharing.locks["webhooks"].held = True
    listener([])
    assert told == [[]]
    of_one(told.append, None)([])
    assert told == [[], []]
