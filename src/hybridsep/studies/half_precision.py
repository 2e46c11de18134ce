"""What the record's half precision costs: weights rounded to float16 against the trained ones, beside what chance does to the same scores.

A search is random, and its particles are drawn anew where a probability changes in the last place. So one pair of runs says little: the
scores of a rounded model differ from those of the trained one as two seeds of one model do. The difference is therefore averaged over
seeds, the same draws on both sides, and stands beside as many differences between the trained model and itself by other seeds. What needs no search,
nats per code of priors and likelihood and the codec's ceiling, has no such chance in it and is compared directly.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hybridsep.device import seeded_generator
from hybridsep.errors import HybridsepError
from hybridsep.evaluation import Evaluation
from hybridsep.likelihood import likelihood_from_tensors
from hybridsep.metrics import sdr
from hybridsep.prior import nats_per_code
from hybridsep.profiles import method_spec
from hybridsep.record import packed, unpacked
from hybridsep.separation import Separator
from hybridsep.studies import Study
from hybridsep.studies.effects import BLIND, interval_columns
from hybridsep.vqvae import VQVAE

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
    rows, figures = [], []
    for method in COMPARED:
        for step in evaluation.pipeline.method_steps(method):
            if step.recorded:
                again = f"hybridsep train {method} --train trains one to compare"
                raise HybridsepError(f"{step.folder.name} came with the project, in half precision already: {again}")
        rows += [evaluation.blind_run(method, seed=seed).rows.assign(weights=TRAINED, seed=seed) for seed in range(2 * SEEDS)]
        for seed in range(SEEDS):
            rounded = evaluation.blind_run(method, variant="weights-in-float16", change=as_recorded, seed=seed).rows
            rows.append(rounded.assign(weights=ROUNDED, seed=seed))
        figures.append(_figures(evaluation, method))
    table = pd.concat(rows, ignore_index=True)
    table = table[table.metric.isin(METRICS) & table.selection.isin((BLIND["selection"], ""))]
    study.write("scores", table)
    study.write("differences", differences(table))
    study.write("figures", pd.concat(figures, ignore_index=True))


def as_recorded(separator: Separator) -> Separator:
    """The same models as a record gives them back."""
    vqvae, *priors = (copy.deepcopy(module) for module in (separator.vqvae, *separator.priors))
    for module in (vqvae, *priors):
        module.load_state_dict(_through_record(module.state_dict()))
    likelihood = {name: value.to(separator.device) for name, value in _through_record(separator.likelihood.to_tensors()).items()}
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
        trained, other = scores.loc[TRAINED].iloc[: len(rounded)], scores.loc[TRAINED].iloc[len(rounded) :].set_axis(rounded.index)
        for compared, found in ((ROUNDING, rounded - trained), (ANOTHER_SEED, other - trained)):
            spread = {"seed_std": found.mean(axis=1).std(), "seeds": len(found)}
            rows.append({**dict(zip(KEYS, keys, strict=True)), "compared": compared, **interval_columns(found.mean().to_numpy()), **spread})
    return pd.DataFrame(rows)


def _figures(evaluation: Evaluation, method: str) -> pd.DataFrame:
    """What needs no search: method, figure, source, trained, rounded, unit."""
    pipeline, spec = evaluation.pipeline, method_spec(method)
    trained = pipeline.separator(method)
    rounded = as_recorded(trained)
    rows = []
    held_out = pipeline.codes(spec.vqvae, "validation")
    for p, source in enumerate(evaluation.chunks.names):
        crops = held_out.random_crops(p, 32, pipeline.profile.prior.crop_codes, seeded_generator(pipeline.profile.seed, 4)).to(pipeline.device)
        rows.append(("prior, validation songs", source, *(nats_per_code(s.priors[p], crops) for s in (trained, rounded)), NATS))
    triples = pipeline.triples(spec.vqvae, "validation").to(pipeline.device)
    nats = [-float(s.likelihood.log_likelihood(triples[2], triples[0], triples[1]).mean()) for s in (trained, rounded)]
    rows.append(("likelihood, validation songs", "", *nats, NATS))
    ceilings, codes = zip(*(_decoded(evaluation, s.vqvae) for s in (trained, rounded)), strict=True)
    rows += [(CEILING, source, *(float(np.nanmean(c[p])) for c in ceilings), "dB") for p, source in enumerate(evaluation.chunks.names)]
    rows.append(("codes of the sources that stay the same", "", 1.0, float((codes[0] == codes[1]).float().mean()), "share"))
    return pd.DataFrame(rows, columns=["figure", "source", "trained", "rounded", "unit"]).assign(method=method)


def _decoded(evaluation: Evaluation, vqvae: VQVAE) -> tuple[np.ndarray, Tensor]:
    """SDR [P, B, windows or none] of the sources as a codec gives them back, and their codes."""
    sources = evaluation.chunks.sources
    codes = torch.stack([vqvae.encode(s.to(vqvae.codebook.device)) for s in sources])
    stems = torch.stack([vqvae.decode(each).cpu() for each in codes])
    return sdr(stems.numpy(), sources.numpy(), evaluation.chunks.sample_rate), codes.cpu()


def _through_record(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return unpacked(packed({name: value.detach().cpu() for name, value in tensors.items()}))
