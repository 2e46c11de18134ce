"""A likelihood drawn as a picture, in the same way for every kind."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.sums import SumLikelihood
from hybridsep.models.vqvae import VQVAE

LARGEST_PICTURE = 256  # pixels along a side; larger codebooks are averaged down to it


def loudness_order(vqvae: VQVAE, repeats: int = 8) -> Tensor:
    """Codes from quiet to loud, by the energy of a short run of each alone: int64 [K]."""
    codes = torch.arange(len(vqvae.codebook), device=vqvae.codebook.device)
    energy = torch.cat([vqvae.decode(part[:, None].expand(-1, repeats)).square().mean(1) for part in codes.split(64)])
    return energy.argsort().cpu()


def likelihood_figure(likelihood: CountLikelihood | SumLikelihood, vqvae: VQVAE, mixture: int) -> Figure:
    """What a pair adds up to, or how often it was counted, beside l(m | i, j) of one mixture code m.

    Args:
        likelihood: of either kind.
        vqvae: whose codes they are; it says how loud each is.
        mixture: the mixture code.
    """
    order = loudness_order(vqvae)
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.9))
    if isinstance(likelihood, CountLikelihood):
        size = likelihood.codes
        counts = torch.zeros(size * size).index_add_(0, likelihood.pairs.cpu(), likelihood.counts.cpu().float())
        left = _reduced(counts.view(size, size)[order][:, order])
        left, title, scale = np.where(left > 0, left, np.nan), "times that a pair was counted", LogNorm()
        axes[0].set_facecolor("white")
    else:
        left = _reduced(order.argsort()[likelihood.sums.cpu().long()][order][:, order].float())
        title, scale = "loudness rank of $c(i,j)$", None
    picture = axes[0].imshow(left, origin="lower", norm=scale, interpolation="nearest")
    axes[0].set(title=title)
    figure.colorbar(picture, ax=axes[0], shrink=0.8)
    values = _reduced(likelihood.matrix(mixture).cpu().float()[order][:, order])
    top = float(values.max())
    shown = {"norm": LogNorm(top * 1e-5, top), "interpolation": "nearest", "cmap": "magma"}
    picture = axes[1].imshow(np.maximum(values, top * 1e-6), origin="lower", **shown)
    axes[1].set(title=f"$l(m \\mid i, j)$ for m = {mixture}")
    figure.colorbar(picture, ax=axes[1], shrink=0.8)
    for axis in axes:
        axis.set(xlabel="second source's code j, quiet to loud", xticks=[], yticks=[])
        axis.grid(False)
    axes[0].set_ylabel("first source's code i, quiet to loud")
    return figure


def _reduced(values: Tensor) -> np.ndarray:
    """A square picture of at most LARGEST_PICTURE pixels a side, by averaging."""
    size = values.shape[0]
    if size <= LARGEST_PICTURE:
        return values.numpy()
    factor = -(-size // LARGEST_PICTURE)
    return torch.nn.functional.avg_pool2d(values[None, None].float(), factor, ceil_mode=True)[0, 0].numpy()
