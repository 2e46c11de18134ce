"""What the record's half precision costs: weights rounded to float16 against the trained ones, beside what chance does to the same scores.

A search is random, and its particles are drawn anew where a probability changes in the last place. So one pair of runs says little: the
scores of a rounded model differ from those of the trained one as two seeds of one model do. The difference is therefore averaged over
seeds, the same draws on both sides, and stands beside as many differences between the trained model and itself by other seeds. What needs no search,
nats per code of priors and likelihood and the codec's ceiling, has no such chance in it and is compared directly. So are the blind scores
of the same particles: those that the trained models found, weighed and decoded anew by the rounded ones.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hybridsep.core.device import seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import method_spec
from hybridsep.core.records import packed, unpacked
from hybridsep.evaluation.comparisons import BLIND, interval_columns
from hybridsep.evaluation.metrics import sdr
from hybridsep.inference.counts import likelihood_from_tensors
from hybridsep.inference.separator import Separator, level_factor
from hybridsep.models.prior import nats_per_code
from hybridsep.models.vqvae import VQVAE
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.studies import Study

CHUNKS = 12
SEEDS = 4
COMPARED = ("hybrid", "lass")
METRICS = ("sdr", "si_sdr_improvement", "sir", "sar", "isr", "log_evidence")
KEYS = ["method", "refine", "source", "metric"]
TRAINED, ROUNDED = "float32", "float16"
ROUNDING, ANOTHER_SEED = "rounding", "another seed"
CEILING, NATS = "codec ceiling", "nats per code"


def half_precision(study: Study) -> None:
    """Hybrid and LASS with their weights as trained and as recorded, on the same chunks, with the same seeds."""
    evaluation = study.evaluation(chunks=CHUNKS)
    rows, figures, same = [], [], []
    for method in COMPARED:
        for step in evaluation.pipeline.method_steps(method):
            if step.recorded:
                again = f"hybridsep train {method} --train trains one to compare"
                raise HybridsepError(f"{step.folder.name} came with the project, in half precision already: {again}")
        rows += [
            evaluation.blind_run(method, seed=seed).rows.assign(weights=TRAINED, seed=seed) for seed in range(2 * SEEDS)
        ]
        for seed in range(SEEDS):
            rounded = evaluation.blind_run(method, change=as_recorded, seed=seed).rows
            rows.append(rounded.assign(weights=ROUNDED, seed=seed))
        figures.append(_figures(evaluation, method))
        same.append(same_particles(evaluation, method))
    table = pd.concat(rows, ignore_index=True)
    table = table[table.metric.isin(METRICS) & table.selection.isin((BLIND["selection"], ""))]
    study.write("scores", table)
    study.write("differences", differences(table))
    study.write("figures", pd.concat(figures, ignore_index=True))
    study.write("same_particles", pd.concat(same, ignore_index=True))


def as_recorded(separator: Separator) -> Separator:
    """The same models as a record gives them back."""
    vqvae, *priors = (copy.deepcopy(module) for module in (separator.vqvae, *separator.priors))
    for module in (vqvae, *priors):
        module.load_state_dict(_through_record(module.state_dict()))
    likelihood = {
        name: value.to(separator.device) for name, value in _through_record(separator.likelihood.to_tensors()).items()
    }
    return Separator(vqvae, priors, likelihood_from_tensors(likelihood), separator.profile)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Rounded minus trained, paired by chunk and seed, beside one seed minus another of the trained models, each seed in one pair only.

    Args:
        table: rows in the columns of evaluation.csv with `weights` and `seed`, of the trained models twice as many seeds as of the rounded.

    Returns:
        method, refine, source, metric, compared ("rounding" or "another seed"), mean, low, high (95 % bootstrap interval over songs, each
        averaged over seeds), std (over songs), n, seed_std (standard deviation over seeds of the mean over songs), seeds; in the metric's unit.
    """
    rows = []
    for keys, part in table.groupby(KEYS, sort=False):
        scores = part.pivot_table(index=["weights", "seed"], columns="track", values="value")
        rounded = scores.loc[ROUNDED]
        trained, other = (
            scores.loc[TRAINED].iloc[: len(rounded)],
            scores.loc[TRAINED].iloc[len(rounded) :].set_axis(rounded.index),
        )
        for compared, found in ((ROUNDING, rounded - trained), (ANOTHER_SEED, other - trained)):
            spread = {"seed_std": found.mean(axis=1).std(), "seeds": len(found)}
            rows.append(
                {
                    **dict(zip(KEYS, keys, strict=True)),
                    "compared": compared,
                    **interval_columns(found.mean().to_numpy()),
                    **spread,
                }
            )
    return pd.DataFrame(rows)


@torch.no_grad()
def same_particles(evaluation: Evaluation, method: str) -> pd.DataFrame:
    """Blind scores of the particles that the trained models found, weighed and decoded by them, and by the rounded ones.

    A particle's weight is multiplied by the ratio of the joint probabilities that both give its codes and the mixture's, as in importance
    sampling. What is left out is that the rounded models might have drawn other particles.

    Returns:
        method, refine, source, metric, trained, rounded (means over chunks), largest (absolute change in any chunk), n; in the metric's unit.
    """
    trained = evaluation.pipeline.separator(method)
    rounded = as_recorded(trained)
    found = trained.candidates(
        evaluation.chunks.mixture, seed=evaluation.settings.seed, label=f"{method}, the same particles"
    ).search
    level = level_factor(evaluation.chunks.mixture).to(trained.device)
    ratio = _log_joint(rounded, found.codes, evaluation) - _log_joint(trained, found.codes, evaluation)
    scores = {}
    for name, separator, log_weights in (
        (TRAINED, trained, found.log_weights),
        (ROUNDED, rounded, found.log_weights + ratio),
    ):
        rows = evaluation.score_estimates(
            method, (separator.decode(found.codes, log_weights.softmax(-1)) / level).cpu(), "particle"
        )
        scores[name] = rows[rows.metric.isin(METRICS)].set_index([*KEYS, "track"]).value
    table = pd.DataFrame(scores).assign(change=lambda both: (both[ROUNDED] - both[TRAINED]).abs())
    return (
        table.groupby(KEYS, sort=False)
        .agg(trained=(TRAINED, "mean"), rounded=(ROUNDED, "mean"), largest=("change", "max"), n=("change", "count"))
        .reset_index()
    )


def _log_joint(separator: Separator, codes: Tensor, evaluation: Evaluation) -> Tensor:
    """Log-probability of codes [P, B, N, S] and of the mixtures' codes as the search weighs them: [B, N], nats."""
    mixture = evaluation.chunks.mixture.to(separator.device)
    heard = torch.cat([separator.vqvae.encode(part) for part in (mixture * level_factor(mixture)).split(4)])
    total = separator.likelihood.log_likelihood(heard[:, None].expand(codes.shape[1:]), codes[0], codes[1]).sum(-1)
    for prior, own in zip(separator.priors, codes, strict=True):
        parts = own.flatten(0, 1).split(8)
        found = [
            (prior(part) / separator.stack.temperature).log_softmax(-1).gather(-1, part[..., None]).sum((1, 2))
            for part in parts
        ]
        total = total + torch.cat(found).view_as(total)
    return total


def _figures(evaluation: Evaluation, method: str) -> pd.DataFrame:
    """What needs no search: method, figure, source, trained, rounded, unit."""
    pipeline, spec = evaluation.pipeline, method_spec(method)
    trained = pipeline.separator(method)
    rounded = as_recorded(trained)
    rows = []
    held_out = pipeline.codes(spec.vqvae, "validation")
    for p, source in enumerate(evaluation.chunks.names):
        crops = held_out.random_crops(
            p, 32, pipeline.profile.prior.crop_codes, seeded_generator(pipeline.profile.seed, 4)
        ).to(pipeline.device)
        rows.append(
            ("prior, validation songs", source, *(nats_per_code(s.priors[p], crops) for s in (trained, rounded)), NATS)
        )
    triples = pipeline.triples(spec.vqvae, "validation").to(pipeline.device)
    nats = [-float(s.likelihood.log_likelihood(triples[2], triples[0], triples[1]).mean()) for s in (trained, rounded)]
    rows.append(("likelihood, validation songs", "", *nats, NATS))
    ceilings, codes = zip(*(_decoded(evaluation, s.vqvae) for s in (trained, rounded)), strict=True)
    rows += [
        (CEILING, source, *(float(np.nanmean(c[p])) for c in ceilings), "dB")
        for p, source in enumerate(evaluation.chunks.names)
    ]
    rows.append(
        ("codes of the sources that stay the same", "", 1.0, float((codes[0] == codes[1]).float().mean()), "share")
    )
    return pd.DataFrame(rows, columns=["figure", "source", "trained", "rounded", "unit"]).assign(method=method)


def _decoded(evaluation: Evaluation, vqvae: VQVAE) -> tuple[np.ndarray, Tensor]:
    """SDR [P, B, windows or none] of the sources as a codec gives them back, and their codes."""
    sources = evaluation.chunks.sources
    codes = torch.stack([vqvae.encode(s.to(vqvae.codebook.device)) for s in sources])
    stems = torch.stack([vqvae.decode(each).cpu() for each in codes])
    return sdr(stems.numpy(), sources.numpy(), evaluation.chunks.sample_rate), codes.cpu()


def _through_record(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return unpacked(packed({name: value.detach().cpu() for name, value in tensors.items()}))
