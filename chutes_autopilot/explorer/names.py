"""Names of models in the forms in which two catalogs' spellings can be compared.

Names come from strangers and say little for certain, so every form errs on the side of telling models apart.
"""

import re
from difflib import SequenceMatcher

from attrs import frozen

_TOKEN = re.compile(r"[a-z]+\d+(?:\.\d+)*[a-z]*|\d+(?:\.\d+)*[a-z]*|[a-z]+")
_NUMBER = re.compile(r"\d+(?:\.\d+)*[a-z]?")

DROPPED = frozenset(
    "tee fp8 fp4 nvfp4 mxfp4 bf16 fp16 int4 int8 awq gptq gguf w4a16 w8a8 4bit 8bit".split()  # noqa: SIM905
)
"""Tokens about how a model is run, not which model it is."""

VARIANTS = frozenset(
    """
    instruct thinking base chat coder code vl air flash mini nano lite pro max small medium large embedding guard gen
    ocr reasoner reasoning speciale terminus next turbo distill chimera prover math preview exp vision plus omni edit
    fast it experimental image audio video scout maverick highspeed sonnet opus haiku ultra super safeguard deep
    research search codex lightning her swift
    """.split()  # noqa: SIM905
)
"""Words that tell siblings apart: with and without one are two models."""

Guard = tuple[tuple[str, ...], tuple[str, ...]]
"""All numbers and all variant words of a name, each sorted: names whose guards differ are never taken for one model."""


@frozen
class NameForms:
    """One name in all its forms; an empty one says nothing.

    :param casefold: without letter case.
    :param norm_org: the organisation and ``norm``.
    :param norm: the tokens without the dropped ones, joined by hyphens.
    :param joined: ``norm`` without hyphens and dots.
    :param ordered: the tokens sorted and joined by blanks, for the score.
    """

    name: str
    casefold: str
    norm_org: str
    norm: str
    joined: str
    ordered: str
    guard: Guard


def tokens_of(base: str) -> list[str]:
    """The letters and numbers that a name without its organisation consists of."""
    return [token for token in _TOKEN.findall(base.lower()) if token not in DROPPED]


def forms_of(name: str) -> NameForms:
    """The forms of one name."""
    org, _, base = name.rpartition("/")
    tokens = tokens_of(base)
    norm = "-".join(tokens)
    numbers = tuple(sorted(number for token in tokens for number in _NUMBER.findall(token)))
    return NameForms(
        name=name,
        casefold=name.casefold(),
        norm_org=f"{org.lower()}/{norm}" if org and norm else norm,
        norm=norm,
        joined=norm.replace("-", "").replace(".", ""),
        ordered=" ".join(sorted(tokens)),
        guard=(numbers, tuple(sorted(token for token in tokens if token in VARIANTS))),
    )


def score(a: NameForms, b: NameForms) -> float:
    """How alike two names are, 0 to 100; the same in both directions."""
    first, second = sorted((a.ordered, b.ordered))
    return rounded(SequenceMatcher(None, first, second, autojunk=False).ratio())


def rounded(ratio: float) -> float:
    """A ratio as a score with one decimal."""
    return round(100 * ratio, 1)
