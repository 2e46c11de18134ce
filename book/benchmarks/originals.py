"""The published search of LASS and LQ-VAE, re-written to be read, for the benchmarks to compare with.

What is kept of the originals is how they compute: one mixture at a time, one prior after the other, keys and values joined to the cache of each
layer at every step, the posterior over all pairs of codes (LQ-VAE) or over all counted pairs (LASS) made and drawn from for every
particle. The weights are this library's, so all of it gives what the library gives. Where the originals leave a choice, the faster one is
taken; each place says so.

Sources: Mancusi et al. 2021 (arXiv 2110.05313), github.com/michelemancusi/LQVAE-separation; Postolache et al. 2023 (arXiv 2301.08562),
github.com/gladia-research-group/latent-autoregressive-source-separation; the attention of both is that of Jukebox (arXiv 2005.00341).
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridsep.core.device import physical_memory
from hybridsep.core.errors import HybridsepError
from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.likelihood import Likelihood
from hybridsep.models.prior import Block, Prior, norm, rotary_angles, rotate

SLICES_KEPT = 512
DENSE_TENSORS = 5  # of N · K · K numbers that one step holds at once


class Posterior(Protocol):
    """p(i, j) ∝ p1(i) p2(j) l(m|i,j) of one mixture code, drawn from as an original does."""

    def draw(self, mixture: int, log_first: Tensor, log_second: Tensor, generator: torch.Generator) -> Tensor:
        """Draw codes int64 [2, N] from log-probabilities [N, K] under both priors."""


class DensePosterior:
    """LQ-VAE's step: the logarithm of every one of the N · K · K probabilities, normalised, and one draw from K · K categories per particle.

    The original also measures the distance of all K · K means to the mixture's vector at every step; here l(m|·,·) is looked up.
    """

    def __init__(self, likelihood: Likelihood):
        self.likelihood, self.codes = likelihood, likelihood.codes

    def draw(self, mixture: int, log_first: Tensor, log_second: Tensor, generator: torch.Generator) -> Tensor:
        """See Posterior.

        Raises:
            HybridsepError: the machine's memory does not hold it.
        """
        _check_memory(len(log_first), self.codes)
        log_prior = log_first[:, :, None] + log_second[:, None, :]
        log_posterior = self.likelihood.matrix(mixture).log() + log_prior
        pair = draw_category(log_posterior.flatten(1), generator)
        return torch.stack([pair // self.codes, pair % self.codes])


class SparsePosterior:
    """LASS's step: the pairs ever counted with the mixture code, as coordinates and logarithms, and one draw among them per particle.

    No smoothing. For a mixture code never counted the original stops with an error; here, so that timing can go on, all pairs (i, i) are equal.
    """

    def __init__(self, likelihood: CountLikelihood):
        self.codes = likelihood.codes
        totals = torch.zeros(self.codes**2, device=likelihood.keys.device).index_add_(
            0, likelihood.pairs, likelihood.counts.float()
        )
        self.log_values = likelihood.power * (likelihood.counts / totals[likelihood.pairs]).log()
        self.pairs, self.starts = likelihood.pairs, likelihood.row_starts.tolist()
        self.slice = lru_cache(SLICES_KEPT)(self._slice)

    def draw(self, mixture: int, log_first: Tensor, log_second: Tensor, generator: torch.Generator) -> Tensor:
        """See Posterior."""
        coordinates, _ = self.slice(mixture)
        chosen = draw_category(self.scores(mixture, log_first, log_second), generator)
        return coordinates[:, chosen]

    def scores(self, mixture: int, log_first: Tensor, log_second: Tensor) -> Tensor:
        """Return log p1(i) + log p2(j) + log l(m|i,j) of every counted pair: [N, pairs]."""
        (first, second), log_values = self.slice(mixture)
        return log_values + log_first[:, first] + log_second[:, second]

    def counted(self, mixture: int) -> bool:
        """Tell whether the mixture code was ever counted."""
        return self.starts[mixture + 1] > self.starts[mixture]

    def _slice(self, mixture: int) -> tuple[Tensor, Tensor]:
        """Return coordinates int64 [2, pairs] and log-values [pairs]."""
        if not self.counted(mixture):
            diagonal = torch.arange(self.codes, device=self.pairs.device)
            return torch.stack([diagonal, diagonal]), torch.zeros(self.codes, device=self.pairs.device)
        inside = slice(self.starts[mixture], self.starts[mixture + 1])
        pairs = self.pairs[inside]
        return torch.stack([pairs // self.codes, pairs % self.codes]), self.log_values[inside]


def _check_memory(particles: int, codes: int) -> None:
    needed = DENSE_TENSORS * 4 * particles * codes**2
    if needed > physical_memory():
        raise HybridsepError(
            f"the dense posterior of {particles} particles and {codes} codes takes {needed / 2**30:.0f} GiB: choose fewer of either"
        )


def draw_category(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one category per row of [N, C], by the steps of `torch.distributions.Categorical(logits=logits).sample()`, its checks left out."""
    normalised = logits - logits.logsumexp(-1, keepdim=True)
    return torch.multinomial(normalised.softmax(-1), 1, True, generator=generator)[:, 0]


class GrowingPrior:
    """One prior with a cache that grows by `torch.cat` in every layer at every step and is cut to the window, as Jukebox's is.

    Args:
        prior: a trained Prior.
        every_head: keep keys and values of every head, as Jukebox's attention does. Without it those that heads of this library's priors share
            are kept once: faster than any original.
        cut: drop what no position looks back at any more; without it everything is kept, and attention sees the last `window` of it.
        dtype: of weights, products and cache.
    """

    def __init__(self, prior: Prior, every_head: bool = True, cut: bool = True, dtype: torch.dtype = torch.float32):
        self.prior = copy.deepcopy(prior).to(dtype)
        self.settings, self.codes, self.every_head, self.cut = prior.settings, prior.codes, every_head, cut
        self.cache: list[tuple[Tensor, Tensor] | None] = [None] * self.settings.layers
        self.length = 0

    @torch.no_grad()
    def log_probs(self, codes: Tensor | None, particles: int = 1) -> Tensor:
        """Return log-probabilities of the next code after `codes` int64 [N], or after nothing for N = `particles`: float32 [N, K], nats."""
        if codes is None:
            codes = torch.full((particles,), self.codes, dtype=torch.long, device=self.prior.head.weight.device)
        rotation = rotary_angles(torch.arange(self.length, self.length + 1, device=codes.device), self.settings)
        self.length += 1
        x = self.prior.embedding(codes)[:, None]
        for layer, block in enumerate(self.prior.blocks):
            x = x + self._attend(layer, block, norm(x), rotation)
            x = x + block.contract(F.relu(block.expand(norm(x))).square())
        return self.prior.head(norm(x))[:, 0].float().log_softmax(-1)

    def reorder(self, rows: Tensor) -> None:
        """Let row n go on from the history of row rows[n]."""
        self.cache = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.cache]

    def _attend(self, layer: int, block: Block, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        attention, window = block.attention, self.settings.window
        shared = self.settings.heads // self.settings.kv_heads
        parts = attention.project_in(x).unflatten(2, (-1, attention.head_width)).transpose(1, 2)
        query, key, value = parts.split([self.settings.heads, self.settings.kv_heads, self.settings.kv_heads], 1)
        query, key = rotate(query, rotation), rotate(key, rotation)
        if self.every_head:
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        else:
            query = query.reshape(len(x), -1, shared, attention.head_width)
        keys, values = self._grow(layer, key, value)
        scores = query @ keys[:, :, -window:].transpose(2, 3) * attention.head_width**-0.5
        mixed = scores.softmax(-1) @ values[:, :, -window:]
        return attention.project_out(mixed.reshape(x.shape))

    def _grow(self, layer: int, *fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Join the keys and values of a position [N, heads, 1, D] to a layer's cache and return it, [N, heads, T, D] each."""
        grown = fresh
        if self.cache[layer] is not None:
            grown = tuple(torch.cat(parts, 2) for parts in zip(self.cache[layer], fresh, strict=True))
        if self.cut:
            grown = tuple(part[:, :, -self.settings.window :] for part in grown)
        self.cache[layer] = grown
        return grown


def sample(
    priors: list[GrowingPrior], posterior: Posterior, mixture: Tensor, particles: int, generator: torch.Generator
) -> Tensor:
    """Sample ancestrally, as both originals do.

    Args:
        priors: one per source, fresh.
        posterior: of the one-step posterior.
        mixture: codes of one mixture, int64 [S].
        particles: N.

    Returns:
        int64 [2, N, S].
    """
    drawn, pair = [], (None, None)
    for code in mixture.tolist():
        log_first, log_second = (prior.log_probs(codes, particles) for prior, codes in zip(priors, pair, strict=True))
        pair = posterior.draw(code, log_first, log_second, generator)
        drawn.append(pair)
    return torch.stack(drawn, -1)


def beam(priors: list[GrowingPrior], posterior: SparsePosterior, mixture: Tensor, beams: int) -> tuple[Tensor, Tensor]:
    """Search by LASS's beam: keep the best of all hypotheses times all counted pairs, then every cache put in their order.

    The published code looks up the scores of the kept hypotheses a second time by their parents, which mixes them up; that is not repeated.

    Returns:
        Codes int64 [2, hypotheses, S] and their log joint probabilities [hypotheses], best first; at most `beams` hypotheses.
    """
    scores = torch.zeros(1, 1, device=mixture.device)
    found = torch.zeros(2, 1, 0, dtype=torch.long, device=mixture.device)
    pair = (None, None)
    for code in mixture.tolist():
        log_first, log_second = (prior.log_probs(codes) for prior, codes in zip(priors, pair, strict=True))
        extended = scores + posterior.scores(code, log_first, log_second)
        best, index = extended.flatten().topk(min(beams, extended.numel()))
        parents, choice = index // extended.shape[1], index % extended.shape[1]
        coordinates, _ = posterior.slice(code)
        scores, pair = best[:, None], coordinates[:, choice]
        found = torch.cat([found[:, parents], pair[:, :, None]], 2)
        for prior in priors:
            prior.reorder(parents)
    return found, scores[:, 0]
