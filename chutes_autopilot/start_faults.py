"""What only shows when the service is put together, found before the start, so that one refusal names all of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chutes_autopilot.extras import missing_extras
from chutes_autopilot.listening import check_endpoint
from chutes_autopilot.settings import Settings, SettingsError, read_settings

_OF_SYSTEMD = ("systemd:", "haproxy:systemd:")


def faults_of_endpoints(reactor: Any, endpoints: Sequence[tuple[str, str]], workers: int) -> Iterator[str]:
    """One line for each endpoint that cannot be listened on.

    :param endpoints: the option or variable that names it, and the endpoint.
    """
    for name, endpoint in endpoints:
        if workers > 1 and endpoint.startswith(_OF_SYSTEMD):
            yield f"{name}: cannot use the endpoint {endpoint!r}: a socket of systemd cannot be shared by WORKERS"
            continue
        try:
            check_endpoint(reactor, endpoint)
        except ValueError as error:
            yield f"{name}: {error}"


def faults_of_parts(settings: Settings, *, demo: bool) -> Iterator[str]:
    """One line for each extra that is missing, and for each file that what the settings switch on cannot use.

    :param demo: in the demo mode the Chutes route is served as well.
    """
    for variable, extra in missing_extras(settings, demo=demo):
        yield f"{variable}: needs the extra {extra}: pip install 'chutes-autopilot[{extra}]'"
    for check in (_check_webhooks, *((_check_keys, _check_measurements) if settings.chutes_enabled or demo else ())):
        try:
            check(settings)
        except SettingsError as error:
            yield from error.faults


def without_faults(
    variables: Mapping[str, str], error: SettingsError, read_file: Callable[[str], str]
) -> Settings | None:
    """The settings as they would be without the faulty variables, for what else can be found wrong.

    :returns: None where the others contradict each other without those.
    """
    faulty = {fault.partition(":")[0] for fault in error.faults}
    try:
        return read_settings({name: text for name, text in variables.items() if name not in faulty}, read_file)
    except SettingsError:
        return None


# Each loads what it needs only where that is wanted: most of a start's time is imports.


def _check_webhooks(settings: Settings) -> None:
    if settings.webhooks_file is not None and settings.explorer_enabled:
        from chutes_autopilot.explorer_composition import read_webhooks

        read_webhooks(settings.webhooks_file)


def _check_keys(settings: Settings) -> None:
    if settings.e2ee_key_file and settings.e2ee_key_source in ("auto", "file"):
        from chutes_autopilot.e2ee_keys import read_keys

        read_keys(settings.e2ee_key_file)


def _check_measurements(settings: Settings) -> None:
    if settings.chutes_tdx_measurements is not None:
        from chutes_autopilot.pinned_measurements import pinned_measurements

        pinned_measurements(settings)
