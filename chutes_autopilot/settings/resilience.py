"""The settings of the profiles: what else fails over, and what is tried again, beside what always does."""

from chutes_autopilot.settings.parsing import boolean, integer, milliseconds, one_of
from chutes_autopilot.settings.values import Setting

PROFILE = Setting(
    "AUTOPILOT_PROFILE",
    "standard",
    "standard or resilient",
    "Decides the defaults of the settings that name it; each of them may be set by itself.",
    "resilient",
    one_of("standard", "resilient"),
)

RESILIENCE_SETTINGS: tuple[Setting, ...] = (
    PROFILE,
    Setting(
        "FIRST_EVENT_COMMIT",
        "false",
        "boolean",
        "Commit only to the first meaningful event of a stream, so that an error or nothing inside a 200 fails over "
        "(resilient: true).",
        "true",
        boolean,
        resilient="true",
    ),
    Setting(
        "FIRST_EVENT_TIMEOUT_MS",
        "10000",
        "ms",
        "With it, time from the response head to that event, comments not counted, while another candidate remains.",
        "20000",
        milliseconds(),
    ),
    Setting(
        "SERVER_ERROR_FAILOVER",
        "false",
        "boolean",
        "The statuses 500, 502, 504 and 520 to 524 fail over, not only 503 (resilient: true).",
        "true",
        boolean,
        resilient="true",
    ),
    Setting(
        "SAME_MODEL_RETRIES",
        "0",
        "tries",
        "After a lost connection, or such a status, how often the same model is tried again before the next "
        "(resilient: 1).",
        "2",
        integer("tries", 10, off=True),
        resilient="1",
    ),
    Setting(
        "CONTEXT_LENGTH_FAILOVER",
        "false",
        "boolean",
        "A request that is too long for one model goes on to the next candidate with a larger context "
        "(resilient: true).",
        "true",
        boolean,
        resilient="true",
    ),
    Setting(
        "RATE_LIMIT_RETRY",
        "false",
        "boolean",
        "A 429 that says the model is full, or to come back soon, is tried again once, then the next model "
        "(resilient: true).",
        "true",
        boolean,
        resilient="true",
    ),
    Setting(
        "RETRY_AFTER_MAX_MS",
        "5000",
        "ms",
        "With it, the longest Retry-After that is waited for.",
        "2000",
        milliseconds(60_000),
    ),
    Setting(
        "STREAM_CONTINUE",
        "false",
        "boolean",
        "Another model of the alias or list goes on, once, with a stream of text that breaks off (resilient: true).",
        "true",
        boolean,
        resilient="true",
    ),
    Setting(
        "HEDGE",
        "false",
        "boolean",
        "Ask a second candidate where the first event of a stream comes later than 95% of the model's, for at most 5% "
        "of the streams.",
        "true",
        boolean,
    ),
)
"""In the order of the documentation."""
