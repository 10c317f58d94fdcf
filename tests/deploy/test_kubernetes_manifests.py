"""The Kubernetes manifests are valid, agree with the service's settings and the image, and give away no privilege."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from chutes_autopilot.settings import SETTINGS, SettingsError, read_settings

ROOT = Path(__file__).parent.parent.parent
MANIFESTS = ROOT / "deploy" / "kubernetes"
FILES = sorted([*MANIFESTS.glob("*.yaml"), *MANIFESTS.glob("*.yaml.example")])
VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""From the first release that knows everything the manifests use (preStop.sleep) to the newest the schemas are of."""
NAMESPACE = "chutes-autopilot"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def objects() -> Iterator[dict[str, Any]]:
    for path in FILES:
        if path.name != "kustomization.yaml":
            yield from documents(path)


def find(kind: str, name: str = NAMESPACE) -> dict[str, Any]:
    (found,) = (o for o in objects() if o["kind"] == kind and o["metadata"]["name"] == name)
    return found


def workloads() -> list[dict[str, Any]]:
    return [o for o in objects() if o["kind"] in ("Deployment", "StatefulSet")]


def pod() -> dict[str, Any]:
    return find("Deployment")["spec"]["template"]["spec"]


def service_container() -> dict[str, Any]:
    (container,) = pod()["containers"]
    return container


def mebibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"([0-9]+)(Mi|Gi)", quantity).groups()
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", [path for path in FILES if path.name != "kustomization.yaml"], ids=lambda p: p.name)
def test_the_api_server_would_take_it(path: Path, version: str) -> None:
    """Every object follows its schema, with no field the schema does not know, in old and new releases."""
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_are_strict() -> None:
    """A misspelt field is found, so that the test above means something."""
    deployment = find("Deployment")
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


def test_kustomize_applies_every_manifest() -> None:
    """What is not optional is in the kustomization, and the secrets' example is not."""
    (kustomization,) = documents(MANIFESTS / "kustomization.yaml")
    there = {path.name for path in FILES if path.suffix == ".yaml"}
    assert set(kustomization["resources"]) == there - {"kustomization.yaml", "redis.yaml"}
    assert kustomization["namespace"] == NAMESPACE
    assert [image["name"] for image in kustomization["images"]] == [service_container()["image"]]


def test_everything_is_in_the_namespace() -> None:
    """Applied without kustomize, the objects meet one another too."""
    assert {o["metadata"].get("namespace") for o in objects() if o["kind"] != "Namespace"} == {NAMESPACE}
    assert find("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_selectors_find_their_pods() -> None:
    """Each workload, Service, PodDisruptionBudget and NetworkPolicy selects by a label that the pods carry."""
    carried = {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["labels"] for w in workloads()}
    for o in objects():
        spec = o.get("spec", {})
        selector: Mapping[str, Any] | None = spec.get("podSelector") or spec.get("selector")
        if selector:
            assert selector.get("matchLabels", selector).items() <= carried[o["metadata"]["name"]].items()


@pytest.mark.parametrize("workload", workloads(), ids=lambda w: w["metadata"]["name"])
def test_pods_have_no_privilege(workload: dict[str, Any]) -> None:
    """No root, no capability, nothing writable but the volumes, no token of the API, and bounded memory."""
    spec = workload["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in spec["containers"] + spec.get("initContainers", []):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


def test_the_pod_runs_the_image() -> None:
    """User, port and writable directory are those of the Dockerfile."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"USER {pod()['securityContext']['runAsUser']}:{pod()['securityContext']['runAsGroup']}\n" in dockerfile
    port, _ = service_container()["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in dockerfile
    assert f"VOLUME {service_container()['volumeMounts'][0]['mountPath']}\n" in dockerfile
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert "emptyDir" in volumes[service_container()["volumeMounts"][0]["name"]]
    (service_port,) = find("Service")["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]


def test_settings_of_the_config_map_are_settings() -> None:
    """Each name is one, each value is legal and not the default, and so are those that are commented out."""
    data = find("ConfigMap")["data"]
    text = (MANIFESTS / "configmap.yaml").read_text()
    optional = yaml.safe_load("\n".join(re.findall(r"^  # ([A-Z0-9_]+: .*)$", text, flags=re.M)))
    defaults = {setting.name: setting.default for setting in SETTINGS}
    assert {name: value for name, value in {**data, **optional}.items() if defaults[name] == value} == {}
    read_settings({**data, **optional}, lambda path: "")


def test_metrics_are_where_prometheus_looks() -> None:
    """ADMIN_ENDPOINT, the annotations and the port that the NetworkPolicy names are one, and no port of the Service."""
    annotations = find("Deployment")["spec"]["template"]["metadata"]["annotations"]
    (port,) = (port["containerPort"] for port in service_container()["ports"] if port["name"] == "metrics")
    assert annotations["prometheus.io/port"] == str(port)
    assert annotations["prometheus.io/path"] == "/metrics"
    assert find("ConfigMap")["data"]["ADMIN_ENDPOINT"] == f"tcp:{port}"
    assert [port["targetPort"] for port in find("Service")["spec"]["ports"]] == ["http"]


def test_no_placeholder_of_the_secrets_is_taken_for_a_secret() -> None:
    """The example names settings only, and every value left as it is keeps the service from starting."""
    given = find("Secret")["stringData"]
    assert given.keys() <= {setting.name for setting in SETTINGS if setting.secret}
    with pytest.raises(SettingsError) as refused:
        read_settings(given, lambda path: "")
    assert {fault.partition(":")[0] for fault in refused.value.faults} == set(given)


def test_probes_ask_what_they_are_for() -> None:
    """A hung process is restarted by /healthz and late; /readyz only takes it out of the balancing."""
    container = service_container()
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
    paths = {kind: probe["httpGet"] for kind, probe in probes.items()}
    assert paths == {
        "startup": {"path": "/healthz", "port": "http"},
        "liveness": {"path": "/healthz", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    }
    assert probes["liveness"]["periodSeconds"] * probes["liveness"]["failureThreshold"] >= 120


def test_a_pod_has_time_to_drain() -> None:
    """Kubernetes kills later than the pause before SIGTERM and SHUTDOWN_GRACE_MS take together."""
    pause = service_container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = int(find("ConfigMap")["data"]["SHUTDOWN_GRACE_MS"]) / 1000
    assert pod()["terminationGracePeriodSeconds"] >= pause + grace + 5


def test_a_feed_that_stands_still_does_not_empty_the_service() -> None:
    """All replicas read the same feeds, so /readyz waits much longer than the alerts do."""
    data = find("ConfigMap")["data"]
    defaults = {setting.name: int(setting.default) for setting in SETTINGS if setting.name.startswith("READYZ_")}
    assert all(int(data[name]) >= 10 * default for name, default in defaults.items())


def test_the_memory_limit_holds_what_is_let_in() -> None:
    """The bodies that may be held, counted twice, fit beside an idle process, and are those of all in flight."""
    largest = next(int(setting.default) for setting in SETTINGS if setting.name == "MAX_REQUEST_BYTES")
    data = find("ConfigMap")["data"]
    held = int(data["MAX_BUFFERED_REQUEST_BYTES"])
    assert mebibytes(service_container()["resources"]["limits"]["memory"]) >= 100 + 2 * held / 2**20
    assert held >= int(data["MAX_INFLIGHT_REQUESTS"]) * largest


def test_the_autoscaler_reads_what_the_adapter_gives() -> None:
    """The metric is the service's own, under one name everywhere, and more pods come before requests are refused."""
    hpa = find("HorizontalPodAutoscaler")["spec"]
    assert hpa["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAMESPACE}
    assert "replicas" not in find("Deployment")["spec"]
    by_pods = next(metric["pods"] for metric in hpa["metrics"] if metric["type"] == "Pods")
    assert by_pods["metric"]["name"] == "chutes_autopilot_requests_active"
    (rule,) = yaml.safe_load((ROOT / "deploy/prometheus/adapter-values.yaml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] == by_pods["metric"]["name"]
    assert re.sub(rule["name"]["matches"], rule["name"]["as"].replace("$", "\\"), "some_name") == "some_name"
    assert int(by_pods["target"]["averageValue"]) <= 0.5 * int(find("ConfigMap")["data"]["MAX_INFLIGHT_REQUESTS"])


def test_the_network_policy_lets_through_what_is_needed() -> None:
    """In: requests and scrapes from one namespace each; out: names, HTTPS outside the cluster, Redis."""
    policy = find("NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    ways_in = {port["port"]: way["from"] for way in policy["ingress"] for port in way["ports"]}
    assert ways_in.keys() == {"http", "metrics"}
    assert all(len(peers) == 1 for peers in ways_in.values())
    ways_out = {(port["protocol"], port["port"]): way["to"] for way in policy["egress"] for port in way["ports"]}
    assert set(ways_out) == {("UDP", 53), ("TCP", 53), ("TCP", 443), ("TCP", 6379)}
    assert "169.254.0.0/16" in ways_out["TCP", 443][0]["ipBlock"]["except"]


def test_redis_is_found_and_kept_to_the_replicas() -> None:
    """REDIS_URL names its Service, only the replicas may connect, and it forgets nothing by itself."""
    name = f"{NAMESPACE}-redis"
    given = find("Secret")["stringData"]["REDIS_URL"].replace("replace me", "a-password")
    server = read_settings({"REDIS_URL": given}, lambda path: "").redis_url
    (port,) = find("Service", name)["spec"]["ports"]
    assert (server.host, server.port) == (name, port["port"])
    (way_in,) = find("NetworkPolicy", name)["spec"]["ingress"]
    replicas = {"podSelector": {"matchLabels": find("Deployment")["spec"]["selector"]["matchLabels"]}}
    assert way_in["from"] == [replicas]
    lines = find("ConfigMap", name)["data"]["redis.conf"].splitlines()
    assert {"maxmemory-policy noeviction", "appendonly yes"} <= set(lines)
    limit = find("StatefulSet", name)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    (maxmemory,) = (int(line.split()[1].removesuffix("mb")) for line in lines if line.startswith("maxmemory "))
    assert 2 * maxmemory <= mebibytes(limit)
