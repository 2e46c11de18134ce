"""Processes that work together, as `torchrun --standalone --nproc-per-node 2 -m hybridsep.cli train hybrid` starts them; or one alone."""

import atexit
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hybridsep.core.deadline import OutOfTime
from hybridsep.core.errors import HybridsepError

# One process may prepare songs or score for hours while the others wait for it.
LONGEST_WAIT = timedelta(hours=24)


@dataclass(frozen=True)
class Part:
    """One of `count` equal parts of a batch. The same batch is drawn everywhere, so that no result depends on who computes what."""

    index: int = 0
    count: int = 1

    def of(self, batch: Tensor, axis: int = 0) -> Tensor:
        """Cut this part out of a batch along `axis`, whose length `count` divides."""
        size = batch.shape[axis] // self.count
        return batch if self.count == 1 else batch.narrow(axis, self.index * size, size)


WHOLE = Part()


@dataclass(frozen=True)
class Ranks:
    """This process among `count` that run the same program; `index` from 0."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Return whether this process is the one that writes files and speaks."""
        return self.index == 0

    def parts(self, batch: int, rounds: int) -> list[Part]:
        """List the parts of a batch that this process computes one after the other; HybridsepError: it cannot be cut into so many."""
        count = self.count * rounds
        if batch % count:
            parts = f"{count} equal parts, {rounds} for each of {self.count} processes"
            raise HybridsepError(f"a batch of {batch} cannot be cut into {parts}")
        return [Part(self.index * rounds + turn, count) for turn in range(rounds)]

    def join(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Join every process's tensor, one after the other along `axis`; all of one shape."""
        if self.count == 1:
            return tensor
        # NCCL knows CUDA only.
        local = tensor.contiguous().to("cuda" if dist.get_backend() == "nccl" else "cpu")
        parts = [torch.empty_like(local) for _ in range(self.count)]
        dist.all_gather(parts, local)
        return torch.cat(parts, axis).to(tensor.device)

    def join_uneven(self, tensor: Tensor) -> Tensor:
        """Join tensors of different lengths along the first axis."""
        lengths = self.join(torch.tensor([len(tensor)])).tolist()
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return torch.cat([part[:length] for part, length in zip(self.join(padded[None]), lengths, strict=True)])

    def mean(self, values: Sequence[float]) -> list[float]:
        """Average each number over the processes."""
        return self.join(torch.tensor([values], dtype=torch.float64)).mean(0).tolist()

    def any(self, flag: bool) -> bool:
        """Return whether `flag` holds in one process at least; all wait for each other here."""
        return self.mean([float(flag)])[0] > 0

    def share(self, *tensors: Tensor) -> None:
        """Give every process the first one's values, in place."""
        for tensor in tensors:
            tensor.copy_(self.join(tensor[None])[0])

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.any(False)

    def together(self, calls: Iterable[Callable[[], object]]) -> None:
        """Make this process's own calls and wait for those of the others; OutOfTime in every process where the time is up in any."""
        late = False
        try:
            for call in calls:
                call()
        except OutOfTime:
            late = True
        if self.any(late):
            raise OutOfTime("time is up; what is done is kept. Run the same command again to go on")


ALONE = Ranks()


@functools.lru_cache
def ranks_here() -> Ranks:
    """Read what `torchrun` or `accelerate launch` made of this process, and set its CUDA device."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    atexit.register(dist.destroy_process_group)
    return Ranks(state.process_index, state.num_processes)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes, through which gradients flow back to all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(value) / dist.get_world_size()
