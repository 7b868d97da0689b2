"""Workers beside servers that are there already: the Compose file, the service of systemd and the
settings that both read agree with each other, with `docker-compose.yml` and with the code.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
import yaml

from jobs.settings import Settings
from jobs.supervise.restarts import HOPELESS
from jobs.variables import VARIABLES
from tests.infra import dockerfiles
from tests.infra.files import (
    INFRA,
    ROOT,
    VARIABLE,
    compose_text,
    env_example,
    interpolated,
    known_settings,
    parsed,
    services,
    settings_of,
)

COMPOSE = INFRA / "docker/worker-only.compose.yml"
SERVICE = INFRA / "systemd/sdbatch-worker.service"
EXAMPLE = env_example("worker.env.example")
ENV_FILE = "/etc/sdbatch/worker.env"
GIVEN = EXAMPLE | {
    "SDBATCH_REDIS": "rediss://sdbatch-work:abc@queue.example:6379/0",
    "AWS_ENDPOINT_URL": "https://s3.example:9000",
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "secret",
}
"""The example, filled in."""
WORKERS = ("worker", "worker-cpu")


def whole() -> dict:
    return yaml.safe_load(interpolated(compose_text(COMPOSE), GIVEN))


def worker(name: str) -> dict:
    return whole()["services"][name]


def variables(text: str) -> set[str]:
    return {match["name"] for match in VARIABLE.finditer(text) if match["name"]}


def unit() -> dict[str, list[str]]:
    """Settings of the service's file, whatever their section; each may be given several times."""
    found: dict[str, list[str]] = {}
    for line in SERVICE.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


# The settings


def test_only_what_somebody_reads_is_in_the_example():
    of_boto3 = {name for name in EXAMPLE if name.startswith("AWS_")}
    of_compose = {"COMPOSE_PROFILES"} | variables(compose_text(COMPOSE))
    of_systemd = variables(SERVICE.read_text())
    assert set(EXAMPLE) <= known_settings() | of_boto3 | of_compose | of_systemd
    assert of_compose | of_systemd <= set(EXAMPLE)
    assert of_boto3 == {
        name for name in services()["worker"]["environment"] if name.startswith("AWS_")
    }


def test_it_has_every_setting_of_the_workers_of_the_large_file():
    fixed = set(worker("worker-cpu")["environment"])
    assert set(services()["worker-cpu"]["environment"]) <= set(EXAMPLE) | fixed


def test_no_secret_has_a_value():
    secret = re.compile("PASSWORD|_KEY|SECRET|REDIS")
    found = {name: value for name, value in EXAMPLE.items() if secret.search(name)}
    assert len(found) == 4
    assert not any(found.values())


def test_compose_and_systemd_read_the_values_alike():
    assert not any(set(value) & set("\"'$\\`") for value in GIVEN.values())


def test_without_a_queue_compose_says_what_to_do():
    with pytest.raises(KeyError, match="SDBATCH_REDIS"):
        interpolated(compose_text(COMPOSE), EXAMPLE)


# Compose


def test_only_workers_and_their_cache():
    assert tuple(whole()["services"]) == WORKERS
    assert set(whole()["volumes"]) == {"models"}
    assert {name: worker(name)["profiles"] for name in WORKERS} == {
        "worker": ["gpu"],
        "worker-cpu": ["cpu"],
    }
    assert EXAMPLE["COMPOSE_PROFILES"] == "gpu"


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_that_of_the_large_file(name):
    """Rights, signals, time to end, image and command: all but where its servers and files are."""
    here, there = worker(name), services()[name]
    differ = {"environment", "depends_on", "volumes", "build", "ports", "env_file"}
    assert {k: v for k, v in here.items() if k not in differ} == {
        k: v for k, v in there.items() if k not in differ
    }
    assert "depends_on" not in here
    for key in ("SDBATCH_MODELS", "SDBATCH_METRICS", "SDBATCH_LOG", "SDBATCH_CACHE"):
        assert here["environment"][key] == there["environment"][key]
    targets = [[volume.split(":")[1:] for volume in s["volumes"]] for s in (here, there)]
    assert targets[0] == targets[1]


@pytest.mark.parametrize("name", WORKERS)
def test_settings_of_a_worker_are_valid(name):
    service = worker(name)
    assert service["env_file"] == [ENV_FILE]
    assert set(service["environment"]) <= {*known_settings(), "TMPDIR"}
    # What stands under `environment` is stronger.
    settings = settings_of(GIVEN | service["environment"], INFRA / "docker/models.yaml")
    assert settings.redis == GIVEN["SDBATCH_REDIS"]
    assert settings.device == ("cpu" if name == "worker-cpu" else "auto")
    defaults = {variable.name: variable.default for variable in VARIABLES}
    assert f"{settings.grace_s:.0f}" == defaults["SDBATCH_GRACE_S"]
    assert settings.stores == ()


@pytest.mark.parametrize("name", WORKERS)
def test_files_exist_from_where_compose_looks(name):
    """Paths are relative to the folder of the file."""
    service = worker(name)
    build = service["build"]
    context = (COMPOSE.parent / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
    there = services()[name]["build"]
    assert {**build, "context": "."} == there
    for volume in service["volumes"]:
        source, target, *mode = volume.split(":")
        assert PurePosixPath(target).is_absolute()
        if source in whole()["volumes"]:
            continue
        assert (COMPOSE.parent / source).is_file()
        assert mode == ["ro"]


@pytest.mark.parametrize("name", WORKERS)
def test_commands_exist_and_health_is_asked_at_an_open_port(name):
    service = worker(name)
    assert parsed(service["command"]).params["gpus"] == ("all" if name == "worker" else None)
    (ports,) = service["ports"]
    host, outside, inside = ports.split(":")
    assert host == "127.0.0.1"
    assert outside == inside == "9400-9407"
    image = dockerfiles.read(ROOT / "infra/docker/worker.Dockerfile")
    (check,) = image.all("HEALTHCHECK")
    assert "127.0.0.1:9400/healthz" in check
    assert re.fullmatch(r"[1-9]\d*:\d+", image.user)


# systemd


def test_the_service_runs_a_process_for_each_gpu_with_valid_settings():
    found = unit()
    assert found["EnvironmentFile"] == [ENV_FILE]
    own = dict(value.split("=", 1) for value in found["Environment"])
    assert own["WORKER_GPUS"] == EXAMPLE["WORKER_GPUS"]
    (command,) = found["ExecStart"]
    program, *arguments = shlex.split(interpolated(command, own))
    assert PurePosixPath(program).name == "sdbatch"
    assert parsed(arguments).params["gpus"] == "all"
    assert set(own) - {"WORKER_GPUS", "HF_HOME"} <= known_settings()
    settings = settings_of(own | GIVEN, INFRA / "docker/models.yaml")
    assert settings.metrics == ("127.0.0.1", 9400)
    (cache,) = found["CacheDirectory"]
    assert settings.cache == Path("/var/cache") / cache


def test_it_is_started_again_unless_that_is_hopeless():
    found = unit()
    assert found["Restart"] == ["on-failure"]
    (codes,) = found["RestartPreventExitStatus"]
    assert sorted(map(int, codes.split())) == sorted(HOPELESS)
    assert found["StartLimitIntervalSec"] == ["0"]


def test_it_gets_as_long_to_end_as_a_container():
    found = unit()
    (stop,) = found["TimeoutStopSec"]
    assert stop.removesuffix("min") == worker("worker")["stop_grace_period"].removesuffix("m")
    assert Settings.grace_s < 60 * int(stop.removesuffix("min"))
    assert found["KillSignal"] == ["SIGTERM"]
    assert found["KillMode"] == ["mixed"]


def test_it_has_no_rights_to_spare():
    found = unit()
    assert found["User"] == found["Group"] == ["sdbatch"]
    assert found["CapabilityBoundingSet"] == found["AmbientCapabilities"] == [""]
    assert found["ProtectSystem"] == ["strict"]
    for name in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictSUIDSGID"):
        assert found[name] == ["yes"]
    assert not {"PrivateDevices", "MemoryDenyWriteExecute"} & set(found)


def test_systemd_takes_the_service(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    path = tmp_path / SERVICE.name
    # Its program has to be there to be taken.
    path.write_text(SERVICE.read_text().replace("/opt/sdbatch/bin/sdbatch", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wrong = path.read_text().replace("KillMode=mixed", "KillMode=mixd")
    path.write_text(wrong)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Failed to parse kill mode" in done.stderr
