"""Where the simulator listens: on a loopback port of its own, bound before anything that needs its address."""

from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorTCP

from chutes_autopilot.demo.simulator import SimulatedChutes

LOOPBACK = "127.0.0.1"


def listen_simulator(reactor: IReactorTCP, simulator: SimulatedChutes, port: int = 0) -> IListeningPort:
    """Bind at once, so that the address is known before the gateway is built around it; loopback only.

    :param port: 0 takes any free one.
    :raises CannotListenError: if the port is taken.
    """
    site: Any = simulator.site()  # Twisted types a Site by its HTTP/2 wrapper, which ours does without
    return reactor.listenTCP(port, site, interface=LOOPBACK)


class SimulatedChutesService(Service):
    """Ends the simulator together with the service it stands in for; the port listens already.

    :param port: what listen_simulator gave for the same simulator.
    """

    def __init__(self, simulator: SimulatedChutes, port: IListeningPort) -> None:
        self.simulator = simulator
        self.base_url = f"http://{LOOPBACK}:{cast(IPv4Address, port.getHost()).port}"
        self._port = port

    def stopService(self) -> Deferred[None]:
        """Stop listening and reset every connection; fires when the last one is gone."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        await maybeDeferred(self._port.stopListening)
        await self.simulator.site().abort_connections()
