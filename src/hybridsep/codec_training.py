"""What one training step of the VQ-VAE is, for both kinds."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridsep.data.stems import StemSet, mix
from hybridsep.profiles import VQVAESettings
from hybridsep.training import StepResult
from hybridsep.vqvae import VQVAE, SpectralLoss, linear_loss, normalised_error


class VQVAETask:
    """Reconstruct sources and their mixtures; kind `linear` also asks the quantised sum to be the quantised mixture.

    Args:
        linear_weight: weight of L_lin, 0 for kind `plain`.
        dtype: of the convolutions; the losses and the codebook stay in float32.
    """

    def __init__(self, module: VQVAE, stems: StemSet, linear_weight: float, dtype: torch.dtype):
        self.module = module
        self.stems = stems
        self.linear_weight = linear_weight
        self.dtype = dtype
        self.settings: VQVAESettings = module.settings
        self.first_quantised = max(1, round(self.settings.unquantised_share * self.settings.training.steps))
        device = module.codebook.device
        self.spectral = SpectralLoss().to(device)
        self.device = device
        self._latent: Tensor | None = None
        self._codes: Tensor | None = None
        self._perplexity: float | None = None

    def step(self, number: int, generator: torch.Generator) -> StepResult:
        """Loss on a batch of n crops of each source and their n mixtures."""
        settings = self.settings
        sources = self.stems.random_pairs(settings.training.batch, settings.crop_samples, generator)
        waveform = torch.cat([*sources, mix(sources)]).to(self.device)
        lowered = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=lowered):
            latent = self.module.latent(waveform)
        latent = latent.float()
        quantised = number >= self.first_quantised
        figures: dict[str, float] = {}
        loss = latent.new_zeros(())
        values = latent
        if quantised:
            bottleneck = self.module.bottleneck(latent)
            values = bottleneck.values
            loss = loss + settings.commit_weight * bottleneck.commit_loss
            self._codes = bottleneck.codes.flatten()
            first, second, mixture = values.chunk(3)
            linear = linear_loss(self.module.bottleneck, first, second, mixture)
            figures |= {"commit": bottleneck.commit_loss.item(), "linear": linear.item()}
            if self.linear_weight:
                loss = loss + self.linear_weight * linear
        self._latent = latent.detach().flatten(0, 1)
        with torch.autocast(self.device.type, self.dtype, enabled=lowered):
            estimate = self.module.generate(values)
        estimate = estimate.float()
        error = normalised_error(estimate, waveform)
        spectral = self.spectral(estimate, waveform)
        loss = loss + settings.l2_weight * error + settings.stft_weight * spectral
        if self._perplexity is not None:
            figures["perplexity"] = self._perplexity
        return StepResult(loss, {"loss": loss.item(), "error": error.item(), "spectral": spectral.item(), **figures})

    def after_step(self, number: int, generator: torch.Generator) -> None:
        """Start the codebook from the encoder's output, then keep its moving averages."""
        if number == self.first_quantised - 1:
            self.module.bottleneck.start_from(self._latent, generator)
        elif number >= self.first_quantised:
            self._perplexity = self.module.bottleneck.update(self._latent, self._codes, generator)
