"""The doctor's platform, for as long as a test lasts."""

from collections.abc import Callable, Iterator

import pytest
from doctor_platform import Platform
from pytest_twisted import blockon
from twisted.internet.defer import gatherResults, maybeDeferred

from chutes_autopilot.settings import Settings, read_settings


@pytest.fixture
def platform() -> Iterator[Platform]:
    made = Platform()
    yield made
    blockon(gatherResults([maybeDeferred(port.stopListening) for port in made.ports]))
    for side in made.sides:
        if not side.lost.called:
            side.transport.abortConnection()
    blockon(gatherResults([side.lost for side in made.sides]))


@pytest.fixture
def settings_for(platform: Platform) -> Callable[..., Settings]:
    """Settings whose every upstream is the platform, listening from now on."""

    def make(**environ: str) -> Settings:
        url = f"http://127.0.0.1:{platform.listen()}"
        urls = {
            "BACKEND_BASE_URL": url,
            "MODELS_URL": f"{url}/v1/models",
            "UTILIZATION_URL": f"{url}/chutes/utilization",
            "CHUTES_API_BASE_URL": url,
        }
        return read_settings({**urls, **environ}, lambda path: "")

    return make
