"""What the benchmarks run on: trained models, or untrained ones of a profile's shape, and a composed song to separate."""

from __future__ import annotations

import torch
from timing import Options
from torch import Tensor, nn

from hybridsep.core.device import default_device, fast_dtype, seeded_generator
from hybridsep.core.level import MIXTURE_RMS
from hybridsep.core.profiles import LikelihoodKind, Profile, load_profile
from hybridsep.data.minislakh.composer import compose_song
from hybridsep.data.minislakh.render import render_song
from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.separator import Separator
from hybridsep.inference.sums import SumLikelihood
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE

# Distinct triples per mixture code in the trained models of the profile `cpu`: 940 000 over 1 024 codes.
TRIPLES_PER_CODE = 920
# Spread of the untrained priors' logits, for some nats of difference between codes, as trained ones have.
HEAD_STD = 0.1
SONG_SEED = 7


def open_separator(options: Options, likelihood: LikelihoodKind) -> Separator:
    """Return the trained method of `options.model`, or an untrained one in the shape of `options.profile`."""
    if options.model is not None:
        return Separator.load(options.model)
    profile = load_profile(options.profile)
    if options.codes is not None:
        profile = profile.model_copy(update={"vqvae": profile.vqvae.model_copy(update={"codes": options.codes})})
    return untrained_separator(profile, likelihood)


def untrained_separator(profile: Profile, likelihood: LikelihoodKind, seed: int = 0) -> Separator:
    """Return a method of random weights and a random codebook: as fast as a trained one, and as good as none."""
    device, codes = default_device(), profile.vqvae.codes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vqvae = VQVAE(profile.vqvae)
        nn.init.normal_(vqvae.bottleneck.codebook)
        priors = [Prior(profile.prior, codes) for _ in profile.sources]
        for prior in priors:
            nn.init.normal_(prior.head.weight, std=HEAD_STD)
    likely = random_likelihood(codes, profile.vqvae.latent_width, likelihood, device, seed)
    return Separator(vqvae.to(device), [p.to(device) for p in priors], likely, profile)


def random_likelihood(codes: int, width: int, kind: LikelihoodKind, device: torch.device, seed: int = 0) -> Likelihood:
    """Return `sum` of a random codebook, or `counts` of as many random triples as a trained model has."""
    generator = seeded_generator(seed, codes)
    summed = SumLikelihood(torch.randn(codes, width, generator=generator).to(device), 0.5, 0.01)
    if kind == "sum":
        return summed
    keys = torch.randint(codes**3, (codes * TRIPLES_PER_CODE,), generator=generator).unique().to(device)
    counts = torch.randint(1, 8, keys.shape, generator=generator).to(device)
    return CountLikelihood(keys, counts, summed, 1.0)


def dtypes(device: torch.device) -> list[torch.dtype]:
    """Return float32, then what the device is fast in, where that is another."""
    return list(dict.fromkeys((torch.float32, fast_dtype(device))))


def separator_in(separator: Separator, dtype: torch.dtype) -> Separator:
    """Return the same models with their products in `dtype`, one of `dtypes`."""
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(dtype, "auto")
    profile = separator.profile.model_copy(update={"precision": precision})
    return Separator(separator.vqvae, separator.priors, separator.likelihood, profile)


def random_log_probs(codes: int, particles: int, device: torch.device, seed: int = 0) -> Tensor:
    """Return log-probabilities of two priors as peaked as trained ones: float32 [2, 1, N, K]."""
    logits = 3 * torch.randn(2, 1, particles, codes, generator=seeded_generator(seed, codes, particles))
    return logits.log_softmax(-1).to(device)


def song_mixture(separator: Separator, seconds: float, count: int = 1) -> Tensor:
    """Return mixtures of composed songs at the model's rate and level, float32 [count, T], T a multiple of the hop, rounded up."""
    rate, length = separator.sample_rate, -(-round(seconds * separator.sample_rate) // separator.hop) * separator.hop
    songs = [compose_song(SONG_SEED, index, max(1.0, length / rate)) for index in range(count)]
    rendered = [torch.from_numpy(sum(render_song(song, rate).values())[:length]) for song in songs]
    mixtures = torch.stack([nn.functional.pad(x, (0, length - len(x))) for x in rendered]).float()
    level = mixtures.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
    return (mixtures * MIXTURE_RMS / level).to(separator.device)


@torch.no_grad()
def song_codes(separator: Separator, seconds: float, count: int = 1) -> Tensor:
    """Return the mixture codes of `song_mixture`, int64 [count, S]."""
    return separator.vqvae.encode(song_mixture(separator, seconds, count))
