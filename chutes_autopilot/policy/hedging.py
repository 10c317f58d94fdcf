"""How many requests may ask a second model: hedging what is slow must not double the load when everything is slow."""

import attrs

PERCENT = 5
"""How many of a hundred streams may be hedged."""
MOST = 10
"""How many hedges can be saved up."""


@attrs.define(eq=False)
class HedgeBudget:
    """A bucket that each stream fills by PERCENT of a hedge, empty at first."""

    _saved: int = attrs.field(default=0, init=False)

    def earn(self) -> None:
        """A stream begins."""
        self._saved = min(100 * MOST, self._saved + PERCENT)

    def spend(self) -> bool:
        """Whether one more may be hedged now; it is counted."""
        if self._saved < 100:
            return False
        self._saved -= 100
        return True
