"""Every command of the README, run in the order it stands there, against one real cluster.

`sdbatch local` gives queue and store from the start, with a worker of a model that the README's
jobs do not name, so that they wait for the workers that the README starts.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import redis

from jobs.errors import ExitCode, InputError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import read_records
from jobs.ledger import Ledger, open_ledger
from jobs.ledger.types import JobState, JobStatus
from jobs.local.address import STORE
from jobs.local.seaweed import weed_program
from jobs.local.valkey import valkey_program
from jobs.storage import open_store
from sd_core.weights.export import save_single_file
from tests.commands import run_command
from tests.integration.test_local import Local, alive, descendants
from tests.sd_core.small import ODD, small_model
from tests.servers import PATIENCE_S, missing, wait_for
from tests.test_readme import BAD, README, ROOT, blocks, mentioned

OTHER_MODEL = "not-in-the-readme"
IMAGES = 24  # of shapes.yaml

CODES = {
    "sdbatch run jobs/examples/quickstart.yaml": ExitCode.DONE,
    "sdbatch run jobs/examples/quickstart.yaml --device cuda": ExitCode.DONE,
    "sdbatch bench": ExitCode.DONE,
    "sdbatch bench --model path/to/sd-v1-4.ckpt --size 512x512": ExitCode.DONE,
    "sdbatch schema": ExitCode.DONE,
    "sdbatch doctor": ExitCode.DONE,
    "sdbatch init": ExitCode.DONE,
    "sdbatch completion bash": ExitCode.DONE,
    "sdbatch show IMAGE": ExitCode.DONE,
    "sdbatch import IMAGE": ExitCode.DONE,
    "sdbatch index": ExitCode.DONE,
    "sdbatch verify shapes --sample 5%": ExitCode.DONE,
    "sdbatch validate bad.yaml": ExitCode.BAD_INPUT,
    "sdbatch plan": ExitCode.DONE,
    "sdbatch plan jobs/examples/sweep.yaml": ExitCode.DONE,
    "sdbatch run jobs/examples/sd-v1.yaml --model path/to/sd-v1-4.ckpt": ExitCode.DONE,
    "sdbatch worker --model demo": ExitCode.DONE,
    "sdbatch submit shapes.yaml --store s3://bucket/jobs": ExitCode.DONE,
    "sdbatch watch shapes": ExitCode.DONE,
    "sdbatch collect shapes pictures": ExitCode.DONE,
    "sdbatch collect shapes training --as webdataset": ExitCode.DONE,
    "sdbatch grid shapes": ExitCode.DONE,
    "sdbatch jobs": ExitCode.DONE,
    "sdbatch status shapes": ExitCode.DONE,
    "sdbatch workers": ExitCode.DONE,
    "sdbatch failures shapes": ExitCode.DONE,
    "sdbatch quota": ExitCode.DONE,
    "sdbatch quota anna --max-images 20000": ExitCode.DONE,
    "sdbatch pause shapes": ExitCode.DONE,
    "sdbatch unpause shapes": ExitCode.DONE,
    "sdbatch cancel shapes": ExitCode.DONE,
    "sdbatch retry shapes": ExitCode.DONE,
    "sdbatch forget shapes": ExitCode.DONE,
    "sdbatch dashboard --price 1.10": ExitCode.DONE,
    "sdbatch dashboard": ExitCode.DONE,
    "sdbatch worker --gpus all": ExitCode.DONE,
    "sdbatch run": ExitCode.DONE,
    "sdbatch resume shapes --store s3://bucket/jobs": ExitCode.DONE,
    "sdbatch local --workers 2": ExitCode.DONE,
    "sdbatch submit shapes.yaml --wait": ExitCode.DONE,
    "sdbatch local": ExitCode.DONE,
}
"""What a reader expects; of what runs until it is told to stop, when it is."""

SERVES = re.compile(r"sdbatch (local|worker)( |$)")

HERE = {
    "s3://bucket/jobs": STORE,
    "--gpus all": "--gpus none",  # this machine has none
    "--device cuda": "--device cpu",
    "--size 512x512": "--size 64x64",
    "--price 1.10": "--price 1.10 --port 0",
}
"""What stands for something of the reader's, and what it is here."""

IN_A_SENTENCE = {
    "sdbatch plan": "sdbatch plan shapes.yaml",
    "sdbatch bench": "sdbatch bench --size 64x64",  # one size
    "sdbatch run": f"sdbatch run shapes.yaml --store {STORE}",  # it writes to buckets too
    "sdbatch show IMAGE": "sdbatch show picture.png",
    "sdbatch import IMAGE": "sdbatch import picture.png",
    "sdbatch dashboard": "sdbatch dashboard --port 0",
}
"""Named without arguments there."""

SMALLER = {
    "jobs/examples/quickstart.yaml": {"  steps: 50": "  steps: 2\n  width: 64\n  height: 64"},
    "jobs/examples/sd-v1.yaml": {
        "steps: 50": "steps: 2",
        "steps: 25": "steps: 2",
        "512": "64",
        "768": "96",
    },
    "shapes.yaml": {
        "steps: 50": "steps: 3, width: 64, height: 64",
        "[25, 50]": "[2, 3]",
        "store: out, ": "",
    },
}
"""The files' texts, so that they take seconds; and shapes.yaml goes where the commands say."""

LONG = {"[2, 3]": "[900, 1000]"}
"""shapes.yaml as a job that does not end before it is steered."""


def commands() -> list[str]:
    """The command lines in their order, each as often as it stands there."""
    found = re.finditer(r"^(?:\$ )?(sdbatch [^\n#]*)|`(sdbatch [^`]+)`", README, re.MULTILINE)
    return [(match[1] or match[2]).strip() for match in found]


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


class Reader:
    """Somebody who types what the README says, in a folder with the files that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "here"
        self.local = Local(folder / "kept")
        self.environ = {**self.local.environ, "HOME": str(folder)}
        self.serving: list[tuple[str, subprocess.Popen]] = []
        self.ran: list[str] = []
        self.pids: set[int] = set()
        self._write_files()
        models = self.folder / "models.yaml"
        models.write_text(f"{OTHER_MODEL}: demo\n")
        self.local.environ["SDBATCH_MODELS"] = str(models)
        self.local.launch("--model", OTHER_MODEL)

    def _write_files(self) -> None:
        shutil.copytree(ROOT / "jobs/examples", self.folder / "jobs/examples")
        (self.folder / "bad.yaml").write_text(BAD)
        (manifest,) = blocks("yaml")
        (self.folder / "shapes.yaml").write_text(manifest)
        (self.folder / "prompts.csv").write_text("prompt,seed\na white cross,4\n")
        (self.folder / "photos").mkdir()
        picture = self.folder / "jobs/examples/photos/red-circle-on-blue.png"
        shutil.copy(picture, self.folder / "photos/ring.png")
        for name, changes in SMALLER.items():
            path = self.folder / name
            path.write_text(replaced(path.read_text(), changes))
        checkpoint = self.folder / "path/to/sd-v1-4.ckpt"
        checkpoint.parent.mkdir(parents=True)
        save_single_file(small_model(ODD), checkpoint)

    def open_cluster(self) -> None:
        """The cluster that the README takes for granted: `SDBATCH_REDIS` and the bucket's keys."""
        wait_for(lambda: self.serving_local, f"the cluster\n{self.logs()}")
        cluster = self.local.cluster()
        self.environ |= {
            "SDBATCH_REDIS": cluster.redis,
            "AWS_ENDPOINT_URL": cluster.endpoint,
            "AWS_ACCESS_KEY_ID": cluster.key_id,
            "AWS_SECRET_ACCESS_KEY": cluster.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        del self.environ["AWS_SESSION_TOKEN"]

    def choose_an_image(self) -> None:
        """One that the quickstart made."""
        first = min(self.folder.glob("out/quickstart-*/images/*.png"))
        shutil.copy(first, self.folder / "picture.png")

    @property
    def ledger(self) -> Ledger:
        return open_ledger(self.local.cluster().redis)

    @property
    def job(self) -> JobStatus:
        (job,) = self.ledger.jobs()
        return job

    def run(self, line: str) -> str:
        """The command of this line of the README; what it said."""
        assert line in CODES, f"the README's {line!r} is new: say in CODES what comes of it"
        if line in BEFORE:
            BEFORE[line](self)
        words = IN_A_SENTENCE.get(line, line)
        for theirs, ours in HERE.items():
            words = words.replace(theirs, ours)
        self.ran.append(line)
        if SERVES.match(line):
            self._serve(line, words)
            return ""
        if line.startswith("sdbatch dashboard"):
            return self._look_at_the_page(line, words)
        done = run_command(shlex.split(words)[1:], self.environ, self.folder)
        assert done.returncode == CODES[line], f"{line}\n{done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def _arguments(self, words: str) -> list[str]:
        # Without -P, the folder's `jobs` would be taken for the package.
        return [sys.executable, "-P", "-m", "jobs.cli", *shlex.split(words)[1:]]

    def _serve(self, line: str, words: str) -> None:
        """Starts it and returns when it serves."""
        before = {worker.name for worker in self.ledger.workers()} if self.serving_local else set()
        log = self.folder / f"serving-{len(self.ran)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._arguments(words),
                cwd=self.folder,
                env=self.environ,
                stdout=output,
                stderr=output,
            )
        self.serving.append((line, process))
        workers = 2 if "--workers 2" in line else 1

        def serves() -> bool:
            assert process.poll() is None, self.logs()
            if not self.serving_local:
                return False
            seen = [w for w in self.ledger.workers() if w.name not in before]
            return sum(worker.model == "demo" for worker in seen) == workers

        wait_for(serves, f"{line}\n{log.read_text()}")
        self.pids |= descendants(process.pid)

    def _look_at_the_page(self, line: str, words: str) -> str:
        """Starts it, asks for its jobs, and ends it with Ctrl-C."""
        process = subprocess.Popen(
            self._arguments(words),
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.serving.append((line, process))
        assert process.stdout is not None
        said = process.stdout.readline()
        address = said.split()[1].partition("/#token=")[0]
        with urlopen(f"{address}/api/jobs", timeout=PATIENCE_S) as answer:
            assert json.load(answer)["total"] == len(self.ledger.jobs())
        with process.stdout:
            self.stop(signal.SIGINT)
        return said

    @property
    def serving_local(self) -> bool:
        return (self.local.folder / "cluster.json").exists()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends what was started last, and that it ends as it should."""
        line, process = self.serving.pop()
        process.send_signal(number)
        assert process.wait(timeout=2 * PATIENCE_S) == CODES[line], f"{line}\n{self.logs()}"

    def logs(self) -> str:
        files = [*sorted(self.folder.glob("serving-*.log")), *self.local.folder.glob("logs/*.log")]
        return "\n".join(f"-- {path.name}\n{path.read_text()[-3000:]}" for path in files)

    def lose_an_image(self) -> None:
        """Of the job in the bucket."""
        cluster = self.local.cluster()
        store = open_store(STORE, access=cluster.access(STORE))
        (keys,) = {JobKeys(info.key.partition("/")[0]) for info in store.list("shapes-")}
        record = next(read_records(JobFolder(store, keys)))
        store.delete(keys(record["path"]))
        assert store.head(keys(record["path"])) is None

    # What happened between two lines of the README

    def begin_a_long_job(self) -> None:
        """Instead of the one that is done; in a folder, so that the bucket has one of the name."""
        assert self.job.state is JobState.DONE
        self.ledger.forget(self.job.job_id)
        long = self.folder / "long.yaml"
        long.write_text(replaced((self.folder / "shapes.yaml").read_text(), LONG))
        submit = run_command(["submit", "long.yaml", "--store", "long"], self.environ, self.folder)
        assert submit.returncode == ExitCode.DONE, submit.stderr
        wait_for(lambda: self.job.leased, f"a worker to begin it\n{self.logs()}")

    def end_the_job(self) -> None:
        self.ledger.set_state(self.job.job_id, JobState.CANCELLED)

    def put_a_worker_away(self) -> None:
        self.stop()

    def lose_redis_and_an_image(self) -> None:
        with redis.Redis.from_url(self.local.cluster().redis, protocol=2) as client:
            client.flushall()
        self.lose_an_image()

    def go_home(self) -> None:
        """From several machines to this one: the same folder, without what was exported."""
        wait_for(lambda: self.job.state is JobState.DONE, f"the resumed job\n{self.logs()}")
        assert self.job.done == IMAGES
        self.stop()
        self.pids |= descendants(self.local.process.pid)
        assert self.local.stop() == ExitCode.DONE
        self.environ = {**self.local.environ, "HOME": self.environ["HOME"]}

    def end_with_ctrl_c(self) -> None:
        self.stop(signal.SIGINT)

    def close(self) -> None:
        for _, process in self.serving:
            process.kill()  # its parts end with it
            process.wait()
        self.local.close()


BEFORE: dict[str, Callable[[Reader], None]] = {
    "sdbatch show IMAGE": Reader.choose_an_image,
    "sdbatch worker --model demo": Reader.open_cluster,
    "sdbatch pause shapes": Reader.begin_a_long_job,
    "sdbatch forget shapes": Reader.end_the_job,
    "sdbatch worker --gpus all": Reader.put_a_worker_away,
    "sdbatch resume shapes --store s3://bucket/jobs": Reader.lose_redis_and_an_image,
    "sdbatch local --workers 2": Reader.go_home,
    "sdbatch submit shapes.yaml --wait": Reader.lose_an_image,
    "sdbatch local": Reader.end_with_ctrl_c,
}


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    try:
        valkey_program()
        weed_program()
    except InputError as error:
        missing(str(error))
    if not Path("/proc/self/task").exists():
        missing("/proc")
    reader = Reader(tmp_path)
    yield reader
    reader.close()


def test_every_command_works_in_its_order(reader):
    said = [(line, reader.run(line)) for line in commands()]
    assert set(reader.ran) == mentioned()

    here = reader.folder
    assert len(list(here.glob("out/quickstart-*/images/*.png"))) == 12
    assert len(list(here.glob("out/sd-v1-*/images/*/*.png"))) == 9
    assert len(list(here.glob("pictures/shapes-*/images/*.png"))) == IMAGES
    for line, words in (
        ("sdbatch plan", f"images {IMAGES}"),
        ("sdbatch run", f"{IMAGES} images were there already"),
        ("sdbatch watch shapes", f"done {IMAGES} of {IMAGES}"),
        ("sdbatch jobs", f"done {IMAGES} of {IMAGES}"),
        ("sdbatch status shapes", f"{IMAGES} of {IMAGES} done, 0 failed"),
        ("sdbatch workers", "cpu demo"),
        ("sdbatch pause shapes", ": paused"),
        ("sdbatch unpause shapes", ": active"),
        ("sdbatch cancel shapes", ": cancelled"),
        ("sdbatch resume shapes --store s3://bucket/jobs", f"{IMAGES}, {IMAGES - 1} done"),
        ("sdbatch submit shapes.yaml --wait", f"done {IMAGES} of {IMAGES}"),
    ):
        assert words in " ".join(dict(said)[line].split())  # columns are as wide as they must be

    # The last of them has the jobs of the first one still.
    assert (reader.job.state, reader.job.done) == (JobState.DONE, IMAGES)
    reader.stop()
    wait_for(lambda: not alive(reader.pids), "the end of all processes")
