"""The faults that are played, and what would be right for each."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from attrs import field, frozen

from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.chat import ChatCall
from chutes_autopilot.demo.completions import Completion, whole_answer
from chutes_autopilot.demo.faults import FaultKind
from chutes_autopilot.demo.outcome import refusal_for
from chutes_autopilot.selftest.grades import Aim, Wanted
from chutes_autopilot.settings import Settings

TOKENS = 24
"""Length of each answer."""
SLACK = 2.0
"""Seconds that anything may take beside the waiting times it has to: retries have jitter, and machines are busy."""
CHEAP = 0.25
"""Seconds that a failover may cost."""
IDLE_LATENESS = 1.25
"""By so much the idle deadline of a stream may pass late."""
COST_PAIRS = 5
FLAP_CALLS = 3
"""Calls while the first model is down."""

_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
_NOTHING: Mapping[str, Any] = MappingProxyType({})

Wait = Literal["header", "idle"]


@frozen
class Trial:
    """One fault of the first of two models; the second one is well and has a larger context.

    :param requests: how many requests the fault befalls, None: every one.
    :param attempts: the most upstream requests that a right end takes.
    :param wait: the deadline that it takes to notice the fault.
    :param asks: what the request has beside the usual.
    :param measured: how the seconds come about that count: those of the call, those until the first model is back, or
        what a failover costs.
    """

    name: str
    title: str
    kind: FaultKind
    requests: int | None = None
    aim: Aim = Aim.ANSWER
    attempts: int = 2
    wait: Wait | None = None
    asks: Mapping[str, Any] = field(default=_NOTHING, repr=False)
    measured: Literal["call", "return", "cost"] = "call"

    def models(self) -> tuple[SimulatedModel, ...]:
        """Models that no other trial uses."""
        contexts = (8192, 131_072)
        names = (f"selftest/{self.name}-{number}-TEE" for number in ("1", "2"))
        return tuple(
            SimulatedModel(name, "vllm", "bf16", context, 0.1, 0.4, instances=4, busy=0.3)
            for name, context in zip(names, contexts, strict=True)
        )

    def body(self) -> dict[str, Any]:
        """What the client asks."""
        models = ", ".join(model.name for model in self.models())
        messages = [{"role": "user", "content": "This is a test of the gateway."}]
        return {"model": models, "stream": True, "n_tokens": TOKENS, "messages": messages, **self.asks}

    def wanted(self, settings: Settings) -> Wanted:
        """What is right with these settings."""
        models = self.models()
        seconds = SLACK
        match self.wait:
            case "header":
                seconds += settings.upstream_header_timeout
            case "idle":
                seconds += settings.stream_idle_timeout * IDLE_LATENESS
        if self.measured == "return":
            seconds += settings.sticky_failback + settings.cooldown
        elif self.measured == "cost":
            seconds = CHEAP
        refusal = refusal_for(self.kind, ChatCall(models[0], True, TOKENS, "stop"))
        return Wanted(
            self.aim,
            tuple(_answer_of(model) for model in models),
            self.attempts,
            seconds,
            (refusal.status, refusal.body) if refusal else (0, b""),
        )


def _answer_of(model: SimulatedModel) -> str:
    answer = json.loads(whole_answer(Completion("", model.name, 0, TOKENS)))
    text: str = answer["choices"][0]["message"]["content"]
    return text


YARDSTICK: tuple[Trial, ...] = (
    Trial("429-once", "429 once", FaultKind.CAPACITY, requests=1),
    Trial("429", "429 persistent", FaultKind.CAPACITY, attempts=3),
    Trial("500-once", "500 once", FaultKind.NO_INFRASTRUCTURE, requests=1),
    Trial("503", "503", FaultKind.NO_INSTANCES),
    Trial("reset", "reset", FaultKind.RESET, attempts=3),
    Trial("silence", "silence", FaultKind.SILENT_HEAD, wait="header"),
    Trial("slow", "slow first token", FaultKind.SLOW_START, wait="header"),
    Trial("cut", "cut mid-stream", FaultKind.CUT, attempts=3),
    Trial("stall", "stall", FaultKind.FROZEN, attempts=3, wait="idle"),
    Trial("malformed", "malformed event", FaultKind.MALFORMED_EVENT, attempts=3),
    Trial("no-done", "missing [DONE]", FaultKind.NO_DONE, attempts=1),
    Trial("context", "context-length error", FaultKind.CONTEXT_LENGTH),
    Trial("filter", "content filter", FaultKind.CONTENT_FILTER, aim=Aim.REFUSAL, attempts=1),
    Trial("cut-tools", "cut, no continuing", FaultKind.CUT, aim=Aim.BROKEN, attempts=1, asks={"tools": [_TOOL]}),
    Trial("flap", "flap and fail-back", FaultKind.NO_INSTANCES, attempts=1000, measured="return"),
    Trial("cost", "cost of a failover", FaultKind.NO_INSTANCES, attempts=3 * COST_PAIRS, measured="cost"),
)
"""The sixteen that count: the faults by which gateways are compared."""

FURTHER: tuple[Trial, ...] = (
    Trial("in-band", "in-band error", FaultKind.ERROR_EVENT_FIRST, attempts=3),
    Trial("empty", "empty 200", FaultKind.EMPTY),
    Trial("error-tail", "unframed error tail", FaultKind.ERROR_TAIL, attempts=3),
    Trial("ban", "ban page", FaultKind.EDGE_LIMIT, aim=Aim.REFUSAL, attempts=1),
    Trial("pings", "stall hidden by comments", FaultKind.PINGS, attempts=3, wait="idle"),
)
"""What Chutes does besides."""

ALL = (*YARDSTICK, *FURTHER)
