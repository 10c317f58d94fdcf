"""What gets installed: sdist and wheel are complete, and the installed service needs no checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from chutes_autopilot import __version__

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("chutes_autopilot", "twisted", "setup.py", "pyproject.toml", "README.md", "LICENSE")
PLUGIN = "twisted/plugins/chutes_autopilot_plugin.py"
UNWRITABLE = "/proc" if sys.platform == "linux" else "/"
TWISTD = "from twisted.scripts.twistd import run; run()"

pytestmark = pytest.mark.wait(120)


def run(*command: str | Path, cwd: str | Path = UNWRITABLE) -> str:
    environ = {"PATH": os.defpath, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the unpacked sdist, so that it shows what is missing in either."""
    pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools of pyproject.toml")
    work = tmp_path_factory.mktemp("build")
    source = work / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
        else:
            shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    run(sys.executable, "-c", build, "build_sdist", work, cwd=source)
    (sdist,) = work.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
        archive.extractall(work / "unpacked", **safely)  # noqa: S202 - it is our own
    (unpacked,) = (work / "unpacked").iterdir()
    run(sys.executable, "-c", build, "build_wheel", work, cwd=unpacked)
    (built,) = work.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel in it; its dependencies are those of the running tests."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    run(sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--no-deps", "--no-index", wheel)
    # After the installation: pip would take an installed copy among them for ours.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return home


def test_the_wheel_holds_the_package_the_plugin_and_nothing_else(wheel: Path) -> None:
    """Every file of the package is in the wheel, data too, and so is the plugin."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = [name.rpartition("/")[2] for name in archive.namelist() if ".dist-info/" in name]
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "chutes_autopilot").rglob("*") if p.is_file()}
    assert names == {name for name in package if "__pycache__" not in name} | {PLUGIN}
    assert "LICENSE" in metadata


def test_the_installed_package_is_the_one_that_runs(environment: Path) -> None:
    """The environment does not use the checkout."""
    where = "import chutes_autopilot; print(chutes_autopilot.__file__)"
    assert Path(run(environment / "bin/python", "-c", where).strip()).is_relative_to(environment)
    assert list(environment.glob(f"lib/python*/site-packages/{PLUGIN}"))


def test_twistd_finds_the_installed_plugin(environment: Path) -> None:
    """twistd lists the service and runs it, from a directory that is neither ours nor writable."""
    assert "chutes-autopilot" in run(environment / "bin/python", "-c", TWISTD, "--help")
    version = run(environment / "bin/python", "-c", TWISTD, "-n", "chutes-autopilot", "--version")
    assert version == f"chutes-autopilot {__version__}\n"


def test_the_console_script_is_installed(environment: Path) -> None:
    """The script in the environment's bin directory runs the service."""
    assert run(environment / "bin/chutes-autopilot", "--version") == f"chutes-autopilot {__version__}\n"
    assert "LISTEN_ADDR=0.0.0.0:8080" in run(environment / "bin/chutes-autopilot", "run", "--check-config")
