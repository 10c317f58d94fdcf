"""What only the operator may do with webhooks that were given up: look at them, send them again, forget them."""

from typing import Any

import msgspec

from chutes_autopilot.storage.sqlite_database import DatabaseUnavailable
from chutes_autopilot.storage.webhook_queue import DeadLetter
from chutes_autopilot.web.explorer.admin import AdminGate
from chutes_autopilot.web.explorer.answers import Prepared, iso_time, send
from chutes_autopilot.web.explorer.errors import NOT_STORED, ExplorerError, not_found
from chutes_autopilot.web.explorer.parts import DeadLetters, ExplorerParts
from chutes_autopilot.web.site import GatewayRequest

ALL = "all"


class DeadLetterRoutes:
    """``/api/webhooks/dead``. No answer holds a URL or a secret: the queue knows receivers by their names only."""

    def __init__(self, parts: ExplorerParts, gate: AdminGate) -> None:
        self._parts = parts
        self._gate = gate

    async def index(self, request: GatewayRequest) -> None:
        """GET: all of them, the latest first, with the event that was not heard, and how many messages still wait."""
        letters = self._admitted(request)
        try:
            dead = await letters.dead_letters()
        except DatabaseUnavailable as error:
            raise _unavailable(error) from None
        answer = {"waiting": letters.waiting, "deadLetters": list(map(_shown, dead))}
        send(request, Prepared.of_json(answer), (NOT_STORED,))

    async def retry(self, request: GatewayRequest, letter: str) -> None:
        """POST /api/webhooks/dead/{letter}/retry: queue it anew, due at once, with all its attempts before it."""
        letters, number = self._admitted(request), _number(letter)
        try:
            count = await letters.retry(number)
        except DatabaseUnavailable as error:
            raise _unavailable(error) from None
        if number is not None and not count:
            raise not_found(
                "There is no such dead letter whose endpoint is configured, has not answered 410, and has room."
            )
        send(request, Prepared.of_json({"queued": count}), (NOT_STORED,))

    async def forget(self, request: GatewayRequest, letter: str) -> None:
        """DELETE /api/webhooks/dead/{letter}."""
        letters, number = self._admitted(request), _number(letter)
        try:
            count = await letters.forget(number)
        except DatabaseUnavailable as error:
            raise _unavailable(error) from None
        if number is not None and not count:
            raise not_found("There is no such dead letter.")
        send(request, Prepared.of_json({"forgotten": count}), (NOT_STORED,))

    def _admitted(self, request: GatewayRequest) -> DeadLetters:
        self._gate.require(request)
        if self._parts.dead_letters is None:
            raise not_found("There are no webhooks here; WEBHOOKS_FILE names who is told.")
        return self._parts.dead_letters


def _number(letter: str) -> int | None:
    """Which one is meant; None: all of them."""
    if letter == ALL:
        return None
    if not (letter.isascii() and letter.isdigit() and len(letter) <= 18):
        raise not_found("Name a dead letter by the number that GET /api/webhooks/dead tells, or all of them by all.")
    return int(letter)


def _unavailable(error: DatabaseUnavailable) -> ExplorerError:
    return ExplorerError(503, "no queue", f"The queue of webhooks cannot be used now: {error.reason}.")


def _shown(letter: DeadLetter) -> dict[str, Any]:
    return {
        "number": letter.number,
        "messageId": letter.message.message_id,
        "endpoint": letter.message.endpoint,
        "attempts": letter.attempts,
        "queuedAt": iso_time(letter.queued_at),
        "diedAt": iso_time(letter.died_at),
        "reason": letter.reason,
        "event": msgspec.Raw(letter.message.body),
    }
