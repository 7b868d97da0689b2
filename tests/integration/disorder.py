"""A cluster and what may happen to it: workers, servers and connections that die in many ways."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import redis
from PIL import Image

from jobs.errors import ExitCode, LedgerError, StoreError
from jobs.ledger.types import JobState
from jobs.storage import open_store
from jobs.storage.base import ObjectInfo
from tests.integration import witness
from tests.integration.cluster import LEASE_S, Cluster
from tests.integration.proxies import S3Wire, Weather, Wire
from tests.servers import Valkey
from tests.servers_s3 import BUCKET, S3Server

IMAGES = 300
WORKERS = 3
OUTAGE_S = 20.0
"""How long SeaweedFS is away."""
BAD_WEATHER_S = 15.0
FULL_S = 20.0
"""How long Valkey takes no more."""
LOOK_S = 2.0
"""How often the operator looks at the job."""
PATIENCE_S = 600.0
"""For a run to end; it takes one to three minutes."""

MANIFEST = """\
version: 1
name: chaos
model: odd
defaults: {width: 64, height: 64, steps: 50, guidance: 7.5}
prompts:
  - prompt: a red circle
    seeds: {start: 0, count: 240}
  - prompt: a green star
    guidance: 1.0
    sampler: euler_a
    seeds: {start: 240, count: 20}
  - prompt: a blue ring
    init_image: start.png
    strength: 0.7
    seeds: {start: 260, count: 20}
  - prompt: a black cross
    width: 96
    seeds: {start: 280, count: 20}
"""
"""No seed twice, so that a seed names an image."""


def write_manifest(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "start.png")
    path = folder / "chaos.yaml"
    path.write_text(MANIFEST)
    return path


class _Weed(S3Server):
    """A SeaweedFS that can also be halted, so that it neither answers nor hangs up."""

    def halt(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the server is not running")
        self._process.send_signal(number)


class Disorder:
    """One run's servers and workers, and what may happen to them."""

    def __init__(self, seed: int, folder: Path, model: Path) -> None:
        self.rng = random.Random(seed)
        self.fsync = ("always", "everysec")[seed % 2]
        self.happened: list[dict[str, Any]] = []
        self.in_flight_at_kills = 0
        self.gave_up = 0
        self.told_to_stop: list[subprocess.Popen[bytes]] = []
        self.problems: list[str] = []
        self.damaged: list[str] = []
        self.mended = 0
        self._background: list[threading.Thread] = []
        self._looked_s = 0.0
        self._live: list[subprocess.Popen[bytes]] = []
        self.files: dict[int, Path] = {}
        for part in ("valkey", "s3", "cluster"):
            (folder / part).mkdir(parents=True)
        self._folder = folder
        self.s3 = _Weed(folder / "s3")
        self.s3.start()
        self.valkey = Valkey(folder / "valkey", "--appendonly", "yes", "--appendfsync", self.fsync)
        self.s3_wire = S3Wire(self.s3.ports["s3"], random.Random(seed + 1))
        self.valkey_wire = Wire(self.valkey.port)
        self.manifest = write_manifest(folder)
        self._address = address = f"s3://{BUCKET}/chaos-{seed}"
        self.cluster = Cluster(
            folder / "cluster",
            self.valkey,
            model,
            store=open_store(address, endpoint=self.s3.endpoint),
            address=address,
            environ={
                "AWS_ENDPOINT_URL": self.s3_wire.endpoint,
                "SDBATCH_REDIS": f"redis://127.0.0.1:{self.valkey_wire.port}/0",
            },
            entry=("tests.integration.witness",),
        )

    def start_worker(self) -> subprocess.Popen[bytes]:
        file = self._folder / f"witness-{len(self.cluster.workers)}"
        worker = self.cluster.start_worker(**{witness.VARIABLE: str(file)})
        self.files[worker.pid] = file
        return worker

    def go(self) -> None:
        """From submitting to the end of the job, with something happening again and again."""
        self.cluster.submit(self.manifest)
        self._live = [self.start_worker() for _ in range(WORKERS)]
        deadline = time.monotonic() + PATIENCE_S
        events = self._events()
        for number, event in enumerate(events, start=1):
            threshold = IMAGES * number // (len(events) + 2)
            while self.stored() < threshold and time.monotonic() < deadline:
                self._replace_the_dead()
                self._mend()
                time.sleep(0.05)
            if self._is_done():
                break
            noted: dict[str, Any] = {"event": event.__name__, "images": self.stored()}
            self.happened.append(noted)
            noted.update(event() or {})
        while not (self._is_done() and self._is_whole()):
            self._replace_the_dead()
            self._mend()
            if time.monotonic() > deadline:
                self.problems.append(f"the job did not end within {PATIENCE_S:.0f} s")
                break
            time.sleep(0.1)
        self._join_background()
        for worker in self.told_to_stop:
            code = worker.wait(timeout=120)
            if code != 0:
                self.problems.append(f"a worker that was told to stop ended with {code}")

    def _events(self) -> list[Callable[[], dict[str, Any] | None]]:
        events = [
            self.kill_busy,
            self.kill_busy,
            self.kill_idle,
            self.freeze,
            self.terminate,
            self.restart_valkey,
            self.cut,
            self.cut,
            self.stop_s3,
            self.bad_puts,
            self.fill_valkey,
            self.damage_an_object,
        ]
        self.rng.shuffle(events)
        return events

    # What happens. Each returns what is worth noting of it.

    def kill_busy(self) -> dict[str, Any]:
        worker = self._busy()
        worker.kill()
        worker.wait()
        return self._lost(worker)

    def kill_idle(self) -> dict[str, Any]:
        """Just as it begins to take messages."""
        worker = self.start_worker()
        log = self.cluster.folder / f"worker-{len(self.cluster.workers) - 1}.log"
        _until(lambda: b" ready." in log.read_bytes() or worker.poll() is not None, 120.0)
        time.sleep(self.rng.uniform(0, 0.05))
        worker.kill()
        worker.wait()
        return self._lost(worker)

    def freeze(self) -> dict[str, Any]:
        """Past its lease, and until others have noticed."""
        worker = self._busy()
        worker.send_signal(signal.SIGSTOP)
        lost = self._lost(worker)
        gone = re.compile(rf"worker \S*-{worker.pid}-\w+ is gone")
        time.sleep(LEASE_S)
        noticed = _until(lambda: gone.search(self.cluster.logs()), 20.0)
        worker.send_signal(signal.SIGCONT)
        return {**lost, "noticed": noticed}

    def terminate(self) -> dict[str, Any]:
        worker = self._busy()
        lost = self._lost(worker)
        worker.send_signal(signal.SIGTERM)
        self.told_to_stop.append(worker)
        self._live.remove(worker)
        self._live.append(self.start_worker())
        return lost

    def restart_valkey(self) -> dict[str, Any]:
        away_s = self.rng.uniform(0, 2 * LEASE_S)
        lost = [self._lost(worker)["in_flight"] for worker in self._live]
        self.valkey.kill()
        time.sleep(away_s)
        self.valkey.start()
        return {"away_s": round(away_s, 2), "in_flight": sum(lost)}

    def cut(self) -> dict[str, Any]:
        return {"valkey": self.valkey_wire.cut(), "s3": self.s3_wire.cut()}

    def stop_s3(self) -> dict[str, Any]:
        """For `OUTAGE_S`, while other things happen."""
        kind = self.rng.choice(("killed", "halted"))

        def outage() -> None:
            if kind == "halted":
                self.s3.halt()
                time.sleep(OUTAGE_S)
                self.s3.go_on()
            else:
                self.s3.stop()
                self.s3_wire.cut()
                time.sleep(OUTAGE_S)
                self.s3.start()

        self._in_background(outage)
        return {"how": kind}

    def bad_puts(self) -> dict[str, Any]:
        weather = Weather(
            failing=round(self.rng.uniform(0.1, 0.5), 2),
            cut=round(self.rng.uniform(0, 0.3), 2),
            delay_s=round(self.rng.uniform(0.5, 3.0), 2),
        )

        def storm() -> None:
            self.s3_wire.weather = weather
            time.sleep(BAD_WEATHER_S)
            self.s3_wire.weather = Weather()

        self._in_background(storm)
        return vars(weather)

    def fill_valkey(self) -> dict[str, Any]:
        """For `FULL_S`: every write is refused, as where other data fills the server."""

        def limit(megabytes: int) -> None:
            with contextlib.suppress(redis.ConnectionError), self.valkey.client() as client:
                client.config_set("maxmemory", f"{megabytes}mb")

        def full() -> None:
            limit(1)
            time.sleep(FULL_S)
            limit(0)

        self._in_background(full)
        return {}

    def damage_an_object(self) -> dict[str, Any]:
        """Any of the job: cut off, or with one bit flipped."""
        (job,) = {info.key.partition("/")[0] for info in self._listed("")}
        key = self.rng.choice(sorted(info.key for info in self._listed(f"{job}/")))
        data, how = self._get(key), self.rng.choice(("cut", "flip"))
        place = self.rng.randrange(len(data))
        flipped = bytes([data[place] ^ 1 << self.rng.randrange(8)])
        data = data[:place] if how == "cut" else data[:place] + flipped + data[place + 1 :]
        self._put(key, data)
        self.damaged.append(key)
        return {"key": key, "how": how}

    # The store, past the wire and whatever the weather is there

    def _listed(self, prefix: str) -> list[ObjectInfo]:
        return self._patiently(lambda: list(self.cluster.store.list(prefix)))

    def _get(self, key: str) -> bytes:
        return self._patiently(lambda: self.cluster.store.get(key))

    def _put(self, key: str, data: bytes) -> None:
        self._patiently(lambda: self.cluster.store.put(key, data, overwrite=True))

    def _patiently(self, action: Callable[[], Any]) -> Any:
        """Also while SeaweedFS is away."""
        deadline = time.monotonic() + 3 * OUTAGE_S
        while True:
            try:
                return action()
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    # What somebody does who looks after the job

    def _mend(self) -> None:
        """Where an object was damaged and the job says so, what the runbook says: submit again, and
        retry what failed by it.
        """
        if not self.damaged or time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        with contextlib.suppress(LedgerError, ValueError):
            (job,) = self.cluster.ledger.jobs()
            if job.error is None and not job.failed:
                return
            submitted = self.cluster.command("submit", str(self.manifest), *self.store_options)
            if submitted.returncode == ExitCode.DONE and job.failed:
                self.cluster.command("retry", job.job_id)
            self.mended += 1

    def _is_whole(self) -> bool:
        """Whether the pictures can be collected; where not, what `collect` names is done."""
        if not self.damaged:
            return True
        self._join_background()
        (job,) = self.cluster.ledger.jobs()
        command = ["collect", job.job_id, str(self._folder / "collected")]
        collected = self.cluster.command(*command, *self.store_options)
        if collected.returncode == ExitCode.DONE and not job.failed:
            return True
        named = re.search(r"sdbatch (resume .+)", collected.stdout + collected.stderr)
        if named is None:
            self.problems.append(f"collect names no repair: {collected.stdout}{collected.stderr}")
            return True
        self.cluster.command(*named[1].split(), "--endpoint", self.s3.endpoint)
        self.mended += 1
        return False

    @property
    def store_options(self) -> tuple[str, ...]:
        return "--store", self._address, "--endpoint", self.s3.endpoint

    def _join_background(self) -> None:
        for thread in self._background:
            thread.join()
        self.s3_wire.weather = Weather()

    def _in_background(self, action: Callable[[], None]) -> None:
        self._background.append(threading.Thread(target=action))
        self._background[-1].start()

    # What is known

    def stored(self) -> int:
        return len(witness.total(self.files.values()).stored)

    def _is_done(self) -> bool:
        try:
            (job,) = self.cluster.ledger.jobs()
        except LedgerError:  # a server that is being restarted
            return False
        return job.state is JobState.DONE

    def _busy(self) -> subprocess.Popen[bytes]:
        """A live worker with images in flight; after a while any."""

        def busy() -> list[subprocess.Popen[bytes]]:
            self._replace_the_dead()
            return [w for w in self._live if witness.witnessed(self.files[w.pid]).flying]

        _until(busy, 60.0)
        return self.rng.choice(busy() or self._live)

    def _lost(self, worker: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Images that a worker had begun and not stored, which somebody may have to repeat."""
        in_flight = len(witness.witnessed(self.files[worker.pid], time.time()).flying)
        self.in_flight_at_kills += in_flight
        return {"in_flight": in_flight}

    def _replace_the_dead(self) -> None:
        for worker in [w for w in self._live if w.poll() is not None]:
            # A worker gives up where the store fails again and again, or the ledger does not answer
            # when it starts, so that another may try.
            if worker.returncode in (ExitCode.STORE, ExitCode.LEDGER):
                self.gave_up += 1
            elif worker.returncode >= 0:
                self.problems.append(f"a worker ended by itself with {worker.returncode}")
            self._live.remove(worker)
            self._live.append(self.start_worker())

    def close(self) -> None:
        self.cluster.close()
        self.valkey_wire.close()
        self.s3_wire.close()
        self.valkey.kill()
        self.s3.stop()


def _until(condition: Callable[[], Any], patience_s: float) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
