"""The served description of the API and the routes say the same."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from explorer_service import ADMIN, TOKEN, Service, uuid

from chutes_autopilot.explorer.query import QUERY_PARAMETERS
from chutes_autopilot.web.explorer.openapi import read_description
from chutes_autopilot.web.explorer.routes import explorer_routes

DESCRIPTION = json.loads(read_description())
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": int | float, "boolean": bool}


def resolved(part: Any) -> Any:
    while "$ref" in part:
        found = DESCRIPTION
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        part = found
    return part


def operations() -> dict[tuple[str, str], Any]:
    return {(m.upper(), path): each for path, item in DESCRIPTION["paths"].items() for m, each in item.items()}


def parameters(method: str, path: str) -> dict[str, Any]:
    return {each["name"]: each for each in map(resolved, operations()[method, path].get("parameters", ()))}


def mismatch(value: Any, schema: Any, at: str = "$") -> list[str]:
    """Where a value is not as its schema says; the part of JSON Schema that the description uses."""
    schema = resolved(schema)
    wanted = schema.get("type")
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(_is(value, each) for each in wanted):
        return [f"{at}: {value!r} is no {wanted}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at}: {value!r} is none of {schema['enum']}"]
    if isinstance(value, list):
        return [
            fault for n, each in enumerate(value) for fault in mismatch(each, schema.get("items", {}), f"{at}[{n}]")
        ]
    if not isinstance(value, dict):
        return []
    known = schema.get("properties", {})
    faults = [f"{at}.{name} is missing" for name in schema.get("required", ()) if name not in value]
    others = schema.get("additionalProperties", {})
    for name, each in value.items():
        if known and name not in known and "additionalProperties" not in schema:
            faults.append(f"{at}.{name} is not described")
        faults += mismatch(each, known.get(name, others if isinstance(others, dict) else {}), f"{at}.{name}")
    return faults


def _is(value: Any, type: str) -> bool:
    if type == "null":
        return value is None
    return isinstance(value, TYPES[type]) and (type == "boolean" or not isinstance(value, bool))


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path, admin_token=TOKEN)


def test_every_route_is_described_and_every_description_is_a_route(service: Service) -> None:
    """Both ways, with the names of what varies in a path; the page's own paths are no part of the API."""
    routes = {
        (route.method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route.path))
        for route in explorer_routes(service.parts)
        if route.is_api
    }
    assert routes == set(operations())
    rules = {rule.endpoint: rule.rule for rule in service.app.url_map.iter_rules()}
    assert len(rules) == len(explorer_routes(service.parts))
    for method, path in routes:
        in_path = {name for name, each in parameters(method, path).items() if each["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))


def test_the_description_is_served_as_it_is(service: Service) -> None:
    """OpenAPI 3.1, every reference in it leads somewhere, and every operation has what a reader needs."""
    answer = service.get("/api/openapi.json")
    assert answer.body == read_description()
    assert answer.json["openapi"] == "3.1.0"
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', answer.body.decode()):
        assert resolved({"$ref": f"#/{reference}"})
    for operation in operations().values():
        assert operation["summary"]
        assert set(operation["tags"]) <= {tag["name"] for tag in DESCRIPTION["tags"]}
        assert all(resolved(each)["description"] for each in operation["responses"].values())


VALUES: dict[str, list[str]] = {
    "q": ["a b"],
    "feature": ["tools"],
    "modality": ["text,image"],
    "template": ["vllm"],
    "quantization": ["fp8"],
    "owner": ["chutes"],
    "sort": ["-requests,name"],
    "price_max": ["0.5"],
    "name": ["x"],
}


def values(parameter: Any) -> list[str]:
    schema = parameter["schema"]
    schema = schema.get("items", schema)
    if "enum" in schema:
        return [str(each) for each in schema["enum"]]
    if schema["type"] == "boolean":
        return ["true", "false"]
    if schema["type"] == "integer":
        return [str(schema["minimum"]), str(schema["maximum"])]
    return [uuid(1)] if schema.get("format") == "uuid" else VALUES[parameter["name"]]


def cases() -> list[tuple[str, str]]:
    return [
        (path, name)
        for (method, path) in operations()
        for name, each in parameters(method, path).items()
        if method == "GET" and each["in"] == "query"
    ]


@pytest.mark.parametrize(("path", "name"), cases())
def test_every_described_parameter_is_taken_and_bounded(service: Service, path: str, name: str) -> None:
    """All values that the description allows, and none beyond its bounds."""
    described = parameters("GET", path)[name]
    target = path.replace("{chute_id}", uuid(1))
    companion = "format=csv&" if path == "/api/export/data" and name != "format" else ""
    for value in values(described):
        span = "span=7d&" if name == "resolution" else ""
        answer = service.get(f"{target}?{companion}{span}{name}={value.replace(' ', '+')}")
        assert answer.status == 200, answer.raw
    schema = described["schema"]
    beyond = []
    if "maximum" in schema:
        beyond += [str(schema["minimum"] - 1), str(schema["maximum"] + 1)]
    if "maxLength" in schema:
        beyond.append("x" * (schema["maxLength"] + 1))
    if "enum" in schema.get("items", schema):
        beyond.append("nonsense")
    for value in beyond:
        answer = service.get(f"{target}?{companion}{name}={value}")
        assert answer.error == (400, f"invalid parameter {name}")


def test_every_parameter_of_a_query_is_described() -> None:
    """The list, its counts, its facets and its files take the same ones."""
    for path in ("/api/catalog/count", "/api/catalog/facets"):
        assert set(parameters("GET", path)) == set(QUERY_PARAMETERS)
    for path in ("/api/catalog", "/api/export/data"):
        assert set(parameters("GET", path)) == {*QUERY_PARAMETERS, "format"}


def test_answers_are_as_described(service: Service) -> None:
    """Every JSON answer, with all its members and no others."""
    service.get("/api/models")
    for method, path in sorted(operations()):
        schema = operations()[method, path]["responses"].get("200", {}).get("content", {}).get("application/json")
        if schema is not None:
            answer = service.ask(method, path.replace("{chute_id}", uuid(1)).replace("{letter}", "all"), ADMIN)
            assert mismatch(answer.json, schema["schema"]) == [], path
    error = service.get("/api/nothing")
    assert mismatch(error.json, {"$ref": "#/components/schemas/Error"}) == []
