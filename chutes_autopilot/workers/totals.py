"""The metrics of a service that is several processes: what each counted, added up; what a dead one counted stays.

prometheus_client's own mode for several processes keeps counters in files and knows no gauge that is read when it is
scraped. Here each worker tells its families when it is asked, and the parent adds them to its own.
"""

from collections.abc import Iterator, Sequence

import attrs
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from chutes_autopilot.workers.messages import Family

_LOWEST = frozenset({"chutes_autopilot_redis_up"})
"""Gauges of which the lowest counts: what any process has not, the service has not."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


def families_of(collector: Collector) -> list[Family]:
    """All that a collector has counted by now."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, tuple(sample.labels.items()), float(sample.value)) for sample in metric.samples],
        )
        for metric in collector.collect()
    ]


@attrs.define(eq=False)
class _Total:
    """One metric, added up."""

    help: str
    kind: str
    values: dict[_Key, float] = attrs.field(factory=dict)

    def add(self, family: Family) -> None:
        for name, labels, value in family.samples:
            key = name, labels
            so_far = self.values.get(key)
            if name in _LOWEST:
                self.values[key] = value if so_far is None else min(so_far, value)
            else:
                self.values[key] = (so_far or 0.0) + value


@attrs.define(eq=False)
class ServiceTotals(Collector):
    """The parent's metrics and those of all workers that ever were.

    A worker registers only what adds up: what is read of the control plane is the parent's alone.

    :param own: the parent's.
    """

    own: Collector
    _last: dict[object, Sequence[Family]] = attrs.field(factory=dict, init=False)
    _ended: dict[str, _Total] = attrs.field(factory=dict, init=False)

    def take(self, worker: object, families: Sequence[Family]) -> None:
        """What a worker has counted by now, in the place of what it told before."""
        self._last[worker] = families

    def ended(self, worker: object) -> None:
        """A worker is gone: its counters stay as they were told last, and its gauges are over."""
        for family in self._last.pop(worker, ()):
            if family.kind != "gauge":
                self._ended.setdefault(family.name, _Total(family.help, family.kind)).add(family)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape, for prometheus_client."""
        totals: dict[str, _Total] = {}
        for family in families_of(self.own):
            totals.setdefault(family.name, _Total(family.help, family.kind)).add(family)
        for name, ended in self._ended.items():
            total = totals.setdefault(name, _Total(ended.help, ended.kind))
            for key, value in ended.values.items():
                total.values[key] = total.values.get(key, 0.0) + value
        for families in self._last.values():
            for family in families:
                totals.setdefault(family.name, _Total(family.help, family.kind)).add(family)
        for name, total in totals.items():
            metric = Metric(name, total.help, total.kind)
            for (sample, labels), value in total.values.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
