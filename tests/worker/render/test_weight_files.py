"""Files of LoRA, embeddings and VAEs of a worker: kept once, checked, and trouble with one is
trouble of its images.
"""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import worker.render.weight_files
from jobs.errors import InputError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import read_plan
from jobs.folder.records import read_records
from jobs.models import ModelSource
from jobs.task import LoraUse
from sd_core import Embedding, Lora, Request, Sampling, Vae
from sd_core.engine.request import sha256_of
from tests.sd_core.lora_files import lora_file, lora_tensors
from tests.sd_core.small import ODD, small_model
from tests.servers_s3 import BUCKET
from tests.worker.serve.services import Service
from worker.render.weight_files import WeightFiles

KEYS = JobKeys("job")
PROMPTS = "a ring, {prompt: a ring, loras: [{name: ink.safetensors, weight: 0.5}]}"


@pytest.fixture
def ink(tmp_path):
    return lora_file(tmp_path, lora_tensors(ODD, 1), "ink")


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path) as service:
        yield service


@pytest.fixture
def folder(service):
    return JobFolder(service.store, KEYS)


def pictures(service: Service) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(service.store.get(KEYS(record["path"])))))
        for record in read_records(JobFolder(service.store, KEYS))
    ]


def use_in(folder: JobFolder) -> LoraUse:
    return next(use for task in read_plan(folder) for use in task.loras)


def test_an_image_has_its_own(service, ink):
    service.enter(prompts=PROMPTS)
    service.handle()
    plain, inked = pictures(service)
    sampling = Sampling(width=64, height=64, steps=3, guidance=7.5)
    alone = service.engine.submit(Request("a ring", sampling, loras=(Lora.of(ink, 0.5),))).result()
    assert np.array_equal(inked, alone.pixels)
    assert not np.array_equal(plain, inked)
    records = list(read_records(JobFolder(service.store, KEYS)))
    assert "loras" not in records[0]
    assert records[1]["loras"] == [
        {"name": "ink", "sha256": sha256_of(ink), "weight": 0.5, "text_weight": 0.5}
    ]


@pytest.mark.parametrize("damage", ["gone", "changed", "too large"])
def test_any_trouble_with_one_is_of_its_images_alone(service, ink, folder, damage):
    service.enter(prompts=PROMPTS)
    key = KEYS.input(str(use_in(folder).file))
    if damage == "gone":
        service.store.delete(key)
    elif damage == "changed":
        service.store.put(key, ink.read_bytes()[:-1] + b"x", overwrite=True)
    else:
        object.__setattr__(service.added.loras, "limit_bytes", 1000)
    service.handle()
    status = service.ledger.status("job")
    assert (status.done, status.failed) == (1, 1)
    (failure,) = service.ledger.failures("job")
    assert failure.index == 1
    said = {"gone": "no such object", "changed": "is damaged", "too large": "SDBATCH_LORA_MIB"}
    assert said[damage] in failure.reason
    assert service.stops == []


def test_one_that_fits_another_model_fails_its_images(service, tmp_path):
    tensors = lora_tensors(ODD, 1)
    name = next(name for name in tensors if name.endswith("lora_down.weight"))
    tensors[name] = tensors[name][:, :1].contiguous()
    lora_file(tmp_path, tensors, "ink")
    service.enter(prompts=PROMPTS)
    service.handle()
    assert service.ledger.status("job").done == 1
    (failure,) = service.ledger.failures("job")
    assert "expected a rank of 1 to 4096 for a layer of" in failure.reason


def test_it_is_fetched_once(service, ink, folder, tmp_path, monkeypatch):
    service.enter(prompts=PROMPTS)
    first = service.added.loras.path(use_in(folder), folder)
    assert first == tmp_path / "cache" / "added" / f"{sha256_of(ink)}.safetensors"
    service.store.delete(KEYS.input(first.name))
    assert service.added.loras.path(use_in(folder), folder) == first
    again = WeightFiles(word="LoRA", listed={}, cache=tmp_path / "cache", limit_bytes=2**20)
    assert again.path(use_in(folder), folder) == first


def test_a_damaged_copy_is_fetched_again(service, ink, folder, tmp_path):
    service.enter(prompts=PROMPTS)
    kept = service.added.loras.path(use_in(folder), folder)
    kept.write_bytes(b"damaged")
    again = WeightFiles(word="LoRA", listed={}, cache=tmp_path / "cache", limit_bytes=2**20)
    assert again.path(use_in(folder), folder).read_bytes() == ink.read_bytes()


def test_the_least_used_go_first(service, tmp_path, monkeypatch):
    names = [f"ink{number}" for number in range(4)]
    sizes = [
        lora_file(tmp_path, lora_tensors(ODD, seed, rank=1), name).stat().st_size
        for seed, name in enumerate(names)
    ]
    monkeypatch.setattr(worker.render.weight_files, "MOST_KEPT_BYTES", sum(sizes[:3]))
    listed = ", ".join(f"{{prompt: a, loras: [{name}.safetensors]}}" for name in names)
    service.enter(prompts=listed)
    folder = JobFolder(service.store, KEYS)
    uses = [task.loras[0] for task in read_plan(folder)]
    for age, use in enumerate(uses[:3]):
        os.utime(service.added.loras.path(use, folder), (1000 + age, 1000 + age))
    service.added.loras.path(uses[0], folder)
    service.added.loras.path(uses[3], folder)
    kept = {path.name for path in (tmp_path / "cache" / "added").iterdir()}
    assert kept == {uses[number].file for number in (0, 2, 3)}


class TestTheModelList:
    def files(self, tmp_path, **listed):
        return WeightFiles(word="LoRA", listed=listed, cache=tmp_path / "cache", limit_bytes=2**20)

    def test_a_file_is_used_where_it_is(self, tmp_path, folder, ink):
        files = self.files(tmp_path, style=ModelSource(str(ink)))
        assert files.path(LoraUse("style", sha256_of(ink)), folder) == ink
        assert not (tmp_path / "cache").exists()

    def test_a_file_in_a_bucket_is_fetched_once(self, tmp_path, folder, ink, s3_address, s3_server):
        key = f"{s3_address}/loras/ink.safetensors".removeprefix(f"s3://{BUCKET}/")
        s3_server.client().put_object(Bucket=BUCKET, Key=key, Body=ink.read_bytes())
        files = self.files(tmp_path, style=ModelSource(f"s3://{BUCKET}/{key}", sha256_of(ink)))
        use = LoraUse("style", sha256_of(ink))
        found = files.path(use, folder)
        assert found.read_bytes() == ink.read_bytes()
        assert found.is_relative_to(tmp_path / "cache")
        assert files.path(use, folder) == found
        gone = self.files(tmp_path, style=ModelSource(f"s3://{BUCKET}/{key}.gone", sha256_of(ink)))
        with pytest.raises(InputError, match="gone"):
            gone.path(use, folder)

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            (None, "'style' is not in the model list of this worker"),
            ("gone.safetensors", "'style': gone.safetensors cannot be read: no such file"),
            ("other.safetensors", "other.safetensors has sha256 "),
            ("hf:owner", "hf:owner: expected hf:owner/name/file"),
            ("hf:owner/name/../x", "expected hf:owner/name/file"),
        ],
    )
    def test_what_a_worker_lacks_is_no_fault_of_an_image(
        self, tmp_path, folder, ink, source, said, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        lora_file(tmp_path, lora_tensors(ODD, 2), "other")
        listed = {} if source is None else {"style": ModelSource(source)}
        with pytest.raises(InputError, match=said):
            self.files(tmp_path, **listed).path(LoraUse("style", sha256_of(ink)), folder)

    def test_a_shard_is_given_back_whose_lora_a_worker_lacks(self, service, ink):
        service.enter(
            prompts="a ring, {prompt: a, loras: [style]}",
            head=f"loras: {{style: {{sha256: {sha256_of(ink)}}}}}",
        )
        service.handle()
        status = service.ledger.status("job")
        assert (status.failed, status.leased) == (0, 0)
        assert "'style' is not in the model list" in str(status.error)
        service.added.loras.listed["style"] = ModelSource(str(ink))
        service.ledger.publish("job", 1)
        service.handle()
        assert service.ledger.status("job").done == 2


def test_a_cache_that_cannot_be_written_is_named(service, ink, folder, tmp_path):
    service.enter(prompts=PROMPTS)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="SDBATCH_CACHE names the folder"):
        service.added.loras.path(use_in(folder), folder)


def test_embeddings_are_found_in_the_same_way(service, tmp_path):
    """By name in prompts with syntax a1111, and only there; in negative prompts, too."""
    vectors = torch.randn(2, ODD.text.width, generator=torch.Generator().manual_seed(1))
    save_file({"emb_params": vectors}, tmp_path / "ink.safetensors")
    service.enter(
        prompts="{prompt: an ink ring, syntax: a1111}, {prompt: an ink ring}, "
        "{prompt: an ink ring, embeddings: [ink.safetensors]}, "
        "{prompt: a ring, negative: (ink:1.2), syntax: a1111}",
        head="embeddings: {ink: ink.safetensors}",
    )
    service.handle(number=0)
    service.handle(number=1)
    one = Embedding.of(tmp_path / "ink.safetensors")
    records = list(read_records(JobFolder(service.store, KEYS)))
    uses = [{"name": "ink", "sha256": one.sha256}]
    assert [record.get("embeddings") for record in records] == [uses, None, uses, uses]
    sampling = Sampling(width=64, height=64, steps=3, guidance=7.5)
    found = pictures(service)
    for picture, embeddings in ((found[1], ()), (found[2], (one,))):
        request = Request("an ink ring", sampling, embeddings=embeddings)
        assert np.array_equal(picture, service.engine.submit(request).result().pixels)
    assert not np.array_equal(found[1], found[2])


def test_vaes_are_found_in_the_same_way(service, tmp_path):
    """Also that of a whole model, and beside images with the model's own."""
    weights = small_model(ODD, seed=7).vae.state_dict()
    whole = {f"first_stage_model.{name}": t.contiguous() for name, t in weights.items()}
    save_file(whole, tmp_path / "soft.safetensors")
    service.enter(
        prompts="a ring, {prompt: a ring, vae: soft}, {prompt: a star, vae: soft.safetensors}, b",
        head="vaes: {soft: soft.safetensors}",
    )
    service.handle(number=0)
    service.handle(number=1)
    soft = Vae.of(tmp_path / "soft.safetensors")
    records = list(read_records(JobFolder(service.store, KEYS)))
    use = {"name": "soft", "sha256": soft.sha256}
    assert [record.get("vae") for record in records] == [None, use, use, None]
    sampling = Sampling(width=64, height=64, steps=3, guidance=7.5)
    found = pictures(service)
    for picture, vae in ((found[0], None), (found[1], soft)):
        request = Request("a ring", sampling, vae=vae)
        assert np.array_equal(picture, service.engine.submit(request).result().pixels)
    assert not np.array_equal(found[0], found[1])
