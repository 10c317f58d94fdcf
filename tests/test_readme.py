"""The README says what the program does."""

import re
from pathlib import Path
from typing import Any

from chutes_autopilot.relay.endpoint import COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES
from chutes_autopilot.web.decisions import DecisionRoutes
from chutes_autopilot.web.root import build_root, no_embeddings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_link_leads_somewhere() -> None:
    """Links of the README and the documents name files that are there."""
    for document in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_path_of_the_service_is_in_the_readme() -> None:
    """Both ways, with its method and what varies in it; the explorer's are described elsewhere."""
    nobody: Any = None
    relayed = {endpoint.path.decode(): no_embeddings for endpoint in (COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES)}
    root = build_root(nobody, nobody, nobody, decisions=DecisionRoutes(nobody), relayed=relayed)
    served = {
        f"{method} " + re.sub("<path:(.*)>", r"{\1}", rule.rule)
        for rule in root._app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
        if rule.rule.startswith("/v1/") or rule.rule in ("/healthz", "/readyz", "/metrics")
    }
    table = README.partition("## Paths\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([A-Z]+ /[^`]*)`", table)) - {"GET /", "GET /api/openapi.json"}
    assert served == told


def test_ci_runs_the_readmes_test_line() -> None:
    """What the README promises is what is checked."""
    line = re.search(r"```sh\n(.*pytest)\n```", README)
    assert line is not None
    assert "'.[test]'" in line[1]
    assert "'.[test]'" in (ROOT / ".ci/run").read_text()
