"""Invented chutes that are no language models of the platform's own: images, sound, video, embeddings, others."""

from typing import Any, Literal
from uuid import NAMESPACE_OID, uuid5

from attrs import field, frozen

Does = Literal["image", "speech", "transcription", "video", "embedding", "chat", "other"]

_CORDS: dict[Does, tuple[str, str, str]] = {
    "image": ("/generate", "/generate", "image/jpeg"),
    "speech": ("/speak", "/speak", "audio/wav"),
    "transcription": ("/transcribe", "/transcribe", "application/json"),
    "video": ("/generate_video", "/generate_video", "video/mp4"),
    "embedding": ("/embed", "/v1/embeddings", "application/json"),
    "chat": ("/chat", "/v1/chat/completions", "application/json"),
    "other": ("/run", "/run", "application/json"),
}
"""Path, public path and the media type of the answer."""


@frozen
class OtherChute:
    """One invented chute that the catalog of language models does not list.

    :param template: the platform's standard template; None for a chute of another make.
    :param does: what its endpoint answers with.
    :param hour: USD per hour of GPU time; ``step`` and ``request`` USD each, where it is sold so.
    """

    name: str
    template: str | None
    does: Does
    owner: str
    gpu: str
    hour: float
    step: float | None = None
    request: float | None = None
    instances: int = 2
    busy: float = 0.3
    chute_id: str = field(init=False)

    @chute_id.default
    def _chute_id_of_the_name(self) -> str:
        return str(uuid5(NAMESPACE_OID, self.name))

    @property
    def cord_ref_id(self) -> str:
        """Where the listing keeps its endpoints."""
        return str(uuid5(NAMESPACE_OID, f"cords of {self.does}"))

    def cords(self) -> list[dict[str, Any]]:
        """Its endpoints, in the platform's shape."""
        path, public_path, content_type = _CORDS[self.does]
        return [
            {
                "method": "POST",
                "path": path,
                "function": path.removeprefix("/"),
                "stream": False,
                "passthrough": False,
                "public_api_path": public_path,
                "public_api_method": "POST",
                "output_content_type": content_type,
            }
        ]


OTHER_CHUTES = (
    OtherChute("demo-studio/sketch-diffusion", "diffusion", "image", "simulated", "4090", 0.4, step=0.0008),
    OtherChute("demo-studio/voice-basic", None, "speech", "simulated", "a6000", 0.4, request=0.002),
    OtherChute("demo-studio/embed-small", "embedding", "embedding", "simulated", "a6000", 0.85, request=0.0005),
    OtherChute("hobby/tinkered", "vllm", "chat", "hobby", "l40s", 0.9, busy=0.2),
    OtherChute(
        "demo-studio/canvas-xl", "diffusion", "image", "simulated", "h100", 1.6, step=0.0015, instances=4, busy=0.55
    ),
    OtherChute("demo-studio/portrait-turbo", "diffusion", "image", "simulated", "4090", 0.4, step=0.0004, busy=0.7),
    OtherChute("hobby/pixel-quilt", None, "image", "hobby", "4090", 0.4, request=0.003, instances=1),
    OtherChute("demo-studio/scribe-large", None, "transcription", "simulated", "a6000", 0.45, request=0.001, busy=0.4),
    OtherChute("demo-studio/reel-motion", None, "video", "simulated", "h200", 2.4, request=0.12, instances=3, busy=0.6),
    OtherChute("hobby/loop-clips", None, "video", "hobby", "h100", 1.6, instances=0, busy=0.0),
    OtherChute("demo-studio/embed-large", "embedding", "embedding", "simulated", "l40s", 0.9, request=0.0011),
    OtherChute("sample-ai/rank-tei", "tei", "embedding", "simulated", "a6000", 0.4, busy=0.15),
    OtherChute("hobby/protein-fold", None, "other", "hobby", "a100", 1.2, instances=1, busy=0.8),
)
"""In the feed and at the end of the listing."""
