"""Reading the parameters of a URL: what means nothing is refused by name and never ignored or guessed."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

MAX_VALUES = 32
"""Most values of one parameter."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_INTEGER = re.compile(r"[0-9]{1,9}", re.ASCII)
_DECIMAL = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


class BadQuery(ValueError):
    """A parameter that cannot be understood.

    :param message: what is allowed; it does not repeat what was sent.
    """

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter} {message}")
        self.parameter = parameter
        self.message = message


class Parameters:
    """The parameters of one URL, read one by one. An empty value, as forms send it, is as good as none.

    :param pairs: names and values in the order of the URL.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    @classmethod
    def decoded(cls, arguments: Mapping[bytes, Sequence[bytes]]) -> "Parameters":
        """From the bytes that a URL's percent signs stand for, by name.

        :raises BadQuery: a value is not UTF-8.
        """
        pairs = []
        for raw_name, values in arguments.items():
            name = raw_name.decode("utf-8", "replace")
            for value in values:
                try:
                    pairs.append((name, value.decode("utf-8")))
                except UnicodeDecodeError:
                    raise BadQuery(_shown(name), "must be UTF-8.") from None
        return cls(pairs)

    def refuse_others(self, known: Collection[str]) -> None:
        """Refuse a parameter of any other name, which is more likely a slip than meant to do nothing."""
        for name in self._values:
            if name not in known:
                raise BadQuery(_shown(name), f"is no parameter here; there are {', '.join(known) or 'none'}.")

    def text(self, name: str, *, longest: int) -> str | None:
        """A text of so many characters at most, given once."""
        given = [value for value in self._values.get(name, ()) if value]
        if len(given) > 1:
            raise BadQuery(name, "may be given only once.")
        return self._checked(name, given[0], longest) if given else None

    def texts(self, name: str, *, longest: int = 256) -> tuple[str, ...]:
        """Several texts, by commas or by repeating the parameter; each comes once."""
        parts = (part.strip() for value in self._values.get(name, ()) for part in value.split(","))
        given = tuple(dict.fromkeys(self._checked(name, part, longest) for part in parts if part))
        if len(given) > MAX_VALUES:
            raise BadQuery(name, f"may have at most {MAX_VALUES} values.")
        return given

    def words(self, name: str, allowed: Collection[str]) -> tuple[str, ...]:
        """Several of these words."""
        given = self.texts(name)
        if any(word not in allowed for word in given):
            raise BadQuery(name, f"must be one of {', '.join(allowed)}.")
        return given

    def word(self, name: str, allowed: Collection[str]) -> str | None:
        """One of these words."""
        given = self.text(name, longest=64)
        if given is not None and given not in allowed:
            raise BadQuery(name, f"must be one of {', '.join(allowed)}.")
        return given

    def integer(self, name: str, lowest: int, highest: int) -> int | None:
        """A whole number in ASCII digits."""
        given = self.text(name, longest=64)
        if given is None:
            return None
        if not _INTEGER.fullmatch(given) or not lowest <= int(given) <= highest:
            raise BadQuery(name, f"must be a whole number from {lowest} to {highest}.")
        return int(given)

    def amount(self, name: str) -> float | None:
        """A number that is not negative, with a decimal point or without."""
        given = self.text(name, longest=64)
        if given is None:
            return None
        if not _DECIMAL.fullmatch(given):
            raise BadQuery(name, "must be a number like 0.5.")
        return float(given)

    def flag(self, name: str) -> bool | None:
        """``true`` or ``false``, or 1 or 0."""
        given = self.text(name, longest=64)
        if given is None:
            return None
        if given.lower() not in _FLAGS:
            raise BadQuery(name, "must be true or false.")
        return _FLAGS[given.lower()]

    @staticmethod
    def _checked(name: str, value: str, longest: int) -> str:
        if len(value) > longest:
            raise BadQuery(name, f"must have at most {longest} characters.")
        if _CONTROL.search(value):
            raise BadQuery(name, "must not hold control characters.")
        return value


def _shown(name: str) -> str:
    """A parameter's name as an error may repeat it."""
    return re.sub(r"[^\w.\-]", "?", name[:40], flags=re.ASCII)
