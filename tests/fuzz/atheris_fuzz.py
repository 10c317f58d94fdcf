"""Fuzz one target for as long as you like: ``python tests/fuzz/atheris_fuzz.py TARGET [libFuzzer options]``.

atheris is not among the test requirements, as it is not needed to run the tests: ``pip install atheris`` (Linux or
macOS), beside ``pip install -e '.[test]'``. For example, an hour, new inputs kept in a folder of your own::

    mkdir -p corpus
    python tests/fuzz/atheris_fuzz.py front_channel corpus tests/fuzz/seeds/front_channel -max_total_time=3600

libFuzzer writes what breaks a target to ``crash-...`` in the working directory; one such file as the only argument
after the target's name replays it. Put it into ``seeds/TARGET/`` under a name that says what it is, and the tests run
it from then on.
"""

import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "edge"), str(HERE.parent.parent)]

# Without atheris' "RegEx" hook: its patterns cannot begin to match in the middle. The words make up for it.
with atheris.instrument_imports(include=["chutes_autopilot", "targets"]):
    from targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer's options say enough, or something breaks."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"{__doc__}\nTARGET is one of: {', '.join(TARGETS)}")
    target = TARGETS[sys.argv.pop(1)]
    with tempfile.NamedTemporaryFile("w", suffix=".dict") as words:
        words.writelines('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
        words.flush()
        atheris.Setup([sys.argv[0], f"-dict={words.name}", *sys.argv[1:]], target.check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
