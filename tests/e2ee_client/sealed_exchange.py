"""Both sides of one exchange without a socket: our client and the service's own code."""

import json
from typing import Any

from attrs import frozen

from chutes_autopilot.e2ee.allow_list import SealContext
from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.request import prepare_request
from chutes_autopilot.e2ee.request_headers import E2EEPolicy, SealedExchange, Uncovered, read_e2ee_headers
from chutes_autopilot.e2ee.server_keys import ServerKey, ephemeral_keys
from chutes_autopilot.e2ee_client.exchange import Exchange, Version
from chutes_autopilot.e2ee_client.sealing import ChatRequest

KEYS = ephemeral_keys()
NOW = 1_700_000_000.0
MODEL = "vendor/Model-1"


def policy(uncovered: Uncovered = "clear") -> E2EEPolicy:
    return E2EEPolicy(
        require=True, allow_v1=True, strict=True, uncovered=uncovered, max_fields=256, window=300, skew=30
    )


@frozen
class Pair:
    """A client's exchange and what the service reads from its headers."""

    client: Exchange
    service: SealedExchange
    key: ServerKey

    def context(self, uncovered: Uncovered = "clear") -> SealContext:
        return SealContext(self.service, MODEL, uncovered)

    def opened_by_service(self, sealed: bytes) -> Any:
        """What the service reads from a sealed body."""
        request = prepare_request(sealed, self.service, policy(), NOW)
        request.first()
        return json.loads(request.rest())


def pair(algo: Algo = "ed25519", version: Version = 2) -> Pair:
    client = Exchange.new(algo, version, NOW)
    key = KEYS.current(algo)
    headers = {name.lower(): [value] for name, value in client.headers(key.wire_hex)}
    service = read_e2ee_headers(headers, KEYS, policy(), NOW)
    assert service is not None
    assert service.version == version
    return Pair(client, service, key)


def seal(request: ChatRequest, of: Pair) -> bytes:
    return request.seal(of.key.public, of.client)
