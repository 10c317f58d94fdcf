"""Whether the settings of routing do what is surely meant, and the models there are can keep what they say."""

from collections.abc import Iterator, Sequence

from chutes_autopilot.doctor.findings import Finding, ok, warn
from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.policy.model_field import read_model_field
from chutes_autopilot.policy.model_offers import offers_of
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.settings import SETTINGS, Settings, describe, read_settings

_SHOWN = 20
"""Most aliases that are found fault with one by one."""


def check_rules(settings: Settings) -> Iterator[Finding]:
    """The profile, and what is legal beside it and surely not meant."""
    profile = settings.autopilot_profile
    usual = describe(read_settings({"AUTOPILOT_PROFILE": profile}, lambda path: ""))
    parts = {setting.name for setting in SETTINGS if setting.resilient is not None} | {"HEDGE"}
    others = [
        line
        for line, default in zip(describe(settings), usual, strict=True)
        if line != default and line.partition("=")[0] in parts
    ]
    yield ok("routing", "AUTOPILOT_PROFILE", profile + (f", but for {', '.join(others)}" if others else ""))
    if settings.max_failover_attempts == 1:
        advice = "allow at least 2, or ask for single models only"
        yield warn("routing", "MAX_FAILOVER_ATTEMPTS", "1: nothing ever fails over", advice)
    if settings.rate_limit_retry and settings.retry_after_max >= settings.request_deadline:
        seen = "as long as REQUEST_DEADLINE_MS: such a wait is never begun"
        yield warn("routing", "RETRY_AFTER_MAX_MS", seen, "set it to a few seconds, which a client may still wait")
    if settings.autopilot_spread == "rendezvous" and settings.client_key_secret is None:
        seen = "rendezvous without CLIENT_KEY_SECRET: each replica and each start gives clients another order"
        yield warn("routing", "AUTOPILOT_SPREAD", seen, "set CLIENT_KEY_SECRET, the same everywhere")


def check_models(settings: Settings, catalog: Catalog, ranking: Sequence[Ranked]) -> Iterator[Finding]:
    """What the settings say of models, against those of the catalog."""
    offers = offers_of(catalog)
    if settings.autopilot_require_tee and ranking:
        confidential = sum(offers.of(ranked.model).confidential is True for ranked in ranking)
        seen = f"{confidential} of {len(ranking)} candidates are confidential"
        if confidential:
            yield ok("routing", "AUTOPILOT_REQUIRE_TEE", seen)
        else:
            advice = "the alias is 503 no_candidates; see whether the catalog still says confidential_compute"
            yield warn("routing", "AUTOPILOT_REQUIRE_TEE", seen, advice)
    if settings.aliases_file is None:
        return
    own = settings.aliases_file.aliases
    useless = refused = 0
    for name in own.by_name:
        if name in catalog.ids:
            useless += 1
            advice = "a name of the catalog goes first: choose another name"
            yield warn("routing", "ALIASES_FILE", f"{name} is never used, it is a model's name", advice)
            continue
        try:
            read_model_field(
                name,
                catalog.ids,
                max_items=settings.max_model_list_items,
                unknown=settings.unknown_models,
                own=own,
            )
        except ApiError as error:
            refused += 1
            if refused <= _SHOWN:
                yield warn(
                    "routing", "ALIASES_FILE", f"{name} is refused: {error.message}", "correct the file, then SIGHUP"
                )
    yield ok(
        "routing", "ALIASES_FILE", f"{len(own.by_name) - refused - useless} of {len(own.by_name)} aliases can be used"
    )
