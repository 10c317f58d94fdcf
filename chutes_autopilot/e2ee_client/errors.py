"""Everything that can end an exchange on the client's side, each with a code for programs and a text for people."""

import json
import re

_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]{0,63}")


class ClientError(Exception):
    """An exchange that cannot go on.

    :param code: stable, for programs.
    :param message: what is wrong and what to do; never holds text of a prompt or an answer, a key or a token.
    :param status: the HTTP status that a local program is told it with.
    :param param: the request's member at fault, where there is one.
    """

    def __init__(self, code: str, message: str, *, status: int = 502, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.param = param

    def body(self) -> bytes:
        """The error in OpenAI's shape; ``type`` is the code, as on the gateway's encrypted route."""
        error = {"message": self.message, "type": self.code, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


class ReportRefused(ClientError):
    """The attestation report does not show what the wanted level of trust needs: nothing is sent."""

    def __init__(self, message: str) -> None:
        super().__init__("e2ee_report_refused", f"The gateway's report was refused: {message}.")


class RequestRefused(ClientError):
    """The request cannot be sealed without leaving something in clear that was not named to be so."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(code, message, status=400, param=param)


class AnswerRefused(ClientError):
    """The answer is not what an encrypted exchange promises, or not whole.

    :param opened: what had been opened before in the same piece of a stream; it may still be passed on.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.opened = b""


class ProofRefused(ClientError):
    """A signature or receipt that does not hold for the exchange."""

    def __init__(self, message: str) -> None:
        super().__init__("e2ee_proof_refused", message)


class GatewayFailed(ClientError):
    """The gateway could not be reached, or what it sent is no answer."""


class GatewayRefused(ClientError):
    """The gateway's own error answer, to be passed on as it is.

    :param headers: those worth passing on.
    """

    def __init__(self, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
        self.kind, param = _code_of(body)
        at = f", about {param}" if param else ""
        message = f"The gateway answered {status} ({self.kind or 'no code'}{at})."
        super().__init__(self.kind or "gateway_error", message, param=param)
        self.status = status
        self.headers = headers
        self._body = body

    def body(self) -> bytes:
        return self._body


def _code_of(body: bytes) -> tuple[str | None, str | None]:
    """Code and parameter of an error in OpenAI's shape, as far as they read like names; without a code its type.

    The message is left alone: it may repeat what was sent.
    """
    try:
        error = json.loads(body)["error"]
        named = [error.get(member) for member in ("code", "type", "param")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, None
    code, kind, param = (value if isinstance(value, str) and _NAME.fullmatch(value) else None for value in named)
    return code or kind, param
