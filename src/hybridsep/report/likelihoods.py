"""A likelihood drawn as a picture, in the same way for every kind."""

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


def likelihood_figure(likelihood: CountLikelihood | SumLikelihood, vqvae: VQVAE, mixture: int) -> Figure:
    """Draw what a pair adds up to, or how often it was counted, beside l(m | i, j) of one mixture code m, codes from quiet to loud."""
    codes = torch.arange(len(vqvae.codebook), device=vqvae.codebook.device)
    # By the energy of a short run of each code alone.
    energy = torch.cat([vqvae.decode(part[:, None].expand(-1, 8)).square().mean(1) for part in codes.split(64)])
    order = energy.argsort().cpu()
    if isinstance(likelihood, CountLikelihood):
        counts = torch.zeros(likelihood.codes**2).index_add_(0, likelihood.pairs.cpu(), likelihood.counts.cpu().float())
        left = _reduced(counts.view(likelihood.codes, -1), order)
        left, title, scale = np.where(left > 0, left, np.nan), "times that a pair was counted", LogNorm()
    else:
        left = _reduced(order.argsort()[likelihood.sums.cpu().long()], order)
        title, scale = "loudness rank of $c(i,j)$", None
    values = _reduced(likelihood.matrix(mixture).cpu(), order)
    top = float(values.max())
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.9))
    right = np.maximum(values, top * 1e-6), f"$l(m \\mid i, j)$ for m = {mixture}", LogNorm(top * 1e-5, top), "magma"
    drawn = (left, title, scale, None), right
    for axis, (picture, name, norm, cmap) in zip(axes, drawn, strict=True):
        image = axis.imshow(picture, origin="lower", interpolation="nearest", norm=norm, cmap=cmap)
        figure.colorbar(image, ax=axis, shrink=0.8)
        axis.set(title=name, xlabel="second source's code j, quiet to loud", xticks=[], yticks=[])
        axis.grid(False)
    axes[0].set_ylabel("first source's code i, quiet to loud")
    return figure


def _reduced(values: Tensor, order: Tensor) -> np.ndarray:
    """Return a square picture in an order of the codes, averaged down to at most LARGEST_PICTURE pixels a side."""
    values = values.float()[order][:, order]
    factor = -(-len(values) // LARGEST_PICTURE)
    return torch.nn.functional.avg_pool2d(values[None], factor, ceil_mode=True)[0].numpy()
