"""The real promtool, where it is installed (Debian: the package prometheus)."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (package prometheus)")


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it and keep what it says."""
    command = [PROMTOOL or "promtool", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
