"""The alert rules are correct, fire when they should and only then, and look at what the service counts."""

import re
from pathlib import Path
from typing import Any

import yaml
from promtool import needs_promtool, promtool

from chutes_autopilot.settings import SETTINGS

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
    return group["rules"]


def threshold(name: str) -> float:
    """What the rule compares with at its end."""
    (rule,) = (rule for rule in rules() if rule["alert"] == name)
    return float(re.search(r"> ([0-9.]+)$", rule["expr"])[1])


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    """Syntax, expressions, templates and lint."""
    result = promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml", cwd=PROMETHEUS)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_the_rules_fire_when_they_should() -> None:
    """promtool plays the cases of alerts_test.yaml, each of which names all alerts that fire."""
    result = promtool("test", "rules", "alerts_test.yaml", cwd=PROMETHEUS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_fires_in_a_case() -> None:
    """The cases name all alerts that fire, so one that is in none of them would never be seen to."""
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
    samples = [sample for case in cases for test in case["promql_expr_test"] for sample in test["exp_samples"]]
    fired = {re.search('alertname="(\\w+)"', sample["labels"])[1] for sample in samples}
    assert fired == {rule["alert"] for rule in rules()}


def test_the_rules_look_at_metrics_of_the_service(metric_types: dict[str, str]) -> None:
    """Every name in an expression is a metric of the service, a histogram by its buckets."""
    named = {name for rule in rules() for name in re.findall(r"\bchutes_autopilot_\w+", rule["expr"])}
    known = {n + "_bucket" if kind == "histogram" else n for n, kind in metric_types.items()}
    assert named <= known


def test_the_rules_are_about_this_job_alone() -> None:
    """No series of another service counts, and each alert says how urgent it is and what it means."""
    for rule in rules():
        selectors = re.findall(r"\b(?:chutes_autopilot_\w+|up)(\{[^}]*\})?", rule["expr"])
        assert selectors
        assert all('job="chutes-autopilot"' in selector for selector in selectors), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_limits_are_80_percent_of_the_settings() -> None:
    """In flight: of the limit in the Kubernetes manifests; connections: of the default."""
    data = yaml.safe_load((ROOT / "deploy/kubernetes/configmap.yaml").read_text())["data"]
    connections = next(int(setting.default) for setting in SETTINGS if setting.name == "MAX_CONNECTIONS")
    assert threshold("ChutesAutopilotNearlyFull") == 0.8 * int(data["MAX_INFLIGHT_REQUESTS"])
    assert threshold("ChutesAutopilotManyConnections") == 0.8 * connections


def test_stale_feeds_are_told_before_readiness_goes() -> None:
    """In Kubernetes /readyz bears a feed that stands still for longer than the alerts need."""
    data = yaml.safe_load((ROOT / "deploy/kubernetes/configmap.yaml").read_text())["data"]
    expressions = {rule["alert"]: rule["expr"] for rule in rules()}
    for alert, name in (("Utilization", "SNAPSHOT"), ("Catalog", "ALLOWLIST")):
        limit = float(re.search(r"> ([0-9]+)", expressions[f"ChutesAutopilot{alert}Stale"])[1])
        assert 5 * limit <= int(data[f"READYZ_MAX_{name}_AGE_MS"])
