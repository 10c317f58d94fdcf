"""The state of the page, all of it in the URL: what a link or a form changes and what it keeps."""

from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlencode

import attrs

FILTERS = (
    "q", "kind", "tee", "hot", "conflict", "modality", "feature", "template", "quantization", "owner", "source",
    "context_min", "price_max",
)  # fmt: skip
"""The parameters that narrow the list."""
KNOWN = (*FILTERS, "sort", "limit", "offset", "cols", "model", "compare", "requests", "input", "cached", "output")
_LONGEST = 256
_MOST = 64


@attrs.frozen
class Address:
    """A path of the page with its parameters, in the order they were given; empty ones and unknown ones are dropped."""

    path: str
    parameters: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, path: str, arguments: Mapping[bytes, list[bytes]]) -> "Address":
        """From a request's arguments; what is no UTF-8 or absurdly long is left out."""
        kept: list[tuple[str, str]] = []
        for name in KNOWN:
            for value in arguments.get(name.encode(), ()):
                decoded = value.decode("utf-8", "replace").strip()
                pair = (name, decoded)
                if decoded and len(decoded) <= _LONGEST and pair not in kept and len(kept) < _MOST:
                    kept.append(pair)
        return cls(path, tuple(kept))

    def get(self, name: str) -> str | None:
        """The first value of a parameter."""
        return next((value for key, value in self.parameters if key == name), None)

    def all(self, name: str) -> tuple[str, ...]:
        """All values of a parameter, whether repeated or joined by commas."""
        joined = ",".join(value for key, value in self.parameters if key == name)
        return tuple(dict.fromkeys(part for part in joined.split(",") if part))

    def with_(self, **changes: str | int | None) -> "Address":
        """The same with these parameters replaced; None drops one."""
        kept = [(key, value) for key, value in self.parameters if key not in changes]
        kept += [(key, str(value)) for key, value in changes.items() if value is not None]
        return Address(self.path, tuple(sorted(kept, key=lambda pair: KNOWN.index(pair[0]))))

    def only(self, names: Iterable[str]) -> "Address":
        """The same with these parameters alone."""
        names = tuple(names)
        return Address(self.path, tuple(pair for pair in self.parameters if pair[0] in names))

    def toggled(self, name: str, value: str) -> "Address":
        """With the value where it is not set, without it where it is; a new filter starts at the first row again."""
        return self.with_(**{name: None if self.get(name) == value else value, "offset": None})

    @property
    def filters(self) -> tuple[tuple[str, str], ...]:
        """The parameters that narrow the list."""
        return tuple(pair for pair in self.parameters if pair[0] in FILTERS)

    @property
    def href(self) -> str:
        """As an address on this site; commas stay readable."""
        query = urlencode(self.parameters, safe=",/:", quote_via=quote)
        return f"{self.path}?{query}" if query else self.path
