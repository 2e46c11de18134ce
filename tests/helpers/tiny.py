"""Models of a few hundred weights, untrained, for tests that care for promises and not for quality."""

import torch

from hybridsep.core.profiles import PriorSettings, Profile, VQVAESettings
from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.separator import Separator
from hybridsep.inference.sums import SumLikelihood
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE

# Models this small are slower on many threads, and far slower where other work holds the cores.
torch.set_num_threads(1)

TRAINING = {"steps": 4, "batch": 2, "learning_rate": 1e-3, "warmup": 1}
RATE = 8000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int = 2, samples: int = 2048, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(batch, samples, generator=seeded(seed))


def decibels(error: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Power of an error over that of what it should have been."""
    return 10 * torch.log10(error.square().sum() / reference.square().sum().clamp_min(1e-12) + 1e-20)


def vqvae_settings(**changes) -> VQVAESettings:
    shape = {
        "strides": (8, 4),
        "widths": (4, 6),
        "encoder_depth": 1,
        "decoder_depth": 1,
        "latent_width": 5,
        "codes": 12,
        "crop_samples": 2048,
    }
    return VQVAESettings(**{**shape, "training": TRAINING, **changes})


def prior_settings(**changes) -> PriorSettings:
    shape = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "window": 8, "crop_codes": 16}
    return PriorSettings(**{**shape, "training": TRAINING, **changes})


def tiny_vqvae(seed: int = 0, **changes) -> VQVAE:
    torch.manual_seed(seed)
    module = VQVAE(vqvae_settings(**changes)).eval()
    module.bottleneck.start_from(module.latent(torch.randn(4, 128 * module.hop)).detach().flatten(0, 1), seeded(seed))
    return module


def tiny_prior(codes: int = 12, seed: int = 0, **changes) -> Prior:
    """A prior with a head that is not zero: a fresh one says the same of every history."""
    torch.manual_seed(seed)
    module = Prior(prior_settings(**changes), codes).eval()
    torch.nn.init.normal_(module.head.weight, std=0.5)
    return module


def random_counts(codes: int, triples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorted keys and their counts of random triples, some of them frequent."""
    keys = torch.randint(codes**3, (triples,), generator=seeded(seed)).unique()
    return keys, torch.randint(1, 40, keys.shape, generator=seeded(seed + 1))


def sum_likelihood(codes: int = 12, width: int = 3, seed: int = 0, floor: float = 0.01) -> SumLikelihood:
    return SumLikelihood(torch.randn(codes, width, generator=seeded(seed)), 0.5, floor)


def count_likelihood(codes: int = 12, seed: int = 0, power: float = 1.0, smoothing: float = 1.0) -> CountLikelihood:
    return CountLikelihood(*random_counts(codes, codes**2, seed), sum_likelihood(codes, seed=seed), smoothing, power)


def tiny_profile(**changes) -> Profile:
    values = {
        "name": "tiny", "sources": {"bass": "Bass", "drums": "Drums"}, "precision": "fp32", "data": {"sample_rate": RATE},
        "vqvae": vqvae_settings(), "prior": prior_settings(), "search": {"particles": 4},
    }  # fmt: skip
    return Profile(**{**values, **changes})


def tiny_separator(likelihood: Likelihood | None = None, **changes) -> Separator:
    vqvae = tiny_vqvae()
    likelihood = likelihood or SumLikelihood(vqvae.codebook, float(vqvae.codebook.var()), 0.01)
    return Separator(vqvae, [tiny_prior(seed=1), tiny_prior(seed=2)], likelihood, tiny_profile(**changes))


def long_hop_separator(codes: int = 12, **changes) -> Separator:
    """One whose windows have few codes, so that long recordings, or hundreds of short ones, are separated in seconds."""
    shape = {"strides": (16, 16), "widths": (2, 3), "codes": codes}
    priors = [tiny_prior(codes, seed, layers=1) for seed in (1, 2)]
    profile = tiny_profile(
        **{"vqvae": vqvae_settings(**shape), "prior": prior_settings(layers=1), "search": {"particles": 2}, **changes}
    )
    return Separator(tiny_vqvae(**shape), priors, count_likelihood(codes), profile)
