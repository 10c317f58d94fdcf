"""Why a model is passed over for one request: it cannot serve what the request asks for, whatever its load.

Only what is known counts against a model: it may offer whatever the catalog says nothing of.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from attrs import frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.model_offers import BYTES_PER_TOKEN, SURE_BYTES_PER_TOKEN, Offer, Offers
from chutes_autopilot.policy.request_needs import FEATURES, INPUTS, Need

REQUIREMENTS = (*INPUTS, *FEATURES, "max_tokens", "context")
"""Every name that `verdict` returns; a closed set."""

_MAX_HEADER = 1024


@frozen
class Capable:
    """The models that remain, in the order given, and why each of the others does not: a name of REQUIREMENTS."""

    models: tuple[str, ...]
    skipped: Mapping[str, str]


def verdict(need: Need, offer: Offer, *, sure: bool = False) -> str | None:
    """The first of REQUIREMENTS that a model does not meet, or None where it may serve the request.

    :param sure: the length of the prompt counts only where it is too long by any reckoning.
    """
    for name in need.requires:
        if name in offer.lacks:
            return name
    if offer.max_output is not None and need.max_tokens > offer.max_output:
        return "max_tokens"
    tokens = need.tokens(SURE_BYTES_PER_TOKEN if sure else BYTES_PER_TOKEN)
    return "context" if offer.context is not None and tokens > offer.context else None


def capable(need: Need, models: Iterable[str], offers: Offers, *, sure: bool = False) -> Capable:
    """Part the models that may serve a request from those that cannot.

    An estimate alone refuses nobody: where it speaks against all, those it is not sure of remain, the longest context
    first.

    :param sure: True for a list of the client's own, whose items are only skipped when they cannot serve it at all.
    :raises ApiError: no_capable_candidate, naming what is missing.
    """
    models = tuple(models)
    skipped = {name: reason for name in models if (reason := verdict(need, offers.of(name), sure=sure)) is not None}
    if not skipped:
        return Capable(models, skipped)
    remaining = tuple(name for name in models if name not in skipped)
    if not remaining and not sure:
        longest = sorted(models, key=lambda name: offers.of(name).context or 0, reverse=True)
        return capable(need, longest, offers, sure=True)
    if not remaining:
        raise _incapable(need, skipped)
    return Capable(remaining, skipped)


def skipped_header(skipped: Mapping[str, str]) -> bytes:
    """The value of ``x-chutes-autopilot-skipped``: ``name=requirement`` by commas, names percent-encoded, at most
    1 KiB; what does not fit is left out."""
    parts: list[str] = []
    room = _MAX_HEADER
    for name, requirement in skipped.items():
        part = f"{quote(name, safe='/:.@-_')}={requirement}"
        room -= len(part) + 2
        if room < 0:
            break
        parts.append(part)
    return ", ".join(parts).encode()


_SPOKEN = {
    "image": ("image input", "messages"),
    "audio": ("audio input", "messages"),
    "video": ("video input", "messages"),
    "tools": ("tools", "tools"),
    "json_mode": ("response_format json_object", "response_format"),
    "structured_outputs": ("response_format json_schema", "response_format"),
    "max_tokens": ("an answer of up to {answer} tokens", "max_tokens"),
    "context": ("a context of more than {context} tokens", "messages"),
}


def _incapable(need: Need, skipped: Mapping[str, str]) -> ApiError:
    missing = [name for name in REQUIREMENTS if name in skipped.values()]
    asked = " or ".join(_SPOKEN[name][0] for name in missing)
    asked = asked.format(answer=need.max_tokens, context=need.tokens(SURE_BYTES_PER_TOKEN))
    return ApiError(
        "no_capable_candidate",
        f"None of the models to choose from offers what this request needs: {asked}.",
        param=need.text_in if missing[0] == "context" else _SPOKEN[missing[0]][1],
    )
