"""Audio in, stems out: encode the mixture, search, decode, choose without the ground truth, refine.

All waveforms here are mono at the model's rate, and the mixture is the mean of its sources, y = ½ x1 + ½ x2.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from hybridsep.data.stems import MIXTURE_RMS
from hybridsep.decoding import PriorStack
from hybridsep.device import default_device, fast_dtype, seeded_generator
from hybridsep.errors import HybridsepError
from hybridsep.likelihood import Likelihood, likelihood_from_tensors
from hybridsep.prior import Prior
from hybridsep.profiles import Profile
from hybridsep.search import SEARCHES, Priors, SearchResult
from hybridsep.training import load_weights, write_atomically
from hybridsep.vqvae import VQVAE

STFT_SIZE = 2048
WIENER_FRAMES = 256
ENCODED_ROWS = 8
DECODED_CODES = 4096
STRETCH = 128


@dataclass(frozen=True)
class Candidates:
    """Everything a search left to choose from, for B mixtures.

    Attributes:
        mixture: float32 [B, T].
        waveforms: decoded sources of every particle, float32 [2, B, N, T].
        search: codes and weights.
        seconds: wall time of encoding, search and decoding together.
    """

    mixture: Tensor
    waveforms: Tensor
    search: SearchResult
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Stems by the posterior mean.

    Attributes:
        mixture: float32 [B, T].
        stems: float32 [2, B, T].
        search: codes and weights.
    """

    mixture: Tensor
    stems: Tensor
    search: SearchResult


class Separator:
    """A trained method: VQ-VAE, one prior per source, likelihood."""

    def __init__(self, vqvae: VQVAE, priors: list[Prior], likelihood: Likelihood, profile: Profile):
        self.vqvae, self.priors, self.likelihood, self.profile = vqvae.eval(), priors, likelihood, profile
        self.device = vqvae.codebook.device
        self._reach = vqvae.decoder.reach
        dtype = fast_dtype(self.device, profile.precision)
        self.stack = PriorStack(priors, dtype)
        if dtype == torch.bfloat16:
            likelihood.precision = dtype

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.profile.data.sample_rate

    @property
    def hop(self) -> int:
        """Samples per code."""
        return self.vqvae.hop

    @torch.no_grad()
    def candidates(
        self, mixture: Tensor, search: str = "particle", particles: int | None = None, seed: int = 0, label: str | None = None
    ) -> Candidates:
        """Search the codes of a batch of mixtures and decode every particle.

        Args:
            mixture: float32 [B, T] at the model's rate; T is cut to a multiple of the hop.
            search: "particle", "ancestral", "topk" or "beam".
            particles: N; the profile's when not given.
            seed: same seed, same machine, same stems.
            label: of the progress bar; none without it.

        Raises:
            HybridsepError: unknown search, no particles, or a mixture shorter than one code.
        """
        started = time.perf_counter()
        mixture, level, result = self._search(mixture, search, particles, seed, label)
        waveforms = self.decode(result.codes) / level[:, None]
        return Candidates(mixture, waveforms, result, time.perf_counter() - started)

    @torch.no_grad()
    def estimate(
        self, mixture: Tensor, search: str = "particle", particles: int | None = None, seed: int = 0, label: str | None = None
    ) -> Estimate:
        """The posterior mean of `candidates`, in the memory of one waveform per source instead of N. Arguments as there."""
        mixture, level, result = self._search(mixture, search, particles, seed, label)
        stems = self.decode(result.codes, result.log_weights.softmax(-1)) / level
        return Estimate(mixture, stems, result)

    def _search(
        self, mixture: Tensor, search: str, particles: int | None, seed: int, label: str | None
    ) -> tuple[Tensor, Tensor, SearchResult]:
        """The mixture as it is heard [B, T], the factor that brings it to the model's level [B, 1], and what a search finds."""
        if search not in SEARCHES:
            raise HybridsepError(f"unknown search '{search}': choose one of {', '.join(SEARCHES)}")
        particles = self.profile.search.particles if particles is None else particles
        if particles < 1:
            raise HybridsepError(f"{particles} particles: at least 1 is needed")
        length = mixture.shape[-1] // self.vqvae.hop * self.vqvae.hop
        if not length:
            raise HybridsepError(f"{mixture.shape[-1]} samples are less than one code of {self.vqvae.hop}")
        mixture = mixture[:, :length].to(self.device)
        level = MIXTURE_RMS / mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        codes = torch.cat([self.vqvae.encode(part) for part in (mixture * level).split(ENCODED_ROWS)])
        return mixture, level, self.search_codes(codes, search, particles, seed, label)

    def search_codes(self, codes: Tensor, search: str, particles: int, seed: int, label: str | None = None) -> SearchResult:
        """Search mixture codes int64 [B, S], in slices of at most `max_rows` particles."""
        settings = self.profile.search
        extra = {"particle": {"ess_threshold": settings.ess_threshold}, "topk": {"k": settings.top_k}}.get(search, {})
        slice_size = max(1, settings.max_rows // particles)
        parts = []
        slices = codes.split(slice_size)
        with tqdm(total=len(slices) * codes.shape[1], desc=label, unit="step", disable=label is None) as bar:
            for index, part in enumerate(slices):
                generator = seeded_generator(seed, index)
                parts.append(SEARCHES[search](self.stack, self.likelihood, part, particles, generator, bar.update, **extra))
        joined = (torch.cat([getattr(p, name) for p in parts], axis) for name, axis in _BATCH_AXES.items())
        return SearchResult(*joined)

    @torch.no_grad()
    def decode(self, codes: Tensor, weights: Tensor | None = None) -> Tensor:
        """Waveforms of sequences of codes, or their weighted sum over particles; what several sequences share is decoded once.

        Particles have most of their past in common. So the sequences are cut into stretches, each with as many codes to its left and right
        as its samples can depend on, and equal stretches are decoded once.

        Args:
            codes: int64 [..., S]; with weights [P, B, N, S].
            weights: float32 [B, N].

        Returns:
            float32 [..., S * hop]; with weights [P, B, S * hop].
        """
        flat, length, hop = codes.flatten(0, -2), codes.shape[-1], self.vqvae.hop
        mixing = None if weights is None else weights.expand(codes.shape[:-1])
        shape = codes.shape[:-1] if weights is None else codes.shape[:2]
        waveforms = torch.empty(shape.numel(), length * hop, device=self.device)
        for start, count, before, distinct, inverse in self._stretches(flat):
            inside = slice(before * hop, (before + count) * hop)
            rows = max(1, DECODED_CODES // distinct.shape[1])
            decoded = torch.cat([self.vqvae.decode(part)[:, inside] for part in distinct.split(rows)])
            out = waveforms[:, start * hop : (start + count) * hop]
            if mixing is None:
                torch.index_select(decoded, 0, inverse, out=out)
            else:
                out.copy_(_share_of_each(mixing, inverse, len(decoded)) @ decoded)
        return waveforms.view(*shape, -1)

    def _stretches(self, flat: Tensor) -> list[tuple[int, int, int, Tensor, Tensor]]:
        """How to decode [R, S]: first code and count of each stretch, codes of context before it, the distinct [U, ...] and which row is which."""
        length, parts = flat.shape[1], []
        for start in range(0, length, STRETCH):
            first, count = max(0, start - self._reach), min(STRETCH, length - start)
            parts.append((start, count, start - first, *flat[:, first : start + count + self._reach].unique(dim=0, return_inverse=True)))
        whole = (0, length, 0, *flat.unique(dim=0, return_inverse=True))
        return parts if sum(p[3].numel() for p in parts) < whole[3].numel() else [whole]

    def separate(self, mixture: Tensor, search: str = "particle", particles: int | None = None, seed: int = 0, refine: bool = True) -> Tensor:
        """Stems of a batch of mixtures: float32 [B, T] -> [2, B, T], by the mean of the particles and, with `refine`, Wiener masks."""
        found = self.estimate(mixture, search, particles, seed)
        return wiener(found.stems, found.mixture) if refine else found.stems

    def with_priors(self, priors: Priors) -> Separator:
        """The same model searching with other priors."""
        other = copy.copy(self)
        other.stack = priors
        return other

    def save(self, folder: Path) -> None:
        """Write weights as safetensors and settings as JSON; `load` reads them back."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "vqvae.safetensors", save(_plain(self.vqvae.state_dict())))
        for name, prior in zip(self.profile.source_names, self.priors, strict=True):
            write_atomically(folder / f"prior-{name}.safetensors", save(_plain(prior.state_dict())))
        write_atomically(folder / "likelihood.safetensors", save(_plain(self.likelihood.to_tensors())))
        write_atomically(folder / "profile.json", self.profile.model_dump_json(indent=1).encode())

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | None = None) -> Separator:
        """Read what `save` wrote.

        Raises:
            HybridsepError: a file is missing or damaged, or its shapes do not fit the settings.
        """
        folder = Path(folder)
        device = device or default_device()
        if not (folder / "profile.json").is_file():
            raise HybridsepError(f"{folder} is no model: profile.json is missing (train one with 'hybridsep train')")
        try:
            profile = Profile.model_validate(json.loads((folder / "profile.json").read_text()))
            vqvae = VQVAE(profile.vqvae)
            _load_into(vqvae, folder / "vqvae.safetensors")
            priors = [Prior(profile.prior, profile.vqvae.codes) for _ in profile.sources]
            for name, prior in zip(profile.source_names, priors, strict=True):
                _load_into(prior, folder / f"prior-{name}.safetensors")
            tensors = {k: v.to(device) for k, v in load_weights(folder / "likelihood.safetensors").items()}
            likelihood = likelihood_from_tensors(tensors)
        except (RuntimeError, KeyError, ValueError, IndexError, TypeError) as error:
            raise HybridsepError(f"model {folder}: {' '.join(str(error).split())[:300]}") from None
        if likelihood.codes != profile.vqvae.codes:
            raise HybridsepError(f"model {folder}: likelihood of {likelihood.codes} codes, VQ-VAE of {profile.vqvae.codes}")
        return cls(vqvae.to(device), [p.to(device) for p in priors], likelihood, profile)


_BATCH_AXES = {"codes": 1} | dict.fromkeys(("log_weights", "log_evidence", "ess", "resampled", "running_evidence", "ancestors"), 0)


def posterior_mean(found: Candidates) -> Tensor:
    """Weighted mean of the decoded particles, the least-squares estimate of each source: [2, B, T]."""
    weights = found.search.log_weights.softmax(-1)
    return torch.einsum("bn,pbnt->pbt", weights, found.waveforms)


def highest_weight(found: Candidates) -> Tensor:
    """The particle of highest weight: [2, B, T]."""
    return take_particle(found.waveforms, found.search.log_weights.argmax(1))


def smallest_residual(found: Candidates) -> Tensor:
    """The particle whose sources add up best to the mixture, by ‖y − ½(x̂1 + x̂2)‖: [2, B, T]."""
    residual = (found.mixture[:, None] - found.waveforms.mean(0)).square().sum(-1)
    return take_particle(found.waveforms, residual.argmin(1))


def cross_pair(found: Candidates) -> Tensor:
    """LQ-VAE's rejection: of all N × N pairs of the two sources' samples, the one that adds up best to the mixture: [2, B, T].

    Source: Mancusi et al. 2021 (arXiv 2110.05313), sec. 3.3.
    """
    first, second = found.waveforms
    target = 2 * found.mixture
    # ‖t − a − b‖² over all pairs from inner products, without the N × N residual waveforms.
    cross = torch.bmm(first, second.transpose(1, 2))
    to_first = (first.square().sum(-1) - 2 * torch.einsum("bt,bnt->bn", target, first))[:, :, None]
    to_second = (second.square().sum(-1) - 2 * torch.einsum("bt,bnt->bn", target, second))[:, None, :]
    best = (to_first + to_second + 2 * cross).flatten(1).argmin(1)
    count = first.shape[1]
    return torch.stack([_take(first, best // count), _take(second, best % count)])


SELECTIONS = {"mean": posterior_mean, "weight": highest_weight, "residual": smallest_residual, "cross-pair": cross_pair}


def best_evidence(log_evidence: list[Tensor]) -> Tensor:
    """The blind choice between several searches of the same mixture codes (seeds, settings, likelihoods): for each mixture the one of
    highest marginal evidence.

    Args:
        log_evidence: nats, one float [B] per search.

    Returns:
        int64 [B].
    """
    return torch.stack(log_evidence).argmax(0)


def take_particle(waveforms: Tensor, index: Tensor) -> Tensor:
    """Particle index[b] of every source: [2, B, N, T], int64 [B] -> [2, B, T]."""
    return torch.stack([_take(source, index) for source in waveforms])


def wiener(stems: Tensor, mixture: Tensor, size: int = STFT_SIZE) -> Tensor:
    """Mixture-consistent refinement: masks |X̂p|² / Σ|X̂|² of the estimates, applied to the mixture.

    Args:
        stems: estimates, float32 [P, B, T].
        mixture: float32 [B, T]; the refined stems' mean over sources is the mixture.
        size: of the STFT window, in samples; the hop is a quarter of it.

    Returns:
        float32 [P, B, T].
    """
    length, block = mixture.shape[-1], WIENER_FRAMES * size // 4
    if length <= 2 * block:
        return _wiener(stems, mixture, size)
    # Spectra of an hour would fill the memory: block by block, each with as much to its left and right as its frames reach, on the same
    # grid of frames.
    refined = torch.empty_like(stems)
    for start in range(0, length, block):
        first, last = max(0, start - size), min(length, start + block + size)
        part = _wiener(stems[..., first:last], mixture[..., first:last], size)
        refined[..., start : start + block] = part[..., start - first : start - first + block]
    return refined


def _wiener(stems: Tensor, mixture: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=mixture.device)
    length = mixture.shape[-1]
    padded = max(0, size - length)

    def spectrum(x: Tensor) -> Tensor:
        flat = torch.nn.functional.pad(x.flatten(0, -2), (0, padded))
        return torch.stft(flat, size, size // 4, window=window, return_complex=True).unflatten(0, x.shape[:-1])

    power = spectrum(stems).abs().square()
    # Where no estimate has energy the mixture is shared equally.
    masks = (power + 1e-10) / (power + 1e-10).sum(0)
    masked = len(stems) * masks * spectrum(mixture)
    refined = torch.istft(masked.flatten(0, 1), size, size // 4, window=window, length=length + padded)
    return refined[:, :length].view_as(stems)


def _load_into(module: torch.nn.Module, path: Path) -> None:
    weights = load_weights(path)
    try:
        module.load_state_dict(weights)
    except RuntimeError:
        raise HybridsepError(f"{path.name} does not fit the settings in profile.json") from None


def _share_of_each(weights: Tensor, inverse: Tensor, distinct: int) -> Tensor:
    """Weight of each distinct stretch in each mixture: weights [P, B, N], inverse int64 [P·B·N] -> [P·B, distinct]."""
    groups = weights.flatten(0, 1)
    return groups.new_zeros(len(groups), distinct).scatter_add_(1, inverse.view_as(groups), groups)


def _take(waveforms: Tensor, index: Tensor) -> Tensor:
    return waveforms[torch.arange(len(index), device=index.device), index]


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
