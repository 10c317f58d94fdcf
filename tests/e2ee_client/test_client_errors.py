"""What the client says of a gateway that refuses."""

import json
from typing import Any

import pytest

from chutes_autopilot.e2ee_client.errors import GatewayRefused


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            {"code": "unknown_model", "type": "invalid_request_error", "param": "model", "message": "secret"},
            "unknown_model",
            "The gateway answered 400 (unknown_model, about model).",
        ),
        ({"code": 400, "type": "BadRequestError", "param": None}, "BadRequestError", "The gateway answered 400 "
                                                                                     "(BadRequestError)."),
        ({"code": "the secret", "type": "a\nsecret", "param": "my secret"}, "gateway_error",
         "The gateway answered 400 (no code)."),
        ({"code": "x" * 65, "param": "é"}, "gateway_error", "The gateway answered 400 (no code)."),
        ("secret", "gateway_error", "The gateway answered 400 (no code)."),
    ],
)  # fmt: skip
def test_an_error_is_told_by_its_code(error: Any, code: str, said: str) -> None:
    """The type where there is no code, the parameter where it is a name, and nothing that could repeat the request."""
    body = json.dumps({"error": error}).encode()
    refused = GatewayRefused(400, (), body)
    assert (refused.code, refused.message, refused.body()) == (code, said, body)
