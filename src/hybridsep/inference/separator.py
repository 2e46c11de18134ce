"""Audio in, stems out: encode the mixture, search, decode, choose without the ground truth, refine.

`Separator.separate` takes any recording. All other waveforms here are mono at the model's rate, and the mixture is the mean of its sources,
y = ½ x1 + ½ x2.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from hybridsep.core.device import default_device, fast_dtype, seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import SUMS, check_sums, load_weights, write_atomically, write_sums
from hybridsep.core.profiles import Profile
from hybridsep.data.stems import MIXTURE_RMS
from hybridsep.inference.audio import Audio, filled, of_length, resampled
from hybridsep.inference.counts import likelihood_from_tensors
from hybridsep.inference.decoder import PriorStack
from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.search import SEARCHES, Priors, SearchResult, joined_filters
from hybridsep.inference.wiener import wiener_blocks
from hybridsep.inference.windows import CarriedPast, Windows, past_before
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE

MASK_SECONDS = 0.19
ENCODED_ROWS = 8
DECODED_CODES = 4096
STRETCH = 128
UPSAMPLED = 1 << 16
WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class SearchOptions:
    """How codes are searched.

    Attributes:
        search: "particle", "ancestral", "topk" or "beam".
        particles: N; the profile's when not given.
        seed: same seed, same machine, same stems.
        label: of the progress bar; none without it.
    """

    search: str = "particle"
    particles: int | None = None
    seed: int = 0
    label: str | None = None


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


@dataclass(frozen=True)
class Separation:
    """Stems of one recording.

    Attributes:
        stems: float32 [P, channels, samples], or [P, samples] if that is what was separated, on the scale on which they sum to the recording.
        sample_rate: Hz, the recording's.
        log_evidence: nats per code, mean over windows.
    """

    stems: Tensor
    sample_rate: int
    log_evidence: float


class Separator:
    """A trained method: VQ-VAE, one prior per source, likelihood."""

    def __init__(self, vqvae: VQVAE, priors: list[Prior], likelihood: Likelihood, profile: Profile):
        self.vqvae, self.priors, self.likelihood, self.profile = vqvae.eval(), priors, likelihood, profile
        self.device = vqvae.codebook.device
        self._reach = vqvae.decoder.reach
        dtype = fast_dtype(self.device, profile.precision)
        self.stack = PriorStack(priors, dtype, profile.search.temperature)
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

    def separate(
        self,
        waveform: Tensor | np.ndarray,
        sample_rate: int,
        search: str = "particle",
        particles: int | None = None,
        seed: int = 0,
        refine: bool = True,
        carry: bool = False,
        label: str | None = None,
    ) -> Separation:
        """Stems of a recording of any rate, any number of channels and any length from 0.2 s on.

        The model hears the mono mean in overlapping windows of 3 s. Without `refine` the stems are its own waveforms, the same on every
        channel; with it they are the Wiener filter of each channel of the recording (see `wiener`) and sum to it. Masks, and the part of the
        estimates that is trusted, are the mono ones for every channel: where a source is panned they miss its level there, and yet help.

        Args:
            waveform: [samples] or [channels, samples] on any scale.
            sample_rate: Hz.
            search, particles, seed, label: see SearchOptions.
            carry: whether the priors know in each window what they heard in the one before; one window after the other then, not all at once.

        Raises:
            HybridsepError: too short, not finite, unknown search, no particles.
        """
        whole = (
            waveform.detach().cpu().float()
            if isinstance(waveform, Tensor)
            else torch.from_numpy(np.array(waveform, np.float32, order="C"))
        )
        if whole.ndim not in (1, 2):
            raise HybridsepError(f"a recording is [samples] or [channels, samples], not {list(whole.shape)}")
        audio = Audio.of(whole if whole.ndim == 2 else whole[None], sample_rate)
        log_evidence, blocks = self.separate_blocks(audio, SearchOptions(search, particles, seed, label), refine, carry)
        stems = filled(torch.empty(len(self.profile.sources), audio.channels, audio.samples), blocks)
        return Separation(stems.view(-1, *whole.shape), sample_rate, log_evidence)

    def separate_blocks(
        self, audio: Audio, options: SearchOptions, refine: bool = True, carry: bool = False
    ) -> tuple[float, Iterator[Tensor]]:
        """`separate` in little memory: the evidence, and the stems block after block, float32 [P, channels, n]."""
        count = len(self.profile.sources)
        if not audio.peak:
            warnings.warn("the recording is silent throughout; so are its stems", stacklevel=2)
            return 0.0, (block.expand(count, *block.shape) for block in audio.blocks())
        estimates, log_evidence = self.estimate_windows(
            audio.mono(self.sample_rate)[None], options, carry, common_level=carry
        )
        upsampled = resampled(estimates[:, 0].split(UPSAMPLED, -1), self.sample_rate, audio.sample_rate)
        stems = (block[:, None] for block in of_length(upsampled, audio.samples))
        if refine:
            stems = wiener_blocks(
                stems, audio.levelled(), 2 ** max(4, round(np.log2(MASK_SECONDS * audio.sample_rate)))
            )
        return float(log_evidence), (block.expand(-1, audio.channels, -1) * (audio.peak / count) for block in stems)

    def estimate_windows(
        self, mixture: Tensor, options: SearchOptions, carry: bool = False, common_level: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The posterior mean of R long mixtures, in the memory of a few windows and of the result.

        Args:
            mixture: float32 [R, T] at the model's rate.
            carry: the priors go on from the window before.
            common_level: bring a whole mixture to the model's level, and not each window.

        Returns:
            Stems, float32 [2, R, T], and log evidence in nats per code, mean over windows, [R].
        """
        options, windows = self._checked(options), Windows.over(mixture.shape[1], self.sample_rate, self.hop)
        codes, count = windows.size // self.hop, len(windows)
        room = max(1, min(WINDOWS_AT_ONCE, self.profile.search.max_rows // options.particles))
        level = level_factor(mixture) if common_level else None
        stems, log_evidence = torch.zeros(len(self.profile.sources), *mixture.shape), torch.zeros(len(mixture))
        parts, past = _parts(len(mixture), count, room, carry), None
        with tqdm(total=len(parts) * codes, desc=options.label, unit="step", disable=options.label is None) as bar:
            for index, part in enumerate(parts):
                heard = torch.stack([windows.cut(mixture[r], w) for r, w in part])
                levels = None if level is None else level[[r for r, _ in part]]
                model = self if past is None else self.with_priors(CarriedPast(self.stack, past))
                found = model.estimate(
                    heard,
                    options.search,
                    options.particles,
                    options.seed + 7919 * index,
                    level=levels,
                    on_step=bar.update,
                )
                for (r, w), stem, nats in zip(
                    part, found.stems.cpu().unbind(1), found.search.log_evidence.tolist(), strict=True
                ):
                    windows.add(stems[:, r], w, stem)
                    log_evidence[r] += nats / (codes * count)
                if carry:
                    past = self._past_after(found.search, windows, part[0][1], seeded_generator(options.seed, index))
        return stems, log_evidence

    def _past_after(
        self, found: SearchResult, windows: Windows, window: int, generator: torch.Generator
    ) -> Tensor | None:
        """The codes before the next window, as far as attention looks back; None after the last window."""
        if window + 1 == len(windows):
            return None
        place = (windows.starts[window + 1] - windows.starts[window]) // self.hop
        return past_before(found, place, self.profile.prior.window, generator)

    @torch.no_grad()
    def candidates(
        self,
        mixture: Tensor,
        search: str = "particle",
        particles: int | None = None,
        seed: int = 0,
        label: str | None = None,
    ) -> Candidates:
        """Search the codes of a batch of mixtures and decode every particle.

        Args:
            mixture: float32 [B, T] at the model's rate; T is cut to a multiple of the hop.
            search, particles, seed, label: see SearchOptions.

        Raises:
            HybridsepError: unknown search, no particles, or a mixture shorter than one code.
        """
        started = time.perf_counter()
        mixture, level, result = self._search(mixture, SearchOptions(search, particles, seed, label))
        waveforms = self.decode(result.codes) / level[:, None]
        return Candidates(mixture, waveforms, result, time.perf_counter() - started)

    @torch.no_grad()
    def estimate(
        self,
        mixture: Tensor,
        search: str = "particle",
        particles: int | None = None,
        seed: int = 0,
        label: str | None = None,
        level: Tensor | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Estimate:
        """The posterior mean of `candidates`, in the memory of one waveform per source instead of N.

        Args:
            mixture, search, particles, seed, label: as there.
            level: factors [B, 1] that bring the mixtures to the model's level, where these are parts of something longer.
            on_step: called after each step, instead of a progress bar.
        """
        mixture, level, result = self._search(mixture, SearchOptions(search, particles, seed, label), level, on_step)
        stems = self.decode(result.codes, result.log_weights.softmax(-1)) / level
        return Estimate(mixture, stems, result)

    def _checked(self, options: SearchOptions) -> SearchOptions:
        """The same with N filled in. Raises HybridsepError: unknown search, no particles."""
        if options.search not in SEARCHES:
            raise HybridsepError(f"unknown search '{options.search}': choose one of {', '.join(SEARCHES)}")
        particles = self.profile.search.particles if options.particles is None else options.particles
        if particles < 1:
            raise HybridsepError(f"{particles} particles: at least 1 is needed")
        return replace(options, particles=particles)

    def filters(self, options: SearchOptions) -> int:
        """How many particle filters of equal size share the particles: as many as `filter_particles` asks for, and divide them evenly."""
        most = self.profile.search.filter_particles
        wanted = max(1, options.particles // most) if most and options.search == "particle" else 1
        return next(count for count in range(wanted, 0, -1) if options.particles % count == 0)

    def _search(
        self,
        mixture: Tensor,
        options: SearchOptions,
        level: Tensor | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> tuple[Tensor, Tensor, SearchResult]:
        """The mixture as it is heard [B, T], the factor that brings it to the model's level [B, 1], and what a search finds."""
        options = self._checked(options)
        length = mixture.shape[-1] // self.vqvae.hop * self.vqvae.hop
        if not length:
            raise HybridsepError(f"{mixture.shape[-1]} samples are less than one code of {self.vqvae.hop}")
        mixture = mixture[:, :length].to(self.device)
        level = level_factor(mixture) if level is None else level.to(self.device)
        codes = torch.cat([self.vqvae.encode(part) for part in (mixture * level).split(ENCODED_ROWS)])
        return mixture, level, self.search_codes(codes, options, on_step)

    def search_codes(
        self, codes: Tensor, options: SearchOptions, on_step: Callable[[], object] | None = None
    ) -> SearchResult:
        """Search mixture codes int64 [B, S], in slices of at most `max_rows` particles; `on_step` as in `estimate`."""
        settings, options = self.profile.search, self._checked(options)
        extra = {"particle": {"ess_threshold": settings.ess_threshold}, "topk": {"k": settings.top_k}}.get(
            options.search, {}
        )
        filters = self.filters(options)
        slices, parts = codes.split(max(1, settings.max_rows // options.particles)), []
        with tqdm(
            total=len(slices) * codes.shape[1], desc=options.label, unit="step", disable=options.label is None
        ) as bar:
            for index, part in enumerate(slices):
                generator = seeded_generator(options.seed, index)
                each, size = part.repeat_interleave(filters, 0), options.particles // filters
                found = SEARCHES[options.search](
                    self.stack, self.likelihood, each, size, generator, on_step or bar.update, **extra
                )
                parts.append(joined_filters(found, filters))
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
            parts.append(
                (
                    start,
                    count,
                    start - first,
                    *flat[:, first : start + count + self._reach].unique(dim=0, return_inverse=True),
                )
            )
        whole = (0, length, 0, *flat.unique(dim=0, return_inverse=True))
        return parts if sum(p[3].numel() for p in parts) < whole[3].numel() else [whole]

    def with_priors(self, priors: Priors) -> Separator:
        """The same model searching with other priors."""
        other = copy.copy(self)
        other.stack = priors
        return other

    def save(self, folder: Path) -> None:
        """Write weights as safetensors, settings as JSON and the SHA-256 of each file; `load` reads them back."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMS).unlink(missing_ok=True)
        tensors = {"vqvae": self.vqvae.state_dict(), "likelihood": self.likelihood.to_tensors()}
        tensors |= {
            f"prior-{name}": prior.state_dict()
            for name, prior in zip(self.profile.source_names, self.priors, strict=True)
        }
        files = {f"{name}.safetensors": save(_plain(values)) for name, values in tensors.items()}
        files["profile.json"] = self.profile.model_dump_json(indent=1).encode()
        for name, content in files.items():
            write_atomically(folder / name, content)
        write_sums(folder, files)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | None = None) -> Separator:
        """Read what `save` wrote.

        Raises:
            HybridsepError: a file is missing, damaged or not the one that was saved, or its shapes do not fit the settings.
        """
        folder = Path(folder)
        device = device or default_device()
        for name in ("profile.json", SUMS):
            if not (folder / name).is_file():
                raise HybridsepError(f"{folder} is no model: {name} is missing (train one with 'hybridsep train')")
        try:
            check_sums(folder, ["profile.json"])
            profile = Profile.model_validate(json.loads((folder / "profile.json").read_text()))
            vqvae = VQVAE(profile.vqvae)
            priors = [Prior(profile.prior, profile.vqvae.codes) for _ in profile.sources]
            files = {"vqvae": vqvae} | {
                f"prior-{name}": prior for name, prior in zip(profile.source_names, priors, strict=True)
            }
            check_sums(folder, [f"{name}.safetensors" for name in (*files, "likelihood")])
            for name, module in files.items():
                _load_into(module, folder / f"{name}.safetensors")
            tensors = {k: v.to(device) for k, v in load_weights(folder / "likelihood.safetensors").items()}
            likelihood = likelihood_from_tensors(tensors)
        except (RuntimeError, KeyError, ValueError, IndexError, TypeError) as error:
            raise HybridsepError(f"model {folder}: {' '.join(str(error).split())[:300]}") from None
        if likelihood.codes != profile.vqvae.codes:
            raise HybridsepError(
                f"model {folder}: likelihood of {likelihood.codes} codes, VQ-VAE of {profile.vqvae.codes}"
            )
        return cls(vqvae.to(device), [p.to(device) for p in priors], likelihood, profile)


_BATCH_AXES = {"codes": 1} | dict.fromkeys(
    ("log_weights", "log_evidence", "ess", "resampled", "running_evidence", "ancestors"), 0
)


def level_factor(mixture: Tensor) -> Tensor:
    """Factors [B, 1] that bring mixtures [B, T] to the level of those that the models were trained on."""
    return MIXTURE_RMS / mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)


def _parts(recordings: int, windows: int, room: int, carry: bool) -> list[list[tuple[int, int]]]:
    """Which windows are searched at once, as (recording, window): as many as there is room for, or with `carry` only the same of several recordings."""
    if carry:
        return [
            [(r, w) for r in range(i, min(i + room, recordings))]
            for i in range(0, recordings, room)
            for w in range(windows)
        ]
    places = [(r, w) for r in range(recordings) for w in range(windows)]
    return [places[i : i + room] for i in range(0, len(places), room)]


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


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
