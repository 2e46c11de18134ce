"""A check of the kernels that needs no GPU: `python kernel_cases.py 75` compiles every Triton body for one."""

from __future__ import annotations

import sys

import torch
from kernel_references import DEVICE, counted_rows, log_priors, rand, randint, randn, sum_tables
from torch import Tensor


def call_every_triton_body() -> None:
    """With sizes of a real run."""
    from hybridsep.kernels import cache_triton, counts_triton, nearest_triton, sums_triton

    size, particles, batch = 512, 64, 2
    log_p, mixture, ancestors = (
        log_priors(batch, particles, size),
        randint(size, batch),
        randint(particles, batch, particles),
    )
    rows = counted_rows(size, [40])
    for parents in (None, ancestors):
        counts_triton.draw_entries(log_p, mixture, rows, torch.tensor([2**40], device=DEVICE), parents)
    for small in (torch.int16, torch.int32):
        sums, table, share = sum_tables(size, small=small)
        for part in (None, share):
            marginal = sums_triton.log_marginal(log_p, mixture, (sums, table, part))
            sums_triton.draw_pairs(marginal, log_p, mixture, (sums, table, part), rand(2, batch, particles), ancestors)
    for width in (1, 64, 128):
        nearest_triton.assign(randn(100, width), randn(size, width))
    for dtype in (torch.int64, torch.int16):
        cache_triton.move_rows(randint(9, 4, 32, 500).to(dtype), torch.arange(32, device=DEVICE))


def compile_every_triton_body(capability: int) -> dict[str, int]:
    """Compile for a GPU of a compute capability without having one. Returns the most shared memory of each kernel in bytes."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class NoGPU:
        """What the compiler asks of a GPU's driver."""

        get_current_target = staticmethod(lambda: GPUTarget("cuda", capability, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    driver.set_active(NoGPU())
    shared: dict[str, int] = {}
    run = JITFunction.run

    def only_compile(self, *arguments, **options):
        compiled = run(self, *arguments, **{**options, "warmup": True})
        shared[self.__name__] = max(shared.get(self.__name__, 0), compiled.metadata.shared)
        assert compiled.asm["cubin"]

    JITFunction.run = only_compile
    # The bodies choose their tiles by where a tensor lies.
    Tensor.is_cuda = True
    call_every_triton_body()
    return shared


if __name__ == "__main__":
    for kernel, size in compile_every_triton_body(int(sys.argv[1])).items():
        print(f"{kernel} {size}")
