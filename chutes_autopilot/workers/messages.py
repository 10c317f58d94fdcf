"""What a parent and its workers tell one another; msgpack over the channel of workers.channel.

Some of it is secret (settings, keys, the keys of clients): no message shows more than its name when it is printed.
"""

from collections.abc import Mapping
from typing import TypeAlias

from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.catalog import CatalogEntry
from chutes_autopilot.policy.decision import Decision
from chutes_autopilot.policy.model_offers import Offer
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.unshown import Unshown

_OUTSIDE = "utf-8", "surrogateescape"


class Message(Unshown, tag=True, gc=False):
    """Anything that is told."""


class Sources(Message):
    """What settings are read from, so that every process reads the same ones.

    Texts are bytes here, as what came from outside need not be UTF-8.

    :param variables: of the environment and the env file, those that are settings: name and value.
    :param files: the texts of the files that they name: path and text.
    """

    variables: tuple[tuple[bytes, bytes], ...]
    files: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def of(cls, variables: Mapping[str, str], files: Mapping[str, str]) -> "Sources":
        """From texts as Python reads them."""
        return cls(_pairs(variables), _pairs(files))

    def texts(self) -> tuple[dict[str, str], dict[str, str]]:
        """The variables and the files again."""
        return _texts(self.variables), _texts(self.files)


def _pairs(texts: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.encode(*_OUTSIDE), text.encode(*_OUTSIDE)) for name, text in texts.items())


def _texts(pairs: tuple[tuple[bytes, bytes], ...]) -> dict[str, str]:
    return {name.decode(*_OUTSIDE): text.decode(*_OUTSIDE) for name, text in pairs}


class KeyPair(Message):
    """One generation of the service's keys: the scalar and the seed, 32 bytes each."""

    id: str
    ecdsa: bytes
    ed25519: bytes
    not_after: int | None


# from the parent


class Begin(Message):
    """The first message: what a worker is. With it come descriptors: of the memory in which all remember clients, and
    of its listening sockets, in the order of ``endpoints``.

    :param number: from 1.
    :param client_key_secret: the same for all.
    :param shares: whether clients' models and more are shared by Redis; with a secret of the parent's own, nothing is.
    :param not_before: Unix second from which encrypted requests may have been made; None: no limit of its own.
    :param syslog: the prefix of log lines for syslog; None: they go to standard output.
    :param attestation_root: hash of the key of the root that the simulator's evidence is signed with.
    """

    number: int
    workers: int
    endpoints: tuple[str, ...]
    sources: Sources
    client_key_secret: bytes
    shares: bool
    not_before: int | None
    attestation_root: bytes | None
    syslog: str | None


class Changed(Message):
    """The settings were read again; what can change while the service runs counts from now on."""

    sources: Sources


class State(Message):
    """The platform as the parent knows it.

    :param catalog: None where it is the one told of last.
    :param offers: of that catalog.
    """

    id: int
    catalog_fetched_at: float | None
    feed_fetched_at: float | None
    feed_rows: int
    feed_skipped: int
    ranking: tuple[Ranked, ...]
    catalog: tuple[CatalogEntry, ...] | None = None
    catalog_skipped: int = 0
    offers: dict[str, Offer] = {}


class Keys(Message):
    """The service's own keys, the current generation first."""

    generations: tuple[KeyPair, ...]


class Go(Message):
    """All there is was told: serve."""


class Lent(Message):
    """Accept on the listening sockets of another worker too, which is gone; their descriptors come with this."""

    number: int


class Returned(Message):
    """It is back: leave them to it."""

    number: int


class Strength(Message):
    """So many workers accept connections."""

    serving: int


class Drain(Message):
    """End in order; further ones change nothing."""


class Hurry(Message):
    """Wait no longer for answers in flight."""


class Report(Message):
    """A question: all that was counted; Told."""

    id: int


# from a worker


class Ready(Message):
    """A process has loaded what it needs, and waits for its Begin."""


class Serving(Message):
    """It accepts connections."""


class Draining(Message):
    """It accepts no more, and ends when the answers in flight have; told before."""


class Line(Message):
    """A connection to the parent's own site: its descriptor comes with this."""


class CatalogOutOfDate(Message):
    """The platform does not know what its catalog lists."""


class Finished(Message):
    """Requests that are over, for the explorer.

    :param records: the last of them, and before these the ones that did not simply succeed.
    :param decisions: why the last of them went where they went, the newest first.
    :param further: how many more there were.
    :param plain: what those come to (explorer_live.counting.Counting).
    """

    records: list[RequestRecord]
    decisions: list[Decision]
    further: int = 0
    plain: dict[str, tuple[int, list[float]]] = {}


class Claim(Message):
    """A question: claim the nonce of an encrypted request."""

    id: int
    name: str
    expiry: int


class Refusal(Message):
    """Why a claim was refused: an ApiError of the Chutes route."""

    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...]


# both ways


class Banned(Message):
    """The platform's edge has banned a client.

    :param wait: seconds for which it will be answered without a call.
    :param times: how often in a row.
    """

    client: bytes
    wait: float
    times: int


class Cooling(Message):
    """A model was found failing, or (0 times) working again.

    :param fleet: what was asked of it: the names of what is measured apart.
    :param until: Unix time at which it may be tried again.
    :param times: how often in a row it has cooled down.
    """

    fleet: str
    model: str
    until: float
    times: int


class Probing(Message):
    """One request finds out whether a model works again, or (not ``began``) has ended without telling."""

    fleet: str
    model: str
    began: bool


class FindDecision(Message):
    """A question: why a request of this client's went where it went; JSON or nothing."""

    id: int
    request_id: str
    owner: bytes


class FindAnswer(Message):
    """A question: what is kept of a complete answer for its signature; the fields of a SignedExchange."""

    id: int
    caller: bytes
    chat_id: str


class Recent(Message):
    """A question: the last requests, so many, and each model's health, for the operator; JSON."""

    id: int
    count: int


class Reply(Message):
    """The answer to a question; None: there is none."""

    id: int
    value: bytes | None


class Family(Message):
    """One metric: its kind and its samples, each a name, label pairs and a value."""

    name: str
    help: str
    kind: str
    samples: list[tuple[str, tuple[tuple[str, str], ...], float]]


class Told(Message):
    """What a worker has counted and measured.

    :param health: of each model, as FleetHealth.as_json gives it.
    """

    families: list[Family]
    health: dict[str, dict[str, float | bool | None]]


ToWorker: TypeAlias = (
    Begin
    | Changed
    | State
    | Keys
    | Go
    | Lent
    | Returned
    | Strength
    | Drain
    | Hurry
    | Report
    | Banned
    | Cooling
    | Probing
    | FindDecision
    | FindAnswer
    | Recent
    | Reply
)
ToParent: TypeAlias = (
    Ready
    | Serving
    | Draining
    | Line
    | CatalogOutOfDate
    | Finished
    | Claim
    | Banned
    | Cooling
    | Probing
    | FindDecision
    | FindAnswer
    | Reply
)
