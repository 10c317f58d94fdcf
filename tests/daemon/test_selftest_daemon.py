"""``chutes-autopilot selftest`` as a process, the way an operator runs it."""

import json
from collections.abc import Callable

import pytest

SCRIPT = ("-c", "from chutes_autopilot.cli.main import main; main()")


@pytest.mark.wait(60)
def test_both_profiles_against_every_fault(start: Callable) -> None:
    """Nothing makes them fail; of the sixteen half leave no trace in the standard one, all in the resilient one.

    What only comes late counts here as well: this machine may have other work.
    """
    secret = "hunter2-hunter2-hunter2"
    running = {
        profile: start(
            *("selftest", "--profile", profile, "--longest-wait", "0.8", "--json"),
            command=SCRIPT,
            CLIENT_KEY_SECRET=secret,
            ADMIN_TOKEN=secret,
            AUTOPILOT_PROFILE="standard",
        )
        for profile in ("standard", "resilient")
    }
    for profile, least in (("standard", 8), ("resilient", 16)):
        code, out, err = running[profile].wait()
        report = json.loads(out)
        what = {fault["name"]: (fault["grade"], fault["what"]) for fault in report["faults"]}
        assert (code, err, report["profile"]) == (0, "", profile)
        assert len(what) == 21
        assert report["all"]["fail"] == 0, what
        late = sum(fault["yardstick"] and fault["what"].startswith("late; ") for fault in report["faults"])
        assert report["yardstick"]["pass"] + late >= least, what
        assert sum(report["yardstick"].values()) == 16
        assert report["replaced"]["STREAM_IDLE_TIMEOUT_MS"] == {"configured": "60000", "tested": "800"}
        assert secret not in out
