"""How often the platform is asked for visitors."""

from pathlib import Path

import pytest
from twisted.internet.defer import execute
from twisted.internet.task import Clock

from chutes_autopilot.explorer_live.budget import BudgetedFetch
from chutes_autopilot.explorer_live.proxied import ProxiedJson, ProxyError
from chutes_autopilot.storage.disk_cache import DiskCache
from chutes_autopilot.upstream.fetch import FetchedAnswer

ANSWER = FetchedAnswer(200, None, b"[]")


async def test_a_burst_is_served_and_then_as_many_as_time_allows() -> None:
    """What is refused asks for nothing, says when to come back, and costs nothing; a clock set back refills nothing."""
    clock, asked = Clock(), []
    clock.advance(1000)

    async def fetch(url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        asked.append((url, headers))
        return ANSWER

    now = clock.seconds()
    budgeted = BudgetedFetch(fetch, lambda: now, burst=2, per_second=0.5)
    for _ in range(2):
        assert await budgeted("u", (("a", "b"),)) is ANSWER
    for later in (0.0, 1.9, -500.0):
        now = clock.seconds() + later
        with pytest.raises(ProxyError) as refused:
            await budgeted("u", ())
        assert (refused.value.status, refused.value.retry_after is not None) == (429, True)
    now = clock.seconds() - 500 + 0.2
    assert await budgeted("v", ()) is ANSWER
    now += 1e6
    for _ in range(2):
        await budgeted("w", ())
    with pytest.raises(ProxyError):
        await budgeted("w", ())
    assert [url for url, _ in asked] == ["u", "u", "v", "w", "w"]


async def test_a_spent_budget_is_a_platform_that_fails(tmp_path: Path) -> None:
    """What is old is served for want of a new one; a visitor who asks for anything else is told when to come back."""
    clock = Clock()
    clock.advance(1000)

    async def fetch(url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        return ANSWER

    budgeted = BudgetedFetch(fetch, lambda: 0.0, burst=1)
    cache = DiskCache(tmp_path, execute)
    proxied = ProxiedJson(cache, fetch, 600.0, clock.seconds, execute, fetch_for_visitors=budgeted)
    proxied.startService()
    assert (await proxied.get("v1_models_all.json", "u", visitor=True)).outcome == "MISS"
    clock.advance(601)
    assert (await proxied.get("v1_models_all.json", "u", visitor=True)).outcome == "STALE"
    with pytest.raises(ProxyError) as refused:
        await proxied.get("chute_00000001-0000-4000-8000-000000000000.json", "v", visitor=True)
    assert refused.value.status == 429
    assert (await proxied.get("v1_models_all.json", "u")).outcome == "MISS"
