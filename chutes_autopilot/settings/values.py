"""What a setting is, and the one immutable value that holds them all."""

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Literal

import attrs

from chutes_autopilot.policy.alias_file import AliasFile
from chutes_autopilot.settings.redis_url import RedisServer

BACKLOG = 1024
"""How many connections may wait to be accepted on LISTEN_ADDR."""


class SettingsError(Exception):
    """Raised once for everything that is wrong, so that an operator mends all of it in one go.

    :param faults: one line for each fault: the variable (or line number) and what is allowed; never a secret.
    """

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@attrs.frozen
class Setting:
    """One row of the settings table; parsing, ``--check-config`` and the documentation all come from it.

    :param name: the environment variable.
    :param default: the text that stands for an absent or blank variable.
    :param unit: ``ms``, ``s``, ``min``, ``bytes`` or what else is counted, or the kind of text.
    :param effect: what it does, one sentence for operators.
    :param example: a legal value unlike the default.
    :param parse: text to value; raises ValueError saying what is allowed.
    :param secret: its value is never shown, and may be given in a file instead: the setting of this name and _FILE.
    :param resilient: the default with AUTOPILOT_PROFILE=resilient, where that is another; the effect says so.
    """

    name: str
    default: str
    unit: str
    effect: str
    example: str
    parse: Callable[[str], Any] = attrs.field(repr=False)
    secret: bool = False
    resilient: str | None = None

    @property
    def field(self) -> str:
        """The attribute of Settings that holds the value; times lose their unit because inside they are seconds."""
        name = self.name.lower()
        for unit in ("_ms", "_secs", "_seconds", "_minutes"):
            name = name.removesuffix(unit)
        return name


@attrs.frozen
class Settings:
    """Every setting, checked; only the composition root gets the whole.

    Times are float seconds, but int where whole seconds of the Unix clock are counted with (``e2ee_replay_window``,
    ``e2ee_replay_skew``, ``e2ee_previous_key_until``). A secret is None or empty where none was given, and holds what
    the file says where one was named. ``warnings`` are for the log: things that are legal and yet surely not meant.
    """

    listen_addr: str
    workers: int
    backend_base_url: str
    embeddings_base_url: str | None
    models_url: str
    models_refresh: float
    utilization_url: str
    utilization_refresh: float
    control_plane_timeout: float
    readyz_max_snapshot_age: float
    readyz_max_allowlist_age: float
    upstream_connect_timeout: float
    upstream_header_timeout: float
    upstream_first_body_byte_timeout: float
    upstream_nonstream_header_timeout: float
    sticky_ttl: float
    sticky_max_entries: int
    sticky_failback: float
    client_key_secret: bytes | None = attrs.field(repr=False)
    client_key_secret_file: str | None
    redis_url: RedisServer | None = attrs.field(repr=False)
    redis_url_file: str | None
    trust_proxy_headers: bool
    trusted_proxy_cidrs: tuple[IPv4Network | IPv6Network, ...]
    max_request_bytes: int
    max_model_list_items: int
    max_failover_attempts: int
    request_deadline: float
    unknown_models: Literal["refuse", "pass"]
    aliases_file: AliasFile | None
    autopilot_require_tee: bool
    autopilot_spread: Literal["off", "rendezvous"]
    ban_fuse: bool
    cooldown_failures: int
    cooldown: float
    client_header_timeout: float
    client_body_timeout: float
    client_idle_timeout: float
    client_write_stall_timeout: float
    stream_idle_timeout: float
    max_connections: int
    max_inflight_requests: int
    max_buffered_request_bytes: int
    shutdown_grace: float
    log_level: Literal["debug", "info", "warn", "error"]
    log_format: Literal["text", "json"]
    ssl_cert_file: str | None
    autopilot_profile: Literal["standard", "resilient"]
    first_event_commit: bool
    first_event_timeout: float
    server_error_failover: bool
    same_model_retries: int
    context_length_failover: bool
    rate_limit_retry: bool
    retry_after_max: float
    stream_continue: bool
    hedge: bool
    chutes_enabled: bool
    chutes_base_url: str
    chutes_api_key: bytes | None = attrs.field(repr=False)
    chutes_api_key_file: str | None
    chutes_transport: Literal["tls", "e2ee"]
    token: tuple[bytes, ...] = attrs.field(repr=False)
    token_file: str | None
    chutes_allow_anonymous: bool
    e2ee_require: bool
    e2ee_allow_v1: bool
    e2ee_strict: bool
    e2ee_uncovered_fields: Literal["reject", "drop", "clear"]
    e2ee_replay_window: int
    e2ee_replay_skew: int
    e2ee_replay_max_entries: int
    e2ee_redis_timeout: float
    e2ee_max_fields: int
    e2ee_max_event_bytes: int
    e2ee_max_response_bytes: int
    e2ee_stream_coalesce: float
    e2ee_key_source: Literal["auto", "file", "dstack", "ephemeral"]
    e2ee_key_file: str | None
    e2ee_key_generation: int
    e2ee_previous_key_until: int
    e2ee_attestation: Literal["auto", "required", "off"]
    dstack_simulator_endpoint: str | None
    dstack_agent_timeout: float
    chat_cache_expiration: float
    signature_max_entries: int
    e2ee_trust_request_hash: bool
    chutes_api_base_url: str
    chutes_e2ee_discovery_rpm: int
    chutes_e2ee_discovery_wait: float
    chutes_e2ee_nonce_margin: float
    chutes_e2ee_instance_429: Literal["relay", "next-instance"]
    chutes_e2ee_max_instance_tries: int
    chutes_e2ee_max_response_bytes: int
    chutes_e2ee_max_event_bytes: int
    chutes_e2ee_max_records: int
    chutes_attestation: Literal["off", "binding", "quote", "quote+tcb"]
    chutes_attestation_ttl: float
    chutes_tdx_measurements: str | None
    chutes_tdx_tcb_status: tuple[str, ...]
    chutes_pccs_url: str | None
    explorer_enabled: bool
    cache_duration: float
    cache_dir: str
    explorer_cors_origins: tuple[str, ...]
    explorer_max_streams: int
    explorer_history_max_mb: int
    explorer_show_private: bool
    merge_fuzzy: Literal["off", "suggest", "apply"]
    webhooks_file: str | None
    admin_token: bytes | None = attrs.field(repr=False)
    admin_token_file: str | None
    admin_endpoint: str | None
    tracing_enabled: bool
    otel_service_name: str
    otel_exporter_otlp_endpoint: str
    otel_exporter_otlp_headers: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    otel_exporter_otlp_headers_file: str | None
    otel_traces_sampler: str
    otel_traces_sampler_arg: float
    warnings: tuple[str, ...] = ()

    @property
    def shares(self) -> bool:
        """Whether replicas share what they know of clients, models and the platform, and not nonces alone."""
        return self.redis_url is not None and self.client_key_secret is not None

    @property
    def listen_endpoint(self) -> str:
        """LISTEN_ADDR as a Twisted server endpoint string, its colons escaped."""
        host, _, port = self.listen_addr.rpartition(":")
        interface = host.strip("[]").replace(":", r"\:")
        return f"tcp:{port}:backlog={BACKLOG}:interface={interface}"
