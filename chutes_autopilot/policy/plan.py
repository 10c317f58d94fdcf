"""Which models one request tries, and in what order."""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from attrs import evolve, field, frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.model_field import Alias, Direct, ModelField, PreferenceList

Mode = Literal["alias", "list", "direct"]

_NO_BASES: Mapping[str, str] = MappingProxyType({})


@frozen
class Plan:
    """The order of attempts of one request; every entry is the full string to be sent upstream, none comes twice.

    :param mode: what the client's ``model`` was; ``direct`` is never sticky.
    :param candidates: what is tried, the sticky model first, the last resort last.
    :param preferred: the order without stickiness and cooldowns.
    :param bases: entry -> name without the platform's suffixes, for those entries that have some.
    :param last_resort: the candidates, the spare ones among them, that are tried only because all others failed.
    :param spare: what is behind the last attempt allowed, in order; only where it was asked for.
    """

    mode: Mode
    candidates: tuple[str, ...]
    preferred: tuple[str, ...]
    bases: Mapping[str, str] = field(default=_NO_BASES, hash=False)
    last_resort: frozenset[str] = frozenset()
    spare: tuple[str, ...] = ()

    def base(self, model: str) -> str:
        """The name by which one of the entries is remembered and counted (see model_field.base_of)."""
        return self.bases.get(model, model)


def expanded(asked: ModelField, ranked: Callable[[Alias], Sequence[str]]) -> tuple[Direct, ...]:
    """All that may be tried for what was asked, in its order, each model once.

    A model comes at its first place: a list of ``a:latency`` and the alias does not try ``a`` again.

    :param ranked: the base names that an alias stands for, best first.
    """
    if isinstance(asked, Direct):
        return (asked,)
    entries: dict[str, Direct] = {}
    for item in asked.items if isinstance(asked, PreferenceList) else (asked,):
        if isinstance(item, Direct):
            entries.setdefault(item.base, item)
        else:
            for name in ranked(item):
                if name not in entries:
                    entries[name] = Direct(name + item.suffix, name)
    return tuple(entries.values())


def make_plan(
    mode: Mode,
    entries: Sequence[Direct],
    sticky: str | None,
    *,
    limit: int,
    cooling: Collection[str] = (),
    spare: bool = False,
) -> Plan:
    """Turn what may be tried into an order of attempts.

    :param entries: in the preferred order, each model once.
    :param sticky: base name to be tried first, wherever it stands; ignored where it is no candidate, and for direct.
    :param limit: attempts a request may make, at least 1; what lies behind is left out.
    :param cooling: base names to be tried behind all others, the sticky one among them too.
    :param spare: what lies behind may be tried after all, in the place of candidates that are passed over.
    :raises ApiError: no_candidates, when nothing can be tried.
    """
    if not entries:
        raise no_candidates("No model is available at the moment")
    preferred, last = entries[:limit], [entry for entry in entries if entry.base in cooling]
    order = [entry for entry in entries if entry.base not in cooling] if last else entries
    first = None if mode == "direct" else next((entry for entry in order if entry.base == sticky), None)
    if first is not None:
        order = (first, *(entry for entry in order if entry is not first))
    order = (*order, *last)
    candidates, behind = order[:limit], order[limit:] if spare else ()
    last_resort = frozenset(_models([entry for entry in (*candidates, *behind) if entry.base in cooling]))
    bases = _bases([*candidates, *preferred, *behind])
    return Plan(mode, _models(candidates), _models(preferred), bases, last_resort, _models(behind))


def preferring(plan: Plan, entries: Sequence[Direct]) -> Plan:
    """The same attempts where the client would have had others first, which cannot be made now."""
    return evolve(plan, preferred=_models(entries), bases={**plan.bases, **_bases(entries)})


def no_candidates(why: str) -> ApiError:
    """The answer where there is nothing to choose from."""
    return ApiError(
        "no_candidates", f"{why}: try again in a second, or name a model.", headers=((b"Retry-After", b"1"),)
    )


def mode_of(asked: ModelField) -> Mode:
    """What kind of thing was asked for."""
    if isinstance(asked, Direct):
        return "direct"
    return "list" if isinstance(asked, PreferenceList) else "alias"


def _models(entries: Sequence[Direct]) -> tuple[str, ...]:
    return tuple(entry.model for entry in entries)


def _bases(entries: Sequence[Direct]) -> Mapping[str, str]:
    return {entry.model: entry.base for entry in entries if entry.model != entry.base} or _NO_BASES
