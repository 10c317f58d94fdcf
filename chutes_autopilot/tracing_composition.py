"""Tracing put together; imported only where it is on, for it needs the extra ``tracing``."""

from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimeOver

from chutes_autopilot import __version__
from chutes_autopilot.drain import DrainingService
from chutes_autopilot.observe import events
from chutes_autopilot.observe.tracing import Tracing, TracingTerms
from chutes_autopilot.relay.traced import Begin
from chutes_autopilot.settings import Settings

LAST_SPANS_SECONDS = 2.0
"""How long the last spans may take to reach the collector when the service stops."""


def build_tracing(settings: Settings, reactor: Any, service: DrainingService) -> Begin:
    """What begins the spans of each request; the last ones are sent when ``service`` has drained."""
    terms = TracingTerms(
        settings.otel_service_name,
        settings.otel_exporter_otlp_endpoint,
        settings.otel_exporter_otlp_headers,
        settings.otel_traces_sampler,
        settings.otel_traces_sampler_arg,
    )
    tracing = Tracing(terms, __version__, partial(reactor.callFromThread, events.collector_reached))
    service.at_last = partial(_send_the_last, tracing, reactor)
    return tracing.begin


async def _send_the_last(tracing: Tracing, reactor: Any) -> None:
    sent: Deferred[None] = Deferred()
    tracing.end(lambda: reactor.callFromThread(lambda: None if sent.called else sent.callback(None)))
    with suppress(TimeOver):
        await sent.addTimeout(LAST_SPANS_SECONDS, reactor)
