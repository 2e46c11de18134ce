"""How much of a score is luck: the spread over seeds of training, at a small profile, and over seeds of search."""

from __future__ import annotations

import pandas as pd
from study import Study, main, sources_of

from hybridsep.core.profiles import METHODS, load_profile
from hybridsep.evaluation.comparisons import BLIND, cell_scores, ingredient_effects
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline

SEEDS, CHUNKS = 5, 12
TRAINING_PROFILE, TRAINING_CHUNKS = "smoke", 6


def repeatability(study: Study) -> None:
    """Vary the seed of training with one of search, and the seed of search with one training, in all four cells."""
    searched, tables = study.evaluation(chunks=CHUNKS), []
    for seed in range(SEEDS):
        for kind, evaluation, search_seed in (("training", trained(study, seed), None), ("search", searched, seed)):
            rows = pd.concat([evaluation.blind_run(method, seed=search_seed) for method in METHODS])
            tables.append(rows[rows.metric.isin(("sdr", "log_evidence"))].assign(varied=kind, seed=seed))
    table = pd.concat(tables, ignore_index=True)
    study.write("scores", table)
    study.write("spread", spread_table(table))


def trained(study: Study, seed: int) -> Evaluation:
    """Return models of their own for a seed, on the same songs, in a folder of their own beside the other runs."""
    profile = load_profile(TRAINING_PROFILE)
    scored = profile.evaluation.model_copy(update={"chunks": TRAINING_CHUNKS})
    changes = {"name": "repeatability", "seed": seed, "evaluation": scored}
    return Evaluation(Pipeline(profile.model_copy(update=changes), study.pipeline.root.parent))


def spread_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and spread over seeds of the mean over songs.

    Args:
        table: rows in the columns of evaluation.csv with `varied` ("training" or "search") and `seed`.

    Returns:
        what (a method, or an effect of an ingredient), mean, std, low, high (extremes), varied, refine, source (or
        "mean"), seeds; dB.
    """
    rows = []
    for varied, of_kind in table.groupby("varied", sort=False):
        for refine in ("none", "wiener"):
            for source, only in sources_of(table).items():
                where = {**BLIND, "refine": refine, **only}
                means = pd.DataFrame([cell_means(part, where) for _, part in of_kind.groupby("seed")])
                summary = means.agg(["mean", "std", "min", "max"]).T.rename(columns={"min": "low", "max": "high"})
                labels = {"varied": varied, "refine": refine, "source": source, "seeds": len(means)}
                rows.append(summary.rename_axis("what").reset_index().assign(**labels))
    return pd.concat(rows, ignore_index=True)


def cell_means(table: pd.DataFrame, where: dict[str, str]) -> pd.Series:
    """Return the score of every cell and the effect of every ingredient, mean over songs."""
    scores = cell_scores(table, **where)
    return pd.concat([scores.mean(), pd.DataFrame(ingredient_effects(scores)).mean()])


if __name__ == "__main__":
    main(repeatability)
