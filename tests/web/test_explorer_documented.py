"""The documented endpoints: what the platform says, cached, without what is not everybody's, and by no other path."""

import json
from pathlib import Path
from typing import Any

import pytest
from explorer_service import (
    ADMIN,
    BASE,
    CHUTES,
    KEY,
    LISTING_BODY,
    MODELS_BODY,
    MODELS_URL,
    NOW,
    TOKEN,
    Service,
    chute,
    sample_truth,
    uuid,
)
from twisted.internet.defer import Deferred

DEFAULT = f"{BASE}/chutes/?page=0&limit=100&include_public=true&include_schemas=true"
WITH_KEY = (("Authorization", f"Bearer {KEY.decode()}"),)
PUBLIC = [each["name"] for each in CHUTES if each["public"]]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "cache", admin_token=TOKEN)


def cached(answer: Any) -> tuple[str, str, str]:
    return tuple(answer.headers[name] for name in ("x-cache", "x-cache-age", "x-cache-duration"))  # type: ignore[return-value]


def test_the_listing_is_asked_for_without_the_key_and_then_served_from_the_cache(service: Service) -> None:
    """MISS, HIT with its age in whole seconds, and MISS again when it is old."""
    first = service.get("/api/models")
    assert (first.status, cached(first)) == (200, ("MISS", "0", "600"))
    assert [each["name"] for each in first.json["items"]] == PUBLIC
    assert service.asked == [(DEFAULT, ())]
    service.clock.advance(90.7)
    assert cached(service.get("/api/models?page=0&template=")) == ("HIT", "90", "600")
    service.clock.advance(600)
    assert cached(service.get("/api/models")) == ("MISS", "0", "600")
    assert len(service.asked) == 2


def test_exactly_the_documented_parameters_are_passed_on(service: Service) -> None:
    """Encoded; whatever else a visitor sends stays here."""
    service.get("/api/models?limit=7&page=3&include_public=0&include_schemas=False&template=vllm&name=a%26b=%2F%23&x=1")
    assert service.asked[0][0] == (
        f"{BASE}/chutes/?page=3&limit=7&include_public=false&include_schemas=false&template=vllm&name=a%26b%3D%2F%23"
    )


@pytest.mark.parametrize(
    ("target", "parameter"),
    [
        ("/api/models?limit=5001", "limit"),
        ("/api/models?page=x", "page"),
        ("/api/models?page=0&page=1", "page"),
        ("/api/models?include_public=perhaps", "include_public"),
        (f"/api/models?name={'x' * 129}", "name"),
        ("/api/models?template=%ff", "template"),
        ("/api/export/data?format=xml", "format"),
        ("/api/export/data?limit=1", "limit"),
    ],
)
def test_a_bad_parameter_is_named_and_nothing_is_asked(service: Service, target: str, parameter: str) -> None:
    """400, with what is allowed in its message."""
    answer = service.get(target)
    assert answer.error == (400, f"invalid parameter {parameter}")
    assert answer.json["message"].startswith(f"{parameter} ")
    assert service.asked == []


def test_private_chutes_are_the_operators_alone(service: Service) -> None:
    """They leave lists and details, and the key's own listing is what the admin token shows."""
    assert b"secret" not in service.get("/api/models").raw
    assert service.get(f"/api/models/{uuid(66)}").error == (404, "not found")
    shown = service.get("/api/models", ADMIN)
    assert shown.body == LISTING_BODY
    assert (shown.headers["cache-control"], shown.headers["vary"]) == (
        "private, no-cache",
        "Authorization, Accept-Encoding",
    )
    assert service.get(f"/api/models/{uuid(66)}", ADMIN).json["name"] == "my secret"
    assert b"secret" not in service.get("/api/models", "Authorization: Bearer open sesam").raw
    assert b"secret" not in service.get("/api/models", ADMIN, ADMIN).raw


def test_private_chutes_are_everybodys_where_the_operator_shows_them(tmp_path: Path) -> None:
    """EXPLORER_SHOW_PRIVATE."""
    service = Service(tmp_path, show_private=True)
    assert service.get("/api/models").body == LISTING_BODY
    assert service.get(f"/api/models/{uuid(66)}").status == 200
    assert service.get("/api/export/data").json["sources"]["chutesApi"]["modelCount"] == len(CHUTES)


def test_a_record_that_is_no_json_is_left_out_and_hides_no_other(service: Service) -> None:
    """Of the listing, also as the operator sees it, of the catalog and of the export; the cache says how many came."""
    service.answers[f"{BASE}/chutes/"] = (200, json.dumps({"items": [{"x": float("nan")}, *CHUTES]}).encode())
    service.answers[MODELS_URL] = (200, MODELS_BODY.replace(b'{"id": "acme/Gamma"', rb'{"id": "\ud800"}, {"id": "z"'))
    assert [each["name"] for each in service.get("/api/models").json["items"]] == PUBLIC
    assert service.get("/api/models", ADMIN).json["items"] == CHUTES
    assert [each["id"] for each in service.get("/api/models/v1/all").json["data"]] == ["acme/Alpha", "z"]
    for headers, count in (((), len(PUBLIC)), ((ADMIN,), len(CHUTES))):
        sources = service.get("/api/export/data", *headers).json["sources"]
        assert (sources["chutesApi"]["modelCount"], sources["v1Api"]["modelCount"]) == (count, 2)
    counts = {each["key"]: each["itemCount"] for each in service.get("/api/cache/status", ADMIN).json["entries"]}
    assert counts["models_p0_l100_tnull_nnull_pubtrue_key.json"] == 1 + len(CHUTES)
    assert counts["v1_models_all.json"] == 3


@pytest.mark.parametrize("body", [b"[]", b'{"items":null}', b'{"chutes":[]}'])
def test_a_listing_of_another_shape_is_not_shown(service: Service, body: bytes) -> None:
    """For nobody could tell what is private in it."""
    service.answers[f"{BASE}/chutes/"] = (200, body)
    assert service.get("/api/models").error == (502, "the platform's answer is of another shape")


def test_the_catalog_of_language_models_is_passed_on_without_the_key(service: Service) -> None:
    """Byte for byte."""
    answer = service.get("/api/models/v1/all")
    assert (answer.body, answer.headers["x-cache"]) == (MODELS_BODY, "MISS")
    assert service.asked == [(MODELS_URL, ())]


@pytest.mark.parametrize("asked", [uuid(1), uuid(1).upper(), "acme%2FAlpha", "acme/Alpha"])
def test_a_chute_is_found_by_its_id_or_its_name(service: Service, asked: str) -> None:
    """Only its canonical id ever enters the path."""
    assert service.get(f"/api/models/{asked}").json["name"] == "acme/Alpha"
    assert service.get(f"/api/models/{asked}", ADMIN).json["name"] == "acme/Alpha"
    assert service.asked == [(f"{BASE}/chutes/{uuid(1)}", headers) for headers in ((), WITH_KEY)]


@pytest.mark.parametrize(
    "asked",
    [
        "..%2Fusers%2Fme",
        "../users/me",
        "%2e%2e/users/me",
        "..%252Fusers%252Fme",
        f"{uuid(1)}%2F..%2F..%2Fusers%2Fme",
        f"{uuid(1)}%0a",
        f"{uuid(1)}%3Fx=1",
        "users",
        "acme",
        "ACME/ALPHA",
        "my secret",
        "twice",
        "a" * 5000,
    ],
)
def test_anything_else_reaches_nothing(service: Service, asked: str) -> None:
    """No path, no part of one, no private name and no name of two chutes: 404 without a call of the platform."""
    assert service.get(f"/api/models/{asked.replace(' ', '%20')}").error == (404, "not found")
    assert service.asked == []
    service.truth = None  # type: ignore[assignment]
    assert service.get("/api/models/..%2Fusers%2Fme").error == (404, "not found")
    assert service.asked == []


def test_an_unknown_chute_is_404_and_not_kept(service: Service) -> None:
    """The platform's own words stay there; the next visitor may find it."""
    answer = service.get(f"/api/models/{uuid(77)}")
    assert answer.error == (404, "not found")
    assert b"Chute not found" not in answer.raw
    service.answers[f"{BASE}/chutes/{uuid(77)}"] = (200, json.dumps(chute(77, "new")).encode())
    assert service.get(f"/api/models/{uuid(77)}").status == 200


def test_nothing_outside_the_cache_is_written_or_read(tmp_path: Path) -> None:
    """Whatever a name looks like, its file is in the directory and of the documented kind."""
    (tmp_path / "chute_x.json").write_text('{"timestamp": 1800000000000, "data": {"items": [{"name": "outside"}]}}')
    service = Service(tmp_path / "cache")
    for name in ("../..", "../chute_x", "..%5c..", "%2e%2e/", "/etc/passwd", "~", "con", "a%2500b"):
        assert b"outside" not in service.get(f"/api/models?name={name}").body
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "chute_x.json"]
    written = sorted(path.name for path in service.directory.iterdir())
    assert len(written) == 8
    assert all(name.startswith("models_p0_l100_tnull_n") and name.endswith("_pubtrue_open.json") for name in written)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in service.directory.iterdir())


def test_twenty_concurrent_misses_are_one_call(service: Service) -> None:
    """Everybody gets the one answer; who leaves takes it from nobody."""
    gate: Deferred[None] = Deferred()
    service.answers[f"{BASE}/chutes/"] = gate
    asked = [service.get("/api/models") for _ in range(20)]
    assert not any(answer.raw for answer in asked)
    asked[0].channel.connectionLost()
    gate.callback(None)
    assert {(answer.status, answer.headers["x-cache"]) for answer in asked[1:]} == {(200, "MISS")}
    assert len(service.asked) == 1


@pytest.mark.parametrize("failure", ["network", "timeout", (500, b"oops"), (429, b"<html>"), (200, b"<html>")])
def test_a_platform_that_fails_is_covered_by_the_old_answer(service: Service, failure: Any) -> None:
    """STALE with its true age, for lists and for details."""
    service.get("/api/models")
    service.get(f"/api/models/{uuid(1)}")
    service.clock.advance(1000)
    service.answers = {f"{BASE}/chutes/": failure, f"{BASE}/chutes/{uuid(1)}": failure}
    stale = service.get("/api/models")
    assert (stale.status, cached(stale)) == (200, ("STALE", "1000", "600"))
    assert service.get(f"/api/models/{uuid(1)}").headers["x-cache"] == "STALE"


@pytest.mark.parametrize(
    ("failure", "status", "named"),
    [
        ("network", 502, ""),
        ("timeout", 504, ""),
        ((500, b"a trace of theirs"), 502, ""),
        ((429, b"a trace of theirs"), 502, ""),
        ((401, b"a trace of theirs"), 503, "CHUTES_API_KEY"),
    ],
)
def test_without_an_old_answer_the_failure_is_told_and_not_kept(
    service: Service, failure: Any, status: int, named: str
) -> None:
    """Nothing of the platform's words, and the next visitor tries again."""
    service.answers[f"{BASE}/chutes/"] = failure
    answer = service.get("/api/models")
    assert answer.error[0] == status
    assert named in answer.json["message"]
    assert b"trace of theirs" not in answer.raw
    service.answers[f"{BASE}/chutes/"] = (200, LISTING_BODY)
    assert service.get("/api/models").headers["x-cache"] == "MISS"


def test_the_cache_says_what_is_in_it(service: Service) -> None:
    """Ages in whole seconds; of what the operator had fetched with the key only the operator is told."""
    service.get("/api/models")
    service.clock.advance(599.9)
    service.get(f"/api/models/{uuid(1)}")
    service.get(f"/api/models/{uuid(66)}", ADMIN)
    service.clock.advance(0.2)
    status = service.get("/api/cache/status").json
    assert (status["cacheDuration"], status["inMemoryEntries"], status["diskFiles"]) == (600, 2, 2)
    assert service.get("/api/health").json["cache"]["inMemoryEntries"] == 2
    assert [(each["key"], each["age"], each["valid"], each["itemCount"]) for each in status["entries"]] == [
        (f"chute_{uuid(1)}_open.json", 0, True, 1),
        ("models_p0_l100_tnull_nnull_pubtrue_open.json", 600, False, len(PUBLIC)),
    ]
    everything = service.get("/api/cache/status", ADMIN).json
    assert (everything["inMemoryEntries"], everything["diskFiles"], len(everything["entries"])) == (3, 3, 3)


def test_files_that_do_not_say_who_was_told_what_is_in_them_are_removed(tmp_path: Path) -> None:
    """Those of the predecessor may hold what was said to the key, so no visitor is told that there are any."""
    old = [f"chute_{uuid(66)}.json", "models_p0_l100_tnull_nnull_pubtrue.json", "v1_models_all.json"]
    for name in old:
        (tmp_path / name).write_bytes(b'{"timestamp": 1800000000000, "data": %b}' % LISTING_BODY)
    service = Service(tmp_path)
    assert [each["key"] for each in service.get("/api/cache/status").json["entries"]] == old[2:]
    assert [path.name for path in tmp_path.iterdir()] == old[2:]
    assert (service.get("/api/models").headers["x-cache"], len(service.asked)) == ("MISS", 1)


def test_the_cache_survives_a_restart(tmp_path: Path) -> None:
    """The next process serves what the last one fetched, with its true age."""
    Service(tmp_path).get("/api/models")
    later = Service(tmp_path)
    later.clock.advance(60)
    assert cached(later.get("/api/models")) == ("HIT", "60", "600")
    assert later.asked == []
    assert later.get("/api/cache/status").json["entries"][0]["itemCount"] == len(PUBLIC)


def test_health_is_always_200(tmp_path: Path) -> None:
    """It says which source is old, and whether there is a key, but not which."""
    ok = Service(tmp_path / "a").get("/api/health").json
    assert (ok["status"], ok["apiKeyConfigured"], ok["snapshot"]) == ("ok", True, "s1")
    assert ok["cache"] == {"duration": "600 seconds", "inMemoryEntries": 0}
    stale = Service(tmp_path / "b", truth=sample_truth(stale=True)).get("/api/health")
    assert (stale.status, stale.json["status"], stale.json["sources"]["chutes"]["stale"]) == (200, "degraded", True)
    starting = Service(tmp_path / "c")
    starting.truth = None  # type: ignore[assignment]
    assert starting.get("/api/health").json["status"] == "degraded"


def test_the_export_fetches_what_is_missing(service: Service) -> None:
    """The documented object as an attachment, and the next one comes from the cache."""
    answer = service.get("/api/export/data")
    assert answer.headers["content-disposition"] == f'attachment; filename="chutes-models-export-{NOW * 1000:.0f}.json"'
    exported = answer.json
    assert exported["timestamp"] == "2027-01-15T08:00:00.000Z"
    sources = exported["sources"]
    assert (sources["chutesApi"]["source"], sources["chutesApi"]["requiresAuth"]) == (f"{BASE}/chutes/", True)
    assert [each["name"] for each in sources["chutesApi"]["data"]["items"]] == PUBLIC
    assert sources["v1Api"] == {
        "source": MODELS_URL,
        "requiresAuth": False,
        "modelCount": 2,
        "data": json.loads(MODELS_BODY),
    }
    analysis = sources["mergeAnalysis"]
    assert (analysis["totalInChutesApi"], analysis["totalInV1Api"], analysis["matched"]) == (5, 2, 1)
    assert (analysis["matchPercentage"], analysis["onlyInV1Api"]) == ("50.00%", ["acme/Gamma"])
    assert len(service.asked) == 2
    service.get("/api/export/data")
    assert len(service.asked) == 2
    assert service.get("/api/export/data", ADMIN).json["sources"]["chutesApi"]["modelCount"] == len(CHUTES)


def test_a_source_that_cannot_be_had_is_null_in_the_export(service: Service) -> None:
    """And nobody may keep such an export."""
    service.answers[MODELS_URL] = "network"
    service.answers[f"{BASE}/chutes/"] = (200, b'{"items": 1}')
    answer = service.get("/api/export/data")
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.json["sources"] == {"chutesApi": None, "v1Api": None, "mergeAnalysis": None}
    service.answers[MODELS_URL] = (200, MODELS_BODY)
    sources = service.get("/api/export/data").json["sources"]
    assert (sources["chutesApi"], sources["v1Api"]["modelCount"], sources["mergeAnalysis"]) == (None, 2, None)


@pytest.mark.parametrize(
    ("format", "content_type", "start"),
    [
        ("ndjson", "application/x-ndjson", b'{"key":"'),
        ("csv", "text/csv; charset=utf-8; header=present", b"key,chute_id,"),
        ("md", "text/markdown; charset=utf-8", b"| Model |"),
    ],
)
def test_the_export_is_a_file_of_other_formats_too(
    service: Service, format: str, content_type: str, start: bytes
) -> None:
    """The merged models, under a name of our own; the platform is not asked."""
    answer = service.get(f"/api/export/data?format={format}")
    assert (answer.headers["content-type"], answer.body[: len(start)]) == (content_type, start)
    assert answer.headers["content-disposition"] == f'attachment; filename="chutes-models.{format}"'
    assert b"\n<script>" not in answer.body
    assert service.asked == []
