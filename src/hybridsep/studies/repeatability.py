"""How much of a score is luck: the spread over seeds of training, at the profile smoke, and of search, at the profile asked for."""

from __future__ import annotations

import pandas as pd

from hybridsep.core.profiles import METHODS, load_profile
from hybridsep.evaluation.comparisons import BLIND, SOURCES_MEAN, cell_scores, ingredient_effects
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.studies import Study

SEEDS = 5
CHUNKS = 12
TRAINING_PROFILE = "smoke"
TRAINING_CHUNKS = 6


def repeatability(study: Study) -> None:
    """Five seeds of training with one seed of search, and five seeds of search with one training; all four cells."""
    searched = study.evaluation(chunks=CHUNKS)
    tables = []
    for seed in range(SEEDS):
        for kind, evaluation, search_seed in (("training", _trained(study, seed), None), ("search", searched, seed)):
            rows = pd.concat(
                [evaluation.blind_run(method, seed=search_seed).rows for method in METHODS], ignore_index=True
            )
            tables.append(rows[rows.metric.isin(("sdr", "log_evidence"))].assign(varied=kind, seed=seed))
    table = pd.concat(tables, ignore_index=True)
    study.write("scores", table)
    study.write("spread", spread_table(table))


def _trained(study: Study, seed: int) -> Evaluation:
    """Models of their own for each seed, on the same songs; in a folder of their own beside the other runs."""
    profile = load_profile(TRAINING_PROFILE)
    changes = {
        "name": "repeatability",
        "seed": seed,
        "evaluation": profile.evaluation.model_copy(update={"chunks": TRAINING_CHUNKS}),
    }
    return Evaluation(Pipeline(profile.model_copy(update=changes), study.pipeline.root.parent))


def spread_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds of the mean over songs.

    Args:
        table: rows in the columns of evaluation.csv with `varied` ("training" or "search") and `seed`.

    Returns:
        varied, refine, source (or their mean), what (a method, or an effect of an ingredient), mean, std, low, high (extremes), seeds; dB.
    """
    rows = []
    for varied, of_kind in table.groupby("varied", sort=False):
        for refine in ("none", "wiener"):
            for source in (SOURCES_MEAN, *dict.fromkeys(s for s in table.source if s)):
                means = pd.DataFrame([_means(part, refine, source) for _, part in of_kind.groupby("seed")])
                summary = means.agg(["mean", "std", "min", "max"]).T.rename(columns={"min": "low", "max": "high"})
                rows.append(
                    summary.rename_axis("what")
                    .reset_index()
                    .assign(varied=varied, refine=refine, source=source, seeds=len(means))
                )
    return pd.concat(rows, ignore_index=True)


def _means(table: pd.DataFrame, refine: str, source: str) -> pd.Series:
    """Score of every cell and effect of every ingredient, mean over songs."""
    scores = cell_scores(table, **BLIND, refine=refine, **({} if source == SOURCES_MEAN else {"source": source}))
    return pd.concat([scores.mean(), pd.DataFrame(ingredient_effects(scores)).mean()])
