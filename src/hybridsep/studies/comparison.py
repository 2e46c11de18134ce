"""Studies of the finished models: the 2 × 2 on many songs, more and fewer particles, and what each part contributes."""

from __future__ import annotations

import pandas as pd
import torch

from hybridsep.core.device import dtype_name, seeded_generator
from hybridsep.core.profiles import METHODS, method_spec
from hybridsep.evaluation.comparisons import (
    BLIND,
    SOURCES_MEAN,
    effects_table,
    interval_columns,
    permutation_p,
    song_values,
)
from hybridsep.evaluation.rows import rows_where
from hybridsep.evaluation.statistics import holm
from hybridsep.inference.markov import bigram_priors, uniform_priors, unigram_priors
from hybridsep.inference.separator import Separator
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.studies import Study
from hybridsep.studies.settings import with_search

CHUNKS = 60  # every test song of the profile cpu
# N of one filter, and of the mean of several filters of FILTER_PARTICLES each. Time grows with N: the last takes longer than all others together.
PARTICLE_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
AVERAGED_COUNTS = (32, 64, 128, 512)
ONE_FILTER, FILTER_PARTICLES = 0, 32  # in the profile's terms
PARTICLE_CHUNKS = 8
CONTRIBUTION_CHUNKS = 12
PRECISION_SEEDS = 2
PRECISIONS = (torch.float32, torch.bfloat16)
SEARCHES = ("particle", "ancestral", "beam", "topk")
KEPT_METRICS = ("sdr", "si_sdr_improvement", "sir", "sar", "seconds", "log_evidence")


def two_by_two(study: Study) -> None:
    """Every cell by every search on a chunk of each of many test songs, and what each ingredient is worth."""
    evaluation = study.evaluation(chunks=CHUNKS)
    table = pd.concat([evaluation.references(), all_runs(evaluation)], ignore_index=True)
    wanted = (table.metric == "sdr") | ~table.selection.isin(("oracle", "seed"))
    study.write("evaluation", table[wanted & table.metric.isin(KEPT_METRICS) & table.reference.isin(("real", ""))])
    study.write("effects", effects_table(table))


def all_runs(evaluation: Evaluation) -> pd.DataFrame:
    """Scores of every cell by every search."""
    return pd.concat(
        [evaluation.run(method, search).rows for search in SEARCHES for method in METHODS], ignore_index=True
    )


def particles(study: Study) -> None:
    """The particle filter of the Hybrid from 1 to 2 048 particles, in one filter and in several whose means are averaged.

    Scores, evidence, time, effective sample size and resamplings; in every table `filter_particles` as in the profile: 0 is one filter.
    """
    evaluation = study.evaluation(chunks=PARTICLE_CHUNKS)
    rows, figures, courses = [], [], []
    for size, counts in ((ONE_FILTER, PARTICLE_COUNTS), (FILTER_PARTICLES, AVERAGED_COUNTS)):
        for count in counts:
            run = evaluation.blind_run("hybrid", "particle", count, change=with_search, filter_particles=size)
            kind = {"filter_particles": size, "particles": count}
            rows.append(run.rows[run.rows.metric.isin(("sdr", "seconds", "log_evidence"))].assign(**kind))
            figures.append({**kind, **run.figures})
            courses.append(run.course.assign(**kind))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table)
    study.write("search", pd.DataFrame(figures))
    study.write("course", pd.concat(courses, ignore_index=True))
    study.write("differences", averaging_gains(table))


def averaging_gains(table: pd.DataFrame) -> pd.DataFrame:
    """What several filters whose means are averaged gain over one filter of as many particles: blind, refined SDR, mean of the sources, dB.

    Args:
        table: rows in the columns of evaluation.csv with `filter_particles` (0: one filter) and `particles`.

    Returns:
        particles, mean, low, high (95 % bootstrap interval over songs), std, n, p (paired permutation test) and p_holm, corrected for all rows.
    """
    one, averaged = table[table.filter_particles == ONE_FILTER], table[table.filter_particles != ONE_FILTER]
    shared = averaged.particles[
        (averaged.particles > averaged.filter_particles) & averaged.particles.isin(one.particles)
    ].unique()
    rows = []
    for count in shared:
        scores = [song_values(kind[kind.particles == count], **BLIND, refine="wiener") for kind in (averaged, one)]
        found = (scores[0] - scores[1]).to_numpy()
        rows.append({"particles": count, **interval_columns(found), "p": permutation_p(found)})
    gains = pd.DataFrame(rows)
    return gains.assign(p_holm=holm(gains.p.to_numpy()))


def contributions(study: Study) -> None:
    """Hybrid and LASS with their priors replaced by poorer ones, down to none, and codes drawn at random."""
    evaluation = study.evaluation(chunks=CONTRIBUTION_CHUNKS)
    settings = evaluation.pipeline.profile
    rows, nats = [], []
    for method in ("hybrid", "lass"):
        kind = method_spec(method).vqvae
        size = settings.vqvae.codes
        train, validation = (evaluation.pipeline.codes(kind, split) for split in ("train", "validation"))
        sources = len(evaluation.chunks.names)
        priors = {
            "uniform": uniform_priors(sources, size),
            "unigram": unigram_priors(train, size),
            "bigram": bigram_priors(train, validation, size),
        }
        for name, chain in priors.items():
            run = evaluation.blind_run(
                method, change=lambda separator, priors, chain=chain: separator.with_priors(chain), priors=name
            )
            rows.append(run.rows.assign(priors=name))
            held_out = [
                validation.random_crops(p, 32, settings.prior.crop_codes, seeded_generator(0, p))
                for p in range(sources)
            ]
            nats += [
                {
                    "method": method,
                    "priors": name,
                    "source": source,
                    "nats_per_code": chain.nats_per_code(held_out[p], p),
                }
                for p, source in enumerate(evaluation.chunks.names)
            ]
        rows.append(evaluation.blind_run(method).rows.assign(priors="transformer"))
        rows.append(_random_codes(evaluation, method).assign(priors="random codes"))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(KEPT_METRICS) & table.reference.isin(("real", ""))])
    study.write("nats", pd.DataFrame(nats))


def precision(study: Study) -> None:
    """The Hybrid's search in float32 and in bfloat16: what the lower precision does to scores, evidence and time, song by song."""
    evaluation, rows = study.evaluation(chunks=CONTRIBUTION_CHUNKS), []
    for dtype in PRECISIONS:
        for seed in range(PRECISION_SEEDS):
            run = evaluation.blind_run(
                "hybrid",
                change=in_precision,
                seed=seed,
                precision=dtype_name(dtype),
            )
            rows.append(run.rows.assign(precision=dtype_name(dtype), seed=seed))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(("sdr", "log_evidence", "seconds"))])
    study.write("differences", precision_differences(table))


def in_precision(separator: Separator, precision: str) -> Separator:
    """Return the same models with their products in "float32" or "bfloat16"."""
    profile = separator.profile.model_copy(update={"precision": {"float32": "fp32", "bfloat16": "bf16"}[precision]})
    return Separator(separator.vqvae, separator.priors, separator.likelihood, profile)


def precision_differences(table: pd.DataFrame) -> pd.DataFrame:
    """bfloat16 minus float32, paired by song and averaged over seeds; of the times, which a whole run has in common, the ratio.

    Args:
        table: rows in the columns of evaluation.csv with `precision` and `seed`.

    Returns:
        metric, source ("mean": of both), mean, low, high (95 % bootstrap interval over songs), std, n (songs). "sdr" is refined, dB,
        "log_evidence" in nats per code. "seconds_ratio", bfloat16 over float32, has no interval, and seeds in place of songs.
    """
    wanted = {(SOURCES_MEAN, "sdr"): {**BLIND, "refine": "wiener"}, ("", "log_evidence"): {"metric": "log_evidence"}}
    wanted |= {(s, "sdr"): {**BLIND, "refine": "wiener", "source": s} for s in dict.fromkeys(table.source) if s}
    full, half = (table[table.precision == dtype_name(dtype)] for dtype in PRECISIONS)
    rows = [
        {
            "metric": metric,
            "source": source,
            **interval_columns((song_values(half, **where) - song_values(full, **where)).to_numpy()),
        }
        for (source, metric), where in wanted.items()
    ]
    seconds, reference = (rows_where(kind, metric="seconds").groupby("seed").value.mean() for kind in (half, full))
    ratio = seconds / reference
    rows.append({"metric": "seconds_ratio", "source": "", "mean": ratio.mean(), "std": ratio.std(), "n": len(ratio)})
    return pd.DataFrame(rows)


def _random_codes(evaluation: Evaluation, method: str) -> pd.DataFrame:
    """Scores of sequences of codes that know nothing of the mixture, at the mixture's level."""
    vqvae, chunks = evaluation.pipeline.vqvae(method_spec(method).vqvae), evaluation.chunks
    shape = (len(chunks.names) * len(chunks), chunks.sources.shape[-1] // vqvae.hop)
    codes = torch.randint(len(vqvae.codebook), shape, generator=seeded_generator(0))
    noise = vqvae.decode(codes).view(chunks.sources.shape)
    level = chunks.mixture.square().mean(-1, keepdim=True).sqrt() / noise.square().mean(-1, keepdim=True).sqrt()
    return evaluation.score_estimates(method, noise * level)
