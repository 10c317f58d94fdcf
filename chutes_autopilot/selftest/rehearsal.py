"""The settings of the test: those of the operator, but for what must not be touched and what would take too long."""

from attrs import evolve

from chutes_autopilot.settings import SETTINGS, Settings, describe

LONGEST_WAIT = 10.0
"""Seconds: the default of what waiting times are shortened to."""
GRACE = 1.0

_SHORTENED = (
    "upstream_header_timeout",
    "upstream_first_body_byte_timeout",
    "first_event_timeout",
    "retry_after_max",
    "stream_idle_timeout",
    "sticky_failback",
    "cooldown",
)
"""The waiting times that a fault can make somebody wait out."""


def rehearsed(settings: Settings, upstream: str, longest_wait: float) -> Settings:
    """Settings under which nothing but the misbehaving upstream is called, and nothing outside the process is changed.

    The gateway that may be running meanwhile shares neither sockets nor files nor Redis with this one, and no collector
    hears of it; webhooks are the explorer's, and files of the cache its own and the Chutes route's.

    :param upstream: base URL of the simulator.
    :param longest_wait: seconds; longer waiting times become this.
    """
    waits = {name: min(getattr(settings, name), longest_wait) for name in _SHORTENED}
    return evolve(
        settings,
        listen_addr="127.0.0.1:0",
        workers=1,
        backend_base_url=upstream,
        embeddings_base_url=None,
        models_url=f"{upstream}/v1/models",
        utilization_url=f"{upstream}/chutes/utilization",
        max_model_list_items=max(2, settings.max_model_list_items),
        shutdown_grace=min(settings.shutdown_grace, GRACE),
        admin_endpoint=None,
        redis_url=None,
        chutes_enabled=False,
        explorer_enabled=False,
        tracing_enabled=False,
        **waits,
    )


def replaced(before: Settings, after: Settings) -> dict[str, tuple[str, str]]:
    """The settings that differ, by name: what they were and what they are in the test, secrets masked."""
    pairs = zip(SETTINGS, describe(before), describe(after), strict=True)
    return {setting.name: (was.partition("=")[2], now.partition("=")[2]) for setting, was, now in pairs if was != now}
