"""Where and in which precision to compute: chosen at run time, reproducible on one machine."""

import contextlib
import os
from collections.abc import Callable
from typing import TypeVar

import torch

Module = TypeVar("Module", bound=torch.nn.Module)


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """Return the dtype of matrix products; "auto" is float16 on CUDA, bfloat16 on CPUs with AVX512-BF16 or AMX, else the faster float32."""
    if precision == "auto" and device.type == "cuda":
        return torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and native) else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "float32"."""
    return str(dtype).removeprefix("torch.")


def lowered(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Matrix products and convolutions in `dtype` inside a `with`; nothing changes where that is float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def seeded_generator(*parts: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on every part, such as (seed, step)."""
    seed = 0
    for part in parts:
        seed = (seed * 6364136223846793005 + int(part) + 1442695040888963407) % (2**63)
    return torch.Generator(device=device).manual_seed(seed)


def initialised(build: Callable[[], Module], seed: int) -> Module:
    """Build a module whose initial weights follow from `seed`, and leave torch's own random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def physical_memory() -> int:
    """Bytes of main memory; 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**33
