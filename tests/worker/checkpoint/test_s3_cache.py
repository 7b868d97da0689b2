"""Models from buckets, from a real S3 server and into real folders."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest
import torch

from jobs.errors import ExitCode, ModelError, StoreError
from jobs.models import ModelSource, load_models
from sd_core.weights.export import save_diffusers, save_single_file
from tests.jobs.storage.s3_fake import CUT, Answer, running_fake
from tests.sd_core.small import ODD, small_model
from tests.servers import wait_for
from tests.servers_s3 import BUCKET, READER, S3Server, log_in
from worker.checkpoint import s3_cache as fetch_module
from worker.checkpoint import s3_source
from worker.checkpoint.load import ModelChoice, load
from worker.checkpoint.s3_cache import fetch

FETCH = """\
import sys
from pathlib import Path
from worker.checkpoint.s3_cache import fetch

print("ready", flush=True)
sys.stdin.readline()
seen = []
print(fetch(sys.argv[1], Path(sys.argv[2]), progress=lambda done, of: seen.append(done)))
print(len(seen) > 0)
"""


class Bucket:
    """A folder of its own in the server's bucket."""

    def __init__(self, address: str, server: S3Server) -> None:
        self.address = address
        self._prefix = address.removeprefix(f"s3://{BUCKET}/")
        self._client = server.client()

    def put(self, name: str, data: bytes) -> str:
        self._client.put_object(Bucket=BUCKET, Key=f"{self._prefix}/{name}", Body=data)
        return f"{self.address}/{name}"

    def put_folder(self, folder: Path, name: str) -> str:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
        return f"{self.address}/{name}/"


@pytest.fixture
def bucket(s3_address, s3_server):
    return Bucket(s3_address, s3_server)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(s3_source, "CHECK_RETRIES", 0)
    monkeypatch.setattr(s3_source, "RETRIES", 0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "odd.safetensors"
    save_single_file(small_model(ODD), path)
    return path


class Downloads:
    """A progress that counts the downloads."""

    def __init__(self) -> None:
        self.count = 0
        self.last = (0, 0)

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        self.count += done_bytes == 0
        self.last = (done_bytes, total_bytes)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def nowhere(aws) -> None:
    """From here on, no server answers."""
    log_in(aws, "http://127.0.0.1:1")


def choice(source: str, cache: Path, digest: str | None = None) -> ModelChoice:
    return ModelChoice("odd", source, digest, device="cpu", dtype="float32", cache=cache)


class TestOnce:
    def test_a_file(self, bucket, tmp_path):
        seen = Downloads()
        data = os.urandom(20 * 2**20)  # several parts, side by side
        source = bucket.put("models/sd.safetensors", data)
        path = fetch(source, tmp_path / "cache", progress=seen)
        assert path.name == "sd.safetensors"
        assert path.read_bytes() == data
        assert seen.last == (len(data), len(data))
        assert fetch(source, tmp_path / "cache", progress=seen) == path
        assert seen.count == 1

    def test_a_changed_file_comes_again(self, bucket, tmp_path):
        old = fetch(bucket.put("a.ckpt", b"old"), tmp_path)
        new = fetch(bucket.put("a.ckpt", b"new"), tmp_path)  # of the same size
        assert (old.read_bytes(), new.read_bytes()) == (b"old", b"new")

    def test_names_are_kept_apart(self, bucket, tmp_path):
        paths = {fetch(bucket.put(name, b"x"), tmp_path) for name in ("a/m", "b/m", "m")}
        assert len(paths) == 3

    def test_home(self, bucket, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        path = fetch(bucket.put("a", b"x"), Path("~/kept"))
        assert path.is_relative_to(tmp_path / "kept")

    def test_what_is_said(self, bucket, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        source = bucket.put("a", bytes(3000))
        fetch(source, tmp_path)
        lines = [
            record.message
            for record in caplog.records
            if record.name == "worker.checkpoint.s3_cache"
        ]
        assert lines[0] == f"downloading {source}: 0 bytes of 3 kB"
        assert lines[-1] == f"downloading {source}: 3 kB of 3 kB"

    def test_processes_at_once(self, bucket, tmp_path):
        data = os.urandom(20 * 2**20)
        source = bucket.put("a", data)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", FETCH, source, str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0].split() for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert len({path for path, _ in said}) == 1
        assert sorted(downloaded for _, downloaded in said) == ["False", "True"]
        assert Path(said[0][0]).read_bytes() == data

    def test_a_thread_waits_for_the_other(self, bucket, tmp_path, caplog):
        """And does not download again, though it found nothing when it looked."""
        caplog.set_level(logging.INFO)
        source = bucket.put("a", b"x")
        paths, seen = [], Downloads()
        other = threading.Thread(
            target=lambda: paths.append(fetch(source, tmp_path, progress=seen))
        )

        def meanwhile(done: int, _: int) -> None:
            if not other.ident:
                other.start()
                wait_for(lambda: "waiting for another process" in caplog.text, "the other to wait")

        paths.append(fetch(source, tmp_path, progress=meanwhile))
        other.join()
        assert len(paths) == 2
        assert len(set(paths)) == 1
        assert seen.count == 0


class TestNeverHalf:
    def test_killed_in_the_middle(self, bucket, tmp_path):
        data = os.urandom(20 * 2**20)
        source = bucket.put("a", data)
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from worker.checkpoint.s3_cache import fetch\n"
            "stop = lambda done, of: done > 2**20 and os.kill(os.getpid(), signal.SIGKILL)\n"
            "fetch(sys.argv[1], Path(sys.argv[2]), progress=stop)\n"
        )
        run = subprocess.run([sys.executable, "-c", code, source, str(tmp_path)], check=False)
        assert run.returncode == -9
        (left,) = [name for name in files(tmp_path) if name.endswith(".part/a")]
        path = fetch(source, tmp_path)
        assert path.read_bytes() == data
        assert left not in files(tmp_path)

    def test_an_error_in_the_middle(self, bucket, tmp_path):
        source = bucket.put("a", b"abc")

        def fail(done: int, of: int) -> None:
            if done:
                raise RuntimeError("of the caller")

        with pytest.raises(Exception, match="of the caller"):
            fetch(source, tmp_path, progress=fail)
        assert not any(name.endswith("/a") for name in files(tmp_path))
        assert fetch(source, tmp_path).read_bytes() == b"abc"

    def test_changed_in_the_middle(self, bucket, tmp_path):
        source = bucket.put("a", b"old")

        def change(done: int, of: int) -> None:
            if done == 0:
                bucket.put("a", b"new")

        with pytest.raises(StoreError, match="it changed while it was downloaded"):
            fetch(source, tmp_path, progress=change)
        assert fetch(source, tmp_path).read_bytes() == b"new"

    def test_a_connection_that_breaks(self, aws, tmp_path):
        with running_fake() as server:
            log_in(aws, server.endpoint)
            server.objects["/bucket/a"] = (b"whole", {})
            server.script["GET"] = deque([CUT, CUT])
            assert fetch("s3://bucket/a", tmp_path / "1").read_bytes() == b"whole"
            assert server.count("GET") == 3
            server.always["GET"] = CUT
            with pytest.raises(StoreError, match="broke again and again"):
                fetch("s3://bucket/a", tmp_path / "2")
        assert not any(name.endswith("/a") for name in files(tmp_path / "2"))

    def test_shorter_than_said(self, bucket, tmp_path, monkeypatch):
        source = bucket.put("a", b"whole")
        monkeypatch.setattr(
            s3_source.RemoteModel,
            "download",
            lambda self, file, path, count: path.write_bytes(b"who"),
        )
        with pytest.raises(StoreError, match="a has 5 bytes, and 3 came"):
            fetch(source, tmp_path)

    def test_no_space(self, bucket, tmp_path, monkeypatch):
        source = bucket.put("a", bytes(5000))
        usage = fetch_module.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(
            fetch_module.shutil, "disk_usage", lambda path: usage._replace(free=4999)
        )
        monkeypatch.setattr(s3_source.RemoteModel, "download", None)
        with pytest.raises(ModelError, match=f"takes 5 kB, and 5 kB are free in {tmp_path}/s3/a-"):
            fetch(source, tmp_path)

    @pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    def test_a_disk_that_fills_up(self, bucket, small_disk, monkeypatch):
        source = bucket.put("a", bytes(2 * 2**20))
        with pytest.raises(ModelError, match=rf"takes 2\.1 MB, .* are free in {small_disk}"):
            fetch(source, small_disk)
        usage = fetch_module.shutil.disk_usage(small_disk)
        monkeypatch.setattr(
            fetch_module.shutil, "disk_usage", lambda path: usage._replace(free=2**30)
        )
        with pytest.raises(ModelError, match=f"cannot be kept in {small_disk}: no space left"):
            fetch(source, small_disk)
        assert not any(name.endswith("/a") for name in files(small_disk))
        # s3transfer leaves the connections of a download that it breaks off to the collector: here,
        # and not in another test.
        gc.collect()

    def test_a_cache_that_is_a_file(self, bucket, tmp_path):
        (tmp_path / "cache").touch()
        with pytest.raises(ModelError, match=r"cannot be kept in .*/cache: .*SDBATCH_CACHE names"):
            fetch(bucket.put("a", b"x"), tmp_path / "cache")


class TestAway:
    def test_a_pinned_copy_is_used(self, bucket, tmp_path, aws, impatient, caplog):
        source = bucket.put("a", b"x")
        path = fetch(source, tmp_path)
        nowhere(aws)
        assert fetch(source, tmp_path, pinned=True) == path
        assert "does not answer" in caplog.text
        with pytest.raises(StoreError, match="would do if the model list had its digest") as caught:
            fetch(source, tmp_path)
        assert caught.value.exit_code == ExitCode.STORE

    def test_without_a_copy(self, s3_address, tmp_path, aws, impatient):
        nowhere(aws)
        with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:1 does not answer"):
            fetch(f"{s3_address}/a", tmp_path, pinned=True)

    def test_only_a_server_that_is_away_makes_do(self, bucket, tmp_path, aws):
        source = bucket.put("a", b"x")
        fetch(source, tmp_path)
        aws.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ModelError, match="AWS_SECRET_ACCESS_KEY is missing"):
            fetch(source, tmp_path, pinned=True)


class TestRefused:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("s3://", "names no bucket"),
            ("s3://bucket", "expected s3://bucket/key of a file, or s3://bucket/folder/"),
            ("s3://Bucket/a", "'Bucket' is no bucket name"),
            ("s3://bucket/../a", "would leave its folder"),
        ],
    )
    def test_addresses(self, tmp_path, source, message):
        with pytest.raises(ModelError, match=message):
            fetch(source, tmp_path)

    def test_causes(self, bucket, s3_address, s3_server, tmp_path):
        causes = {
            f"{s3_address}/none.ckpt": "none.ckpt: no such object",
            "s3://no-such-bucket/a": f"no such bucket at {s3_server.endpoint}",
            "s3://no-such-bucket/a/": f"no such bucket at {s3_server.endpoint}",
            f"{s3_address}/": "no model_index.json is in it",
            bucket.put("empty", b""): "it is empty",
        }
        for source, message in causes.items():
            with pytest.raises(ModelError, match=message) as caught:
                fetch(source, tmp_path)
            assert caught.value.exit_code == ExitCode.MODEL
        assert files(tmp_path) == []

    def test_no_rights(self, aws, tmp_path):
        with running_fake() as server:
            log_in(aws, server.endpoint)
            server.always = dict.fromkeys(("HEAD", "GET"), Answer(403, "AccessDenied"))
            for source in ("s3://bucket/a", "s3://bucket/a/"):
                with pytest.raises(ModelError, match="access denied: these credentials may not"):
                    fetch(source, tmp_path)

    def test_reading_is_enough(self, bucket, s3_server, tmp_path, aws):
        source = bucket.put("a", b"x")
        log_in(aws, s3_server.endpoint, READER)
        assert fetch(source, tmp_path).read_bytes() == b"x"


class TestModels:
    def test_a_single_file(self, bucket, checkpoint, tmp_path):
        source = bucket.put("odd.safetensors", checkpoint.read_bytes())
        here = load(ModelChoice("odd", str(checkpoint), device="cpu", dtype="float32"))
        model = load(choice(source, tmp_path, here.digest))
        assert model.digest == here.digest
        ids = model.tokenize(["a red circle"])
        assert torch.equal(model.encode_tokens(ids), here.encode_tokens(ids))

    def test_a_folder(self, bucket, tmp_path):
        model = small_model(ODD)
        save_diffusers(model, tmp_path / "folder")
        save_diffusers(model, tmp_path / "folder", variant="fp16")
        source = bucket.put_folder(tmp_path / "folder", "odd")
        bucket.put("odd/safety_checker/model.safetensors", b"large")
        assert load(choice(source, tmp_path / "cache")).spec == ODD
        assert [name.partition("/")[2] for name in files(fetch(source, tmp_path / "cache").parent)
                if "/" in name] == [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]  # fmt: skip

    def test_weights_in_several_files(self, bucket, tmp_path):
        for name in ("model_index.json", "unet/diffusion_pytorch_model.safetensors.index.json"):
            bucket.put(f"m/{name}", b"{}")
        for number in (1, 2):
            bucket.put(f"m/unet/diffusion_pytorch_model-{number:05}-of-00002.safetensors", b"x")
        folder = fetch(f"{bucket.address}/m/", tmp_path)
        assert files(folder) == [
            "model_index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ]

    def test_another_digest(self, bucket, checkpoint, tmp_path, aws, impatient):
        source = bucket.put("odd.safetensors", checkpoint.read_bytes())
        for away in (False, True):
            if away:
                nowhere(aws)
            with pytest.raises(ModelError, match="the model list says 0000") as caught:
                load(choice(source, tmp_path, "0" * 64))
            assert source in str(caught.value)

    @pytest.mark.parametrize("place", [-9, 3], ids=["weights", "header"])
    def test_a_bit_that_flipped_on_the_way_comes_anew(self, bucket, checkpoint, tmp_path, place):
        source = bucket.put("odd.safetensors", checkpoint.read_bytes())
        digest = load(ModelChoice("odd", str(checkpoint), device="cpu", dtype="float32")).digest
        here = fetch(source, tmp_path)
        data = bytearray(here.read_bytes())
        data[place] ^= 1
        here.write_bytes(data)
        assert load(choice(source, tmp_path, digest)).digest == digest
        assert here.read_bytes() == checkpoint.read_bytes()
        assert not list(tmp_path.rglob("*.part"))

    def test_what_is_not_its_digest_is_downloaded_twice_and_no_more(
        self, bucket, checkpoint, tmp_path, monkeypatch
    ):
        downloads = []
        download = s3_source.RemoteModel.download
        monkeypatch.setattr(
            s3_source.RemoteModel,
            "download",
            lambda *args: downloads.append(args[1].name) or download(*args),
        )
        source = bucket.put("odd.safetensors", checkpoint.read_bytes())
        for _ in range(3):
            with pytest.raises(ModelError, match="the model list says 0000"):
                load(choice(source, tmp_path, "0" * 64))
        assert downloads == ["odd.safetensors"] * 2
        bucket.put("odd.safetensors", checkpoint.read_bytes() + b"x")  # another version
        fetch(source, tmp_path)
        fetch(source, tmp_path, again=True)
        assert len(downloads) == 4

    def test_in_the_model_list(self, tmp_path):
        listed = tmp_path / "models.yaml"
        listed.write_text(
            f"a: s3://bucket/a.ckpt\nb: {{source: s3://bucket/b/, digest: {'ab' * 32}}}"
        )
        models = load_models(listed).models
        assert models["a"] == ModelSource("s3://bucket/a.ckpt")
        assert models["b"] == ModelSource("s3://bucket/b/", "ab" * 32)

    def test_no_model(self, bucket, tmp_path):
        source = bucket.put("a.safetensors", b"no weights at all")
        with pytest.raises(ModelError, match=f"{source}: .*a.safetensors"):
            load(choice(source, tmp_path))
