"""The paths whose requests are relayed, and in what they differ: which ``model`` they take, how their streams end."""

from collections.abc import Callable
from typing import Literal

from attrs import frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.model_field import Direct, ModelField, PreferenceList
from chutes_autopilot.wire.sse import StreamGuard
from chutes_autopilot.wire.typed_events import MESSAGES_ENDS, RESPONSES_ENDS, TypedStreamGuard


def _typed(ends: frozenset[str]) -> Callable[[], TypedStreamGuard]:
    return lambda: TypedStreamGuard(ends)


@frozen
class Endpoint:
    """One path that is relayed.

    :param name: in log and metrics.
    :param takes: what its ``model`` may be: ``any`` thing; ``names``: one model or a list, no alias of the gateway;
        ``one`` model, for the body is forwarded as it came.
    :param new_guard: makes what judges whether one of its streams came to its end.
    :param chunks: its streams are of chunks with choices, whose first meaningful event can be told.
    :param continues: a stream of it that breaks off may be continued by another model.
    """

    name: str
    path: bytes
    takes: Literal["any", "names", "one"] = "any"
    new_guard: Callable[[], StreamGuard | TypedStreamGuard] = StreamGuard
    chunks: bool = True
    continues: bool = False

    def check(self, asked: ModelField) -> None:
        """Raise ApiError invalid_model where ``model`` asks for what cannot be done here."""
        if self.takes == "any":
            return
        if self.takes == "one":
            if not isinstance(asked, Direct):
                raise _unfit(self, "must be one model by name: the request is forwarded as it came")
            return
        items = asked.items if isinstance(asked, PreferenceList) else (asked,)
        if not all(isinstance(item, Direct) for item in items):
            raise _unfit(self, "must be one model by name, or a list of names: what an alias stands for is not known")


def _unfit(endpoint: Endpoint, fault: str) -> ApiError:
    return ApiError("invalid_model", f"model at {endpoint.path.decode()} {fault}.", param="model")


CHAT = Endpoint("chat", b"/v1/chat/completions", continues=True)
CHUTES = Endpoint("chutes", b"/v1/chutes/chat/completions", continues=True)
COMPLETIONS = Endpoint("completions", b"/v1/completions")
EMBEDDINGS = Endpoint("embeddings", b"/v1/embeddings", "names")
RESPONSES = Endpoint("responses", b"/v1/responses", "one", _typed(RESPONSES_ENDS), chunks=False)
MESSAGES = Endpoint("messages", b"/v1/messages", "one", _typed(MESSAGES_ENDS), chunks=False)
