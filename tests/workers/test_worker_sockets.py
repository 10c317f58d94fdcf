"""The listening sockets that several processes share."""

import os
import socket
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol

from chutes_autopilot.workers.sockets import Adopting, Binding

LOOPBACK = "tcp:{}:backlog=100:interface=127.0.0.1"


async def test_each_worker_has_a_socket_of_its_own_at_one_address() -> None:
    """The kernel spreads connections over them; one that a worker closed is open still, for the next to take it."""
    binding = Binding(reactor, 3)
    bound = await serverFromString(binding, LOOPBACK.format(0)).listen(Factory())
    port = bound.getHost().port
    assert len({os.fstat(descriptor).st_ino for number in range(3) for descriptor in binding.of(number)}) == 3
    factory: Any = Factory.forProtocol(Protocol)
    for _ in range(2):
        adopted = [
            await serverFromString(Adopting(reactor, list(binding.of(number))), LOOPBACK.format(port)).listen(factory)
            for number in range(3)
        ]
        assert {each.getHost().port for each in adopted} == {port}
        for each in adopted:
            await each.stopListening()
    with socket.create_connection(("127.0.0.1", port)):
        pass
    await bound.stopListening()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_an_address_that_is_shared_already_is_taken() -> None:
    """A second service at the same port is told so, although the sockets of the first may be joined."""
    first = await serverFromString(Binding(reactor, 2), LOOPBACK.format(0)).listen(Factory())
    with pytest.raises(CannotListenError):
        await serverFromString(Binding(reactor, 2), LOOPBACK.format(first.getHost().port)).listen(Factory())
    await first.stopListening()


async def test_a_unix_socket_is_one_for_all(tmp_path: Any) -> None:
    """Whoever stops accepting leaves it to the others."""
    endpoint = f"unix:{tmp_path}/socket"
    binding = Binding(reactor, 2)
    bound = await serverFromString(binding, endpoint).listen(Factory())
    assert len({os.fstat(descriptor).st_ino for number in range(2) for descriptor in binding.of(number)}) == 1
    factory: Any = Factory.forProtocol(Protocol)
    adopted = [await serverFromString(Adopting(reactor, list(binding.of(n))), endpoint).listen(factory) for n in (0, 1)]
    await adopted[0].stopListening()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/socket")
    await adopted[1].stopListening()
    await bound.stopListening()
