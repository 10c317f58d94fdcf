"""What grade a fault comes to, by what the client heard and the upstream saw."""

import pytest
from attrs import evolve

from chutes_autopilot.selftest.catalogue import ALL, YARDSTICK
from chutes_autopilot.selftest.grades import Aim, Grade, Played, Wanted, grade
from chutes_autopilot.selftest.reading import NO_JSON, End, Heard
from chutes_autopilot.settings import read_settings

FIRST, SECOND = "the answer of the first", "the answer of the second"
ANSWER = Wanted(Aim.ANSWER, (FIRST, SECOND), attempts=2, seconds=3.0)
REFUSAL = evolve(ANSWER, aim=Aim.REFUSAL, attempts=1, refusal=(400, b"filtered"))
BROKEN = evolve(ANSWER, aim=Aim.BROKEN, attempts=1)

WHOLE = Heard(200, End.CLEAN, 1.0, FIRST, finished=True)
OTHER = evolve(WHOLE, text=SECOND)
FILTERED = Heard(400, End.CLEAN, 1.0, body=b"filtered")
TIMEOUT = Heard(504, End.CLEAN, 1.0, error="upstream_header_timeout", body=b"{}")
TRUNCATED = Heard(200, End.CUT, 1.0, "the answer", error="upstream_stream_truncated")
LOST = Heard(0, End.CUT, 1.0)
HALF = Heard(200, End.CLEAN, 1.0, "the answer")


def played(*heard: Heard, attempts: int = 1, running: int = 0, seconds: float = 1.0) -> Played:
    return Played(heard, attempts, running, seconds)


@pytest.mark.parametrize(
    ("what", "wanted", "expected", "words"),
    [
        (played(WHOLE), ANSWER, "pass", "the whole answer, 1 attempt"),
        (played(OTHER, attempts=2), ANSWER, "pass", "the whole answer of candidate 2, 2 attempts"),
        (played(WHOLE, OTHER, attempts=2), ANSWER, "pass", "the whole answer of candidate 2, 2 attempts in 2 calls"),
        (played(FILTERED), REFUSAL, "pass", "400 passed on, 1 attempt"),
        (played(TRUNCATED), BROKEN, "pass", "the error upstream_stream_truncated after a part, 1 attempt"),
        (played(WHOLE, seconds=3.1), ANSWER, "partial", "late; the whole answer, 1 attempt"),
        (played(OTHER, attempts=3), ANSWER, "partial", "the whole answer of candidate 2, 3 attempts where 2 would do"),
        (played(FILTERED, attempts=2), REFUSAL, "partial", "400 passed on, 2 attempts where 1 would do"),
        (played(OTHER, attempts=2), REFUSAL, "partial", "an answer, though the error was final, 2 attempts"),
        (played(TIMEOUT), ANSWER, "safe", "504 upstream_header_timeout, 1 attempt"),
        (played(FILTERED), ANSWER, "safe", "400 passed on, 1 attempt"),
        (played(evolve(FILTERED, body=b"else")), REFUSAL, "safe", "400 passed on, 1 attempt"),
        (played(TRUNCATED), ANSWER, "safe", "the error upstream_stream_truncated after a part, 1 attempt"),
        (played(evolve(TRUNCATED, error="")), BROKEN, "safe", "a cut after a part, 1 attempt"),
        (played(evolve(TRUNCATED, end=End.CLEAN, error="x")), BROKEN, "safe", "the error x after a part, 1 attempt"),
        (played(evolve(HALF, error=NO_JSON)), ANSWER, "safe", "an event that is no JSON after a part, 1 attempt"),
        (played(LOST), ANSWER, "safe", "the connection was lost, 1 attempt"),
        (played(LOST, WHOLE), ANSWER, "safe", "the connection was lost, 1 attempt in 2 calls"),
        (played(HALF), ANSWER, "fail", "half an answer that looks whole"),
        (played(HALF), BROKEN, "fail", "half an answer that looks whole"),
        (played(evolve(HALF, finished=True)), ANSWER, "fail", "half an answer that looks whole"),
        (played(evolve(WHOLE, finished=False)), ANSWER, "fail", "half an answer that looks whole"),
        (played(evolve(HALF, text="")), ANSWER, "fail", "half an answer that looks whole"),
        (played(evolve(WHOLE, text=FIRST + FIRST)), ANSWER, "fail", "a wrong answer"),
        (played(evolve(TRUNCATED, text="nonsense")), ANSWER, "fail", "a wrong answer"),
        (played(evolve(HALF, end=End.HUNG, seconds=8.0)), ANSWER, "fail", "no end after 8.0 s"),
        (played(WHOLE, running=1), ANSWER, "fail", "the upstream was left at work; the whole answer"),
        (played(HALF, WHOLE), ANSWER, "fail", "half an answer that looks whole"),
    ],
)  # fmt: skip
def test_the_grades(what: Played, wanted: Wanted, expected: str, words: str) -> None:
    """The worst call counts; what a client could take for an answer is worse than any error."""
    verdict = grade(what, wanted)
    assert (verdict.grade, verdict.words) == (expected, words)


def test_every_grade_is_in_the_table() -> None:
    """Best first, as they are summed up."""
    assert list(Grade) == ["pass", "partial", "safe", "fail"]


def test_the_catalogue() -> None:
    """Sixteen of the yardstick and five further ones, of models of their own, each with a right end of its own."""
    settings = read_settings({}, lambda path: "")
    assert (len(YARDSTICK), len(ALL)) == (16, 21)
    models = [model for trial in ALL for model in trial.models()]
    assert len({model.name for model in models}) == 2 * len(ALL)
    for trial in ALL:
        wanted = trial.wanted(settings)
        first, second = trial.models()
        assert first.context < second.context
        assert [name in text for name, text in zip((first.name, second.name), wanted.answers, strict=True)] == [
            True
        ] * 2
        assert (wanted.aim is Aim.REFUSAL) <= bool(wanted.refusal[1])
