"""The README says what the program does."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_link_leads_somewhere() -> None:
    """Links of the README and the documents name files that are there."""
    for document in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_ci_runs_the_readmes_test_line() -> None:
    """What the README promises is what is checked."""
    line = re.search(r"```sh\n(.*pytest)\n```", README)
    assert line is not None
    assert "'.[test]'" in line[1]
    assert "'.[test]'" in (ROOT / ".ci/run").read_text()
