"""How far each search is from the exact posterior: bounds on log p(m) from both sides, on mixtures drawn from the models themselves.

There the pair of code sequences that a mixture was drawn from is a sample of its posterior. What a search makes of the evidence bounds log p(m)
from below; a filter in which that sample is one particle, from above.

Source: Grosse et al. 2015 (arXiv 1511.02543); Zhao et al. 2024 (arXiv 2404.17546); conditional filter of Andrieu et al. 2010, "Particle Markov chain
Monte Carlo methods".
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import pandas as pd
import torch
from study import Study, cached_rows, main
from torch import Generator, Tensor

from hybridsep.core.device import seeded_generator
from hybridsep.evaluation.comparisons import interval_columns
from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.search import SEARCHES, Priors, enough_particles
from hybridsep.kernels.resampling import stay_in_place
from hybridsep.pipeline.pipeline import Pipeline

METHODS = ("hybrid",)
SEQUENCES, SECONDS, COUNTS = 6, 3.0, (8, 32)
RESAMPLED = {"particle": 0.5, "ancestral": 0.0}  # searches with a bound from above, by their threshold of resampling
DETERMINISTIC = ("topk", "beam")


def exactness(study: Study) -> None:
    """Bound log p(m) by every search, in nats per code."""
    tables = []
    for method in METHODS:
        key = (study.pipeline.method_version(method), SEQUENCES, SECONDS, COUNTS)
        make = functools.partial(bounds, study.pipeline, method)
        tables.append(cached_rows(study.pipeline, f"exactness-{method}", key, make).assign(method=method))
        table = pd.concat(tables, ignore_index=True)
        study.write("bounds", table)
        study.write("gaps", gaps(table))


def bounds(pipeline: Pipeline, method: str) -> pd.DataFrame:
    """Return search, particles, bound ("lower", "upper"), sequence, nats (per code) and seconds (CPU time per sequence)."""
    separator, rows = pipeline.separator(method), []
    length = int(SECONDS * separator.sample_rate) // separator.hop
    # At any other power the likelihood is no distribution of the mixture's code.
    priors, likelihood = separator.stack, separator.likelihood.with_power(1.0)
    truth, mixtures = draw_songs(priors, likelihood, SEQUENCES, length, seeded_generator(pipeline.profile.seed, 7))

    def note(search: str, count: int, bound: str, run: Callable[[], Tensor]) -> None:
        started = time.process_time()
        evidence = run() / length
        known = {"search": search, "particles": count, "bound": bound}
        seconds = (time.process_time() - started) / SEQUENCES
        rows.extend({**known, "sequence": n, "nats": float(e), "seconds": seconds} for n, e in enumerate(evidence))

    for count in COUNTS:
        for search in (*RESAMPLED, *DETERMINISTIC):
            extra = {"k": pipeline.profile.search.top_k} if search == "topk" else {}
            run = functools.partial(SEARCHES[search], priors, likelihood, mixtures, count, **extra)
            note(search, count, "lower", lambda run=run: run(generator=seeded_generator(1)).log_evidence)
        for search, threshold in RESAMPLED.items():
            run = functools.partial(conditional_evidence, priors, likelihood, mixtures, truth, count, threshold)
            note(search, count, "upper", lambda run=run: run(seeded_generator(2)))
    return pd.DataFrame(rows)


@torch.no_grad()
def draw_songs(
    priors: Priors, likelihood: Likelihood, count: int, length: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Draw code sequences of both sources from the priors, int64 [2, B, S], and of their mixture from the likelihood, [B, S]."""
    state, sources, mixtures = priors.start(count, 1), [], []
    every = torch.arange(likelihood.codes).expand(count, -1)
    for t in range(length):
        pair = torch.stack([torch.multinomial(p.exp(), 1, generator=generator) for p in state.log_probs[:, :, 0]])
        log_l = likelihood.log_likelihood(every, *(codes.expand_as(every) for codes in pair))
        sources.append(pair[..., 0])
        mixtures.append(torch.multinomial(log_l.softmax(-1), 1, generator=generator)[:, 0])
        if t + 1 < length:
            state.append(pair)
    return torch.stack(sources, -1), torch.stack(mixtures, -1)


@torch.no_grad()
def conditional_evidence(
    priors: Priors,
    likelihood: Likelihood,
    mixtures: Tensor,
    truth: Tensor,
    particles: int,
    threshold: float,
    generator: Generator,
) -> Tensor:
    """Return the log-evidence [B], nats, of a filter whose first particle keeps to `truth`; its mean is no less than log p(m)."""
    batch, length = mixtures.shape
    state, evidence, own = priors.start(batch, particles), torch.zeros(batch), torch.arange(particles)
    log_weights = torch.full((batch, particles), -math.log(particles))
    for t in range(length):
        posterior, ancestors = likelihood.posterior(mixtures[:, t], state.log_probs), None
        log_weights = log_weights + posterior.log_evidence
        total = log_weights.logsumexp(1, keepdim=True)
        log_weights, evidence = log_weights - total, evidence + total[:, 0]
        poor = 1 / log_weights.exp().square().sum(1) < enough_particles(particles, threshold)
        if poor.any():
            picked = torch.multinomial(log_weights.exp(), particles, replacement=True, generator=generator)
            picked[:, 0] = 0
            ancestors = torch.where(poor[:, None], stay_in_place(picked.sort(1).values), own)
            log_weights = torch.where(poor[:, None], -math.log(particles), log_weights)
        pair = posterior.draw(torch.rand(2, batch, particles, generator=generator), ancestors).clone()
        pair[:, :, 0] = truth[:, :, t]
        if t + 1 < length:
            state.append(pair, ancestors)
    return evidence


def gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Return how far each lower bound lies below the lowest upper one: method, search, particles, mean, low, high, std, n (sequences); nats per code."""
    rows = []
    for method, part in table.groupby("method", sort=False):
        means = part.groupby(["bound", "search", "particles", "sequence"], sort=False).nats.mean()
        above = means["upper"].unstack("sequence")
        least = above.loc[above.mean(axis=1).idxmin()]
        for (search, count), below in means["lower"].unstack("sequence").iterrows():
            known = {"method": method, "search": search, "particles": count}
            rows.append({**known, **interval_columns((least - below).to_numpy())})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main(exactness)
