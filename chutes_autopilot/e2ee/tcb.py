"""Level ``quote+tcb``: is the platform patched, and is nothing of it revoked, as of now?

Intel's rules for that are many and change, so they are left to a package made for them, ``dcap-qvl``. It is optional
and looked for only when this level is asked for. It never touches the network here: its own download functions are
not used.

What the level adds to ``quote``: platform and quoting enclave are at an accepted TCB level according to collateral
that is valid now. What it cannot say: anything about the GPU, the weights, or what becomes known tomorrow.
"""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from attrs import field, frozen

from chutes_autopilot.e2ee.collateral import Collateral, CollateralError, Platform
from chutes_autopilot.e2ee.quote import QuoteRefused

TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""What a platform can be, as Intel names it; ``Revoked`` is one more that nobody may accept."""

T = TypeVar("T")

_FMSPC = re.compile("[0-9A-F]{12}")


class TcbLibraryMissing(Exception):
    """The level needs a package that is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "CHUTES_ATTESTATION=quote+tcb needs the package dcap-qvl: install chutes-autopilot[attestation]"
        )


def load_tcb_library() -> Any:
    """The package ``dcap_qvl``; raises TcbLibraryMissing, so that the service refuses to start."""
    try:
        return import_module("dcap_qvl")
    except ImportError:
        raise TcbLibraryMissing from None


@frozen
class TcbChecker:
    """Judges quotes that verify_quote has let pass.

    :param library: what load_tcb_library gives.
    :param accepted: statuses that will do, of TCB_STATUSES.
    :param root_ca: DER of the root to trust; None: Intel's, which the package holds.
    """

    library: Any = field(repr=False)
    accepted: frozenset[str]
    root_ca: bytes | None = field(default=None, repr=False)

    def platform_of(self, quote: bytes) -> Platform:
        """Which collateral the quote needs; raises QuoteRefused (``tcb``)."""

        def ask() -> Platform:
            parsed = self.library.parse_quote(quote)
            return Platform(str(parsed.fmspc()).upper(), str(parsed.ca()))

        platform = _asked(ask)
        if not _FMSPC.fullmatch(platform.fmspc) or platform.ca not in ("platform", "processor"):
            raise QuoteRefused("tcb")
        return platform

    def check(self, quote: bytes, collateral: Collateral, at: float) -> str:
        """The platform's status, which is an accepted one. Takes a millisecond or two.

        :param at: Unix time.
        :raises CollateralError: the collateral is not valid at that time, which says nothing about the quote.
        :raises QuoteRefused: ``tcb`` (revoked, or not what the collateral is about) or ``tcb_status``.
        """
        if not collateral.valid(at):
            raise CollateralError("expired")

        def ask() -> str:
            parsed = self.library.QuoteCollateralV3.from_json(collateral.text)
            if self.root_ca is None:
                return str(self.library.verify(quote, parsed, int(at)).status)
            return str(self.library.verify_with_root_ca(quote, parsed, self.root_ca, int(at)).status)

        status = _asked(ask)
        if status not in self.accepted or status not in TCB_STATUSES:
            raise QuoteRefused("tcb_status")
        return status


def _asked(question: Callable[[], T]) -> T:
    """What the package answers; whatever it raises says that the quote does not stand."""
    try:
        return question()
    except Exception:  # noqa: BLE001 - its one documented exception is ValueError, and any other refuses as well
        raise QuoteRefused("tcb") from None
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":  # of Rust code; all others end the process
            raise
        raise QuoteRefused("tcb") from None
