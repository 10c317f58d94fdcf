"""The description of the API that the service itself serves: the file openapi.json beside this module."""

from importlib.resources import files

from chutes_autopilot.web.explorer.answers import Prepared, send
from chutes_autopilot.web.site import GatewayRequest


def read_description() -> bytes:
    """The file; one that is missing in the package raises FileNotFoundError."""
    return (files("chutes_autopilot.web.explorer") / "openapi.json").read_bytes()


class OpenApiRoute:
    """GET /api/openapi.json."""

    def __init__(self) -> None:
        self._description = Prepared.of(read_description())

    async def description(self, request: GatewayRequest) -> None:
        """The file as it is."""
        send(request, self._description)
