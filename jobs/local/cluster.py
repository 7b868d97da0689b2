"""The local cluster from start to end: servers first, then workers; the other way at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import Interrupted, LedgerError, SdbatchError, StoreError
from jobs.formatting import counted
from jobs.ledger import Ledger, open_ledger
from jobs.local.address import STORE, LocalCluster, announce, cluster_file, default_folder
from jobs.local.display import Display, Summary, same_folder
from jobs.local.lock import locked
from jobs.local.seaweed import endpoint, remove_sockets, seaweed, seaweed_ready, weed_program
from jobs.local.state import State, load_state
from jobs.local.valkey import redis_url, valkey, valkey_program, valkey_ready
from jobs.local.workers import LocalWorker, Stage, worker_environ, worker_process
from jobs.supervise.process import LoggedProcess
from jobs.supervise.signals import Interrupts

POLL_S = 0.1
START_TIMEOUT_S = 120.0

WORKER_GRACE_S = 60.0
"""For workers to end the step they are at and to hand back the rest: seconds with a large model."""

ORPHANED_GRACE_S = 5.0
"""The same when a server is gone, so that there is nobody to hand back to."""

VALKEY_GRACE_S = 20.0


@dataclass(frozen=True)
class Plan:
    """Cluster to run. folder: absolute. model: a name from the workers' model list."""

    folder: Path
    workers: int
    model: str


class _StopAskedError(Exception):
    """By Ctrl-C or a signal, which is how a cluster ends."""


ServePage = Callable[[LocalCluster], contextlib.AbstractContextManager[str | None]]
"""Serves the live page of a cluster meanwhile; its address, or None where there is none."""


def run_cluster(
    plan: Plan, environ: Mapping[str, str], display: Display, serve_page: ServePage
) -> None:
    """Returns when it was told to stop and has ended; no process of it is left then.

    Raises `InputError` if something is missing or the folder is in use, `LedgerError` and
    `StoreError` if a server fails, `SdbatchError` if no worker can be kept running, and
    `Interrupted` if it was told to stop twice, so that it killed everything.
    """
    valkey_program()  # before anything is written
    weed_program()
    logs = plan.folder / "logs"
    plan.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    logs.mkdir(exist_ok=True)
    interrupts = Interrupts()
    with locked(plan.folder) as held, interrupts.counting():
        state = load_state(plan.folder)
        ledger_server = valkey(plan.folder, logs, state, held=held)
        store_server = seaweed(plan.folder, logs, state, environ, held=held)
        cluster = _Cluster(plan, state, ledger_server, store_server, display, interrupts)
        grace_s = ORPHANED_GRACE_S
        try:
            with serve_page(cluster.start_servers()) as page:
                cluster.tend_workers(logs, environ, page)
        except _StopAskedError:
            grace_s = WORKER_GRACE_S
        finally:
            cluster.stop(grace_s)
        if interrupts.count > 1:
            raise Interrupted("killed; what workers had not stored yet is rendered again")


class _Cluster:
    def __init__(
        self,
        plan: Plan,
        state: State,
        ledger_server: LoggedProcess,
        store_server: LoggedProcess,
        display: Display,
        interrupts: Interrupts,
    ) -> None:
        self._plan = plan
        self._state = state
        self._ledger_server = ledger_server
        self._store_server = store_server
        self._display = display
        self._interrupts = interrupts
        self._workers: list[LocalWorker] = []

    def start_servers(self) -> LocalCluster:
        """Both at once. Returns when they are ready and commands can find them."""
        state, show = self._state, self._display
        show.doing("starting Valkey and SeaweedFS")
        self._ledger_server.start()
        self._store_server.start()
        self._wait_until(lambda: valkey_ready(state), self._ledger_server)
        show.done("ledger", f"Valkey on port {state.ports['redis']}")
        show.doing("starting SeaweedFS")
        self._wait_until(lambda: seaweed_ready(state), self._store_server)
        show.done("store", f"SeaweedFS on port {state.ports['s3.port']}")
        here = LocalCluster(
            os.getpid(), redis_url(state), STORE, endpoint(state), state.key_id, state.secret
        )
        announce(self._plan.folder, here)
        return here

    def tend_workers(self, logs: Path, environ: Mapping[str, str], page: str | None) -> None:
        """Starts the workers and keeps them running; never returns. page: address of the live page.

        Raises `_StopAskedError` when told to stop, `SdbatchError` when that cannot go on.
        """
        plan, show = self._plan, self._display
        theirs = worker_environ(
            environ,
            redis=redis_url(self._state),
            store=STORE,
            s3=_s3_environ(self._state),
            workers=plan.workers,
        )
        for number in range(1, plan.workers + 1):
            self._workers.append(
                LocalWorker(worker_process(number, plan.model, logs, theirs), show)
            )
        ledger = open_ledger(redis_url(self._state))
        announced = False
        while True:
            self._check()
            loading = sum(worker.stage is Stage.LOADING for worker in self._workers)
            ready = _pids(ledger) if loading else set()
            for worker in self._workers:
                worker.look(ready)
            left = [worker for worker in self._workers if worker.stage is not Stage.GIVEN_UP]
            if not left:
                raise SdbatchError(f"no worker with model {plan.model} can be kept running")
            ready_count = sum(worker.stage is Stage.READY for worker in left)
            if ready_count < len(left):
                workers = counted(plan.workers, "worker")
                show.doing(f"loading {plan.model}: {ready_count} of {workers} ready")
            elif announced:
                show.idle()
            else:
                self._announce(logs, len(left), page)
                announced = True
            time.sleep(POLL_S)

    def stop(self, grace_s: float) -> None:
        """Ends everything, in the reverse order of the start. grace_s: for the workers."""
        with contextlib.suppress(FileNotFoundError):
            cluster_file(self._plan.folder).unlink()
        self._display.doing("stopping: workers hand back what they have not rendered")
        _end([worker.process for worker in self._workers], grace_s, self._hurried)
        self._display.doing("stopping the servers")
        _end([self._ledger_server], VALKEY_GRACE_S, self._hurried)
        self._store_server.kill()
        remove_sockets(self._state)
        self._display.idle()
        self._display.done("stopped", f"jobs and pictures are kept in {self._plan.folder}")

    def _announce(self, logs: Path, workers: int, page: str | None) -> None:
        plan = self._plan
        summary = Summary(
            redis=redis_url(self._state, password=False),
            store=STORE,
            endpoint=endpoint(self._state),
            data=str(plan.folder),
            logs=str(logs),
            workers=workers,
            model=plan.model,
            dashboard=page,
        )
        found = same_folder(plan.folder, default_folder(os.environ))
        self._display.ready(summary, needs_folder=not found)

    def _wait_until(self, ready: Callable[[], bool], server: LoggedProcess) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            self._check()
            if time.monotonic() > deadline:
                raise SdbatchError(
                    f"{server.name} is not ready after {START_TIMEOUT_S:.0f} s; the end of "
                    f"{server.log}:\n{server.log_end()}"
                )
            time.sleep(POLL_S)
        self._check()  # what answers may be another server that has taken the port

    def _check(self) -> None:
        """Raise unless all can go on. Without either of the servers, nothing works."""
        if self._interrupts.count:
            raise _StopAskedError
        for server, kind in ((self._ledger_server, LedgerError), (self._store_server, StoreError)):
            if not server.running:
                raise kind(
                    f"{server.name} ended ({server.how_it_ended()}); the end of {server.log}:\n"
                    f"{server.log_end()}"
                )

    def _hurried(self) -> bool:
        return self._interrupts.count > 1


def _end(processes: Sequence[LoggedProcess], grace_s: float, hurried: Callable[[], bool]) -> None:
    """Asks them to end, waits, and kills those that are left. hurried: whether not to wait."""
    for process in processes:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(process.running for process in processes):
        if hurried() or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    for process in processes:
        process.kill()


def _pids(ledger: Ledger) -> set[int]:
    """Process ids of the workers that said they are here."""
    try:
        return {worker.pid for worker in ledger.workers()}
    except LedgerError:  # a server that ended is found out by looking at its process
        return set()


def _s3_environ(state: State) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint(state),
        "AWS_ACCESS_KEY_ID": state.key_id,
        "AWS_SECRET_ACCESS_KEY": state.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
