"""Chromium, driven over its debugging protocol, before services that run as child processes."""

import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

TESTS = Path(__file__).parent.parent
sys.path += [str(TESTS / "daemon"), str(TESTS / "explorer")]

from daemon_process import TWISTD, UNWRITABLE, Daemon  # noqa: E402
from page_service import uuid  # noqa: E402
from scripted_platform import ScriptedPlatform  # noqa: E402
from watched_page import Watch, watched_page  # noqa: E402

from chutes_autopilot.storage import history_file  # noqa: E402
from chutes_autopilot.storage.history_rows import HistoryRow  # noqa: E402
from chutes_autopilot.storage.history_writing import write_minute  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome")
LIFETIME = 300.0
MINUTE = 60

Open = Callable[..., Page]


# not of the session: while Playwright is there, its event loop counts as running for all that use asyncio
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine."""
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("no Chromium: none of " + ", ".join(NAMES) + " is installed, and CHROMIUM names none")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


def _started(*options: str, cwd: str, **environ: str) -> Iterator[str]:
    command = (*TWISTD, "chutes-autopilot", *options)
    daemon = Daemon(command, cwd, {"EXPLORER_ENABLED": "true", **environ}, LIFETIME)
    try:
        service = daemon.wait_for("listening on ")
        _wait_until_known(service)
        yield service
    finally:
        daemon.kill()


def _wait_until_known(service: str) -> None:
    """The first moments of a service have states of their own, which need no browser to be tested."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            with urlopen(f"{service}/api/catalog?limit=1") as answer:  # noqa: S310 - a service of ours
                if all(source["fetched_at"] for source in json.load(answer)["sources"].values()):
                    return
        except HTTPError as error:
            error.close()  # the explorer is still being loaded, or knows nothing yet
        time.sleep(0.05)
    pytest.fail("the service never knew all of its sources")


@pytest.fixture(scope="module")
def demo(browser: Browser) -> Iterator[str]:
    """The address of a service in demo mode."""
    yield from _started("--demo", cwd=UNWRITABLE)


@pytest.fixture(scope="module")
def platform(browser: Browser) -> Iterator[ScriptedPlatform]:
    """What the service called ``scripted`` asks."""
    platform = ScriptedPlatform()
    yield platform
    platform.close()


@pytest.fixture(scope="module")
def scripted(platform: ScriptedPlatform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service on a data directory of its own, which remembers an hour of one model."""
    directory = tmp_path_factory.mktemp("cache")
    _remember(directory / "history.sqlite3")
    refresh = {"UTILIZATION_REFRESH_MS": "300", "MODELS_REFRESH_MS": "300"}
    yield from _started(cwd=str(directory), CACHE_DIR=str(directory), **platform.environ, **refresh)


def _remember(file: Path) -> None:
    connection = sqlite3.connect(file)
    history_file.configure(connection)
    now = int(time.time()) // MINUTE * MINUTE
    for at in range(now - 60 * MINUTE, now, MINUTE):
        row = HistoryRow(uuid(1), "acme/Model-01", utilization=0.5, active_instances=2, price_input=0.5, price_output=1)
        write_minute(connection.cursor(), at, [row], (), {})
    connection.commit()
    connection.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """``open_page(service, path, size=, scheme=, scripts=)``: a loaded page.

    After the test: nothing was asked of anybody else, no dialog came up, nothing was complained of. A test that expects
    such a thing takes it out of ``page.watch.troubles``.
    """
    watches: list[Watch] = []

    def opened(service: str, path: str, **given: Any) -> Page:
        watch = Watch(service)
        page = watched_page(browser, watch, **given)
        page.watch = watch  # type: ignore[attr-defined]
        watches.append(watch)
        page.goto(path)
        return page

    yield opened
    for context in browser.contexts:
        context.close()
    assert [trouble for watch in watches for trouble in watch.troubles] == []
