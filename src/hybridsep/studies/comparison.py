"""Studies of the finished models: the 2 × 2 on many songs, more and fewer particles, and what each part contributes."""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch

from hybridsep.bench.models import dtype_name, separator_in
from hybridsep.device import seeded_generator
from hybridsep.evaluation import Evaluation
from hybridsep.markov import bigram_priors, uniform_priors, unigram_priors
from hybridsep.profiles import METHODS, method_spec
from hybridsep.studies import Study
from hybridsep.studies.effects import effects_table

CHUNKS = 60  # every test song of the profile cpu
PARTICLE_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
PARTICLE_CHUNKS = 6
CONTRIBUTION_CHUNKS = 12
PRECISION_SEEDS = 2
SEARCHES = ("particle", "ancestral", "beam", "topk")
KEPT_METRICS = ("sdr", "si_sdr_improvement", "sir", "sar", "stft_distance", "seconds", "log_evidence")


def two_by_two(study: Study) -> None:
    """Every cell by every search on a chunk of each of many test songs, and what each ingredient is worth."""
    evaluation = study.evaluation(chunks=CHUNKS)
    table = pd.concat([evaluation.references(), all_runs(evaluation)], ignore_index=True)
    wanted = (table.metric == "sdr") | ~table.selection.isin(("oracle", "seed"))
    study.write("evaluation", table[wanted & table.metric.isin(KEPT_METRICS) & table.reference.isin(("real", ""))])
    study.write("effects", effects_table(table))


def all_runs(evaluation: Evaluation) -> pd.DataFrame:
    """Scores of every cell by every search."""
    return pd.concat([evaluation.run(method, search).rows for search in SEARCHES for method in METHODS], ignore_index=True)


def particles(study: Study) -> None:
    """The particle filter of the Hybrid from 1 to 2 048 particles: scores, evidence, time, effective sample size, resamplings."""
    evaluation = study.evaluation(chunks=PARTICLE_CHUNKS)
    rows, figures, courses = [], [], []
    for count in PARTICLE_COUNTS:
        run = evaluation.blind_run("hybrid", "particle", count)
        rows.append(run.rows[run.rows.metric.isin(("sdr", "seconds", "log_evidence"))].assign(particles=count))
        figures.append({"particles": count, **run.figures})
        courses.append(run.course.assign(particles=count))
    study.write("scores", pd.concat(rows, ignore_index=True))
    study.write("search", pd.DataFrame(figures))
    study.write("course", pd.concat(courses, ignore_index=True))


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
            run = evaluation.blind_run(method, variant=f"{name}-priors", change=lambda separator, chain=chain: separator.with_priors(chain))
            rows.append(run.rows.assign(priors=name))
            held_out = [validation.random_crops(p, 32, settings.prior.crop_codes, seeded_generator(0, p)) for p in range(sources)]
            nats += [
                {"method": method, "priors": name, "source": source, "nats_per_code": chain.nats_per_code(held_out[p], p)}
                for p, source in enumerate(evaluation.chunks.names)
            ]
        rows.append(evaluation.blind_run(method).rows.assign(priors="transformer"))
        rows.append(_random_codes(evaluation, method).assign(priors="random codes"))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(KEPT_METRICS) & table.reference.isin(("real", ""))])
    study.write("nats", pd.DataFrame(nats))


def precision(study: Study) -> None:
    """The Hybrid's search in float32 and in bfloat16: what the lower precision does to scores, evidence and time."""
    evaluation, rows = study.evaluation(chunks=CONTRIBUTION_CHUNKS), []
    for dtype in (torch.float32, torch.bfloat16):
        for seed in range(PRECISION_SEEDS):
            run = evaluation.blind_run("hybrid", variant=dtype_name(dtype), change=partial(separator_in, dtype=dtype), seed=seed)
            rows.append(run.rows.assign(precision=dtype_name(dtype), seed=seed))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(("sdr", "log_evidence", "seconds"))])


def _random_codes(evaluation: Evaluation, method: str) -> pd.DataFrame:
    """Scores of sequences of codes that know nothing of the mixture, at the mixture's level."""
    vqvae, chunks = evaluation.pipeline.vqvae(method_spec(method).vqvae), evaluation.chunks
    shape = (len(chunks.names) * len(chunks), chunks.sources.shape[-1] // vqvae.hop)
    codes = torch.randint(len(vqvae.codebook), shape, generator=seeded_generator(0))
    noise = vqvae.decode(codes).view(chunks.sources.shape)
    level = chunks.mixture.square().mean(-1, keepdim=True).sqrt() / noise.square().mean(-1, keepdim=True).sqrt()
    return evaluation.score_estimates(method, noise * level)
