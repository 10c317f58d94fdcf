"""What trial gives for free and pytest does not: a time limit for every test that waits,
and failure on errors nobody handled and on a reactor left dirty."""

import gc
import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest
from hypothesis import settings
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

settings.register_profile("suite", max_examples=40)  # a test that needs more of them says so itself
settings.load_profile("suite")

WAIT_LIMIT = 10.0
"""Seconds a test may wait for its Deferred; ``@pytest.mark.wait(60)`` gives a test its own limit."""


def _limited(test: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> Any:
        from twisted.internet import reactor

        result = test(*args, **kwargs)
        if inspect.iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            result.addTimeout(seconds, reactor)
        return result

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function):
            marker = item.get_closest_marker("wait")
            item.obj = _limited(item.obj, marker.args[0] if marker else WAIT_LIMIT)


def pytest_collection_finish() -> None:
    """What is there before the first test need not be looked at by the collections after each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _old_objects_are_left_alone() -> None:
    """The same for what the tests before this module left behind: a collection after each test must stay cheap."""
    gc.collect()
    gc.freeze()


class LoggedErrors:
    """Failures that were logged while a test ran; ``flush`` takes back those the test expected."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []

    def __call__(self, event: dict[str, Any]) -> None:
        # twisted.python.log.err (Klein uses it) sets "failure", not "log_failure"
        failure = event.get("log_failure")
        if failure is None and event.get("isError"):
            failure = event.get("failure")
        if failure is not None:
            self.failures.append(failure)

    def flush(self, *types: type[BaseException]) -> list[Failure]:
        gc.collect()
        hit = [f for f in self.failures if not types or f.check(*types)]
        self.failures = [f for f in self.failures if f not in hit]
        return hit


@pytest.fixture(autouse=True)
def logged_errors() -> Iterator[LoggedErrors]:
    seen = LoggedErrors()
    globalLogPublisher.addObserver(seen)
    yield seen
    gc.collect()
    globalLogPublisher.removeObserver(seen)
    if seen.failures:
        pytest.fail("errors nobody handled: " + "; ".join(f"{f.getErrorMessage()} ({f.type})" for f in seen.failures))


@pytest.fixture(autouse=True)
def clean_reactor() -> Iterator[None]:
    from twisted.internet import reactor

    def state() -> tuple[set[Any], set[Any]]:
        return set(reactor.getDelayedCalls()), set(reactor.getReaders()) | set(reactor.getWriters())

    calls, selectables = state()
    yield
    later_calls, later_selectables = state()
    left = list(later_calls - calls)
    ports = [s for s in later_selectables - selectables if hasattr(s, "getHost")]
    for call in left:
        call.cancel()
    for port in ports:
        reactor.removeReader(port)
        reactor.removeWriter(port)
    if left or ports:
        pytest.fail(f"reactor left dirty: {left} {ports}")
