"""From what a client heard and the upstream saw to a grade.

=========  ==========================================================================================================
pass       the whole right answer, or the error that is right where no answer can be, in time and by no more attempts
           than it takes
partial    the same, but late or by more attempts; or an answer where the upstream's error was final
safe       an error that no client can take for an answer
fail       a wrong answer, half of one that looks whole, no end at all, or an upstream left at work for nobody
=========  ==========================================================================================================
"""

from collections.abc import Sequence
from enum import Enum, StrEnum, auto

from attrs import frozen

from chutes_autopilot.selftest.reading import NO_JSON, End, Heard


class Grade(StrEnum):
    """Best first."""

    PASS = "pass"  # noqa: S105
    PARTIAL = "partial"
    SAFE = "safe"
    FAIL = "fail"


class Aim(Enum):
    """What would be right."""

    ANSWER = auto()
    REFUSAL = auto()
    """The upstream's own error, unchanged."""
    BROKEN = auto()
    """What had come when the stream broke, an error event, and no clean end."""


@frozen
class Wanted:
    """The right end of one fault.

    :param answers: the right texts, those of the first candidate first.
    :param attempts: the most upstream requests it takes, over all calls.
    :param seconds: the most it may take or, for what is measured in another way, may cost.
    :param refusal: status and body of the upstream's own error, where that is the aim.
    """

    aim: Aim
    answers: tuple[str, ...]
    attempts: int
    seconds: float
    refusal: tuple[int, bytes] = (0, b"")


@frozen
class Played:
    """What one fault led to.

    :param heard: what the client's calls brought, in their order.
    :param attempts: upstream requests.
    :param running: answers that the upstream was still giving when the client had had its own, or had left.
    :param seconds: what counts against ``Wanted.seconds``.
    """

    heard: tuple[Heard, ...]
    attempts: int
    running: int
    seconds: float


@frozen
class Verdict:
    """A grade, and in a few words what it is for."""

    grade: Grade
    words: str


def grade(played: Played, wanted: Wanted) -> Verdict:
    """Judge one fault; of several calls the worst counts."""
    last = played.heard[-1]
    for heard in played.heard:
        if heard.end is End.HUNG:
            return Verdict(Grade.FAIL, f"no end after {heard.seconds:.1f} s")
        if not any(answer.startswith(heard.text) for answer in wanted.answers):
            return Verdict(Grade.FAIL, "a wrong answer")
        if not (_raises(heard) or (heard.finished and heard.text in wanted.answers)):
            return Verdict(Grade.FAIL, "half an answer that looks whole")
    if played.running:
        return Verdict(Grade.FAIL, f"the upstream was left at work; {_told(last, wanted)}")
    for heard in played.heard:
        if not _right(heard, wanted):
            if _raises(heard):
                return Verdict(Grade.SAFE, _told(heard, wanted) + _by(played))
            return Verdict(Grade.PARTIAL, "an answer, though the error was final" + _by(played))
    words = _told(last, wanted) + _by(played)
    if played.seconds > wanted.seconds:
        return Verdict(Grade.PARTIAL, f"late; {words}")
    if played.attempts > wanted.attempts:
        return Verdict(Grade.PARTIAL, f"{words} where {wanted.attempts} would do")
    return Verdict(Grade.PASS, words)


def _raises(heard: Heard) -> bool:
    """Whether every SDK makes an exception of it."""
    return heard.end is End.CUT or bool(heard.error) or not 200 <= heard.status < 300


def _right(heard: Heard, wanted: Wanted) -> bool:
    match wanted.aim:
        case Aim.ANSWER:
            return not _raises(heard)
        case Aim.REFUSAL:
            return heard.end is End.CLEAN and (heard.status, heard.body) == wanted.refusal
        case Aim.BROKEN:
            return heard.end is End.CUT and heard.status == 200 and bool(heard.error)


def _told(heard: Heard, wanted: Wanted) -> str:
    """The end of a call, in words."""
    if not _raises(heard):
        which = wanted.answers.index(heard.text)
        return "the whole answer" + (f" of candidate {which + 1}" if which else "")
    if heard.status == 0:
        return "the connection was lost"
    if not 200 <= heard.status < 300:
        return f"{heard.status} {heard.error}" if heard.error else f"{heard.status} passed on"
    after = " after a part" if heard.text else ""
    if heard.error and heard.error != NO_JSON:
        return f"the error {heard.error}{after}"
    return f"{heard.error or 'a cut'}{after}"


def _by(played: Played) -> str:
    calls = f" in {len(played.heard)} calls" if len(played.heard) > 1 else ""
    return f", {played.attempts} attempt{'s' if played.attempts != 1 else ''}{calls}"


def count(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many there are of each grade."""
    return {each.value: sum(verdict.grade is each for verdict in verdicts) for each in Grade}
