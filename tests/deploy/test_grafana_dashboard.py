"""The dashboard shows every metric of the service, and none that is not there."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from promtool import needs_promtool, promtool

DASHBOARD = Path(__file__).parent.parent.parent / "deploy" / "grafana" / "dashboard.json"
VARIABLES = {"$__rate_interval": "5m", "$job": ".+", "$instance": ".+"}
"""What Grafana puts into an expression, and something it may put there."""
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for variable, value in VARIABLES.items():
        found = [expression.replace(variable, value) for expression in found]
    return found


def test_the_panels_show_exactly_the_metrics_there_are(metric_types: dict[str, str]) -> None:
    """Every name in an expression is a metric of the service or Prometheus's own ``up``, and no metric is left out."""
    named = {name for e in expressions() for name in re.findall(r"\b(\w+)\{", e)} - {"up"}
    parts = {n + part: n for n, kind in metric_types.items() if kind == "histogram" for part in HISTOGRAM_PARTS}
    assert named <= (set(metric_types) - set(parts.values())) | set(parts)
    assert {parts.get(name, name) for name in named} == set(metric_types)


@needs_promtool
def test_every_expression_is_promql(tmp_path: Path) -> None:
    """promtool parses them all, as rules."""
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(expressions())]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    result = promtool("check", "rules", "--lint=none", "panels.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_data_source_is_chosen_in_grafana() -> None:
    """No panel, target or variable names a data source of its own, and every variable in use is defined."""
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    asked = [*panels(), *(t for p in panels() for t in p["targets"]), variables["job"], variables["instance"]]
    assert all(one["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for one in asked)
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text()))
    assert used <= {*variables, "__rate_interval", "__all"}
    assert "$" not in "".join(expressions())


def test_the_panels_can_be_read() -> None:
    """Each has a title, a description and a unit, and no two overlap or share an id."""
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert "unit" in panel["fieldConfig"]["defaults"] or panel["type"] == "heatmap"
