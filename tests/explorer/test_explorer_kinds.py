"""What kind of model a chute is."""

import pytest

from chutes_autopilot.explorer.kinds import kind_of_chute, kind_of_modalities
from chutes_autopilot.explorer.listing import Cord


def cord(path: str | None = None, media: str | None = None, public: str | None = None) -> Cord:
    return Cord(path, None, public, media)


@pytest.mark.parametrize(
    ("inputs", "outputs", "kind"),
    [
        (("text",), ("text",), "chat"),
        (("text", "image"), ("text",), "vision"),
        (("video",), ("text",), "vision"),
        (None, ("text",), "chat"),
        (("text",), ("image",), "image"),
        (("text",), ("audio",), "audio"),
        (("text",), ("video",), "video"),
        (("text",), ("embedding",), "embedding"),
        (("text",), ("<svg onload=alert(1)>",), None),
        (("text",), None, None),
    ],
)
def test_stated_modalities_decide(inputs: tuple[str, ...], outputs: tuple[str, ...] | None, kind: str | None) -> None:
    """What comes out names the kind; text with pictures in is vision."""
    assert kind_of_modalities(inputs, outputs) == kind


@pytest.mark.parametrize(
    ("template", "cords", "kind"),
    [
        ("vllm", (), "chat"),
        ("diffusion", (cord("/speak", "audio/wav"),), "image"),
        ("tei", (), "embedding"),
        ("embedding", (), "embedding"),
        (None, (cord("/generate", "image/jpeg"),), "image"),
        (None, (cord("/speak", "audio/wav"),), "audio"),
        (None, (cord("/generate", "VIDEO/mp4"),), "video"),
        (None, (cord("/text2video", "application/json"),), "video"),
        (None, (cord("/transcribe", "application/json"),), "audio"),
        (None, (cord("/x", "application/json", "/v1/chat/completions"),), "chat"),
        (None, (cord("/embed", "application/json"),), "embedding"),
        (None, (cord("/classify", "application/json"), cord()), "other"),
        (None, (), "other"),
        ("of the future", (), "other"),
    ],
)
def test_a_chute_is_known_by_its_template_or_its_endpoints(
    template: str | None, cords: tuple[Cord, ...], kind: str
) -> None:
    """Without a template the media type of the answer counts, then the path."""
    assert kind_of_chute(template, cords) == kind
