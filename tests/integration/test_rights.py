"""Users of the server that holds queue and ledger do their work, and nothing else."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from kombu import Connection
from redis.exceptions import ResponseError

from jobs.errors import ExitCode, LedgerError
from jobs.ledger import open_ledger
from jobs.ledger.types import JobState
from jobs.queue.messages import queue_name
from tests.guarded_valkey import USERS, USERS_FILE, GuardedValkey
from tests.integration.cluster import Cluster, make_model
from tests.ledgers import failure
from tests.servers import everything, free_port, valkey_binary, wait_for

IMAGES = 8
MANIFEST = f"""\
version: 1
name: shapes
model: odd
defaults: {{width: 64, height: 64, steps: 2}}
prompts: [{{prompt: a red circle, seeds: {{start: 0, count: {IMAGES}}}}}]
"""

NO_RIGHT = r"(?i)no permissions"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = GuardedValkey(tmp_path_factory.mktemp("guarded"))
    yield server
    server.kill()


@pytest.fixture
def cluster(server, model, tmp_path):
    with server.client() as client:
        client.flushall()
    (tmp_path / "shapes.yaml").write_text(MANIFEST)
    cluster = Cluster(tmp_path, server, model)
    server.refused()
    yield cluster
    cluster.close()


@pytest.fixture
def run(cluster, server):
    """Runs a command as one of the users."""

    def run(user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        if arguments[0] in ("submit", "resume"):
            arguments += ("--store", str(cluster.folder / "out"))
        return cluster.command(*arguments, "--redis", server.url_of(user))

    return run


def state(server) -> dict[bytes, bytes]:
    """What the server holds, without what it forgets by itself."""
    with server.client() as client:
        held = everything(client)
    return {key: value for key, value in held.items() if b":answer:" not in key}


def test_each_user_can_do_its_work(cluster, server, run, tmp_path):
    manifest = str(tmp_path / "shapes.yaml")

    def runs(user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = run(user, *arguments)
        assert done.returncode == 0, (user, arguments, done.stderr, cluster.logs())
        assert server.refused() == []
        return done

    runs("submit", "submit", manifest)
    for command in ("pause", "unpause", "cancel"):
        runs("submit", command, "shapes")
    runs("submit", "submit", manifest)  # a cancelled job goes on
    worker = cluster.start_worker(SDBATCH_REDIS=server.url_of("work"))
    assert json.loads(runs("watch", "watch", "shapes", "--json").stdout)["done"] == IMAGES
    (listed,) = json.loads(runs("watch", "workers", "--json").stdout)["workers"]
    assert listed["model"] == "odd"
    for command in ("status", "failures"):
        runs("watch", command, "shapes")
    assert "shapes" in runs("watch", "jobs").stdout
    runs("watch", "collect", "shapes", str(tmp_path / "mine"))
    lost, *_ = (tmp_path / "out").glob("*/images/*.png")
    lost.unlink()
    assert "1 that was done" in runs("submit", "resume", "shapes").stdout
    runs("watch", "watch", "shapes")
    assert lost.exists()
    for command in ("retry", "forget"):
        runs("submit", command, "shapes")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 0, cluster.logs()
    assert server.refused() == [], cluster.logs()


def test_a_quota_is_of_the_user_who_submits(cluster, server, run, tmp_path):
    manifest, job = str(tmp_path / "shapes.yaml"), ("--job", "another")
    set_quota = ("quota", "sdbatch-submit", "--max-images", str(IMAGES), "--redis", server.url)
    assert cluster.command(*set_quota).returncode == 0
    assert run("submit", "submit", manifest).returncode == 0
    before = state(server)
    refused = run("submit", "submit", manifest, *job)
    assert refused.returncode == ExitCode.LEDGER
    assert f"sdbatch-submit may have {IMAGES} images to do at a time" in refused.stderr
    assert state(server) == before
    assert not (tmp_path / "out" / "another").exists()
    assert "sdbatch-submit  8" in run("watch", "quota").stdout
    assert server.refused() == []
    submit = ("submit", manifest, *job, "--store", str(tmp_path / "out"), "--redis", server.url)
    assert cluster.command(*submit).returncode == 0  # another user's


def test_images_that_fail_and_workers_that_die_need_no_other_rights(cluster, server, run, tmp_path):
    assert run("submit", "submit", str(tmp_path / "shapes.yaml")).returncode == 0
    ledger = open_ledger(server.url_of("work"), lease_s=0.01)
    (job,) = ledger.jobs()
    ledger.claim(job.job_id, 0, "dies")
    wait_for(ledger.expire, "the end of the lease")
    claim = ledger.claim(job.job_id, 0, "lives")
    first, *others = claim.indices
    ledger.settle(claim.lease, others, [failure(first)])
    ledger.note_error(job.job_id, "a disk is full")
    ledger.release(claim.lease)
    ledger.reopen(job.job_id, others)
    ledger.set_state(job.job_id, JobState.DONE)
    assert ledger.lock("a", "me", 9)
    ledger.unlock("a", "me")
    assert ledger.take_delivery(1) is None
    assert ledger.unclaimed(job.job_id, 0) is not None
    assert server.refused() == []
    assert run("submit", "retry", "shapes").returncode == 0
    assert run("submit", "cancel", "shapes").returncode == 0
    assert server.refused() == []


def test_messages_of_a_worker_that_died_come_back(server, cluster, run, tmp_path):
    """By kombu, which looks for them now and then."""
    assert run("submit", "submit", str(tmp_path / "shapes.yaml")).returncode == 0
    url, queue = server.url_of("work"), queue_name("odd")
    with server.client() as client:
        waiting = client.llen(queue)
        with Connection(url) as connection:
            channel = connection.default_channel
            with server.client_of("work") as worker:
                _, taken = worker.brpop([queue])
            message = channel.Message(json.loads(taken), channel=channel)
            channel.qos.append(message, message.delivery_tag)
            assert (client.llen(queue), client.hlen("unacked")) == (waiting - 1, 1)
            channel.qos.visibility_timeout = -1
            channel.qos.restore_visible(interval=1)
            assert (client.llen(queue), client.hlen("unacked")) == (waiting, 0)
    assert server.refused() == []


@pytest.fixture
def job(cluster, server, run, tmp_path):
    """A job with a shard that somebody holds and an image that failed."""
    assert run("submit", "submit", str(tmp_path / "shapes.yaml")).returncode == 0
    (job,) = cluster.ledger.jobs()
    claim = cluster.ledger.claim(job.job_id, 0, "somebody")
    cluster.ledger.settle(claim.lease, [], [failure(claim.indices[0])])
    server.refused()
    return job.job_id


@pytest.mark.parametrize(
    ("user", "arguments"),
    [
        ("watch", ("pause", "shapes")),
        ("watch", ("cancel", "shapes")),
        ("watch", ("retry", "shapes")),
        ("watch", ("forget", "shapes", "--force")),
        ("watch", ("resume", "shapes")),
        ("watch", ("submit", "{folder}/shapes.yaml", "--job", "another")),
        ("submit", ("quota", "sdbatch-submit", "--max-images", "5")),
        ("watch", ("quota", "*", "--max-images", "none")),
        ("work", ("retry", "shapes")),
        ("work", ("forget", "shapes", "--force")),
        ("work", ("submit", "{folder}/shapes.yaml", "--job", "another")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_other_commands_are_refused_and_change_nothing(job, server, run, tmp_path, user, arguments):
    before = state(server)
    done = run(user, *(argument.format(folder=tmp_path) for argument in arguments))
    assert done.returncode == ExitCode.LEDGER
    assert done.stderr.startswith("error: ledger at 127.0.0.1:")
    assert "this user may not do that; take one that may" in done.stderr
    assert done.stderr.count("\n") == 1
    assert state(server) == before
    assert server.refused()


@pytest.mark.parametrize(
    "step",
    [
        lambda ledger, job: ledger.claim(job, 1, "me"),
        lambda ledger, job: ledger.lock("reconcile", "me", 9),
        lambda ledger, job: ledger.worker_gone("me"),
    ],
    ids=["claim", "lock", "worker_gone"],
)
@pytest.mark.parametrize("user", ["submit", "watch"])
def test_who_submits_or_looks_is_no_worker(job, server, user, step):
    before = state(server)
    with pytest.raises(LedgerError, match="this user may not do that"):
        step(open_ledger(server.url_of(user)), job)
    assert state(server) == before


FORBIDDEN = [
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG GET *",
    "CONFIG SET maxmemory 1",
    "ACL LIST",
    "SHUTDOWN NOSAVE",
    "REPLICAOF 127.0.0.1 1",
    "MONITOR",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "GET other",
    "SET other 1",
    "DEL other",
    "LPUSH celery x",
    "BRPOP celery 1",
    "EVAL return(redis.call('GET','other')) 0",
    "EVAL return(redis.call('GET',KEYS[1])) 1 other",
    "SCRIPT FLUSH",
    "FUNCTION LIST",
    "PUBLISH a x",
    "MOVE sdbatch:jobs 1",
    "SWAPDB 0 1",
]


@pytest.mark.parametrize("command", FORBIDDEN)
@pytest.mark.parametrize("user", USERS)
def test_the_server_and_other_applications_are_out_of_reach(server, user, command):
    with server.client() as admin:
        admin.set("other", "1")
    before = state(server)
    with server.client_of(user) as client, pytest.raises(ResponseError, match=NO_RIGHT):
        client.execute_command(*command.split(" "))
    assert state(server) == before


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("submit", f"BRPOP {queue_name('odd')} 1"),
        ("submit", f"DEL {queue_name('odd')}"),
        ("submit", "HSET unacked a b"),
        ("submit", "HSET sdbatch:worker a b"),
        ("submit", "ZADD sdbatch:leases 1 0/shapes"),
        ("submit", "HSET sdbatch:claims:shapes 0 x"),
        ("work", "ZADD sdbatch:jobs 1 shapes"),
        ("work", "SET sdbatch:bounds:shapes x"),
        ("work", "DEL sdbatch:job:shapes"),
        ("watch", f"LLEN {queue_name('odd')}"),
        ("watch", "HSET sdbatch:job:shapes state done"),
        ("watch", "INFO"),
    ],
)
def test_rights_of_the_others_are_out_of_reach(server, user, command):
    with server.client_of(user) as client, pytest.raises(ResponseError, match=NO_RIGHT):
        client.execute_command(*command.split(" "))


def test_without_passwords_the_server_does_not_start(tmp_path):
    """So nobody forgets to give some."""
    command = [valkey_binary(), "--aclfile", USERS_FILE, "--port", str(free_port())]
    command += ["--bind", "127.0.0.1", "--dir", tmp_path, "--save", ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "SHA256_OF_" not in done.stdout  # of another's file, it would be a password's digest
