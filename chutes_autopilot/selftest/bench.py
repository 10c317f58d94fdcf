"""Playing the catalogue: the gateway and its misbehaving upstream in this process, on loopback."""

from collections.abc import Callable
from statistics import median
from typing import Any, cast

from attrs import define, field, frozen
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater

from chutes_autopilot.composition import build
from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
from chutes_autopilot.demo.simulator import SimulatedChutes
from chutes_autopilot.selftest.caller import Caller
from chutes_autopilot.selftest.catalogue import ALL, COST_PAIRS, FLAP_CALLS, SLACK, Trial
from chutes_autopilot.selftest.grades import Played, Verdict, Wanted, grade
from chutes_autopilot.selftest.reading import End, Heard
from chutes_autopilot.selftest.rehearsal import rehearsed
from chutes_autopilot.settings import Settings

FIRST_TOKEN = 0.02
TOKEN_GAP = 0.005
"""Seconds: the pace of the answers."""
PING_GAP = 0.05
LATE = 2 * SLACK
"""Seconds past the header deadline after which a slow first token comes: to wait for it is not in time."""
PATIENCE = 5.0
"""Seconds past the time that is right after which a client leaves."""
RELEASE = 2.0
"""Seconds within which the upstream must have been let go."""
STARTING = 10.0
_POLL = 0.02


class NotReady(Exception):
    """The gateway does not get ready with these settings."""


@frozen
class Score:
    """What one fault came to."""

    trial: Trial
    verdict: Verdict
    played: Played


@define(eq=False)
class Bench:
    """A gateway and its upstream, once started.

    :param settings: the operator's.
    :param reactor: provides TCP and time.
    :param longest_wait: seconds; longer waiting times are shortened to this.
    :ivar in_force: the settings of the gateway under test.
    :ivar caller: its client.
    """

    settings: Settings
    reactor: Any
    longest_wait: float
    trials: tuple[Trial, ...] = ALL
    in_force: Settings = field(init=False)
    caller: Caller = field(init=False)
    _simulator: SimulatedChutes = field(init=False)
    _started: list[Callable[[], Deferred[Any]]] = field(factory=list, init=False)

    async def start(self) -> None:
        """Start both, and wait until the gateway knows its upstream's models.

        :raises NotReady: it never does.
        """
        models = tuple(model for trial in self.trials for model in trial.models())
        self._simulator = SimulatedChutes(self.reactor, FIRST_TOKEN, TOKEN_GAP, models)
        upstream = SimulatedChutesService(self._simulator, listen_simulator(self.reactor, self._simulator))
        self._started.append(upstream.stopService)
        self.in_force = rehearsed(self.settings, upstream.base_url, self.longest_wait)
        gateway = build(self.in_force, self.reactor, ("tcp:0:interface=127.0.0.1",))
        self._started.append(gateway.stopService)
        gateway.privilegedStartService()
        (address,) = gateway.listening.addresses
        gateway.startService()
        self.caller = Caller(self.reactor, f"http://127.0.0.1:{cast(IPv4Address, address).port}")
        self._started.append(self.caller.close)
        until = self.reactor.seconds() + STARTING
        while await self.caller.status("/readyz") != 200:
            if self.reactor.seconds() > until:
                raise NotReady
            await self._pause(_POLL)

    async def stop(self) -> None:
        """End both; what is still open is cut."""
        for stop in reversed(self._started):
            await stop()

    async def play(self) -> tuple[Score, ...]:
        """Play all faults, at once but for those whose time is the point, in the order of the catalogue."""
        together = DeferredSemaphore(
            min(len(self.trials), self.in_force.max_inflight_requests, self.in_force.max_connections)
        )
        alone = [trial for trial in self.trials if trial.measured == "cost"]
        others = [trial for trial in self.trials if trial not in alone]
        scores: list[Score] = await gatherResults(
            [together.run(lambda trial: Deferred.fromCoroutine(self._score(trial)), trial) for trial in others],
            consumeErrors=True,
        )
        scores += [await self._score(trial) for trial in alone]
        return tuple(sorted(scores, key=lambda score: self.trials.index(score.trial)))

    async def _score(self, trial: Trial) -> Score:
        wanted = trial.wanted(self.in_force)
        match trial.measured:
            case "call":
                self._put_up(trial)
                heard = [await self._call(trial, wanted)]
                seconds = heard[0].seconds
            case "return":
                heard, seconds = await self._flap(trial, wanted)
            case "cost":
                heard, seconds = await self._cost(trial, wanted)
        names = [model.name for model in trial.models()]
        running = await self._still_running(names)
        played = Played(tuple(heard), sum(self._simulator.asked[name] for name in names), running, seconds)
        return Score(trial, grade(played, wanted), played)

    def _put_up(self, trial: Trial) -> None:
        gap = PING_GAP
        if trial.wait == "header":
            gap = self.in_force.upstream_header_timeout + LATE
        self._simulator.faults.add(trial.kind, trial.models()[0].name, trial.requests, gap)

    async def _call(self, trial: Trial, wanted: Wanted, session: str = "") -> Heard:
        return await self.caller.chat(trial.body(), trial.name + session, wanted.seconds + PATIENCE)

    async def _flap(self, trial: Trial, wanted: Wanted) -> tuple[list[Heard], float]:
        """The first model is down for some calls of one client; the seconds from its recovery until it answers."""
        self._put_up(trial)
        heard = [await self._call(trial, wanted) for _ in range(FLAP_CALLS)]
        self._simulator.faults.clear(trial.models()[0].name)
        well_since = self.reactor.seconds()
        while (waited := self.reactor.seconds() - well_since) <= wanted.seconds:
            heard.append(await self._call(trial, wanted))
            if heard[-1].text == wanted.answers[0] or heard[-1].end is not End.CLEAN:
                return heard, waited
            await self._pause(wanted.seconds / 100)
        return heard, self.reactor.seconds() - well_since

    async def _cost(self, trial: Trial, wanted: Wanted) -> tuple[list[Heard], float]:
        """Calls without and with a failover by turns; what the latter take longer.

        By turns, so that the first model never fails often enough in a row to be left alone; each with a client of
        its own, which remembers no other model.
        """
        heard = []
        for number in range(COST_PAIRS):
            heard.append(await self._call(trial, wanted, f"-{number}-well"))
            self._simulator.faults.add(trial.kind, trial.models()[0].name, requests=1)
            heard.append(await self._call(trial, wanted, f"-{number}-failing"))
        without, with_failover = (median(each.seconds for each in heard[first::2]) for first in (0, 1))
        return heard, max(0.0, with_failover - without)

    async def _still_running(self, names: list[str]) -> int:
        """How many answers the upstream is giving although it has had time to notice that nobody wants them."""
        until = self.reactor.seconds() + RELEASE
        while running := sum(self._simulator.answering[name] for name in names):
            if self.reactor.seconds() > until:
                break
            await self._pause(_POLL)
        return running

    async def _pause(self, seconds: float) -> None:
        await deferLater(self.reactor, seconds)
