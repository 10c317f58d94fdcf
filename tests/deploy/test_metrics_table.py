"""The documents name every metric of the service, and none that is not there."""

import re
from pathlib import Path

OPERATIONS = Path(__file__).parent.parent.parent / "docs" / "operations.md"


def test_the_table_has_exactly_the_metrics_there_are(metric_types: dict[str, str]) -> None:
    """By the names that a scrape shows, without their prefix."""
    table = OPERATIONS.read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for first in firsts for name in re.findall("`([a-z_]+)`", first)]
    assert sorted(named) == sorted(name.removeprefix("chutes_autopilot_") for name in metric_types)
