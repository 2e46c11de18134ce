"""What one training step of the VQ-VAE is, for both kinds."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridsep.core.device import lowered
from hybridsep.core.distributed import WHOLE, Part, ranks_here
from hybridsep.core.profiles import VQVAESettings
from hybridsep.data.stems import StemSet, mix
from hybridsep.models.losses import SpectralLoss, linear_loss, normalised_error
from hybridsep.models.vqvae import VQVAE
from hybridsep.training.loop import StepResult

WAVEFORMS = 3  # of one pair: both sources and their mixture


class VQVAETask:
    """The VQ-VAE's step: kind `plain` reconstructs sources and their mixtures, kind `linear` learns as LQ-VAE does.

    `linear` decodes the sources only. Quantised sums ½ q1 + ½ q2 pass through the bottleneck like the latents of sources and mixtures, so that
    the codebook's moving averages follow them; they have a commitment term of their own, the mixtures have none, and L_lin, whose weight is 0
    for `plain`, draws the quantised sum to the quantised mixture. `dtype` is that of the convolutions; losses and codebook stay in float32.
    """

    def __init__(self, module: VQVAE, stems: StemSet, linear_weight: float, dtype: torch.dtype):
        self.module, self.stems, self.linear_weight, self.dtype = module, stems, linear_weight, dtype
        self.settings: VQVAESettings = module.settings
        self.first_quantised = max(1, round(self.settings.unquantised_share * self.settings.training.steps))
        self.device = module.codebook.device
        self.spectral = SpectralLoss().to(self.device)
        # Latents [3, pairs, S, D] and codes [3, pairs, S] of the step, one entry for each part of the batch computed here.
        self._latents: list[Tensor] = []
        self._codes: list[Tensor] = []

    @property
    def audio_seconds(self) -> float:
        """Length of the waveforms of a batch together, in seconds."""
        return self.settings.training.batch * WAVEFORMS * self.settings.crop_samples / self.stems.sample_rate

    def step(self, number: int, generator: torch.Generator, part: Part = WHOLE) -> StepResult:
        """Loss on a part of a batch of n crops of each source and their n mixtures."""
        pairs = self.stems.random_pairs(self.settings.training.batch, self.settings.crop_samples, generator)
        sources, quantised = part.of(pairs, 1), number >= self.first_quantised
        loss, terms = self.loss(torch.cat([*sources, mix(sources)]).to(self.device), quantised)
        figures = {name: value.item() for name, value in {"loss": loss, **terms}.items()}
        return StepResult(loss, figures, int(quantised))

    def loss(self, waveform: Tensor, quantised: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of waveforms [3n, T], n of the first source, n of the second, their n mixtures, and its terms."""
        settings = self.settings
        with lowered(waveform.device, self.dtype):
            latent = self.module.latent(waveform).float()
        heard = [latent.detach()]
        values, loss, terms = latent, latent.new_zeros(()), {}
        if quantised:
            bottleneck = self.module.bottleneck(latent)
            values = bottleneck.values
            first, second, mixture = values.chunk(WAVEFORMS)
            middle = 0.5 * first + 0.5 * second
            sums = self.module.bottleneck(middle)
            linear, commit, codes = linear_loss(sums.values, mixture), bottleneck.commit_loss, [bottleneck.codes]
            if self.linear_weight:
                sources = 2 * len(first)
                commit = F.mse_loss(latent[:sources], values[:sources].detach()) + sums.commit_loss
                loss = loss + self.linear_weight * linear
                heard.append(middle.detach())
                codes.append(sums.codes)
            loss = loss + settings.commit_weight * commit
            terms = {"commit": commit, "linear": linear}
            self._codes.append(_by_pair(codes))
        self._latents.append(_by_pair(heard))
        if self.linear_weight:
            values, waveform = (x[: len(x) // WAVEFORMS * 2] for x in (values, waveform))
        with lowered(waveform.device, self.dtype):
            estimate = self.module.generate(values).float()
        error, spectral = normalised_error(estimate, waveform), self.spectral(estimate, waveform)
        loss = loss + settings.l2_weight * error + settings.stft_weight * spectral
        return loss, {"error": error, "spectral": spectral, **terms}

    def after_step(self, number: int, generator: torch.Generator) -> dict[str, float]:
        """Start the codebook from the encoder's output, then keep its moving averages; the usage of its codes in this step."""
        parts, code_parts = self._latents, self._codes
        self._latents, self._codes = [], []
        if number < self.first_quantised - 1:
            return {}
        bottleneck = self.module.bottleneck
        # Every process sees the whole batch in one order, so that all draw the same codes anew. The first one's word is taken all the
        # same: a GPU adds up in any order.
        ranks, figures = ranks_here(), {}
        latent = ranks.join(torch.cat(parts, 1), 1).flatten(0, 2)
        if number == self.first_quantised - 1:
            bottleneck.start_from(latent, generator)
        else:
            codes = ranks.join(torch.cat(code_parts, 1), 1).flatten()
            used = torch.bincount(codes, minlength=len(bottleneck.codebook)) > 0
            figures["perplexity"] = bottleneck.update(latent, codes, generator)
            figures["used_codes"] = float(used.float().mean())
        ranks.share(bottleneck.codebook, bottleneck.usage, bottleneck.sums)
        return figures


def _by_pair(parts: list[Tensor]) -> Tensor:
    """[3n, ...] and perhaps [n, ...] as [3 or 4, n, ...]."""
    pairs = len(parts[0]) // WAVEFORMS
    return torch.cat([part.unflatten(0, (-1, pairs)) for part in parts])
