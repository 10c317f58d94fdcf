"""Lets twistd find the service; imported by every twistd on the machine, so it loads nothing of ours."""

from twisted.application.service import ServiceMaker

chutes_autopilot = ServiceMaker(
    "Chutes AutoPilot",
    "chutes_autopilot.tap",
    "An OpenAI-compatible gateway for Chutes: live model ranking, streaming, failover before the first byte",
    "chutes-autopilot",
)
