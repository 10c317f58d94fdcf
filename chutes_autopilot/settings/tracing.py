"""The settings of tracing, under the names that OpenTelemetry gives them; what is not here its SDK reads itself."""

import re
from urllib.parse import unquote

from chutes_autopilot.settings.parsing import boolean, one_of, path, url
from chutes_autopilot.settings.values import Setting


def _service_name(text: str) -> str:
    if not text.isprintable() or len(text) > 255:
        raise ValueError("must be printable and at most 255 characters")
    return text


def _headers(text: str) -> tuple[tuple[str, str], ...]:
    """Names and values of headers as ``name=value`` by commas, the values percent-encoded."""
    pairs = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, found, value = item.partition("=")
        name, value = name.strip().lower(), unquote(value.strip())
        if not (found and re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", name) and re.fullmatch(r"[ -~]*", value)):
            raise ValueError("must be headers by commas, like name=value, their values percent-encoded")
        pairs.append((name, value))
    return tuple(pairs)


def _ratio(text: str) -> float:
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,18})?", text) and 0 <= float(text) <= 1:
        return float(text)
    raise ValueError("must be a number from 0 to 1")


TRACING_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "TRACING_ENABLED",
        "false",
        "boolean",
        "Send a span for every relayed request and each of its attempts to an OpenTelemetry collector.",
        "true",
        boolean,
    ),
    Setting(
        "OTEL_SERVICE_NAME",
        "chutes-autopilot",
        "text",
        "The name of this service in traces.",
        "llm-gateway",
        _service_name,
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "http://localhost:4318",
        "URL",
        "Where the collector takes OTLP over HTTP; /v1/traces is appended.",
        "https://otel.example.org:4318",
        url(base=True),
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "",
        "text",
        "Headers for the collector, name=value by commas, the values percent-encoded.",
        "authorization=Bearer%20replace-me",
        _headers,
        secret=True,
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_HEADERS_FILE",
        "",
        "path",
        "A file that holds OTEL_EXPORTER_OTLP_HEADERS, in its place; a final newline does not count.",
        "/run/secrets/otlp_headers",
        path,
    ),
    Setting(
        "OTEL_TRACES_SAMPLER",
        "parentbased_always_on",
        "name",
        "Which requests are traced; parentbased_: as the client's traceparent says, where there is one.",
        "parentbased_traceidratio",
        one_of(
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ),
    ),
    Setting(
        "OTEL_TRACES_SAMPLER_ARG",
        "1.0",
        "ratio",
        "The part of the traces that the samplers with traceidratio take.",
        "0.01",
        _ratio,
    ),
)
"""In the order of the documentation."""
