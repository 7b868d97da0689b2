"""Worker processes that are started, told to stop, and started again: real ones, most of them small
scripts in place of a worker.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.ledger import open_ledger
from tests.servers import wait_for
from worker.fleet.fleet import worker_environs
from worker.fleet.gpus import Place

PARENT = """\
import os, sys
from jobs.errors import Interrupted
from jobs.settings import Settings
from worker.fleet import fleet

fleet.PAUSES_S = (0.0,)
command = [sys.executable, sys.argv[1]]
try:
    code = fleet.run_workers("all", Settings.from_env(os.environ), os.environ, command)
except Interrupted:
    code = 130
print("torch" in sys.modules)
sys.exit(code)
"""

# Says that it is here by a file of its own, then does what the file `todo-<GPU>` says, line by line
# for one start after the other.
CHILD = """\
import json, os, signal, sys, time
from pathlib import Path

here = Path(os.environ["FLEET_TEST"])
gpu = os.environ["CUDA_VISIBLE_DEVICES"]
start = len(list(here.glob(f"started-{gpu}-*")))
todo = (here / f"todo-{gpu}").read_text().splitlines()
what = todo[min(start, len(todo) - 1)]


def drain(number, frame):
    print("draining", flush=True)
    if what != "hang":
        sys.exit(7 if what == "fail late" else 0)


signal.signal(signal.SIGTERM, drain)
print(f"hello {start}", flush=True)
sys.stderr.write("no end of line")
sys.stderr.flush()
said = {"pid": os.getpid(), "torch": "torch" in sys.modules, "environ": dict(os.environ)}
unfinished = here / f"unfinished-{gpu}-{start}"
unfinished.write_text(json.dumps(said))
unfinished.rename(here / f"started-{gpu}-{start}")
if what.startswith("exit"):
    sys.exit(int(what.split()[1]))
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    time.sleep(0.05)
"""


class FleetUnderTest:
    """todo: what each worker does at its first start, its second, …: `serve`, `exit N`, `die`,
    `hang` (not ending when told to), `fail late` (exit code 7 then).
    """

    def __init__(self, folder: Path, *todo: str, **environ: str) -> None:
        self.folder = folder
        self._log = folder / "log"
        (folder / "child.py").write_text(CHILD)
        for gpu, what in enumerate(todo):
            (folder / f"todo-{gpu}").write_text(what)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PARENT, str(folder / "child.py")],
                env={
                    **os.environ,
                    "FLEET_TEST": str(folder),
                    "CUDA_VISIBLE_DEVICES": ",".join(str(gpu) for gpu in range(len(todo))),
                    **environ,
                },
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def started(self, gpu: int, start: int = 0) -> dict:
        """What a worker said about itself."""
        path = self.folder / f"started-{gpu}-{start}"
        wait_for(path.exists, f"start {start} of GPU {gpu}\n{self.log()}")
        return json.loads(path.read_text())

    def starts(self, gpu: int) -> int:
        return len(list(self.folder.glob(f"started-{gpu}-*")))

    def log(self) -> str:
        return self._log.read_text()

    def end(self, *signals: signal.Signals) -> int:
        for number in signals:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        assert output == "False\n"  # the parent has not imported torch
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for path in self.folder.glob("started-*"):
            pid = json.loads(path.read_text())["pid"]
            wait_for(lambda pid=pid: gone(pid), f"the end of process {pid}")


def gone(pid: int) -> bool:
    """Whether it has ended; somebody may not have noted it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def fleet(tmp_path):
    made = []

    def make(*todo: str, **environ: str) -> FleetUnderTest:
        made.append(FleetUnderTest(tmp_path, *todo, **environ))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_one_process_for_each_gpu(fleet):
    workers = fleet("serve", "serve", SDBATCH_METRICS="127.0.0.1:9400")
    said = [workers.started(gpu) for gpu in range(2)]
    assert [one["environ"]["CUDA_VISIBLE_DEVICES"] for one in said] == ["0", "1"]
    assert [one["environ"]["SDBATCH_DEVICE"] for one in said] == ["cuda", "cuda"]
    ports = [one["environ"]["SDBATCH_METRICS"] for one in said]
    assert ports == ["127.0.0.1:9400", "127.0.0.1:9401"]
    assert len({one["pid"] for one in said} | {workers.process.pid}) == 3
    assert not any(one["torch"] for one in said)
    assert workers.end(signal.SIGTERM) == 0
    lines = workers.log().splitlines()
    for gpu in range(2):
        assert f"[gpu {gpu}] hello 0" in lines
        assert f"[gpu {gpu}] no end of line" + "draining" in lines
        assert lines.count(f"[gpu {gpu}] draining") == 0  # told once


def test_lines_in_json_stay_json(fleet):
    workers = fleet("serve", SDBATCH_LOG="json")
    workers.started(0)
    assert workers.end(signal.SIGTERM) == 0
    lines = workers.log().splitlines()
    assert "hello 0" in lines
    messages = [json.loads(line)["message"] for line in lines if line.startswith("{")]
    assert "gpu 0 has ended" in messages


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_kills(fleet, first):
    workers = fleet("hang", "serve")
    pids = [workers.started(gpu)["pid"] for gpu in range(2)]
    workers.process.send_signal(first)
    wait_for(lambda: "gpu 1 has ended" in workers.log(), "the other worker's end")
    assert workers.process.poll() is None
    assert not gone(pids[0])
    assert workers.end(first) == 130
    assert all(map(gone, pids))
    assert workers.log().count("draining") == 2


def test_a_terminal_that_hangs_up_stops_them_and_kills_none(fleet):
    """A shell that ends sends the signal, and so does the system."""
    workers = fleet("serve", "serve")
    workers.started(0), workers.started(1)
    workers.process.send_signal(signal.SIGHUP)
    assert workers.end(signal.SIGHUP) == 0
    assert workers.log().count("draining") == 2


@pytest.mark.parametrize("death", ["die", "exit 9", "exit 1"])
def test_a_worker_that_dies_is_started_again(fleet, death):
    workers = fleet(f"{death}\n{death}\nserve", "serve")
    workers.started(0, 2)
    assert workers.end(signal.SIGTERM) == 0
    assert (workers.starts(0), workers.starts(1)) == (3, 1)
    how = "signal 9, Killed" if death == "die" else f"exit code {death[5:]}"
    assert workers.log().count(f"gpu 0 died ({how}); again in") == 2


@pytest.mark.parametrize("code", [2, 4])
def test_what_no_new_start_would_help_ends_all(fleet, code):
    workers = fleet("serve", "serve\nserve", f"exit {code}")
    assert workers.end() == code
    assert workers.starts(2) == 1
    assert f"gpu 2 failed (exit code {code})" in workers.log()


def test_a_worker_that_fails_while_it_ends(fleet):
    workers = fleet("serve", "fail late")
    for gpu in range(2):
        workers.started(gpu)
    assert workers.end(signal.SIGTERM) == 7


def test_a_worker_that_was_told_to_end_stays_away(fleet):
    workers = fleet("serve", "serve")
    os.kill(workers.started(0)["pid"], signal.SIGTERM)
    wait_for(lambda: "gpu 0 has ended" in workers.log(), "its end")
    os.kill(workers.started(1)["pid"], signal.SIGTERM)
    assert workers.end() == 0
    assert (workers.starts(0), workers.starts(1)) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's doing")
def test_no_worker_outlives_a_killed_parent(fleet):
    workers = fleet("hang", "hang")
    pids = [workers.started(gpu)["pid"] for gpu in range(2)]
    assert not any(map(gone, pids))
    workers.process.kill()
    for pid in pids:
        wait_for(lambda pid=pid: gone(pid), f"the end of process {pid}")


def test_each_worker_has_a_port():
    places = [Place("gpu 0", {"A": "1"}), Place("gpu 1")]
    assert worker_environs(places, ("::1", 9400), {"B": "2"}) == [
        {"A": "1", "B": "2", "SDBATCH_METRICS": "[::1]:9400"},
        {"B": "2", "SDBATCH_METRICS": "[::1]:9401"},
    ]
    assert worker_environs(places, None, {}) == [{"A": "1"}, {}]
    assert worker_environs(places, ("h", 65534), {})[1]["SDBATCH_METRICS"] == "h:65535"
    with pytest.raises(InputError, match="found port 65535, expected at most 65534: 2 workers"):
        worker_environs(places, ("h", 65535), {})


def sdbatch(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "worker", *arguments],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "-1"], "--gpus: found '-1', expected all, none or numbers"),
        (["--gpus", "all"], "no nvidia-smi in PATH to ask; --gpus none renders on the CPU"),
        (["--gpus", "none", "--device", "cpu"], "--gpus and --device: only one of them"),
        (["--gpus", "none", "--model", "nope"], "model 'nope' is not in the model list"),
    ],
)
def test_mistakes_are_told_before_anything_starts(arguments, message):
    with sdbatch(*arguments, PATH="") as command:
        output, _ = command.communicate(timeout=60)
    assert command.returncode == 2
    assert message in output
    assert "Traceback" not in output


def test_a_real_worker(valkey):
    with valkey.client() as client:
        client.flushall()
    ledger = open_ledger(valkey.url)
    with sdbatch("--gpus", "none", "--redis", valkey.url, SDBATCH_DTYPE="float32") as command:
        try:
            lines = list(takewhile(lambda line: " ready." not in line, command.stdout))
            (worker,) = ledger.workers()
            assert worker.pid != command.pid
            assert worker.device == "cpu"
            command.terminate()
            lines += command.communicate(timeout=60)[0].splitlines()
        finally:
            command.kill()
    assert command.returncode == 0, lines
    assert any(line.startswith("[cpu] ") and "has model demo on cpu" in line for line in lines)
    assert "cpu has ended" in lines[-1]
    assert ledger.workers() == []


@pytest.mark.slow
def test_a_real_worker_without_its_model(valkey, tmp_path):
    models = tmp_path / "models.yaml"
    models.write_text("gone: gone.safetensors\n")
    given = {"SDBATCH_MODELS": str(models), "SDBATCH_REDIS": valkey.url}
    with sdbatch("--gpus", "none", "--model", "gone", **given) as command:
        output, _ = command.communicate(timeout=60)
    assert command.returncode == 4, output
    assert "gone.safetensors" in output
    assert "Traceback" not in output
