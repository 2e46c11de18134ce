"""The prior of one source: a decoder-only transformer over its codes. Search decodes with several stacked, `inference.decoder.PriorStack`.

Sources: Dhariwal et al. 2020 (arXiv 2005.00341) for autoregressive priors over codes, Su et al. 2021 (arXiv 2104.09864) for
rotary positions, Shazeer 2019 (arXiv 1911.02150) for shared keys and values, So et al. 2021 (arXiv 2109.08668) for squared ReLU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridsep.core.profiles import PriorSettings

ROTARY_BASE = 10_000.0


class Attention(nn.Module):
    """Causal self-attention that looks back over the last `window` positions, itself included."""

    def __init__(self, settings: PriorSettings):
        super().__init__()
        self.heads, self.kv_heads, self.window = settings.heads, settings.kv_heads, settings.window
        self.head_width = settings.width // settings.heads
        self.project_in = nn.Linear(settings.width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=False)
        self.project_out = nn.Linear(settings.width, settings.width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """[B, T, W] -> [B, T, W]; T is a multiple of `window`."""
        batch, length, width = x.shape
        parts = self.project_in(x).view(batch, length, -1, self.head_width).transpose(1, 2)
        query, key, value = parts.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        mixed = windowed_attention(rotate(query, rotation), rotate(key, rotation), value, self.window)
        return self.project_out(mixed.transpose(1, 2).reshape(batch, length, width))


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Let each position attend to the last `window` positions, itself included.

    Blocks of `window` queries see their own block and the one before. Heads that share keys and values are so many more queries of one
    matrix product, which on CPUs is several times faster than the fused attention of short blocks.

    Queries are [B, H, T, D], T a multiple of `window`; keys and values [B, G, T, D], G a divisor of H.
    """
    batch, heads, length, width = query.shape
    groups, blocks, shared = key.shape[1], length // window, heads // key.shape[1]

    def two_blocks(x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, window, 0))[:, :, :length].unflatten(2, (blocks, window))
        return torch.cat([before, x.unflatten(2, (blocks, window))], 3).flatten(0, 2)

    grouped = query.view(batch, groups, shared, blocks, window, width).transpose(2, 3)
    grouped = grouped.reshape(-1, shared * window, width) * width**-0.5
    scores = torch.bmm(grouped, two_blocks(key).transpose(1, 2))
    scores = scores.view(-1, blocks, shared, window, 2 * window) + _window_mask(window, blocks, query)
    mixed = torch.bmm(scores.softmax(-1).view(-1, shared * window, 2 * window), two_blocks(value))
    return mixed.view(batch, groups, blocks, shared, window, width).transpose(2, 3).reshape(batch, heads, length, width)


def _window_mask(window: int, blocks: int, like: Tensor) -> Tensor:
    """0 where a query may look and -inf where not: [blocks, 1, window, 2 * window]."""
    position = torch.arange(2 * window, device=like.device)
    distance = position[:window, None] + window - position
    mask = torch.zeros(blocks, 1, window, 2 * window, dtype=like.dtype, device=like.device)
    mask.masked_fill_((distance < 0) | (distance >= window), -torch.inf)
    mask[0, :, :, :window] = -torch.inf
    return mask


class Block(nn.Module):
    """Attention and a squared-ReLU feed-forward, each behind an RMS norm."""

    def __init__(self, settings: PriorSettings):
        super().__init__()
        self.attention = Attention(settings)
        self.expand = nn.Linear(settings.width, 4 * settings.width, bias=False)
        self.contract = nn.Linear(4 * settings.width, settings.width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        x = x + self.attention(norm(x), rotation)
        return x + self.contract(F.relu(self.expand(norm(x))).square())


class Prior(nn.Module):
    """p(z[t] | z[<t]) of one source. The first position is conditioned on a start token of its own (index K)."""

    def __init__(self, settings: PriorSettings, codes: int):
        super().__init__()
        self.settings = settings
        self.codes = codes
        self.embedding = nn.Embedding(codes + 1, settings.width)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.head = nn.Linear(settings.width, codes, bias=False)
        self._initialise()

    def forward(self, codes: Tensor) -> Tensor:
        """Predict codes int64 [B, T]: logits [B, T, K], of which logits[:, t] predict codes[:, t] from those before it."""
        start = torch.full_like(codes[:, :1], self.codes)
        x = self.embedding(torch.cat([start, codes[:, :-1]], 1))
        length = codes.shape[1]
        x = F.pad(x, (0, 0, 0, -length % self.settings.window))
        rotation = rotary_angles(torch.arange(x.shape[1], device=codes.device), self.settings)
        for block in self.blocks:
            x = block(x, rotation)
        return self.head(norm(x[:, :length]))

    def start_from_codebook(self, codebook: Tensor, generator: torch.Generator) -> None:
        """Give tokens with similar codebook vectors [K, D] similar embeddings, through one random projection."""
        projection = torch.randn(codebook.shape[1], self.settings.width, generator=generator)
        directions = (codebook - codebook.mean(0)) @ projection
        with torch.no_grad():
            self.embedding.weight[: self.codes] = directions / directions.square().mean().sqrt()

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the matrices between embedding and head."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def _initialise(self) -> None:
        depth = (2 * self.settings.layers) ** -0.5
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.zeros_(self.head.weight)
        for name, matrix in self.blocks.named_parameters():
            scale = depth if name.endswith(("project_out.weight", "contract.weight")) else 1.0
            nn.init.normal_(matrix, std=scale * matrix.shape[1] ** -0.5)


@torch.no_grad()
def nats_per_code(prior: Prior, codes: Tensor, batch: int = 8) -> float:
    """Return the mean negative log-likelihood of `codes` int64 [B, T] under `prior`, nats per code."""
    total = [F.cross_entropy(prior(c).flatten(0, 1), c.flatten(), reduction="sum") for c in codes.split(batch)]
    return float(torch.stack(total).sum() / codes.numel())


def norm(x: Tensor) -> Tensor:
    """Apply an RMS norm without a learnt gain over the last axis."""
    return F.rms_norm(x, x.shape[-1:])


def rotary_angles(positions: Tensor, settings: PriorSettings) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotary positions, each [T, head width / 2]."""
    half = settings.width // settings.heads // 2
    frequencies = ROTARY_BASE ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angles = positions.float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of channels of [..., T, D] by the position's angles."""
    cosine, sine = (part.to(x.dtype) for part in rotation)
    left, right = x.chunk(2, -1)
    return torch.cat([left * cosine - right * sine, left * sine + right * cosine], -1)
