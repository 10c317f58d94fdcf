import pytest
from attrs import evolve

from chutes_autopilot.control.snapshots import Snapshot, readiness
from chutes_autopilot.policy.catalog import Catalog, CatalogEntry
from chutes_autopilot.policy.ranking import rank
from chutes_autopilot.policy.utilization import UtilizationRow

CATALOG = Catalog((CatalogEntry("a", None, b"{}"),))
READY = Snapshot(
    catalog=CATALOG,
    catalog_fetched_at=1000.0,
    feed_fetched_at=1000.0,
    ranking=rank([UtilizationRow("a", active_instance_count=1)], CATALOG),
)


@pytest.mark.parametrize(
    ("snapshot", "now", "reason"),
    [
        (READY, 1000.0, None),
        (READY, 1020.0, None),
        (READY, 1020.5, "stale_snapshot"),
        (READY, 1600.5, "stale_allowlist"),
        (READY, 0.0, None),
        (evolve(READY, ranking=()), 1020.5, "not_ready"),
        (evolve(READY, feed_fetched_at=None), 1000.0, "not_ready"),
        (evolve(READY, feed_fetched_at=None), 1600.5, "stale_allowlist"),
        (evolve(READY, catalog=Catalog(())), 1600.5, "allowlist_empty"),
        (evolve(READY, catalog=None, catalog_fetched_at=None), 1600.5, "missing_allowlist"),
        (Snapshot(), 0.0, "missing_allowlist"),
    ],
)
def test_the_first_reason_counts(snapshot: Snapshot, now: float, reason: str | None) -> None:
    """Missing, empty, stale allowlist, nothing to choose from, stale feed: in this order, ages up to the bound pass."""
    assert readiness(snapshot, now, max_snapshot_age=20.0, max_allowlist_age=600.0) == reason


def test_ages_never_fall_below_zero() -> None:
    """A clock set back makes nothing younger than now, and what never came has no age."""
    assert (READY.feed_age(990.0), READY.catalog_age(990.0)) == (0.0, 0.0)
    assert (READY.feed_age(1002.5), READY.catalog_age(1001.0)) == (2.5, 1.0)
    assert (Snapshot().feed_age(5.0), Snapshot().catalog_age(5.0)) == (None, None)
