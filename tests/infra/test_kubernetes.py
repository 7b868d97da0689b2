"""The manifests for Kubernetes pass its schemas and agree with the code. No cluster ran them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml

from jobs.plan.shards import MOST_IMAGES
from tests.infra.files import (
    KUBERNETES,
    built,
    find_all,
    known_settings,
    one,
    parsed,
    read_yaml,
    services,
    settings_of,
)
from tests.infra.promql import exported, matchers, mistakes, selectors
from tests.servers import free_port
from tests.worker.serve.services import Service
from worker.monitor.health import Health, Monitor
from worker.monitor.metrics import Metrics
from worker.monitor.presence import Reporter
from worker.process import SLOTS

FOLDERS = ("base", "scaled", "cpu")
VERSIONS = ("1.31", kubernetes_validate.latest_version())
SECRET = read_yaml(KUBERNETES / "secret.example.yaml")

# Of the two kinds that are not Kubernetes' own: what ours use, by their documentation.
TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


def mapping(required: str = "", **properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


LABELS = {"type": "object", "additionalProperties": TEXT}
SCALED_OBJECT = mapping(
    "scaleTargetRef triggers",
    scaleTargetRef=mapping("name", apiVersion=TEXT, kind=TEXT, name=TEXT),
    pollingInterval=NUMBER,
    cooldownPeriod=NUMBER,
    minReplicaCount={"type": "integer", "minimum": 0},
    maxReplicaCount={"type": "integer", "minimum": 1},
    advanced=mapping(horizontalPodAutoscalerConfig=mapping(behavior={"type": "object"})),
    triggers={
        "type": "array",
        "minItems": 1,
        "items": mapping(
            "type metadata",
            type={"const": "prometheus"},
            # KEDA takes texts only, also for numbers.
            metadata=mapping(
                "serverAddress query threshold",
                serverAddress={"type": "string", "pattern": "^https?://"},
                query=TEXT,
                threshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
                activationThreshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
                ignoreNullValues={"enum": ["true", "false"]},
            ),
        ),
    },
)
POD_MONITOR = mapping(
    "selector podMetricsEndpoints",
    jobLabel=TEXT,
    selector=mapping("matchLabels", matchLabels=LABELS),
    podMetricsEndpoints={
        "type": "array",
        "minItems": 1,
        "items": mapping(
            "port", port=TEXT, path=TEXT, interval={"type": "string", "pattern": r"^\d+s$"}
        ),
    },
)
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
    ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR,
}


def deployment(folder: str = "base") -> dict:
    return one(built(KUBERNETES / folder), "Deployment")


def pod(folder: str = "base") -> dict:
    return deployment(folder)["spec"]["template"]["spec"]


def container(folder: str = "base") -> dict:
    (only,) = pod(folder)["containers"]
    return only


def environ(folder: str = "base") -> dict[str, str]:
    """Of a worker; secrets as the example has them."""
    resources = built(KUBERNETES / folder)
    maps = {r["metadata"]["name"]: r["data"] for r in resources if r["kind"] == "ConfigMap"}
    found = {}
    for source in container(folder)["envFrom"]:
        found |= maps[source["configMapRef"]["name"]]
    for variable in container(folder)["env"]:
        if "valueFrom" in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            assert reference["name"] == SECRET["metadata"]["name"]
            found[variable["name"]] = SECRET["stringData"][reference["key"]]
        else:
            found[variable["name"]] = variable["value"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_schemas_are_kept(folder, version):
    kinds = set()
    for resource in built(KUBERNETES / folder):
        kind = (resource["apiVersion"], resource["kind"])
        if kind in CUSTOM:
            jsonschema.validate(resource["spec"], CUSTOM[kind])
        else:
            kubernetes_validate.validate(resource, version, strict=True)
        kinds.add(kind[1])
    common = {"Namespace", "ServiceAccount", "ConfigMap", "Deployment", "PodDisruptionBudget"}
    more = {"ScaledObject", "PodMonitor"} if folder == "scaled" else set()
    assert kinds == common | {"NetworkPolicy"} | more


def test_a_broken_manifest_would_be_found():
    broken = deployment()
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


def test_the_example_of_a_secret_is_one_and_holds_none():
    kubernetes_validate.validate(SECRET, VERSIONS[0], strict=True)
    assert all(re.search("PASSWORD|KEY|SECRET", value) for value in SECRET["stringData"].values())
    for folder in FOLDERS:
        assert not [r for r in built(KUBERNETES / folder) if r["kind"] == "Secret"]


def test_every_secret_is_by_reference_and_in_the_example():
    references = [
        variable["valueFrom"]["secretKeyRef"]
        for variable in container()["env"]
        if "valueFrom" in variable
    ]
    assert {reference["key"] for reference in references} == set(SECRET["stringData"])
    assert SECRET["metadata"]["namespace"] == deployment()["metadata"]["namespace"]
    optional = [reference["key"] for reference in references if reference.get("optional")]
    assert optional == ["webhook-secret"]
    plain = {variable["name"] for variable in container()["env"] if "value" in variable}
    assert not [name for name in plain if re.search("SECRET|PASSWORD|KEY|REDIS", name)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_settings_are_valid_and_all_known(folder):
    given = environ(folder)
    assert {name for name in given if name.startswith("SDBATCH_")} <= known_settings()
    settings = settings_of(given, KUBERNETES / "base/models.yaml")
    assert settings.model(settings.worker_model).source == "demo"
    assert settings.device == ("cpu" if folder == "cpu" else "cuda")
    assert settings.webhook_secret is not None
    mounts = {mount["mountPath"] for mount in container(folder)["volumeMounts"]}
    assert str(settings.cache) in mounts
    (models,) = [r for r in built(KUBERNETES / folder) if r["metadata"]["name"] == "sdbatch-models"]
    assert str(Path(given["SDBATCH_MODELS"]).parent) in mounts
    assert set(models["data"]) == {Path(given["SDBATCH_MODELS"]).name}


def test_aws_is_told_the_same_as_in_compose():
    ours = {name for name in environ() if name.startswith("AWS_")}
    theirs = services()["worker"]["environment"]
    assert ours == {name for name in theirs if name.startswith("AWS_")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_image_is_one_that_compose_builds(folder):
    name, _, tag = container(folder)["image"].partition(":")
    images = {service["image"] for service in services().values() if "build" in service}
    assert f"{name.rpartition('/')[2]}:{tag}" in images
    assert tag == ("cpu" if folder == "cpu" else "cuda")


def test_it_starts_a_worker():
    assert "command" not in container()
    assert parsed(container()["args"]).info_name == "worker"


def test_a_gpu_each_and_none_in_the_overlay_for_cpus():
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in container("cpu")["resources"]["limits"]
    assert "tolerations" not in pod("cpu")


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_selectors_are_about_these_pods(folder):
    template = deployment(folder)["spec"]["template"]["metadata"]["labels"]
    found = list(find_all(built(KUBERNETES / folder), lambda value: "matchLabels" in value))
    ours = [
        s["matchLabels"] for s in found if "kubernetes.io/metadata.name" not in s["matchLabels"]
    ]
    assert len(ours) == (4 if folder == "scaled" else 3)
    assert all(labels.items() <= template.items() for labels in ours)


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_that_are_referred_to_exist(folder):
    resources = built(KUBERNETES / folder)
    names = {(r["kind"], r["metadata"]["name"]) for r in resources}
    assert ("ServiceAccount", pod(folder)["serviceAccountName"]) in names
    volumes = {volume["name"]: volume for volume in pod(folder)["volumes"]}
    assert {mount["name"] for mount in container(folder)["volumeMounts"]} == set(volumes)
    assert ("ConfigMap", volumes["models"]["configMap"]["name"]) in names
    if folder == "scaled":
        target = one(resources, "ScaledObject")["spec"]["scaleTargetRef"]
        assert ("Deployment", target["name"]) in names
    namespaces = {r["metadata"].get("namespace") for r in resources if r["kind"] != "Namespace"}
    assert namespaces == {one(resources, "Namespace")["metadata"]["name"]}


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_have_no_rights_to_spare(folder):
    context = container(folder)["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod(folder)["securityContext"]["runAsNonRoot"] is True
    assert pod(folder)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(folder)["automountServiceAccountToken"] is False
    writable = {"/cache", "/tmp"}
    mounts = container(folder)["volumeMounts"]
    assert {m["mountPath"] for m in mounts if not m.get("readOnly")} == writable


def test_one_port_for_probes_prometheus_and_policy():
    (port,) = container()["ports"]
    assert environ()["SDBATCH_METRICS"] == f"0.0.0.0:{port['containerPort']}"
    for probe in ("startupProbe", "livenessProbe"):
        assert container()[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    policy = one(built(KUBERNETES / "base"), "NetworkPolicy")
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": port["name"]}]
    (endpoint,) = one(built(KUBERNETES / "scaled"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")


def test_a_slow_start_is_not_taken_for_a_hung_worker():
    probe = container()["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300


def test_the_job_is_the_one_that_alerts_ask_for():
    label = one(built(KUBERNETES / "scaled"), "PodMonitor")["spec"]["jobLabel"]
    assert deployment()["spec"]["template"]["metadata"]["labels"][label] == "sdbatch"


def test_a_last_worker_may_be_moved_too():
    spec = one(built(KUBERNETES / "base"), "PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1
    assert "minAvailable" not in spec


def test_scaling_goes_by_pending_images_of_the_model(monkeypatch):
    spec = one(built(KUBERNETES / "scaled"), "ScaledObject")["spec"]
    (trigger,) = spec["triggers"]
    query = trigger["metadata"]["query"]
    series = exported(monkeypatch)
    assert mistakes(query, series) == []
    pending, _ = selectors(promql_parser.parse(query))
    assert pending.name == "sdbatch_pending_images"
    asked = {matcher.name: matcher.value for matcher in matchers(pending)}
    assert asked == {"model": environ("scaled")["SDBATCH_MODEL"]}
    assert int(trigger["metadata"]["threshold"]) == SLOTS * MOST_IMAGES
    # Without a worker nobody exports the figure that would start one.
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    assert "replicas" not in deployment("scaled")["spec"]


def test_readiness_is_a_loaded_model(tmp_path):
    """The command of the probe, run, against a worker's own server."""
    _, flag, script = container()["readinessProbe"]["exec"]["command"]
    port = free_port()
    assert ":9400/" in script
    command = [sys.executable, flag, script.replace(":9400/", f":{port}/")]
    health = Health("odd")
    with (
        Monitor(("127.0.0.1", port), Metrics("odd").registry, health),
        Service(tmp_path) as service,
    ):
        assert subprocess.run(command, check=False).returncode == 1
        health.watch(service.worker, Reporter(service.worker, service.metrics))
        assert subprocess.run(command, check=False).returncode == 0


def test_alerts_become_a_rule_of_the_operator():
    """The shell of `infra/README.md`, up to what sends it to a cluster."""
    text = (KUBERNETES.parent / "README.md").read_text()
    shell = re.search(r"```sh\n(\{\n.*?\n\}) \| kubectl apply -f -\n```", text, re.DOTALL)[1]
    root = KUBERNETES.parents[1]
    done = subprocess.run(
        ["sh", "-c", shell], cwd=root, capture_output=True, check=True, env=dict(os.environ)
    )
    rule = yaml.safe_load(done.stdout)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == read_yaml(KUBERNETES.parent / "monitoring/alerts.yml")
