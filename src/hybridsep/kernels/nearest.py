"""Assignment of vectors to their nearest code."""

import inspect

import torch
from torch import Tensor

from hybridsep.kernels.bodies import two_bodies

ROWS_AT_ONCE = 16384
WIDEST = 128  # numbers in a vector up to which a tile of the codebook fits into the shared memory of a Turing GPU


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Find the index of the nearest codebook vector by Euclidean distance, without the whole [rows, K] distance matrix.

    Float32 [rows, D] and [K, D] -> int64 [rows], the lowest index among equals. ValueError: they differ in width, or the codebook is empty.
    """
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1] or not len(codebook):
        raise ValueError(f"vectors {list(vectors.shape)} have no nearest code in a codebook {list(codebook.shape)}")
    return (assign if codebook.shape[1] <= WIDEST else inspect.unwrap(assign))(vectors, codebook)


@two_bodies
def assign(vectors: Tensor, codebook: Tensor) -> Tensor:
    """See nearest_code."""
    half_norms = 0.5 * codebook.square().sum(1)
    parts = [torch.addmm(half_norms, part, codebook.T, alpha=-1.0).argmin(1) for part in vectors.split(ROWS_AT_ONCE)]
    return torch.cat(parts) if parts else vectors.new_zeros(0, dtype=torch.long)
