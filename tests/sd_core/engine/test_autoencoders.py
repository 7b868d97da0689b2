"""Another autoencoder for an image, against a model that was given it instead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sd_core.cpu.packing import can_pack
from sd_core.engine.added import AddedWeights
from sd_core.engine.engine import Engine
from sd_core.engine.request import Request, Vae
from sd_core.execution import make_ready
from sd_core.spec import Sampling
from sd_core.weights.key_map import diffusers_vae_names
from tests.sd_core.engine.test_engine import BFLOAT16
from tests.sd_core.small import ODD, numbers, small_model

WAYS = [("eager", "float32"), ("packed", "float32"), BFLOAT16]
if can_pack(torch.device("cpu"), torch.bfloat16):
    WAYS.append(("packed", "bfloat16"))


def weights(seed: int) -> dict[str, torch.Tensor]:
    return {name: t.contiguous() for name, t in small_model(ODD, seed).vae.state_dict().items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The autoencoder of seed 1 in names of CompVis and diffusers, and inside of a model."""
    folder = tmp_path_factory.mktemp("vaes")
    own = weights(1)
    levels = len(ODD.vae.channel_mult)
    forms = {
        "compvis": own,
        "diffusers": {diffusers_vae_names(name, levels)[0]: t for name, t in own.items()},
        "whole": {f"first_stage_model.{name}": t for name, t in own.items()},
        "other": weights(2),
    }
    for name, tensors in forms.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in forms}


def ask(vae: Vae | None = None, *, picture: bool = False, **settings) -> Request:
    values = {"width": 64, "height": 64, "steps": 3, "seed": 1, "sampler": "ddim"} | settings
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8) if picture else None
    return Request("a ring", Sampling(**values), init_image=pixels, vae=vae)


def rendered(engine: Engine, *requests: Request) -> list[torch.Tensor]:
    futures = [engine.submit(request) for request in requests]
    return [numbers(future.result(timeout=600)) for future in futures]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_each_image_is_that_of_a_model_with_its_autoencoder(files, way):
    execution, dtype = way
    number_type = getattr(torch, dtype)
    asked = [{"seed": seed, "picture": seed % 2 == 1} for seed in range(4)]
    expected = []
    for seed, values in enumerate(asked):
        model = small_model(ODD)
        if seed:
            model.vae.load_state_dict(weights(2 if seed == 3 else 1))
        with Engine(make_ready(model.to(number_type), execution)) as engine:
            expected += rendered(engine, ask(**values))
    wanted = [None, files["compvis"], files["diffusers"], files["other"]]
    requests = [
        ask(None if file is None else Vae.of(file), **values)
        for file, values in zip(wanted, asked, strict=True)
    ]
    with Engine(make_ready(small_model(ODD).to(number_type), execution)) as engine:
        together = rendered(engine, *requests)
        backwards = rendered(engine, *requests[::-1])[::-1]
    for one, other, right in zip(together, backwards, expected, strict=True):
        assert torch.equal(one, right)
        assert torch.equal(other, right)


def test_the_one_inside_of_a_model_is_the_same(files):
    with Engine(small_model(ODD)) as engine:
        one, other = rendered(engine, *(ask(Vae.of(files[f])) for f in ("compvis", "whole")))
    assert torch.equal(one, other)


def test_files_that_cannot_be_used_fail_their_images_only(files, tmp_path):
    changed = Vae(files["other"], "0" * 64)
    wide = tmp_path / "wide.safetensors"
    save_file({**weights(1), "decoder.conv_in.weight": torch.zeros(128, 16, 3, 3)}, wide)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files["compvis"].read_bytes()[:-100])
    wrong = {
        changed: "it has sha256",
        Vae.of(wide): "decoder.conv_in.weight is .128, 16, 3, 3.|latent",
        Vae.of(cut): "cut short",
    }
    with Engine(small_model(ODD)) as engine:
        good = engine.submit(ask(Vae.of(files["compvis"])))
        futures = {engine.submit(ask(vae)): words for vae, words in wrong.items()}
        for future, words in futures.items():
            with pytest.raises(ValueError, match=words):
                future.result(timeout=600)
        good.result(timeout=600)


def test_its_memory_counts_with_that_of_adapters(files):
    cache = AddedWeights(small_model(ODD), 2**30)
    held = cache.hold((), Vae.of(files["compvis"]))
    assert held.vae is not None
    assert cache.nbytes == sum(weight.nbytes for weight in held.vae.parameters())
    with pytest.raises(MemoryError, match="room for"):
        AddedWeights(small_model(ODD), cache.nbytes - 1).hold((), Vae.of(files["compvis"]))


def test_what_is_no_autoencoder_is_refused_where_it_is_said():
    with pytest.raises(ValueError, match="vae is 'mse'"):
        ask("mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not 64 hex digits"):
        Vae("a", "1")  # type: ignore[arg-type]
