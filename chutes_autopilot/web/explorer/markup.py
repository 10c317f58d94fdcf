"""HTML as values: whatever is not built here is text and is escaped, so that no stranger's string becomes markup."""

import re
from collections.abc import Iterable
from html import escape

Child = object
"""A piece of content: Html as it stands, an iterable of pieces, None and False for nothing, else its text."""

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
_SPECIAL = re.compile("[&<>\"']").search


class Html(str):
    """Markup that is safe as it stands; made by this module, never by casting what came from elsewhere."""

    __slots__ = ()


def text(value: object) -> str:
    """``value`` as text, fit for content and for a quoted attribute."""
    plain = value if isinstance(value, str) else str(value)
    return escape(plain) if _SPECIAL(plain) else plain  # most text needs nothing, and escape() looks five times


def join(children: Iterable[Child]) -> Html:
    """The pieces one after the other."""
    parts: list[str] = []
    _add(parts, children)
    return Html("".join(parts))


def element(name: str, /, *children: Child, **attributes: object) -> Html:
    """One element.

    Attributes are named as in Python: ``class_`` is class, ``aria_sort`` is aria-sort. True is the bare attribute;
    None and False leave it out.
    """
    parts = ["<", name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-") if "_" in key else key
        parts.append(f" {attribute}" if value is True else f' {attribute}="{text(value)}"')
    parts.append(">")
    if name not in _VOID:
        _add(parts, children)
        parts.append(f"</{name}>")
    return Html("".join(parts))


def svg(*children: Child, view_box: str, **attributes: object) -> Html:
    """A drawing; ``preserveAspectRatio`` and ``viewBox`` are the only names that Python's spelling cannot carry."""
    drawn = element("svg", *children, **attributes)
    return Html(f'<svg viewBox="{text(view_box)}" preserveAspectRatio="none"{drawn[4:]}')


def document(head: Html, body: Html, **attributes: object) -> bytes:
    """A whole page as it is sent."""
    return ("<!doctype html>\n" + element("html", head, body, **attributes)).encode()


def _add(parts: list[str], children: Iterable[Child]) -> None:
    for child in children:
        if isinstance(child, str):
            parts.append(child if type(child) is Html else text(child))
        elif child is None or child is False:
            continue
        elif isinstance(child, Iterable):
            _add(parts, child)
        else:
            parts.append(text(child))
