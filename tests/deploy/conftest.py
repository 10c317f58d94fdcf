"""What the files under deploy/ are held against: the metrics of the whole service."""

import json
from base64 import b64encode
from importlib import import_module
from pathlib import Path

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from chutes_autopilot import composition, control_composition, late_explorer
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.settings import read_settings
from chutes_autopilot.workers.parent_composition import build_parent

EVERYTHING_ON = {
    "CHUTES_ENABLED": "true",
    "CHUTES_API_KEY": "cpk_test",
    "CHUTES_TRANSPORT": "e2ee",
    "CHUTES_ATTESTATION": "binding",
    "REDIS_URL": "redis://localhost",
    "CLIENT_KEY_SECRET": "a-secret-of-the-tests",
}
WEBHOOK = {
    "url": "https://hooks.example.org/chutes",
    "secret": "whsec_" + b64encode(bytes(32)).decode(),
    "events": ["price.changed"],
}


@pytest.fixture
def metric_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Type by name of every metric of the service with all of its parts on, counters with their ``_total``."""
    from twisted.internet import reactor

    made: list[Metrics] = []

    class Kept(Metrics):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(control_composition, "Metrics", Kept)
    (tmp_path / "webhooks.json").write_text(json.dumps([WEBHOOK]))
    files = {"CACHE_DIR": str(tmp_path), "WEBHOOKS_FILE": str(tmp_path / "webhooks.json")}
    settings = read_settings({**EVERYTHING_ON, **files}, lambda path: "")
    for module in late_explorer.MODULES:
        import_module(module)  # else the explorer would be built after the start
    composition.build(settings, reactor, ())
    build_parent(attrs.evolve(settings, workers=2), reactor, (), lambda: ({}, {}))
    expositions = [metrics.exposition().decode() for metrics in made]
    families = [family for text in expositions for family in text_string_to_metric_families(text)]
    return {f.name + "_total" * (f.type == "counter"): f.type for f in families}
