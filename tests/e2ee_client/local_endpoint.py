"""The local endpoint under test, as the tests see it."""

from attrs import define, field

from chutes_autopilot.e2ee_client.gateway import Gateway
from chutes_autopilot.e2ee_client.proof import ExchangeRecord
from chutes_autopilot.e2ee_client.report import CheckedReport


@define(eq=False)
class Local:
    """A running local endpoint and what it told."""

    url: str
    port: int
    gateway: Gateway
    records: list[ExchangeRecord]
    lines: list[str]
    reports: list[CheckedReport] = field(factory=list)
