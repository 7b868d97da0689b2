"""What only the Redis ledger can get wrong: lost answers, restarts, memory, bounded work."""

from __future__ import annotations

import multiprocessing
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import pytest
import redis

import jobs.ledger.redis.ledger as module
from jobs.errors import JobConflictError, LedgerError
from jobs.ledger import open_ledger
from jobs.ledger.redis.ledger import RedisLedger
from jobs.ledger.redis.scripts import load
from jobs.ledger.types import Beat, ClaimAnswer, JobState
from tests.ledgers import failure, new_job, run_out, take
from tests.servers import LossyWire, Valkey, client_at, everything

MILLION = 1_000_000
SHARD = 64
LIMIT_BYTES = 16_000_000


@pytest.fixture
def client(valkey: Valkey) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def ledger(client: redis.Redis) -> RedisLedger:
    return RedisLedger(client)


@pytest.fixture
def own_server(tmp_path) -> Iterator[Valkey]:
    """One that may be killed; it keeps every change before it answers."""
    server = Valkey(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.kill()


def commands(client: redis.Redis) -> Counter[str]:
    """How often the server ran each command since `CONFIG RESETSTAT`, also inside scripts."""
    stats = client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()})


class TestLostAnswers:
    """Every single loss is part of the contract suite; these are the losses that last."""

    @pytest.fixture
    def wire(self, valkey: Valkey, ledger: RedisLedger) -> Iterator[LossyWire]:
        ledger.create(new_job())
        take(ledger, 2)  # so that the server knows the script
        wire = LossyWire(valkey.port, losses=1000)
        yield wire
        wire.close()

    def test_nothing_comes_through(self, wire):
        with pytest.raises(LedgerError, match="cannot connect: Connection closed by server"):
            open_ledger(f"redis://127.0.0.1:{wire.port}/0").ping()

    def test_a_claim_is_taken_up_by_the_next_one(self, wire, ledger):
        with client_at(wire.port) as cut:
            unlucky = RedisLedger(cut)
            with pytest.raises(LedgerError):
                unlucky.claim("job", 0, "w1")
            assert ledger.status("job").leased == 2
            wire.losses = 0
            claim = unlucky.claim("job", 0, "w1")
            assert (claim.answer, claim.attempt) == (ClaimAnswer.RUN, 1)
            assert claim.indices == (0, 1, 2, 3)
            assert unlucky.claim("job", 0, "w1").answer == ClaimAnswer.BUSY
            assert unlucky.heartbeat([claim.lease], [0]) == [Beat.HELD]
        assert [e.kind for e in ledger.events("job")] == ["created", "claimed", "claimed"]

    def test_nobody_else_takes_it_up(self, wire, ledger):
        with client_at(wire.port) as cut:
            unlucky = RedisLedger(cut)
            with pytest.raises(LedgerError):
                unlucky.claim("job", 0, "w1")
            wire.losses = 0
            assert ledger.claim("job", 0, "w1").answer == ClaimAnswer.BUSY
            assert unlucky.claim("job", 0, "w2").answer == ClaimAnswer.BUSY

    def test_a_claim_that_ran_out_meanwhile_is_claimed_anew(self, wire, ledger):
        with client_at(wire.port) as cut:
            unlucky = RedisLedger(cut, lease_s=0)
            with pytest.raises(LedgerError):
                unlucky.claim("job", 0, "w1")
            wire.losses = 0
            assert len(ledger.expire()) == 1
            lease = take(ledger, 0, "w2")
            assert unlucky.claim("job", 0, "w1").answer == ClaimAnswer.BUSY
            ledger.release(lease)
            assert unlucky.claim("job", 0, "w1").attempt == 3

    def test_shards_that_were_published_are_not_lost_with_the_rest(self, ledger, monkeypatch):
        ledger.create(new_job())
        monkeypatch.setattr(module, "SHARDS_PER_CALL", 2)
        run = ledger._server.run
        calls = []

        def fail_later(*args):
            calls.append(args)
            if len(calls) == 2:
                raise LedgerError("gone")
            return run(*args)

        monkeypatch.setattr(ledger._server, "run", fail_later)
        assert [shard.number for shard in ledger.publish("job", 3)] == [0, 1]
        assert [shard.number for shard in ledger.publish("job", 3)] == [2]

    def test_answers_are_kept_for_a_while_only(self, ledger, client):
        ledger.create(new_job())
        ledger.publish("job", 3)
        ledger.release(take(ledger, 0))
        answers = client.keys("sdbatch:answer:*")
        assert len(answers) == 3
        assert all(0 < client.pttl(key) <= 60_000 for key in answers)


class TestCreate:
    def test_a_bitmap_in_many_chunks(self, ledger, monkeypatch):
        monkeypatch.setattr(module, "UPLOAD_CHUNK_BYTES", 3)
        done = [0, 7, 8, 99, 100, 383, 999]
        ledger.create(new_job(ends=range(10, 1001, 10)), done=done)
        assert ledger.status("job").done == 7
        assert sorted(set(range(1000)) - set(ledger.pending("job", 0, 1000))) == done

    def test_chunks_that_were_dropped(self, ledger, monkeypatch):
        monkeypatch.setattr(ledger, "_upload", lambda *args: None)
        with pytest.raises(LedgerError, match="took too long to enter; submit it again"):
            ledger.create(new_job(), done=[1])
        assert ledger.jobs() == []

    def test_chunks_of_a_submitter_that_died(self, ledger, client, monkeypatch):
        def die(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ledger._server, "run", die)
            with pytest.raises(KeyboardInterrupt):
                ledger.create(new_job(), done=[1])
        (upload,) = client.keys()
        assert 0 < client.pttl(upload) <= 3_600_000
        assert ledger.create(new_job(), done=[1])
        assert client.pttl("sdbatch:done:job") == -1

    def test_a_conflict_leaves_nothing_behind(self, ledger, client):
        ledger.create(new_job())
        client.delete(*client.keys("sdbatch:answer:*"))
        before = everything(client)
        with pytest.raises(JobConflictError):
            ledger.create(new_job(plan="c" * 64), done=[1])
        assert everything(client) == before

    def test_no_chunks_are_left(self, ledger, client):
        for done in ([1], [2]):
            ledger.create(new_job(), done=done)
            assert client.keys("sdbatch:upload:*") == []

    def test_a_submitter_that_dies_while_it_adds_done_images(self, ledger, client, monkeypatch):
        """Nothing is handed out twice, published for ever, or reported as failed."""
        ledger.create(new_job(ends=[4, 8, 10, 12]))
        ledger.publish("job", 2)
        lease = take(ledger, 1)
        ledger.settle(lease, [], [failure(4)])
        ledger.release(lease)
        monkeypatch.setattr(ledger, "_review", lambda job_id: None)
        ledger.create(new_job(ends=[4, 8, 10, 12]), done=range(10))
        status = ledger.status("job")
        assert (status.done, status.failed) == (10, 0)
        assert ledger.failures("job") == []
        assert ledger.claim("job", 0, "w1").answer == ClaimAnswer.DONE
        assert [shard.number for shard in ledger.publish("job", 10)] == [3]
        status = ledger.status("job")
        assert (status.waiting, status.published) == (0, 1)
        lease = take(ledger, 3)
        ledger.settle(lease, [10, 11])
        ledger.release(lease)
        assert ledger.retry("job") == 0
        assert ledger.settled_jobs() == ["job"]


class TestEviction:
    @pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
    def test_a_server_that_may_delete_keys_is_said_to(self, ledger, client, policy):
        client.config_set("maxmemory-policy", policy)
        try:
            warning = ledger.eviction()
        finally:
            client.config_set("maxmemory-policy", "noeviction")
        assert warning is not None
        assert f"its maxmemory-policy is {policy}" in warning
        assert "set noeviction" in warning

    def test_a_server_that_does_not_say(self, ledger, client):
        client.acl_setuser("default", enabled=True, commands=["-info"])
        try:
            assert ledger.eviction() is None
        finally:
            client.acl_setuser("default", enabled=True, categories=["+@all"])


class TestServerTrouble:
    def test_restart_from_the_append_only_file(self, own_server):
        with own_server.client() as client:
            ledger = RedisLedger(client)
            ledger.create(new_job(), done=[9])
            ledger.publish("job", 2)
            lease = take(ledger, 0)
            ledger.settle(lease, [0, 1], [failure(2)])
            ledger.lock("reconcile", "w1", 60)
            before = everything(client)
            own_server.kill()
            with pytest.raises(LedgerError, match=r"cannot connect: .* refused"):
                ledger.ping()
            own_server.start()
            assert everything(client) == before
            assert ledger.heartbeat([lease], [1]) == [Beat.HELD]
            assert ledger.pending("job", 0, 10) == [3, 4, 5, 6, 7, 8]
            assert ledger.release(lease) == 1
            assert [shard.number for shard in ledger.publish("job", 3)] == [0, 2]

    def test_scripts_that_the_server_has_forgotten(self, ledger, client):
        def flush() -> RedisLedger:
            client.script_flush()
            return ledger

        assert flush().create(new_job())
        assert len(flush().publish("job", 2)) == 2
        lease = flush().claim("job", 0, "w1").lease
        assert lease is not None
        assert flush().heartbeat([lease], [1]) == [Beat.HELD]
        assert flush().settle(lease, [0], [failure(1)])
        assert flush().release(lease) == 2
        assert flush().retry("job") == 1
        assert flush().set_state("job", JobState.CANCELLED) == JobState.CANCELLED

    def test_connections_are_cut_in_the_middle(self, valkey, client):
        """Every so many shards all connections are cut; no caller notices."""
        count = 300
        ledger = open_ledger(valkey.url)
        ledger.create(new_job(ends=range(2, 2 * count + 1, 2)))
        finished = threading.Semaphore(0)

        def render(shards: range) -> int:
            for number in shards:
                ledger.publish("job", 8)
                lease = take(ledger, number)
                assert ledger.heartbeat([lease], [1]) == [Beat.HELD]
                assert ledger.settle(lease, [2 * number, 2 * number + 1])
                assert ledger.release(lease) == 0
                finished.release()
            return len(shards)

        def cut() -> int:
            killed = 0
            for turn in range(count):
                finished.acquire(timeout=60)
                if turn % 10 == 0:
                    killed += client.client_kill_filter(_type="normal", skipme=True)
            return killed

        with ThreadPoolExecutor(4) as pool:
            cutter = pool.submit(cut)
            parts = [pool.submit(render, range(part, count, 3)) for part in range(3)]
            assert sum(part.result() for part in parts) == count
            assert cutter.result() > 30
        status = ledger.status("job")
        assert (status.done, status.evaluated) == (2 * count, count)
        assert (status.waiting, status.published, status.leased) == (0, 0, 0)
        claimed = [e for e in ledger.events("job") if e.kind == "claimed"]
        assert len(claimed) == count

    @pytest.mark.parametrize("deleted", ["*", "claims", "bounds"])
    def test_leases_whose_job_was_deleted_by_hand(self, ledger, client, deleted):
        for name in ("a", "b"):
            ledger.create(new_job(name))
            run_out(ledger, take(ledger, 0, job_id=name))
        client.delete(*client.keys(f"sdbatch:{deleted}:a"))
        assert [end.shard.job_id for end in ledger.expire()] == ["b"]
        assert client.zcard("sdbatch:leases") == 0


def _claim_all(url: str, count: int, start, results) -> None:
    ledger = open_ledger(url)
    start.wait()
    won = [n for n in range(count) if ledger.claim("job", n, "w").answer == ClaimAnswer.RUN]
    results.put(won)


def test_processes_race_for_claims(valkey, ledger):
    count = 200
    ledger.create(new_job(ends=range(1, count + 1)))
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_claim_all, args=(valkey.url, count, start, results))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    won = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(won[0] + won[1]) == list(range(count))


def big_job():
    ends = [*range(SHARD, MILLION, SHARD), MILLION]
    return new_job(ends=ends, evaluations=51 * MILLION)


def memory_bytes(client: redis.Redis) -> int:
    return sum(client.memory_usage(key, samples=0) for key in client.scan_iter(count=1000))


class TestAMillionImages:
    def test_memory(self, ledger, client):
        """Every image done in the bitmap, a window of everything out, all that comes with it."""
        ledger.create(big_job())
        window = ledger.publish("job", 1000)
        leases = [take(ledger, shard.number) for shard in window[:500]]
        ledger.settle(leases[0], [], [failure(index) for index in range(SHARD)])
        ledger.create(big_job(), done=range(SHARD, MILLION))
        assert ledger.status("job").settled
        used = memory_bytes(client)
        assert used < LIMIT_BYTES
        assert used > MILLION / 8  # it is there

    def test_status_asks_three_questions(self, ledger, client):
        ledger.create(big_job(), done=range(MILLION // 2))
        client.config_resetstat()
        status = ledger.status("job")
        asked = commands(client)
        assert (status.done, status.total, status.waiting) == (MILLION // 2, MILLION, 7813)
        assert {k: n for k, n in asked.items() if k in ("hgetall", "zcard", "hlen")} == {
            "hgetall": 1,
            "zcard": 1,
            "hlen": 1,
        }
        assert set(asked) <= {"hgetall", "zcard", "hlen", "multi", "exec", "config|resetstat"}

    def test_publishing_after_a_resume_does_not_search(self, ledger, client):
        ledger.create(big_job(), done=range(MILLION - 1))
        client.config_resetstat()
        (shard,) = ledger.publish("job", 100)
        assert (shard.start, shard.stop) == (999_936, MILLION)
        assert commands(client).total() < 20

    def test_each_call_does_bounded_work(self, ledger, client):
        ledger.create(big_job())
        client.config_resetstat()
        shards = ledger.publish("job", MILLION)
        assert [shard.number for shard in shards] == list(range(15_625))
        asked = commands(client)
        assert asked["evalsha"] == 79
        assert asked.total() / asked["evalsha"] < 10 * module.SHARDS_PER_CALL

        client.config_resetstat()
        ledger.create(big_job(), done=range(0, MILLION, 2))
        asked = commands(client)
        assert asked["evalsha"] == 1 + 79
        assert asked.total() / asked["evalsha"] < 10 * module.SHARDS_PER_CALL

    @pytest.mark.slow
    def test_the_whole_of_it(self, ledger, client):
        """Every shard published, claimed, settled and released; no image twice."""
        ledger.create(big_job())
        seen = bytearray(MILLION)
        peak = 0
        turns = 0
        while shards := ledger.publish("job", 200):
            for shard in shards:
                claim = ledger.claim("job", shard.number, f"worker-{shard.number % 32}")
                assert claim.lease is not None
                for index in claim.indices:
                    seen[index] += 1
                assert ledger.settle(claim.lease, claim.indices)
                assert ledger.release(claim.lease) == 0
            if turns % 20 == 0:
                peak = max(peak, memory_bytes(client))
            turns += 1
        assert seen == b"\1" * MILLION
        assert ledger.settled_jobs() == ["job"]
        assert MILLION / 8 < peak < LIMIT_BYTES


def test_every_script_is_in_the_package():
    package = resources.files("jobs.ledger.redis")
    scripts = {path.name.removesuffix(".lua") for path in (package / "lua").iterdir()}
    used = re.findall(r'_server\.run\(\s*"(\w+)"', (package / "ledger.py").read_text())
    assert scripts == {"common", *used}
    assert len({load(script).sha1 for script in used}) == len(used)
