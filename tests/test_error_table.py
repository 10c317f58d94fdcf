"""The documents say of every error code when it comes, with the status that it has."""

import re
from pathlib import Path

from chutes_autopilot.errors import STATUS_BY_CODE

DOCS = Path(__file__).parent.parent / "docs"


def rows(name: str) -> dict[str, str]:
    """Code to status as a document's tables have them; several codes of one row share a status or have one each."""
    found: dict[str, str] = {}
    for codes, statuses in re.findall(
        r"^\| (`[a-z0-9_`, ]+`) \| ([\d, ]+|-) \| ", (DOCS / name).read_text(), flags=re.M
    ):
        names, numbers = re.findall(r"`(\w+)`", codes), statuses.split(", ")
        assert len(numbers) in (1, len(names)), codes
        found |= dict(zip(names, numbers * len(names) if len(numbers) == 1 else numbers, strict=True))
    return found


def test_every_error_code_is_documented_with_its_status() -> None:
    """In the tables of routing and of the Chutes route, or among the reasons of /readyz; and no other code is."""
    told = {**rows("e2ee.md"), **rows("routing.md")}
    health = (DOCS / "operations.md").read_text().partition("## Health\n")[2].partition("\n## ")[0]
    told |= dict.fromkeys(re.findall(r"^\| `(\w+)` \|", health, flags=re.M), "503")
    in_streams_only = {code for code, status in told.items() if status == "-"}
    assert in_streams_only == {"upstream_stream_truncated"}
    assert {code: int(status) for code, status in told.items() if status != "-"} == {
        code: status for code, status in STATUS_BY_CODE.items() if code not in in_streams_only
    }
