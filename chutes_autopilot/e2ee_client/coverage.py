"""What may stand in clear beside the encrypted fields: v1 and v2 cover the texts of messages and nothing else.

Whatever could carry text is refused unless the user named it, so that nobody has to learn from somebody's log that
tools, stop words or a history of reasoning were never covered. A number, a switch, null and what is empty carry none.
"""

import re
from collections.abc import Set

REQUEST_WORDS = frozenset(
    {
        "function_call",
        "modalities",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "role",
        "service_tier",
        "thinking",
        "tool_choice",
        "verbosity",
    }
)
"""Members of a request whose single words are the API's own, never the user's."""

ANSWER_WORDS = frozenset({"role", "finish_reason", "service_tier"})
"""Members of an answer whose single words are the API's own, never the model's."""

_WORD = re.compile(r"[a-z0-9_]{1,32}")
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")


def uncovered(name: str, value: object, words: Set[str], named: Set[str]) -> bool:
    """Whether a member beside the encrypted ones could carry text and was not named to go in clear.

    :param words: the members that may hold a single word.
    :param named: the members that the user accepts in clear.
    """
    return name not in named and not _without_text(value, word=name in words)


def _without_text(value: object, *, word: bool, depth: int = 0) -> bool:
    match value:
        case None | bool() | int() | float() | "":
            return True
        case str():
            return word and _WORD.fullmatch(value) is not None
        case dict():
            return depth < 4 and all(
                _NAME.fullmatch(name) is not None and _without_text(item, word=word, depth=depth + 1)
                for name, item in value.items()
            )
        case list():
            return not value or (word and depth == 0 and all(_without_text(v, word=True, depth=1) for v in value))
    return False
