"""The losses of the VQ-VAE: L_lin of LQ-VAE, the spectral loss of Jukebox, the error in the waveform."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear_loss(sums: Tensor, mixture: Tensor) -> Tensor:
    """Return L_lin, the mean ‖ B(½ q1 + ½ q2) − q_m ‖² over positions, the squared norm averaged over the latent's width, float32 [B, S, D].

    Source: Mancusi et al. 2021 (arXiv 2110.05313), sec. 3.2.
    """
    return F.mse_loss(sums, mixture)


class SpectralLoss(nn.Module):
    """Multi-resolution spectral convergence: ‖|S| − |Ŝ|‖ / ‖S‖ over magnitudes of several STFTs.

    Source: Dhariwal et al. 2020, sec. 3.2; the normalisation is that of Yamamoto et al. 2020 (arXiv 1910.11480), eq. 6.
    """

    def __init__(self, sizes: tuple[int, ...] = (2048, 512, 128)):
        super().__init__()
        self.sizes = sizes
        for size in sizes:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Compare waveforms [B, T]: scalar, mean over examples and resolutions."""
        total = estimate.new_zeros(())
        for size in self.sizes:
            target_spectrum, estimate_spectrum = self._magnitude(target, size), self._magnitude(estimate, size)
            difference = (target_spectrum - estimate_spectrum).pow(2).sum((1, 2)).add(1e-8).sqrt()
            convergence = difference / (target_spectrum.pow(2).sum((1, 2)).sqrt() + 1.0)
            total = total + convergence.mean()
        return total / len(self.sizes)

    def _magnitude(self, waveform: Tensor, size: int) -> Tensor:
        window = getattr(self, f"window_{size}")
        spectrum = torch.stft(waveform, size, size // 4, window=window, return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()


def normalised_error(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the mean over examples [B, T] of ‖x − x̂‖² / (‖x‖² + floor), the inverse of the SDR as a power ratio: scalar."""
    floor = 1e-4 * target.shape[-1]
    return ((estimate - target).square().sum(-1) / (target.square().sum(-1) + floor)).mean()
