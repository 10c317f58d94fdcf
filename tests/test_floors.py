"""Imports point down only, and the pure floors know nothing of Twisted."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "chutes_autopilot"
FLOORS = [  # lowest first; the longest matching prefix wins
    {"errors", "interfaces", "unshown", "wire"},
    {"settings", "policy", "e2ee", "explorer"},
    {"observe", "storage", "upstream"},
    {"relay", "control", "explorer_live"},
    {"web", "edge"},
    {"tap", "composition", "listening", "descriptors", "extras", "drain", "polling", "reload", "signals", "steady_time"}
    | {
        "demo",
        "doctor",
        "selftest",
        "cli",
        "e2ee_client",
        "e2ee_keys",
        "workers",
        "control_composition",
        "chutes_composition",
        "sealed_composition",
        "explorer_composition",
        "shared_composition",
        "late_explorer",
        "pinned_measurements",
        "start_faults",
        "tracing_composition",
    },
]
PURE = ("errors", "wire", "settings", "policy", "e2ee", "explorer")


def floor_of(name: str) -> int:
    hits = [(len(p), n) for n, floor in enumerate(FLOORS) for p in floor if name == p or name.startswith(p + ".")]
    assert hits, f"{name} stands on no floor: name it in FLOORS"
    return max(hits)[1]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{a.name}" for a in node.names)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", ""):
            yield name, path


def test_a_floor_imports_only_from_itself_and_below() -> None:
    """Every import inside the package points to the same or a lower floor."""
    wrong = []
    for me, path in modules():
        for name in imports(path):
            if name.startswith("chutes_autopilot.__") or not name.startswith("chutes_autopilot."):
                continue
            other = name.removeprefix("chutes_autopilot.")
            if floor_of(other) > floor_of(me):
                wrong.append(f"{me} imports {other}")
    assert not wrong


def test_the_pure_floors_know_no_reactor() -> None:
    """errors, wire, settings, policy, e2ee and explorer import nothing of Twisted, treq or Klein."""
    wrong = [
        f"{me} imports {name}"
        for me, path in modules()
        for name in imports(path)
        if any(me == p or me.startswith(p + ".") for p in PURE) and name.split(".")[0] in ("twisted", "treq", "klein")
    ]
    assert not wrong


def test_only_the_composition_root_imports_the_reactor() -> None:
    """The global reactor is imported where a process begins, and nowhere else."""
    owners = {"tap", "demo.__main__", "cli.main", "e2ee_client.__main__", "workers.__main__"}
    importers = {me for me, path in modules() if "twisted.internet.reactor" in imports(path)}
    assert importers <= owners
