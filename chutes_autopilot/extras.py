"""Which optional parts of the installation the settings need, and whether they are there."""

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import accumulate

from chutes_autopilot.settings import Settings

_TRACING = (*accumulate(["opentelemetry", "exporter", "otlp", "proto", "http"], "{}.{}".format), "opentelemetry.sdk")
"""Every package on the way to the exporter: each is looked for only where the one around it is found."""


def missing_extras(settings: Settings, *, demo: bool = False) -> Iterator[tuple[str, str]]:
    """The variable that needs it, and the name of each extra that is not installed.

    :param demo: in the demo mode the Chutes route is served as well.
    """
    chutes = settings.chutes_enabled or demo
    for modules, extra, variable, wanted in (
        (("txredisapi",), "redis", "REDIS_URL", settings.redis_url is not None and (chutes or settings.shares)),
        (("dcap_qvl",), "attestation", "CHUTES_ATTESTATION", chutes and settings.chutes_attestation == "quote+tcb"),
        (_TRACING, "tracing", "TRACING_ENABLED", settings.tracing_enabled),
    ):
        if wanted and not all(map(find_spec, modules)):
            yield variable, extra
