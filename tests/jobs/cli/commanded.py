"""The command line with a folder and a ledger, where a test plays the worker."""

from __future__ import annotations

import hashlib
import json

from jobs.cli.root import main
from jobs.errors import ExitCode
from jobs.folder.layout import JobKeys
from jobs.folder.records import dump_lines
from jobs.ledger.types import JobState
from jobs.storage import LocalStore
from jobs.task import Failure
from tests.jobs.manifests import write

DIGEST = hashlib.sha256(b"x").hexdigest()
TEXT = """\
version: 1
name: shapes
defaults: {width: 64, height: 64, steps: 2}
prompts: [{prompt: a red circle, seeds: {start: 0, count: 6}}]
"""


class Commands:
    """The command line, a folder and a ledger that is empty at first."""

    def __init__(self, folder, capsys, ledger):
        self.folder = folder
        self.store = LocalStore(folder / "out")
        self.ledger = ledger
        self._capsys = capsys

    def __call__(self, *words, code=ExitCode.DONE):
        """What it said."""
        ended = main([str(word) for word in words])
        said = self._capsys.readouterr()
        assert ended == code, said
        return said.out + said.err

    def json(self, *words, code=ExitCode.DONE):
        return json.loads(self(*words, "--json", code=code))

    def submit(self, *options, code=ExitCode.DONE):
        manifest = write(self.folder, TEXT)
        return self.json("submit", manifest, "--store", self.folder / "out", *options, code=code)

    def settle(self, job, failed=()):
        """All images, done or failed, as a worker does it."""
        keys = JobKeys(job)
        shard = 0
        while (claim := self.ledger.claim(job, shard, "w1")).lease is not None:
            done = [index for index in claim.indices if index not in failed]
            paths = {i: keys.path(keys.image(f"{i:06d}", f"{i:064x}", "png")) for i in done}
            for path in paths.values():
                self.store.put(keys(path), b"x")
            records = [
                {"index": index, "path": path, "sha256": DIGEST, "bytes": 1, "prompt": "a ring"}
                for index, path in paths.items()
            ]
            self.store.put(keys.records(shard), dump_lines(records))
            failures = [
                Failure(i, f"{i}", "a ring", i, "broke") for i in set(claim.indices) - {*done}
            ]
            assert self.ledger.settle(claim.lease, done, failures)
            self.ledger.release(claim.lease)
            shard += 1
        return self.ledger.set_state(job, JobState.DONE)
