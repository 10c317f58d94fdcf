"""TLS to an upstream: the same bytes as with Twisted's transport, however the network cuts them up."""

from itertools import pairwise
from typing import Any

import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import succeed
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate, TLSVersion, optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from chutes_autopilot.upstream.tls import Records, TLSEndpoint

AUTHORITY = trustme.CA()
_ISSUED = AUTHORITY.issue_cert("up.test")
SERVER = PrivateCertificate.loadPEM(_ISSUED.private_key_pem.bytes() + _ISSUED.cert_chain_pems[0].bytes())
TRUST = Certificate.loadPEM(AUTHORITY.cert_pem.bytes())


class Peer(Protocol):
    """Keeps what it receives, and how it ended."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class Wire(StringTransport):
    """One side's plain transport."""

    def abortConnection(self) -> None:
        self.disconnecting = True


class Pair:
    """A client of ours and a server of Twisted's, with the bytes between them in the test's hands."""

    def __init__(self, version: TLSVersion) -> None:
        self.client, self.server = Peer(), Peer()
        self.client_wire, self.server_wire = Wire(), Wire()
        pair = self

        class Plain:
            def connect(self, factory: Any) -> Any:
                pair.client_tls = factory.buildProtocol(None)
                pair.client_tls.makeConnection(pair.client_wire)
                return succeed(pair.client_tls)

        endpoint = TLSEndpoint(optionsForClientTLS("up.test", trustRoot=TRUST), Plain())  # type: ignore[arg-type]
        connected: list[Any] = []
        endpoint.connect(Factory.forProtocol(lambda: self.client)).addCallback(connected.append)
        assert connected == [self.client]
        options = CertificateOptions(
            privateKey=SERVER.privateKey.original,
            certificate=SERVER.original,
            insecurelyLowerMinimumTo=version,
            lowerMaximumSecurityTo=version,
        )
        factory = TLSMemoryBIOFactory(options, False, Factory.forProtocol(lambda: self.server), Clock())
        factory.protocol = TLSMemoryBIOProtocol
        self.server_tls = factory.buildProtocol(None)
        self.server_tls.makeConnection(self.server_wire)
        for _ in range(4):
            self.to_server()
            self.to_client([])

    def to_server(self) -> None:
        data = self.client_wire.value()
        self.client_wire.clear()
        if data:
            self.server_tls.dataReceived(data)

    def to_client(self, cuts: list[int]) -> None:
        data = self.server_wire.value()
        self.server_wire.clear()
        bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for start, end in pairwise(bounds):
            self.client_tls.dataReceived(data[start:end])


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([TLSVersion.TLSv1_2, TLSVersion.TLSv1_3]),
    st.lists(st.integers(1, 40000), min_size=1, max_size=4),
    st.lists(st.integers(0, 10**6), max_size=8),
)
def test_every_byte_arrives_both_ways(version: TLSVersion, sizes: list[int], cuts: list[int]) -> None:
    """Whatever the sizes of the writes and the cuts of the reads, each side has what the other one sent, at once."""
    pair = Pair(version)
    sent = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    for data in sent:
        pair.client.transport.write(data)  # type: ignore[union-attr]
        pair.server.transport.write(data)  # type: ignore[union-attr]
    pair.to_server()
    pair.to_client(cuts)
    assert b"".join(pair.server.received) == b"".join(pair.client.received) == b"".join(sent)


def test_the_records_of_one_read_are_one_delivery() -> None:
    """What came together goes on together: one write to the client, not one a record."""
    pair = Pair(TLSVersion.TLSv1_3)
    for data in (b"a", b"b", b"c" * 20000):
        pair.server.transport.write(data)  # type: ignore[union-attr]
    pair.to_client([])
    assert pair.client.received == [b"ab" + b"c" * 20000]


def test_an_orderly_end_behind_the_last_bytes_is_seen() -> None:
    """The bytes are delivered, then the connection closes."""
    pair = Pair(TLSVersion.TLSv1_3)
    pair.server.transport.write(b"last")  # type: ignore[union-attr]
    pair.server.transport.loseConnection()  # type: ignore[union-attr]
    pair.to_client([])
    assert pair.client.received == [b"last"]
    assert pair.client_wire.disconnecting


def test_bytes_that_were_changed_on_the_way_break_the_connection() -> None:
    """A record that does not authenticate is never delivered, what came before it is."""
    pair = Pair(TLSVersion.TLSv1_3)
    pair.server.transport.write(b"good")  # type: ignore[union-attr]
    pair.server.transport.write(b"changed")  # type: ignore[union-attr]
    data = pair.server_wire.value()
    pair.client_tls.dataReceived(data[:-1] + bytes([data[-1] ^ 1]))
    assert pair.client.received == [b"good"]
    assert pair.client_wire.disconnecting


@given(st.lists(st.integers(0, 300), max_size=12), st.lists(st.integers(0, 4000), max_size=12))
def test_records_are_counted_where_they_end(lengths: list[int], cuts: list[int]) -> None:
    """However the bytes are cut up, after each piece as many records have ended as lie wholly in what came."""
    data, ends = b"", []
    for length in lengths:
        data += b"\x17\x03\x03" + length.to_bytes(2, "big") + bytes(length)
        ends.append(len(data))
    records, counted = Records(), 0
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(bounds):
        counted += records.ended(data[start:end])
        assert counted == sum(at <= end for at in ends)
