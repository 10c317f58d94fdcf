"""The operator's own list of acceptable trust domains, read from the file that the settings name."""

from pathlib import Path

from chutes_autopilot.e2ee.measurements import Measurements, MeasurementsError, read_measurements
from chutes_autopilot.settings import Settings, SettingsError


def pinned_measurements(settings: Settings) -> Measurements | None:
    """The list in CHUTES_TDX_MEASUREMENTS; None where the settings name no file, or attest nothing.

    :raises SettingsError: the file cannot be read, or is no such list.
    """
    path = settings.chutes_tdx_measurements
    if path is None or settings.chutes_transport != "e2ee" or settings.chutes_attestation == "off":
        return None
    try:
        return read_measurements(Path(path).read_bytes(), "pinned")
    except MeasurementsError as error:
        raise SettingsError((f"CHUTES_TDX_MEASUREMENTS: {error}",)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SettingsError((f"CHUTES_TDX_MEASUREMENTS: cannot read the file: {reason}",)) from None
