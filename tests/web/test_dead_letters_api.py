"""/api/webhooks/dead: the operator looks at what could not be delivered, has it sent again, and forgets it."""

from pathlib import Path

import pytest
from explorer_service import ADMIN, TOKEN, SampleDeadLetters, Service

from chutes_autopilot.storage.sqlite_database import DatabaseUnavailable

PATH = "/api/webhooks/dead"
CALLS = (("GET", PATH), ("POST", f"{PATH}/9/retry"), ("POST", f"{PATH}/all/retry"), ("DELETE", f"{PATH}/9"))


@pytest.fixture
def letters() -> SampleDeadLetters:
    return SampleDeadLetters()


@pytest.fixture
def service(tmp_path: Path, letters: SampleDeadLetters) -> Service:
    return Service(tmp_path, admin_token=TOKEN, dead_letters=letters)


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_it_is_the_operators_alone(
    method: str, path: str, service: Service, letters: SampleDeadLetters, tmp_path: Path
) -> None:
    """401 for everybody else; 404 where there is no token, and where there are no webhooks."""
    assert service.ask(method, path, "Authorization: Bearer open sesamE").error == (401, "not the operator")
    assert letters.asked == []
    assert Service(tmp_path).ask(method, path, ADMIN).error == (404, "not found")
    nobody = Service(tmp_path, admin_token=TOKEN, dead_letters=None)
    assert nobody.ask(method, path, ADMIN).error == (404, "not found")


def test_dead_letters_are_listed(service: Service) -> None:
    """Whose they are, why they died, and the event; the endpoint by its name alone."""
    answer = service.get(PATH, ADMIN)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["waiting"] == 3
    assert answer.json["deadLetters"][0] == {
        "number": 9,
        "messageId": "msg_9",
        "endpoint": "prices",
        "attempts": 8,
        "queuedAt": "2027-01-15T07:59:00.000Z",
        "diedAt": "2027-01-15T08:00:00.000Z",
        "reason": "status 500",
        "event": {"type": "model.added", "timestamp": "2027-01-15T07:00:00Z", "data": {"name": "acme/Alpha"}},
    }


def test_one_or_all_are_sent_again_or_forgotten(service: Service, letters: SampleDeadLetters) -> None:
    """By their number; the answer says how many."""
    assert service.post(f"{PATH}/9/retry", ADMIN).json == {"queued": 1}
    assert service.post(f"{PATH}/all/retry", ADMIN).json == {"queued": 1}
    assert service.ask("DELETE", f"{PATH}/4", ADMIN).json == {"forgotten": 1}
    assert service.ask("DELETE", f"{PATH}/all", ADMIN).json == {"forgotten": 2}
    assert letters.asked == [("retry", 9), ("retry", None), ("forget", 4), ("forget", None)]


@pytest.mark.parametrize("letter", ["4", "0", "-1", "9" * 30, "nine", "%D9%A9", "9/9"])
def test_what_is_no_letter_or_cannot_be_sent_is_not_found(
    letter: str, service: Service, letters: SampleDeadLetters
) -> None:
    """Nothing else is tried in its place."""
    assert service.post(f"{PATH}/{letter}/retry", ADMIN).error == (404, "not found")
    assert letter == "4" or service.ask("DELETE", f"{PATH}/{letter}", ADMIN).error == (404, "not found")
    assert all(number is not None for _, number in letters.asked)


def test_a_queue_that_cannot_be_used_is_no_empty_one(service: Service, letters: SampleDeadLetters) -> None:
    """503 says so."""
    letters.fault = DatabaseUnavailable("SQLite: SQLITE_FULL")
    assert service.get(PATH, ADMIN).error == (503, "no queue")
