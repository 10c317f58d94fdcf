"""Signed exchanges that can be asked for at every replica."""

from collections.abc import Coroutine
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred

from chutes_autopilot.policy.shared_values import pack_signed, unpack_signed
from chutes_autopilot.web.kept_answers import AnswerStore
from chutes_autopilot.web.signatures import SignedExchange


class Exchanges(Protocol):
    """Where they are shared (storage.shared_records)."""

    def put(self, caller: bytes, chat_id: str, data: bytes, /) -> None: ...

    def get(self, caller: bytes, chat_id: str, /) -> Coroutine[Deferred[Any], Any, bytes | None]: ...


@attrs.frozen
class SharedAnswers:
    """Keeps those of this replica here, and lets the others have them."""

    here: AnswerStore
    shared: Exchanges

    def put(self, key: tuple[bytes, str], value: SignedExchange, /) -> None:
        """Keep one, by its caller and the answer's id."""
        self.here.put(key, value)
        data = pack_signed(value.text, value.key_id, value.receipt)
        if data is not None:
            self.shared.put(*key, data)

    async def elsewhere(self, key: tuple[bytes, str]) -> SignedExchange | None:
        """What another replica kept."""
        found = unpack_signed(await self.shared.get(*key))
        return None if found is None else SignedExchange(*found)
