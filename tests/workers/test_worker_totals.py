"""Metrics, recent requests and limits of several workers, as those of one service."""

import json
from typing import Any

import attrs
from prometheus_client.parser import text_string_to_metric_families

from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.settings import read_settings
from chutes_autopilot.workers.figures import recent_of_all
from chutes_autopilot.workers.link import share_of
from chutes_autopilot.workers.totals import ServiceTotals, families_of


def metrics(requests: int, connections: int = 0) -> Metrics:
    """Of a process that has answered so many, in 0.3 s each."""
    counted = Metrics(str)
    counted.gauge("client_connections", "Open client connections.", lambda: connections)
    for _ in range(requests):
        counted.active += 1
        counted.finished(RequestRecord("id", 10.0, status=200, outcome="complete", ended=10.3))
        counted.active -= 1
    return counted


def values(totals: ServiceTotals) -> dict[str, float]:
    families = text_string_to_metric_families(totals.exposition().decode())
    return {sample.name + "".join(sample.labels.values()): sample.value for f in families for sample in f.samples}


def test_counters_histograms_and_gauges_are_added_up() -> None:
    """Each sample is the sum over the parent and all workers, told once."""
    totals = ServiceTotals(metrics(0, 1))
    totals.take(1, families_of(metrics(2, 3)))
    totals.take(2, families_of(metrics(5, 4)))
    found = values(totals)
    assert found["chutes_autopilot_requests_total200"] == 7
    assert found["chutes_autopilot_client_connections"] == 8
    assert found["chutes_autopilot_request_duration_seconds_bucket0.1"] == 0
    assert found["chutes_autopilot_request_duration_seconds_bucket0.5"] == 7
    assert found["chutes_autopilot_request_duration_seconds_count"] == 7
    assert round(found["chutes_autopilot_request_duration_seconds_sum"], 6) == 2.1


def test_what_a_dead_worker_counted_stays() -> None:
    """Its counters go on to count, its gauges do not, and the one in its place adds to them."""
    totals = ServiceTotals(metrics(0))
    totals.take(1, families_of(metrics(2, 3)))
    totals.ended(1)
    totals.ended(1)
    totals.take(1, families_of(metrics(4, 1)))
    totals.ended(1)
    totals.take(1, families_of(metrics(1, 5)))
    found = values(totals)
    assert (found["chutes_autopilot_requests_total200"], found["chutes_autopilot_client_connections"]) == (7, 5)


def health(**changes: Any) -> dict[str, Any]:
    plain = {"first_token_ms": None, "first_token_p95_ms": None, "between_events_ms": None, "tokens_per_second": None}
    return plain | {"successes": 0, "failures": 0, "cooling_ms": 0.0, "probing": False} | changes


def recent(*received: float, **models: dict[str, Any]) -> bytes:
    return json.dumps({"decisions": [{"received": each} for each in received], "health": models}).encode()


def test_the_last_requests_of_all_come_in_their_order() -> None:
    """The newest first, no more than asked for."""
    told = json.loads(recent_of_all([recent(5, 2), recent(4, 3, 1)], 4))
    assert [each["received"] for each in told["decisions"]] == [5, 4, 3, 2]


def test_measurements_of_one_model_become_one() -> None:
    """Counts are added, averages weighted by successes, of the rest the worst is told."""
    fast = health(first_token_ms=100.0, first_token_p95_ms=150.0, successes=3, failures=1)
    slow = health(first_token_ms=200.0, first_token_p95_ms=400.0, successes=1, cooling_ms=50.0, probing=True)
    told = json.loads(recent_of_all([recent(a=fast, b=slow), recent(a=slow)], 9))["health"]
    assert told["b"] == slow
    assert told["a"] == health(
        first_token_ms=125.0, first_token_p95_ms=400.0, successes=4, failures=1, cooling_ms=50.0, probing=True
    )


def test_limits_of_the_service_are_divided() -> None:
    """Rounded up, never to nothing; what limits one request stays whole."""
    settings = read_settings({"MAX_CONNECTIONS": "7", "MAX_INFLIGHT_REQUESTS": "1"}, lambda path: "")
    mine = share_of(settings, 3)
    assert (mine.max_connections, mine.max_inflight_requests) == (3, 1)
    assert mine.max_buffered_request_bytes == -(-settings.max_buffered_request_bytes // 3)
    same = {"max_connections", "max_inflight_requests", "max_buffered_request_bytes"}
    assert {f.name for f in attrs.fields(type(mine)) if getattr(mine, f.name) != getattr(settings, f.name)} <= same
