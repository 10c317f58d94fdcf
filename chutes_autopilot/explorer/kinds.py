"""What kind of model a chute is, as far as the catalogs tell: which list of the page it belongs to."""

from collections.abc import Sequence
from typing import Literal

from chutes_autopilot.explorer.listing import Cord

Kind = Literal["chat", "vision", "image", "audio", "video", "embedding", "other"]
KINDS: tuple[Kind, ...] = ("chat", "vision", "image", "audio", "video", "embedding", "other")
"""Chat is text in and out; vision is the same with images or video in; the others are named for what comes out."""

_TEMPLATES: dict[str, Kind] = {"vllm": "chat", "diffusion": "image", "tei": "embedding", "embedding": "embedding"}
_MEDIA: tuple[Kind, ...] = ("image", "audio", "video")
_OUTPUTS: tuple[Kind, ...] = (*_MEDIA, "embedding")
_PATHS: dict[str, Kind] = {
    "chat": "chat",
    "embed": "embedding",
    "speak": "audio",
    "speech": "audio",
    "transcribe": "audio",
    "image": "image",
    "video": "video",
}

TEMPLATE_MODALITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "diffusion": (("text",), ("image",)),
    "embedding": (("text",), ("embedding",)),
    "tei": (("text",), ("embedding",)),
}
"""Input and output that a template implies; the only fields that are ever inferred from one."""


def kind_of_modalities(inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> Kind | None:
    """The kind that stated modalities say; None where the outputs are unknown or no kind has them."""
    if outputs is None:
        return None
    if "text" in outputs:
        return "vision" if inputs is not None and ("image" in inputs or "video" in inputs) else "chat"
    return next((kind for kind in _OUTPUTS if kind in outputs), None)


def kind_of_cords(cords: Sequence[Cord]) -> Kind | None:
    """The kind that endpoints point to, by the media type of what they answer, else by their paths."""
    for cord in cords:
        media = (cord.output_content_type or "").partition("/")[0].lower()
        for kind in _MEDIA:
            if media == kind:
                return kind
    for cord in cords:
        paths = f"{cord.public_api_path or ''} {cord.path or ''}".lower()
        for word, kind in _PATHS.items():
            if word in paths:
                return kind
    return None


def kind_of_chute(template: str | None, cords: Sequence[Cord]) -> Kind:
    """The kind of a listed chute: its template's, else its endpoints'."""
    return _TEMPLATES.get(template or "") or kind_of_cords(cords) or "other"
