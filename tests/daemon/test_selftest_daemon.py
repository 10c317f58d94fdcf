"""``chutes-autopilot selftest`` as a process, the way an operator runs it."""

import json
from collections.abc import Callable

import pytest

SCRIPT = ("-c", "from chutes_autopilot.cli.main import main; main()")


@pytest.mark.wait(60)
def test_the_standard_profile_against_every_fault(start: Callable) -> None:
    """No fault makes it fail, at least eight of the sixteen leave no trace, and no secret is printed."""
    arguments = ("selftest", "--profile", "standard", "--longest-wait", "0.8", "--json")
    secret = "hunter2-hunter2-hunter2"
    code, out, err = start(*arguments, command=SCRIPT, CLIENT_KEY_SECRET=secret, ADMIN_TOKEN=secret).wait()
    report = json.loads(out)
    what = {fault["name"]: (fault["grade"], fault["what"]) for fault in report["faults"]}
    assert (code, err) == (0, "")
    assert len(what) == 21
    assert report["all"]["fail"] == 0, what
    assert report["yardstick"]["pass"] >= 8, what
    assert sum(report["yardstick"].values()) == 16
    assert report["replaced"]["STREAM_IDLE_TIMEOUT_MS"] == {"configured": "60000", "tested": "800"}
    assert secret not in out
