"""The scorecard, for people and for machines."""

from collections.abc import Mapping, Sequence
from typing import Any

from chutes_autopilot.selftest.bench import Score
from chutes_autopilot.selftest.catalogue import YARDSTICK
from chutes_autopilot.selftest.grades import count


def as_text(scores: Sequence[Score], profile: str, replaced: Mapping[str, tuple[str, str]], seconds: float) -> str:
    """A table, the sums, and what differs from the running configuration."""
    width = max(len(score.trial.title) for score in scores)
    told = max(len(score.verdict.words) for score in scores)
    lines = [f"Profile: {profile}", ""]
    for score in scores:
        if score.trial not in YARDSTICK and "" not in lines[2:]:
            lines.append("")
        words = score.verdict.words
        lines.append(
            f"{score.trial.title:<{width}}  {score.verdict.grade:<7}  {words:<{told}}  {score.played.seconds:6.2f} s"
        )
    sixteen, every = _sums(scores)
    lines += ["", f"{len(YARDSTICK)} of the yardstick: {_in_words(sixteen)}", f"all {len(scores)}: {_in_words(every)}"]
    lines += [f"played in {seconds:.1f} s", "", "Replaced for the test:"]
    lines += [f"  {name}={now} (is {was or 'empty'})" for name, (was, now) in replaced.items()]
    return "\n".join(lines)


def as_json(
    scores: Sequence[Score], profile: str, replaced: Mapping[str, tuple[str, str]], seconds: float
) -> dict[str, Any]:
    """The same, for programs."""
    sixteen, every = _sums(scores)
    return {
        "profile": profile,
        "seconds": round(seconds, 3),
        "yardstick": sixteen,
        "all": every,
        "faults": [
            {
                "name": score.trial.name,
                "title": score.trial.title,
                "yardstick": score.trial in YARDSTICK,
                "grade": score.verdict.grade.value,
                "what": score.verdict.words,
                "seconds": round(score.played.seconds, 3),
                "calls": len(score.played.heard),
                "attempts": score.played.attempts,
                "left_running": score.played.running,
            }
            for score in scores
        ],
        "replaced": {name: {"configured": was, "tested": now} for name, (was, now) in replaced.items()},
    }


def _sums(scores: Sequence[Score]) -> tuple[dict[str, int], dict[str, int]]:
    return (
        count([score.verdict for score in scores if score.trial in YARDSTICK]),
        count([score.verdict for score in scores]),
    )


def _in_words(sums: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {grade}" for grade, number in sums.items())
