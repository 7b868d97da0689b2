"""Loading from a hub: a stand-in on this machine, as no real one can be reached."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import close_session, constants

from sd_core.loading import load_model
from sd_core.weights.errors import CheckpointError
from sd_core.weights.export import save_diffusers
from sd_core.weights.hub import fetch_file
from tests.sd_core.small import SMALL, small_model
from tests.sd_core.weights.hub_server import running_hub

MAIN, OLDER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    """Repositories as on the hub: a model with many files that are not needed, and others."""
    root = tmp_path_factory.mktemp("repos")
    model = small_model()
    full = root / "full"
    save_diffusers(model, full)
    save_diffusers(model, full, dtype=torch.float16, variant="fp16")
    (full / "v1-4.ckpt").write_bytes(b"another form of the same weights")
    (full / "README.md").write_text("# A model")
    (full / ".gitattributes").write_text("*.safetensors filter=lfs")
    (full / "safety_checker").mkdir()
    (full / "safety_checker" / "pytorch_model.bin").write_bytes(b"not needed")

    sharded = root / "sharded"
    shutil.copytree(full, sharded)
    for path in (sharded / "unet").glob("*.safetensors"):
        path.unlink()
    peer = UNet2DConditionModel.from_pretrained(full / "unet")
    peer.save_pretrained(sharded / "unet", max_shard_size="5MB")

    (root / "other").mkdir()
    (root / "other" / "model.ckpt").write_bytes(b"x")
    vae = root / "vae"
    save_diffusers(small_model(seed=1), root / "second")
    shutil.copytree(root / "second" / "vae", vae)
    return {f"some/{path.name}": path for path in root.iterdir()} | {"gated/full": full}


@pytest.fixture
def hub(repos, monkeypatch, tmp_path):
    """A running hub, an empty cache, and huggingface_hub looking there."""
    with running_hub(repos, {"main": MAIN, "v1.4": OLDER}) as server:
        point_to(monkeypatch, server.url, tmp_path / "cache")
        yield server


def point_to(monkeypatch, url, cache):
    """What HF_ENDPOINT and HF_HUB_CACHE do, which are read once, at the import."""
    close_session()
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


NEEDED = [
    ".gitattributes",
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
]


def test_only_what_is_needed_is_downloaded_and_the_commit_is_kept(hub, repos):
    loaded = load_model("hf:some/full", dtype="float32")
    assert sorted(hub.downloads) == NEEDED
    assert loaded.provenance.source == "hf:some/full"
    assert loaded.provenance.revision == MAIN
    assert loaded.digest == load_model(repos["some/full"]).digest


def test_a_file_of_a_repository(hub, repos):
    """In a folder of it, and of another revision; only that is downloaded."""
    found = fetch_file("hf:some/full/unet/config.json")
    assert found.read_bytes() == (repos["some/full"] / "unet" / "config.json").read_bytes()
    assert sorted(hub.downloads) == [".gitattributes", "unet/config.json"]
    assert OLDER in fetch_file("hf:some/full/README.md@v1.4").parts
    with pytest.raises(CheckpointError, match="the repository has no such file"):
        fetch_file("hf:some/full/gone.safetensors")
    with pytest.raises(CheckpointError, match="the repository has no revision 'gone'"):
        fetch_file("hf:some/full/README.md@gone")


def test_revisions(hub):
    assert load_model("hf:some/full@v1.4").provenance.revision == OLDER
    assert load_model(f"hf:some/full@{MAIN}").provenance.revision == MAIN


def test_second_load_downloads_nothing_and_needs_no_network(hub, monkeypatch, tmp_path):
    first = load_model("hf:some/full@v1.4")
    count = len(hub.downloads)
    assert load_model("hf:some/full@v1.4").digest == first.digest
    assert len(hub.downloads) == count
    point_to(monkeypatch, closed_port(), tmp_path / "cache")
    for source in ("hf:some/full@v1.4", f"hf:some/full@{OLDER}"):
        again = load_model(source)
        assert (again.digest, again.provenance.revision) == (first.digest, OLDER)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert load_model("hf:some/full@v1.4").digest == first.digest


def test_sharded_repository(hub, repos):
    loaded = load_model("hf:some/sharded")
    assert loaded.digest == load_model(repos["some/full"]).digest
    assert len([name for name in hub.downloads if "-of-" in name]) > 1


@pytest.mark.parametrize("source", ["hf:some/vae", "hf:some/second"])
def test_vae_of_a_repository(hub, repos, source):
    loaded = load_model("hf:some/full", vae=source)
    assert loaded.provenance.vae == source
    assert loaded.provenance.vae_revision == MAIN
    assert loaded.digest == load_model(repos["some/full"], vae=repos["some/vae"]).digest
    assert loaded.spec == SMALL


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:some/none", "hf:some/none: the hub has no such repository"),
        ("hf:some/full@nothing", "has no revision 'nothing'; expected a branch, a tag or a commit"),
        ("hf:gated/full", "only to accounts that accepted its terms"),
        ("hf:some/other", r"the repository has no model_index\.json"),
        ("hf:", "expected hf:owner/name"),
        ("hf:full", "expected hf:owner/name"),
        ("hf:some/../../etc", "expected hf:owner/name"),
        ("hf:some/full@", "expected hf:owner/name"),
        ("hf:-/--", "hf:-/--: "),
    ],
)
def test_sources_that_are_not_there(hub, source, message):
    with pytest.raises(CheckpointError, match=message):
        load_model(source)


def test_vae_repository_without_one(hub):
    with pytest.raises(CheckpointError, match="expected an autoencoder's config"):
        load_model("hf:some/full", vae="hf:some/other")


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("offline", [False, True])
def test_hub_out_of_reach(monkeypatch, tmp_path, offline):
    point_to(monkeypatch, closed_port(), tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(CheckpointError, match="the hub cannot be reached, and no complete"):
        load_model("hf:some/full")


def test_endpoint_variable(repos, tmp_path):
    """As a user sets it, in a process of its own; it prints nothing but what it is told to."""
    code = "import sd_core; print(sd_core.load_model('hf:some/full').provenance.revision)"
    with running_hub(repos, {"main": MAIN}) as server:
        variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.stdout.split(), done.stderr) == ([MAIN], "")
