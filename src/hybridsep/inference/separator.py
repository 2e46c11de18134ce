"""Audio in, stems out: encode the mixture, search, decode, refine.

`Separator.separate` takes any recording. All other waveforms here are mono at the model's rate, and the mixture is the mean of its sources,
y = ½ x1 + ½ x2.
"""

from __future__ import annotations

import copy
import functools
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hybridsep.core.device import default_device, fast_dtype, seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.core.level import MIXTURE_RMS
from hybridsep.core.profiles import Profile
from hybridsep.inference.audio import Audio, filled, of_length, resampled
from hybridsep.inference.counts import likelihood_from_tensors
from hybridsep.inference.decoder import PriorStack
from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.saved import naming, read_recorded, read_saved, write_saved
from hybridsep.inference.search import (
    PUBLISHED,
    SEARCHES,
    OnStep,
    Priors,
    SearchResult,
    joined_filters,
    usual_particles,
)
from hybridsep.inference.smoothing import lagged_mean
from hybridsep.inference.wiener import wiener_blocks
from hybridsep.inference.windows import Windows
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE

MASK_SECONDS = 0.19
ENCODED_ROWS = 8
DECODED_CODES = 4096
LAGGED_ROWS = 16
STRETCH = 128
UPSAMPLED = 1 << 16
WINDOWS_AT_ONCE = 64
BANDS = (0, 200, 1000, 4000)  # lower edges of the bands in which the spread of the particles is measured, Hz


@dataclass(frozen=True)
class SearchOptions:
    """How codes are searched."""

    search: str = "particle"  # a name in `search.SEARCHES`
    particles: int | None = None  # N; the profile's when not given
    seed: int = 0  # same seed, same machine, same stems
    label: str | None = None  # of the progress bar; none without it
    spread: bool = False  # whether the spread of the particles is measured too


DEFAULT = SearchOptions()


@dataclass(frozen=True)
class Candidates:
    """Everything a search left to choose from, for B mixtures."""

    mixture: Tensor  # float32 [B, T]
    waveforms: Tensor  # decoded sources of every particle, float32 [2, B, N, T]
    search: SearchResult
    seconds: float  # wall time of encoding, search and decoding together
    # What `Separator.posterior_mean` makes of the search, float32 [2, B, T]; None where it is the mean of `waveforms`.
    lagged: Tensor | None = None


@dataclass(frozen=True)
class Estimate:
    """Stems by the posterior mean, for B mixtures."""

    mixture: Tensor  # float32 [B, T]
    stems: Tensor  # float32 [2, B, T]
    search: SearchResult
    spread: Tensor | None = None  # see `Separator.spread`; None unless the options ask for it


@dataclass(frozen=True)
class Separation:
    """Stems of one recording.

    Attributes:
        stems: on the scale on which they sum to the recording, float32 [P, channels, samples], or [P, samples] of a recording [samples].
        sample_rate: the recording's, Hz.
        log_evidence: nats per code, mean over windows.
    """

    stems: Tensor
    sample_rate: int
    log_evidence: float


class Separator:
    """A trained method: a VQ-VAE, a prior per source in the profile's order, a likelihood over the codes, and the settings of the search."""

    def __init__(self, vqvae: VQVAE, priors: list[Prior], likelihood: Likelihood, profile: Profile):
        self.vqvae, self.priors, self.profile = vqvae.eval(), priors, profile
        self.sample_rate = profile.data.sample_rate  # the model's, Hz
        self.hop = vqvae.hop  # samples per code
        self.device = vqvae.codebook.device
        self._reach = vqvae.decoder.reach
        dtype = fast_dtype(self.device, profile.precision)
        self.stack: Priors = PriorStack(priors, dtype, profile.search.temperature)
        self.likelihood = likelihood.with_precision(dtype if dtype == torch.bfloat16 else torch.float32)

    def separate(
        self,
        waveform: Tensor | np.ndarray,
        sample_rate: int,
        search: str = "particle",
        particles: int | None = None,
        seed: int = 0,
        refine: bool = True,
        label: str | None = None,
    ) -> Separation:
        """Return the stems of a recording of any rate, any number of channels and any length from 0.2 s on.

        The model hears the mono mean in overlapping windows of 3 s. Without `refine` the stems are its own waveforms, the same on every
        channel; with it they are the Wiener filter of each channel of the recording (see `wiener`) and sum to it. Masks, and the part of the
        estimates that is trusted, are the mono ones for every channel: where a source is panned they miss its level there, and yet help.

        Args:
            waveform: [samples] or [channels, samples] on any scale, at `sample_rate` Hz.
            search, particles, seed, label: see SearchOptions.

        Raises:
            HybridsepError: too short, not finite, unknown search, no particles.
        """
        if isinstance(waveform, Tensor):
            whole = waveform.detach().cpu().float()
        else:
            whole = torch.from_numpy(np.array(waveform, np.float32, order="C"))
        if whole.ndim not in (1, 2):
            raise HybridsepError(f"a recording is [samples] or [channels, samples], not {list(whole.shape)}")
        audio = Audio.of(whole if whole.ndim == 2 else whole[None], sample_rate)
        log_evidence, blocks, _ = self.separate_blocks(audio, SearchOptions(search, particles, seed, label), refine)
        stems = filled(torch.empty(len(self.profile.sources), audio.channels, audio.samples), blocks)
        return Separation(stems.view(-1, *whole.shape), sample_rate, log_evidence)

    def separate_blocks(
        self, audio: Audio, options: SearchOptions = DEFAULT, refine: bool = True
    ) -> tuple[float, Iterator[Tensor], Tensor | None]:
        """Do `separate` in little memory.

        Returns the evidence in nats per code, the stems block after block, float32 [P, channels, n], and if the options ask for it the spread of
        what the model hears, [P, 2, codes, bands]: power of the unrefined estimate, and of the particles around it (see `spread`).
        """
        count = len(self.profile.sources)
        if not audio.peak:
            warnings.warn("the recording is silent throughout; so are its stems", stacklevel=2)
            return 0.0, (block.expand(count, *block.shape) for block in audio.blocks()), None
        estimates, log_evidence, spread = self.estimate_windows(audio.mono(self.sample_rate)[None], options)
        upsampled = resampled(estimates[:, 0].split(UPSAMPLED, -1), self.sample_rate, audio.sample_rate)
        stems: Iterator[Tensor] = (block[:, None] for block in of_length(upsampled, audio.samples))
        if refine:
            size = 2 ** max(4, round(np.log2(MASK_SECONDS * audio.sample_rate)))
            stems = wiener_blocks(stems, audio.levelled(), size)
        stems = (block.expand(-1, audio.channels, -1) * (audio.peak / count) for block in stems)
        return float(log_evidence), stems, None if spread is None else spread[:, 0]

    def estimate_windows(
        self, mixture: Tensor, options: SearchOptions = DEFAULT
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Estimate the posterior mean of R long mixtures float32 [R, T] at the model's rate, in the memory of a few windows and of the result.

        That is stems float32 [2, R, T], log evidence in nats per code, mean over windows, [R], and the spread [2, R, 2, codes, bands] or None.
        """
        particles, windows = self._particles(options), Windows.over(mixture.shape[1], self.sample_rate, self.hop)
        codes, count = windows.size // self.hop, len(windows)
        room = max(1, min(WINDOWS_AT_ONCE, self.profile.search.max_rows // particles))
        places = [(r, w) for r in range(len(mixture)) for w in range(count)]
        parts = [places[i : i + room] for i in range(0, len(places), room)]
        stems, log_evidence = torch.zeros(len(self.profile.sources), *mixture.shape), torch.zeros(len(mixture))
        by_code = windows.scaled(len(BANDS), self.hop)
        spread = stems.new_zeros(*stems.shape[:2], 2, by_code.samples) if options.spread else None
        with tqdm(total=len(parts) * codes, desc=options.label, unit="step", disable=options.label is None) as bar:
            for index, part in enumerate(parts):
                heard = torch.stack([windows.cut(mixture[r], w) for r, w in part])
                own = replace(options, seed=options.seed + 7919 * index, label=None)
                found = self.estimate(heard, own, on_step=bar.update)
                for place, (r, w) in enumerate(part):
                    windows.add(stems[:, r], w, found.stems[:, place].cpu())
                    log_evidence[r] += float(found.search.log_evidence[place]) / (codes * count)
                    if spread is not None and found.spread is not None:
                        by_code.add(spread[:, r], w, found.spread[:, place].flatten(-2).cpu())
        return stems, log_evidence, None if spread is None else spread.unflatten(-1, (-1, len(BANDS)))

    @torch.no_grad()
    def candidates(self, mixture: Tensor, options: SearchOptions = DEFAULT) -> Candidates:
        """Search the codes of mixtures float32 [B, T] at the model's rate, T cut to a multiple of the hop, and decode every particle.

        HybridsepError: unknown search, no particles, or a mixture shorter than one code.
        """
        started = time.perf_counter()
        mixture, level, result = self._search(mixture, options)
        waveforms = self.decode(result.codes) / level[:, None]
        lagged = None if result.drawn is None else self.posterior_mean(result) / level
        return Candidates(mixture, waveforms, result, time.perf_counter() - started, lagged)

    @torch.no_grad()
    def estimate(self, mixture: Tensor, options: SearchOptions = DEFAULT, on_step: OnStep = None) -> Estimate:
        """Do `candidates` for the posterior mean alone, in the memory of one waveform per source instead of N.

        After each step `on_step` is called, instead of a progress bar.
        """
        mixture, level, result = self._search(mixture, options, on_step)
        mean = self.posterior_mean(result)
        spread = self.spread(result, mean) / level[..., None, None].square() if options.spread else None
        return Estimate(mixture, mean / level, result, spread)

    def search_codes(self, codes: Tensor, options: SearchOptions = DEFAULT, on_step: OnStep = None) -> SearchResult:
        """Search mixture codes int64 [B, S], in slices of at most `max_rows` particles; `on_step` as in `estimate`."""
        settings, particles, filters = self.profile.search, self._particles(options), self.filters(options)
        search, lagged = SEARCHES[options.search], False
        if options.search == "particle":
            search = functools.partial(search, ess_threshold=settings.ess_threshold)
            lagged = 0 < settings.lag < codes.shape[1]
        elif options.search in ("topk", "lass-topk"):
            search = functools.partial(search, k=settings.top_k)
        priors = self._untempered if options.search in PUBLISHED else self.stack
        slices, parts = codes.split(max(1, settings.max_rows // particles)), []
        steps = len(slices) * codes.shape[1]
        with tqdm(total=steps, desc=options.label, unit="step", disable=options.label is None) as bar:
            for index, part in enumerate(slices):
                generator = seeded_generator(options.seed, index)
                each, size = part.repeat_interleave(filters, 0), particles // filters
                found = search(priors, self.likelihood, each, size, generator, on_step or bar.update)
                joined = joined_filters(found, filters)
                parts.append(joined if lagged else replace(joined, drawn=None, heard_weights=None))
        kept = {name: [getattr(part, name) for part in parts] for name in _BATCH_AXES}
        whole = {name: torch.cat(kept[name], axis) for name, axis in _BATCH_AXES.items() if kept[name][0] is not None}
        return SearchResult(**whole)

    @cached_property
    def _untempered(self) -> Priors:
        tempered = self.profile.search.temperature != 1
        return PriorStack(self.priors, fast_dtype(self.device, self.profile.precision)) if tempered else self.stack

    def filters(self, options: SearchOptions) -> int:
        """Return how many particle filters of equal size share the particles: as many as `filter_particles` asks for, and divide them evenly."""
        most, particles = self.profile.search.filter_particles, self._particles(options)
        wanted = max(1, particles // most) if most and options.search == "particle" else 1
        return next(count for count in range(wanted, 0, -1) if particles % count == 0)

    @torch.no_grad()
    def posterior_mean(self, found: SearchResult, of_powers: bool = False) -> Tensor:
        """Return the mean of the decoded particles, or of their `band_powers`, float32 [2, B, S * hop]: at the profile's lag where steps are kept."""
        if found.drawn is None:
            return self.decode(found.codes, found.log_weights.softmax(-1), of_powers=of_powers)
        decode = functools.partial(self.decode, rows=LAGGED_ROWS, of_powers=of_powers)
        settings, per_code = self.profile.search, len(BANDS) if of_powers else self.hop
        return lagged_mean(found, decode, settings.lag, settings.stretch, self._reach, per_code)

    def spread(self, found: SearchResult, mean: Tensor) -> Tensor:
        """Return the power of the `posterior_mean`, and the variance of the particles around it, of each code and each of BANDS: [P, B, 2, S, bands]."""
        power = self.band_powers(mean)
        variance = (self.posterior_mean(found, of_powers=True) - power).clamp_min(0)
        return torch.stack([power, variance], 2).unflatten(-1, (-1, len(BANDS)))

    def band_powers(self, waveforms: Tensor) -> Tensor:
        """Return the mean square of each code's samples in each of BANDS: float32 [..., S * hop] -> [..., S * bands]."""
        spectrum, length = torch.fft.rfft(waveforms), waveforms.shape[-1]
        frequencies = torch.fft.rfftfreq(length, 1 / self.sample_rate, device=waveforms.device)
        band = torch.bucketize(frequencies, torch.tensor(BANDS[1:], device=waveforms.device), right=True)
        filtered = (torch.fft.irfft(spectrum * (band == b), length) for b in range(len(BANDS)))
        powers = [x.square().unflatten(-1, (-1, self.hop)).mean(-1) for x in filtered]
        return torch.stack(powers, -1).flatten(-2)

    @torch.no_grad()
    def decode(
        self, codes: Tensor, weights: Tensor | None = None, rows: int | None = None, of_powers: bool = False
    ) -> Tensor:
        """Decode sequences of codes, or their weighted sum over particles; what several sequences share is decoded once.

        Particles have most of their past in common. So the sequences are cut into stretches, each with as many codes to its left and right
        as its samples can depend on, and equal stretches are decoded once.

        Args:
            codes: int64 [..., S], which become float32 [..., S * hop]; with `weights`, float32 [B, N], [P, B, N, S] become [P, B, S * hop].
            rows: distinct ones at once, always so many: convolutions of each new shape are compiled and kept, in up to a hundred MB.
            of_powers: return `band_powers` of each sequence, or their weighted sum.
        """
        flat, length, hop = codes.flatten(0, -2), codes.shape[-1], len(BANDS) if of_powers else self.hop
        mixing = None if weights is None else weights.expand(codes.shape[:-1]).flatten(0, 1)
        shape = codes.shape[:-1] if weights is None else codes.shape[:2]
        waveforms = torch.empty(shape.numel(), length * hop, device=self.device)
        for start, count, before, distinct, inverse in self._stretches(flat):
            inside = slice(before * hop, (before + count) * hop)
            parts = torch.nn.functional.pad(distinct, (0, 0, 0, -len(distinct) % (rows or 1)))
            parts = parts.split(rows or max(1, DECODED_CODES // distinct.shape[1]))
            heard = (self.vqvae.decode(part) for part in parts)
            powers = (self.band_powers(part) if of_powers else part for part in heard)
            decoded = torch.cat([part[:, inside] for part in powers])[: len(distinct)]
            out = waveforms[:, start * hop : (start + count) * hop]
            if mixing is None:
                torch.index_select(decoded, 0, inverse, out=out)
            else:
                shares = mixing.new_zeros(len(mixing), len(decoded))
                out.copy_(shares.scatter_add_(1, inverse.view_as(mixing), mixing) @ decoded)
        return waveforms.view(*shape, -1)

    def with_priors(self, priors: Priors) -> Separator:
        """Return the same model searching with other priors."""
        other = copy.copy(self)
        other.stack = other._untempered = priors
        return other

    def save(self, folder: Path) -> None:
        """Write weights as safetensors, settings as JSON and the SHA-256 of each file; `load` reads them back."""
        weights = {"vqvae": self.vqvae.state_dict(), "likelihood": self.likelihood.to_tensors()}
        for name, prior in zip(self.profile.source_names, self.priors, strict=True):
            weights[f"prior-{name}"] = prior.state_dict()
        write_saved(folder, self.profile, weights)

    @classmethod
    def load(cls, folder: Path | str | None = None, device: torch.device | None = None) -> Separator:
        """Read what `save` wrote, or without a folder the Hybrid that comes with the project.

        Raises:
            HybridsepError: a file is missing, damaged or not the one that was saved, or its shapes do not fit the settings; or there is no
                folder, and no model came with this copy.
        """
        device = device or default_device()
        profile, weights = read_recorded() if folder is None else read_saved(Path(folder))
        with naming(folder or "of the record"):
            vqvae = VQVAE(profile.vqvae)
            priors = {f"prior-{name}": Prior(profile.prior, profile.vqvae.codes) for name in profile.source_names}
            for name, module in {"vqvae": vqvae, **priors}.items():
                try:
                    module.load_state_dict(weights[name])
                except RuntimeError:
                    raise HybridsepError(f"{name}.safetensors does not fit the settings in profile.json") from None
            likelihood = likelihood_from_tensors({k: v.to(device) for k, v in weights["likelihood"].items()})
            if likelihood.codes != profile.vqvae.codes:
                raise HybridsepError(f"likelihood of {likelihood.codes} codes, VQ-VAE of {profile.vqvae.codes}")
        return cls(vqvae.to(device), [p.to(device) for p in priors.values()], likelihood, profile)

    def _particles(self, options: SearchOptions) -> int:
        """Return N, the profile's where none is given. Raises HybridsepError: unknown search, no particles."""
        if options.search not in SEARCHES:
            raise HybridsepError(f"unknown search '{options.search}': choose one of {', '.join(SEARCHES)}")
        usual = usual_particles(options.search, self.profile.search.particles)
        particles = usual if options.particles is None else options.particles
        if particles < 1:
            raise HybridsepError(f"{particles} particles: at least 1 is needed")
        return particles

    def _search(
        self, mixture: Tensor, options: SearchOptions, on_step: OnStep = None
    ) -> tuple[Tensor, Tensor, SearchResult]:
        """The mixture as it is heard [B, T], the factor that brings it to the model's level [B, 1], and what a search finds."""
        length = mixture.shape[-1] // self.hop * self.hop
        if not length:
            raise HybridsepError(f"{mixture.shape[-1]} samples are less than one code of {self.hop}")
        self._particles(options)  # refuses wrong options before the work begins
        mixture = mixture[:, :length].to(self.device)
        level = MIXTURE_RMS / mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        codes = torch.cat([self.vqvae.encode(part) for part in (mixture * level).split(ENCODED_ROWS)])
        return mixture, level, self.search_codes(codes, options, on_step)

    def _stretches(self, flat: Tensor) -> list[tuple[int, int, int, Tensor, Tensor]]:
        """How to decode [R, S]: first code and count of each stretch, codes of context before it, the distinct [U, ...] and which row is which."""
        length, parts = flat.shape[1], []
        for start in range(0, length, STRETCH):
            first, count = max(0, start - self._reach), min(STRETCH, length - start)
            distinct = flat[:, first : start + count + self._reach].unique(dim=0, return_inverse=True)
            parts.append((start, count, start - first, *distinct))
        whole = (0, length, 0, *flat.unique(dim=0, return_inverse=True))
        return parts if sum(p[3].numel() for p in parts) < whole[3].numel() else [whole]


_BATCH_AXES = {field.name: int(field.name in ("codes", "drawn")) for field in fields(SearchResult)}
