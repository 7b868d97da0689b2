"""Adapters that are merged while a model is loaded: the same model with changed weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from sd_core import CheckpointError, Engine, Lora, Request, Sampling, load_model
from sd_core.cpu.packing import can_pack
from sd_core.weights.export import save_single_file
from sd_core.weights.lora.names import layers_of
from tests.sd_core.lora_files import lora_file, lora_tensors
from tests.sd_core.small import ODD, numbers, small_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "odd.safetensors"
    save_single_file(small_model(ODD), path)
    return path


def loaded(base, *loras, **options):
    options = {"device": "cpu", "dtype": "float32"} | options
    return load_model(base, loras=loras, **options)


def loha(seed: int = 1) -> dict[str, torch.Tensor]:
    """For every layer, in kohya's names."""
    torch.manual_seed(seed)
    tensors = {}
    for (component, name), (out, *rest) in layers_of(ODD)[1].items():
        columns = torch.Size(rest).numel()
        prefix = "lora_unet_" if component == "unet" else "lora_te_"
        layer = prefix + name.removeprefix("transformer.").replace(".", "_")
        for half in "12":
            tensors[f"{layer}.hada_w{half}_a"] = torch.randn(out, 2) / 4
            tensors[f"{layer}.hada_w{half}_b"] = torch.randn(2, columns) / 4
        tensors[f"{layer}.alpha"] = torch.tensor(1.0)
    return tensors


def test_one_that_images_may_have_too_gives_the_same_image(base, tmp_path):
    path = lora_file(tmp_path, lora_tensors(ODD, 1))
    lora = Lora.of(path, 0.7, 0.4)
    sampling = Sampling(width=64, height=64, steps=4, sampler="ddim", seed=1)
    found = []
    for model, own in ((loaded(base, lora), ()), (loaded(base), (lora,)), (loaded(base), ())):
        with Engine(model) as engine:
            request = Request("a ring", sampling, loras=own)
            found.append(numbers(engine.submit(request).result(timeout=600)))
    merged, added, without = found
    assert (merged - added).abs().max() <= 1e-4
    assert (merged - without).abs().max() > 0.1


def test_weights_are_rounded_once(base, tmp_path):
    """Also where they are laid out while they come: each layer has the very numbers."""
    save_file(loha(), tmp_path / "loha.safetensors")
    lora = Lora.of(tmp_path / "loha.safetensors", 0.5)
    exact = loaded(base, lora)
    plain = loaded(base)
    half = loaded(base, lora, dtype="bfloat16")
    differing = 0
    for name, weight in exact.state_dict().items():
        assert torch.equal(half.state_dict()[name], weight.bfloat16()), name
        differing += not torch.equal(plain.state_dict()[name], weight)
    assert differing == len(layers_of(ODD)[1])
    if can_pack(torch.device("cpu"), torch.float32):
        sampling = Sampling(width=64, height=64, steps=2)
        with Engine(exact) as one, Engine(loaded(base, lora, execution="packed")) as other:
            found = [
                engine.submit(Request("a ring", sampling)).result(timeout=600).latents
                for engine in (one, other)
            ]
        assert (found[0] - found[1]).abs().max() < 1e-4


def test_it_is_another_model(base, tmp_path):
    first = lora_file(tmp_path, lora_tensors(ODD, 1, rank=1), "first")
    second = lora_file(tmp_path, lora_tensors(ODD, 2, rank=1), "second")
    one, other = Lora.of(first), Lora.of(second)
    merges = [
        (),
        (one,),
        (Lora.of(first, 0.5),),
        (Lora.of(first, 1, 0),),
        (one, other),
        (other, one),
    ]
    digests = [loaded(base, *some).digest for some in merges]
    assert len(set(digests)) == len(merges)
    assert digests[0] == load_model(base, device="cpu", dtype="float32").digest
    (name, sha256, *weights) = loaded(base, Lora.of(first, 0.5)).provenance.loras[0]
    assert (name, sha256, weights) == ("first.safetensors", one.sha256, [0.5, 0.5])


def test_differences_of_weights_and_biases(base, tmp_path):
    layer = "lora_unet_out_2"
    change = {f"{layer}.diff": torch.ones(4, 24, 3, 3), f"{layer}.diff_b": torch.ones(4)}
    save_file(change, tmp_path / "diff.safetensors")
    model, plain = loaded(base, Lora.of(tmp_path / "diff.safetensors", -2)), loaded(base)
    for leaf in ("weight", "bias"):
        name = f"unet.out.2.{leaf}"
        assert torch.equal(model.state_dict()[name], plain.state_dict()[name] - 2)


EMPTY = (("a", (4, 0)), ("b", (0, 216)))  # halves of rank 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_unet_out_2.hada_w1_a": (4, 2)}, "unet out.2: hada_w1_b is missing"),
        ({"lora_unet_out_2.diff": (4, 24, 3, 2)}, "its difference is .4, 24, 3, 2.; expected"),
        ({"lora_unet_out_2.diff_b": (5,)}, "its bias is .5,.; expected .4,."),
        (
            {"lora_unet_out_2.lokr_w1": (2, 3), "lora_unet_out_2.lokr_w2": (2, 8)},
            "expected parts of a layer of .4, 24, 3, 3.",
        ),
        (
            {"lora_unet_out_2.lokr_w1": (), "lora_unet_out_2.lokr_w2": (4, 24, 3, 3)},
            "expected parts of a layer",
        ),
        (
            {"lora_unet_out_2.lokr_w1_a": (2, 3), "lora_unet_out_2.lokr_w1_b": (4, 3)},
            "do not go together",
        ),
        (
            {f"lora_unet_out_2.hada_w{n}_{side}": shape for n in "12" for side, shape in EMPTY}
            | {"lora_unet_out_2.alpha": ()},
            "do not go together",
        ),
        (
            {f"lora_unet_out_2.hada_w{n}_{side}": () for n in "12" for side in "ab"},
            "do not go together",
        ),
        ({"lora_unet_nowhere.diff": (4,)}, "belong to no layer"),
        ({"lora_unet_input_blocks_1_0_out_layers_3.oft_blocks": (4,)}, "of OFT"),
        (
            {"lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.diff_b": (72,)},
            "has no bias to change",
        ),
    ],
)
def test_files_that_cannot_be_merged(base, tmp_path, change, said):
    tensors = {name: torch.zeros(shape) for name, shape in change.items()}
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=said):
        loaded(base, Lora.of(tmp_path / "file.safetensors"))


def test_an_image_cannot_have_what_is_merged_and_hears_how(base, tmp_path):
    save_file(loha(), tmp_path / "loha.safetensors")
    with Engine(loaded(base)) as engine:
        request = Request("a", Sampling(), loras=(Lora.of(tmp_path / "loha.safetensors"),))
        with pytest.raises(CheckpointError, match=r"of LoHa, .* merge it: in the model list"):
            engine.submit(request).result(timeout=600)
