"""A simulator on a real loopback port, under a clock that the test moves."""

from collections.abc import AsyncIterator

import pytest_twisted
from sealed_client import SealedPlatform
from twisted.internet import reactor
from twisted.internet.task import Clock

from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
from chutes_autopilot.demo.simulator import SimulatedChutes


@pytest_twisted.async_yield_fixture
async def sealed() -> AsyncIterator[SealedPlatform]:
    simulator = SimulatedChutes(Clock())
    port = listen_simulator(reactor, simulator)
    service = SimulatedChutesService(simulator, port)
    service.startService()
    platform = SealedPlatform(simulator, service, port.getHost().port)
    yield platform
    await service.stopService()
    for wire in platform.wires:
        await wire.ended
