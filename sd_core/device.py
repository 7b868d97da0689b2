"""Which device and number format a model runs in.

The CUDA path is written but was not run on a GPU by its authors: they had none. Everything that is
measured or tested in this project ran on CPUs.

Importing this module asks torch for huge pages on Linux, which it does not take by itself: where
the maps of a decode are new memory, mapping them in pieces of 4 KiB took a tenth of its time. A
value of the variable below that is already set stays; torch reads it before its first tensor.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

if Path("/sys/kernel/mm/transparent_hugepage").exists():
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The names that `resolve_dtype` takes, besides "auto"."""


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of that name; "auto" is the first GPU where there is one, else the CPU.

    Raises `ValueError` for a device that torch does not know or that is not here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"device {device!r} is unknown; expected auto, cpu, cuda or cuda:N"
        ) from None
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported; expected auto, cpu, cuda or cuda:N")
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise ValueError(
                f"device {str(resolved)!r} is not here: torch sees {count} CUDA "
                f"device{'' if count == 1 else 's'}"
            )
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The type of that name.

    "auto" is float16 on CUDA; on a CPU bfloat16 where it multiplies that natively, else float32.
    Raises `ValueError` for any other name or type than those of `DTYPES`.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if dtype in DTYPES.values() and isinstance(dtype, torch.dtype):
        return dtype
    raise ValueError(f"dtype {dtype!r} is not supported; expected auto, {', '.join(DTYPES)}")


def uses_avx512() -> bool:
    """True where torch runs its code for AVX-512: on CPUs that have it, unless it was told by
    ATEN_CPU_CAPABILITY to do with less.
    """
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")


def cpu_has(question: str) -> bool:
    """The answer to one of torch's private questions about the CPU, by its name in `torch.cpu`; no
    where this torch does not know it.
    """
    return bool(getattr(torch.cpu, question, bool)())


def _cpu_multiplies_bfloat16() -> bool:
    """True where the CPU has bfloat16 matrix products; emulated ones are slower than float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:  # in older torch
        avx512 = cpu_has("_is_amx_tile_supported") or cpu_has("_is_avx512_bf16_supported")
        return avx512 and uses_avx512()
    found = capabilities()
    avx512 = found.get("amx_bf16") or found.get("avx512_bf16")
    return bool(found.get("bf16") or (avx512 and uses_avx512()))


def device_kind(device: torch.device) -> str:
    """The device as far as an image's bytes depend on it: `cpu`, or a GPU's name, capability and
    multiprocessors, and the versions of the libraries that choose its kernels.
    """
    if device.type != "cuda":
        return device.type
    card = torch.cuda.get_device_properties(device)
    return (
        f"cuda: {card.name}, capability {card.major}.{card.minor}, "
        f"{card.multi_processor_count} multiprocessors, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )


def own_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory that others do not hold: this process's and free ones; of the
    machine's, for a CPU.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def use_device(device: torch.device) -> None:
    """Makes the device that of the calling thread: libraries allocate on it where nothing else is
    said.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def release_memory(device: torch.device) -> None:
    """Gives back what the allocator keeps for later; to be called after it ran out."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
