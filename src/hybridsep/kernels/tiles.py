"""What Triton bodies share: sizes of tiles that depend on where they run, and draws by inversion."""

import triton
import triton.language as tl
from torch import Tensor

INTERPRETED_TILE = 2**19  # numbers in a tile of the interpreter


def rows_at_once(rows: int, width: int, tensor: Tensor, on_gpu: int = 1) -> int:
    """Return how many rows of `width` numbers one program takes, a power of two: a GPU pays for idle lanes, the interpreter on a CPU for every program."""
    return on_gpu if tensor.is_cuda else min(max(1, INTERPRETED_TILE // width), triton.next_power_of_2(rows))


def with_dense_rows(tensor: Tensor) -> Tensor:
    """Return the tensor itself where the numbers of a row are neighbours, whatever its other strides, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


@triton.jit
def invert(weights, uniforms, BLOCK: tl.constexpr):
    """See inversion.invert: weights [N, BLOCK], uniforms [N] -> int32 [N]."""
    column = tl.arange(0, BLOCK)[None, :]
    positive = weights > 0
    cumulative = tl.cumsum(weights, 1)
    past = positive & (cumulative > (uniforms * tl.max(cumulative, 1))[:, None])
    first = tl.min(tl.where(past, column, BLOCK), 1)
    last = tl.max(tl.where(positive, column, 0), 1)
    return tl.where(first < BLOCK, first, last)
