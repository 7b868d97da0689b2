"""The Dockerfiles copy what is there, and start what exists. None was built: there is no Docker."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from jobs.settings import Settings
from tests.infra import dockerfiles
from tests.infra.dockerfiles import let_through
from tests.infra.files import INFRA, KUBERNETES, ROOT, built, known_settings, one, parsed
from tests.servers import free_port
from worker.monitor.health import Health, Monitor
from worker.monitor.metrics import Metrics

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = {path.name: dockerfiles.read(path) for path in sorted((INFRA / "docker").glob("*file"))}


def test_there_are_two():
    assert set(FILES) == {"client.Dockerfile", "worker.Dockerfile"}


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_what_is_copied_exists_and_is_sent(file):
    assert {"pyproject.toml", "README.md", "infra/constraints.txt"} <= set(file.copied)
    for name in file.copied:
        path = ROOT / name
        assert path.exists()
        some = next(path.rglob("*.py")) if path.is_dir() else path
        assert let_through(str(some.relative_to(ROOT)))


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_all_packages_and_what_pip_reads_are_copied(file):
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {pattern.removesuffix("*") for pattern in found}
    files = {PROJECT["project"]["readme"], "LICENSE"}
    assert packages | files <= set(file.copied)
    for licence in PROJECT["project"]["license-files"]:
        assert let_through(licence)
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        for data in (path for pattern in patterns for path in folder.glob(pattern)):
            assert let_through(str(data.relative_to(ROOT))) or "__pycache__" in data.parts


def test_where_torch_is_kernels_are_built():
    for extension in PROJECT["tool"]["setuptools"]["ext-modules"]:
        for source in extension["sources"]:
            assert (ROOT / source).exists()
            assert let_through(source)
        assert extension["optional"], "a machine without a compiler installs, too"
    assert any("g++" in run for run in FILES["worker.Dockerfile"].all("RUN"))


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".git/config",
        ".venv/bin/python",
        "tests/servers.py",
        "out/a/images/0.png",
        "sd_core/_a.so",
    ],
)
def test_nothing_else_is_sent(path):
    assert not let_through(path)


def test_no_bytecode_is_sent():
    assert not let_through("jobs/ledger/__pycache__/redis.cpython-311.pyc")
    assert let_through("jobs/ledger/redis/ledger.py")


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_bases_are_pinned_and_all_the_same(file):
    (base,) = {rest for rest in file.all("ARG") if rest.startswith("PYTHON_IMAGE=")}
    version = re.fullmatch(r"PYTHON_IMAGE=python:(\d+\.\d+)\.\d+-slim-\w+", base)
    assert version is not None
    assert version[1] in PROJECT["project"]["requires-python"]
    assert [rest.split()[0] for rest in file.all("FROM")] == ["${PYTHON_IMAGE}"] * 2


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_pip_installs_what_is_pinned(file):
    installs = [rest for rest in file.all("RUN") if rest.startswith("pip install")]
    assert installs
    assert all("-c infra/constraints.txt" in line for line in installs)
    extras = {name for line in installs for name in re.findall(r"\.\[(\w+)\]", line)}
    assert extras <= set(PROJECT["project"]["optional-dependencies"])
    assert ("worker" in extras) == (file is FILES["worker.Dockerfile"])


def test_a_torch_that_comes_first_is_the_pinned_one():
    """Its local version, +cpu, is left alone by a pin that names none."""
    assert re.search(r"(?m)^torch==[\d.]+$", (INFRA / "constraints.txt").read_text())
    first, second = [r for r in FILES["worker.Dockerfile"].all("RUN") if r.startswith("pip")]
    assert first.split()[-1] == "torch"
    assert "--no-deps" in first
    assert "--index-url" not in second


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_it_runs_our_command_as_nobody_special(file):
    assert file.user == "10001:10001"
    assert file.command("ENTRYPOINT") == ["sdbatch"]
    assert "sdbatch" in PROJECT["project"]["scripts"]


def test_a_worker_is_what_the_image_starts():
    file = FILES["worker.Dockerfile"]
    assert parsed(file.command("CMD")).info_name == "worker"
    settings = Settings.from_env(file.environ)
    assert settings.metrics == ("0.0.0.0", int(file.all("EXPOSE")[0]))
    assert {name for name in file.environ if name.startswith("SDBATCH_")} <= known_settings()
    assert any(str(settings.cache) in rest for rest in file.all("RUN"))


def test_pods_run_as_the_images_user():
    pod = one(built(KUBERNETES / "base"), "Deployment")["spec"]["template"]["spec"]
    context = pod["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == FILES["worker.Dockerfile"].user


class Sick(Health):
    def document(self):
        return 503, {"status": "failing", "state": "busy", "model": "demo", "reason": "it hangs"}


@pytest.mark.parametrize(("health", "code"), [(Health("demo"), 0), (Sick("demo"), 1)])
def test_the_health_check_tells_a_hung_worker(health, code):
    """The command of the image, run, against a worker's own server."""
    python, flag, script = FILES["worker.Dockerfile"].command("HEALTHCHECK")
    assert python == "python"
    port = free_port()
    with Monitor(("127.0.0.1", port), Metrics("demo").registry, health):
        assert "127.0.0.1:9400/" in script
        command = [sys.executable, flag, script.replace(":9400/", f":{port}/")]
        done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
