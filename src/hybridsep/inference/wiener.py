"""Refinement of estimates against the mixture, so that they add up to it."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hybridsep.inference.audio import overlapping

STFT_SIZE = 4096
TRUST = 0.5
WIENER_FRAMES = 64


def wiener(stems: Tensor, mixture: Tensor, size: int = STFT_SIZE, trust: float = TRUST) -> Tensor:
    """Refine estimates by the Wiener filter of each time-frequency cell, with the estimates as prior means; they sum to the mixture then.

    Source p of a cell is taken as Gaussian with mean a·X̂p and variance in proportion to |X̂p|². Given the mixture, its mean is a·X̂p plus
    its share |X̂p|² / Σ|X̂|² of what the means leave of the mixture. With a = 0 that is the classic mask; with a > 0 the phases of the
    estimates count too. Where the estimates say more than the mixture holds, a shrinks with the mixture: its silence stays silent.
    Channels are filtered each by itself; estimates [P, 1, T] are the prior means of all of them, whatever the panning.

    Args:
        stems: estimates, float32 [P, B, T], or [P, 1, T] for all.
        mixture: float32 [B, T]; the mean over sources of what is returned, float32 [P, B, T].
        size: of the STFT window, in samples; the hop is a quarter of it.
        trust: a. Its value, and the window's, were chosen on validation songs.
    """
    if mixture.shape[-1] <= 2 * WIENER_FRAMES * size // 4:
        return _wiener(stems, mixture, size, trust)
    return torch.cat(list(wiener_blocks([stems], [mixture], size, trust)), -1)


def wiener_blocks(
    stems: Iterable[Tensor], mixture: Iterable[Tensor], size: int = STFT_SIZE, trust: float = TRUST
) -> Iterator[Tensor]:
    """Refine estimates [P, B or 1, n] by a mixture [B, n] that come block after block: spectra of an hour would fill the memory.

    Each block is computed with as much to its left and right as its frames reach, on the same grid of frames.
    """
    step = WIENER_FRAMES * size // 4
    estimates, mixtures = overlapping(stems, step, size), overlapping(mixture, step, size)
    for (estimate, own), (heard, _) in zip(estimates, mixtures, strict=True):
        yield _wiener(estimate, heard, size, trust)[..., own]


def _wiener(stems: Tensor, mixture: Tensor, size: int, trust: float) -> Tensor:
    """`wiener` in one piece; its spectra take several times the memory of the waveforms."""
    window = torch.hann_window(size, device=mixture.device)
    length = mixture.shape[-1]
    padded = max(0, size - length)

    def spectrum(x: Tensor) -> Tensor:
        flat = torch.nn.functional.pad(x.flatten(0, -2), (0, padded))
        return torch.stft(flat, size, size // 4, window=window, return_complex=True).unflatten(0, x.shape[:-1])

    estimates, target = spectrum(stems), len(stems) * spectrum(mixture)
    power = estimates.abs().square()
    # Where no estimate has energy the mixture is shared equally.
    masks = (power + 1e-10) / (power + 1e-10).sum(0)
    together = estimates.sum(0)
    weight = trust * (target.abs() / (together.abs() + 1e-10)).clamp_max(1.0)
    refined = weight * estimates + masks * (target - weight * together)
    waveforms = torch.istft(refined.flatten(0, 1), size, size // 4, window=window, length=length + padded)
    return waveforms[:, :length].view(len(stems), *mixture.shape)
