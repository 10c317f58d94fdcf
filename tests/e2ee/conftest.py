"""The vectors that two independent implementations agree on, for every test of the encrypted route."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("vectors.json").read_text(encoding="utf-8"))
