"""The VQ-VAE: residual dilated convolutions around a codebook, and the linear loss of LQ-VAE.

Sources: van den Oord et al. 2017 (arXiv 1711.00937) for the model, Dhariwal et al. 2020 (arXiv 2005.00341) for the shape
and the exponential-moving-average codebook, Mancusi et al. 2021 (arXiv 2110.05313) for L_lin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridsep.core.distributed import mean_over_ranks
from hybridsep.core.profiles import VQVAESettings
from hybridsep.kernels.nearest import nearest_code

LONGEST = 2**21  # samples that are encoded at once: five minutes would take 2 GB


@dataclass(frozen=True)
class Quantised:
    """What the bottleneck makes of a latent."""

    codes: Tensor  # int64 [B, S]
    values: Tensor  # codebook vectors [B, S, D]; gradients pass straight through to the latent
    commit_loss: Tensor  # mean squared distance between latent and codebook vector, scalar


class ResidualBlock(nn.Module):
    """x + conv1(relu(dilated conv3(relu(x)))), length preserved."""

    def __init__(self, width: int, dilation: int, scale: float):
        super().__init__()
        self.dilated = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(width, width, 1)
        with torch.no_grad():
            self.pointwise.weight.mul_(scale)
            self.pointwise.get_parameter("bias").zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        return x + self.pointwise(F.relu(self.dilated(F.relu(x))))


def _residual_stack(width: int, depth: int, growth: int) -> nn.Sequential:
    scale = 1.0 / math.sqrt(depth)
    return nn.Sequential(*(ResidualBlock(width, growth**i, scale) for i in range(depth)))


class Encoder(nn.Module):
    """Waveform [B, 1, T] -> latent [B, D, T / hop] of unit mean square.

    One number for all latents keeps their scale: without it L_lin and the commitment loss could be lowered by shrinking the latent,
    which makes nothing more linear. Batches give the number in training, their moving average (buffer `scale`) afterwards.
    """

    scale: Tensor

    def __init__(self, settings: VQVAESettings):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stride, width in zip(settings.strides, settings.widths, strict=True):
            layers.append(nn.Conv1d(channels, width, 2 * stride, stride, padding=stride // 2))
            layers.append(_residual_stack(width, settings.encoder_depth, settings.dilation_growth))
            channels = width
        layers.append(nn.Conv1d(channels, settings.latent_width, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        self.decay = settings.ema_decay
        self.register_buffer("scale", torch.ones(()))

    def forward(self, waveform: Tensor) -> Tensor:
        """[B, 1, T] -> [B, D, S]."""
        latent = self.layers(waveform).float()
        if not self.training:
            return latent / self.scale
        scale = mean_over_ranks(latent.square().mean()).sqrt() + 1e-6
        with torch.no_grad():
            self.scale.lerp_(scale, 1 - self.decay)
        return latent / scale

    @property
    def reach(self) -> int:
        """How many codes before and after its own sound a code can depend on, at most."""
        reach, hop = 0, 1
        for layer in reversed(self.layers):
            if isinstance(layer, nn.Conv1d):
                reach, hop = reach * layer.stride[0] + layer.kernel_size[0], hop * layer.stride[0]
            elif isinstance(layer, nn.Sequential):
                reach += sum(block.dilated.dilation[0] for block in layer if isinstance(block, ResidualBlock))
        return -(-reach // hop)


class Decoder(nn.Module):
    """Latent [B, D, S] -> waveform [B, 1, S * hop]."""

    def __init__(self, settings: VQVAESettings):
        super().__init__()
        widths = settings.widths[::-1]
        layers: list[nn.Module] = [nn.Conv1d(settings.latent_width, widths[0], 3, padding=1)]
        outputs = (*widths[1:], 1)
        for stride, width, output in zip(settings.strides[::-1], widths, outputs, strict=True):
            layers.append(_residual_stack(width, settings.decoder_depth, settings.dilation_growth))
            layers.append(nn.ConvTranspose1d(width, output, 2 * stride, stride, padding=stride // 2))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """[B, D, S] -> [B, 1, S * hop]."""
        return self.layers(latent)

    @property
    def reach(self) -> int:
        """How many codes before and after its own a sample can depend on, at most."""
        reach = 0
        for layer in reversed(self.layers):
            if isinstance(layer, nn.ConvTranspose1d):
                reach = -(-(reach + layer.kernel_size[0]) // layer.stride[0])
            elif isinstance(layer, nn.Conv1d):
                reach += layer.kernel_size[0] // 2
            elif isinstance(layer, nn.Sequential):
                reach += sum(block.dilated.dilation[0] for block in layer if isinstance(block, ResidualBlock))
        return reach


class Bottleneck(nn.Module):
    """A codebook learnt by exponential moving averages; codes that die are re-seeded from the encoder's output.

    Buffers: `codebook` [K, D], `usage` [K] and `sums` [K, D], the moving averages. Source: Dhariwal et al. 2020, app. B.
    """

    codebook: Tensor
    usage: Tensor
    sums: Tensor

    def __init__(self, codes: int, width: int, decay: float, dead_share: float):
        super().__init__()
        self.decay = decay
        self.dead_share = dead_share
        self.register_buffer("codebook", torch.zeros(codes, width))
        self.register_buffer("usage", torch.ones(codes))
        self.register_buffer("sums", torch.zeros(codes, width))

    def quantise(self, latent: Tensor) -> Tensor:
        """Replace vectors by their nearest codebook vectors, [..., D] -> [..., D]: B of the papers."""
        return self.codebook[self.assign(latent)]

    def assign(self, latent: Tensor) -> Tensor:
        """Return the index of the nearest codebook vector: [..., D] -> int64 [...]."""
        flat = latent.reshape(-1, latent.shape[-1]).float()
        return nearest_code(flat, self.codebook).view(latent.shape[:-1])

    def forward(self, latent: Tensor) -> Quantised:
        """[B, S, D] -> Quantised."""
        codes = self.assign(latent.detach())
        vectors = self.codebook[codes]
        straight_through = latent + (vectors - latent).detach()
        return Quantised(codes, straight_through, F.mse_loss(latent, vectors))

    @torch.no_grad()
    def start_from(self, latent: Tensor, generator: torch.Generator) -> None:
        """Set every code to a vector of `latent` [N, D], far ones first likelier: k-means++ (Arthur & Vassilvitskii 2007)."""
        latent = latent.float().cpu()
        chosen = [int(torch.randint(len(latent), (), generator=generator))]
        distance = torch.full((len(latent),), float("inf"), device=latent.device)
        for _ in range(len(self.codebook) - 1):
            distance = torch.minimum(distance, (latent - latent[chosen[-1]]).square().sum(1))
            chosen.append(int(torch.multinomial(distance + 1e-9, 1, generator=generator)))
        self.codebook.copy_(latent[chosen])
        self.sums.copy_(self.codebook)
        self.usage.fill_(1.0)

    @torch.no_grad()
    def update(self, latent: Tensor, codes: Tensor, generator: torch.Generator) -> float:
        """Move the averages by one step over `latent` [N, D] assigned to `codes` [N], re-seed dead codes, and return the perplexity, in codes."""
        latent = latent.float()
        counts = torch.bincount(codes, minlength=len(self.codebook)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, latent)
        self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        dead = self.usage < self.dead_share * self.usage.mean()
        if dead.any():
            # Where the error is large a code is missing; uniform picks would mostly land on silence, which has its code.
            error = (latent - self.codebook[codes]).square().sum(1).sqrt().cpu() + 1e-9
            chosen = torch.multinomial(error, int(dead.sum()), replacement=True, generator=generator)
            self.sums[dead] = latent[chosen.to(latent.device)] * self.usage.mean()
            self.usage[dead] = self.usage.mean()
        self.codebook.copy_(self.sums / self.usage.clamp_min(1e-8)[:, None])
        share = counts / counts.sum()
        return float(torch.exp(-(share * (share + 1e-10).log()).sum()))


class VQVAE(nn.Module):
    """Encoder, bottleneck and decoder. Waveforms [B, T] at the model's rate, codes int64 [B, T / hop]."""

    def __init__(self, settings: VQVAESettings):
        super().__init__()
        self.settings = settings
        self.hop = settings.hop
        self.encoder = Encoder(settings)
        self.bottleneck = Bottleneck(settings.codes, settings.latent_width, settings.ema_decay, settings.dead_share)
        self.decoder = Decoder(settings)

    @property
    def codebook(self) -> Tensor:
        """Codebook vectors [K, D]."""
        return self.bottleneck.codebook

    def latent(self, waveform: Tensor) -> Tensor:
        """Encode a waveform [B, T] into its latent before quantisation, [B, T / hop, D]; ValueError: T is no multiple of the hop."""
        if waveform.shape[-1] % self.hop or not waveform.shape[-1]:
            raise ValueError(f"{waveform.shape[-1]} samples are no positive multiple of the hop of {self.hop}")
        return self.encoder(waveform[:, None]).transpose(1, 2)

    def generate(self, values: Tensor) -> Tensor:
        """Decode latent vectors [B, S, D] into a waveform [B, S * hop]."""
        return self.decoder(values.transpose(1, 2))[:, 0]

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Encode waveforms [B, T] into codes int64 [B, T / hop]; long ones in pieces, each with the codes around it that its own depend on."""
        step, reach, parts = LONGEST // self.hop, self.encoder.reach, []
        for first in range(0, max(1, waveform.shape[-1] // self.hop), step):
            begin = max(0, first - reach)
            latent = self.latent(waveform[:, begin * self.hop : (first + step + reach) * self.hop])
            parts.append(self.bottleneck.assign(latent[:, first - begin : first - begin + step]))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes int64 [B, S] into a waveform [B, S * hop]."""
        return self.generate(self.codebook[codes])
