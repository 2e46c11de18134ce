"""The 2 × 2 over trainings: what each ingredient is worth on every rung, with songs and trainings both as random.

Every training makes all models anew from a seed of its own, by a profile that takes minutes (`--profile quick`), on the same songs.
Trainings that the tables hold already, of the same profile, are not made again: a study that was stopped goes on from its tables alone.
"""

from __future__ import annotations

import json
import warnings
from itertools import product

import numpy as np
import pandas as pd
from rungs import song_of
from scipy.stats import trim_mean
from statsmodels.regression.mixed_linear_model import MixedLM
from study import Study, main, sources_of

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.comparisons import BLIND, cell_scores, ingredient_effects
from hybridsep.evaluation.rows import read_rows
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import RUNGS, Pipeline

TRAININGS, CHUNKS, PARTICLES = 6, 15, 16
RESAMPLES = 10_000
KEPT = ["training", "rung", "track", "start_s", "method", "search", "selection", "refine", "source", "reference"]
KEPT += ["metric", "value"]


def two_by_two(study: Study) -> None:
    """Train all models from several seeds, separate by every cell on every rung, and tell the ingredients' effects from luck."""
    parts = known_scores(study)
    for training in range(len(parts), TRAININGS):
        found = [rung_scores(study, training, rung).assign(training=training, rung=rung) for rung in RUNGS]
        parts.append(pd.concat(found, ignore_index=True)[KEPT])
        scores = pd.concat(parts, ignore_index=True)
        study.write("scores", scores)
        study.write("effects", effects_over_trainings(scores))
        study.notes["trainings"] = str(len(parts))
        study.finish()


def known_scores(study: Study) -> list[pd.DataFrame]:
    """Return the scores of each training that was recorded with the same profile, from the first on."""
    record, table = study.folder / "provenance.json", study.folder / "scores.csv"
    profile = study.pipeline.profile.model_dump(mode="json")
    if record.is_file() and table.is_file() and json.loads(record.read_text())["profile"] == profile:
        return [own for _, own in read_rows(table).groupby("training")]
    return []


def rung_scores(study: Study, training: int, rung: str) -> pd.DataFrame:
    """Return blind SDR of all cells on a rung by the models of one training, beside the untouched mixture and the ceilings."""
    run, blocks = study.pipeline, study.changed(evaluation={"chunks": CHUNKS}).profile
    made = Pipeline(blocks.model_copy(update={"seed": training}), run.root.parent, run.data, records=None)
    evaluation = Evaluation(made, rung)
    runs = [evaluation.blind_run(method, particles=PARTICLES) for method in METHODS]
    found = pd.concat([*runs, evaluation.references()], ignore_index=True)
    return found[(found.metric == "sdr") & (found.reference == "real")]


def effects_over_trainings(scores: pd.DataFrame) -> pd.DataFrame:
    """Return what each ingredient is worth: rung, refine, source, effect, and the columns of `over_songs_and_trainings`."""
    rows = []
    for rung, refine in product(dict.fromkeys(scores.rung), ("none", "wiener")):
        part = scores[(scores.rung == rung) & scores.method.isin(METHODS)]
        for source, only in sources_of(part).items():
            gains = pd.concat({t: song_effects(own, refine, only) for t, own in part.groupby("training")})
            for effect, values in gains.items():
                labels = {"rung": rung, "refine": refine, "source": source, "effect": effect}
                rows.append({**labels, **over_songs_and_trainings(values.unstack())})
    return pd.DataFrame(rows)


def song_effects(scores: pd.DataFrame, refine: str, only: dict[str, str]) -> pd.DataFrame:
    """Return the effects of both ingredients and their interaction, one row per song, means over its excerpts."""
    cells = cell_scores(scores.assign(track=song_of(scores.track), start_s=0.0), **BLIND, refine=refine, **only)
    return pd.DataFrame(ingredient_effects(cells), index=cells.index.get_level_values("track"))


def over_songs_and_trainings(values: pd.DataFrame) -> dict[str, float]:
    """Return the mean of an effect [trainings, songs] with intervals for other songs and other trainings alike.

    `low` and `high` are 95 % of a bootstrap that draws trainings and songs anew, each by itself (Owen 2007, "The pigeonhole bootstrap",
    which errs on the wide side); `model_low` and `model_high` those of a mixed model with crossed random intercepts, whose standard
    deviations are `of_songs`, `of_trainings` and `of_rest`. NaN where there is one training.
    """
    effect, draw = values.to_numpy(), np.random.default_rng(0)
    trainings, songs = effect.shape
    drawn = [
        effect[np.ix_(draw.integers(trainings, size=trainings), draw.integers(songs, size=songs))].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = {"mean": effect.mean(), "low": low, "high": high, "median": np.median(effect.mean(0))}
    found |= {"trimmed": trim_mean(effect.mean(0), 0.1), "n": songs, "trainings": trainings}
    return found | mixed_model(values)


def mixed_model(values: pd.DataFrame) -> dict[str, float]:
    """Fit effect[training, song] = mean + training + song + rest by restricted maximum likelihood."""
    names = ("model_low", "model_high", "of_songs", "of_trainings", "of_rest")
    if len(values) < 2:
        return dict.fromkeys(names, np.nan)
    long = values.rename_axis("training").reset_index().melt("training", var_name="song")
    crossed = {"song": "0 + C(song)", "training": "0 + C(training)"}
    with warnings.catch_warnings():
        # A variance that is estimated as zero lies on the edge of what it may be, of which statsmodels warns.
        warnings.simplefilter("ignore")
        fit = MixedLM.from_formula("value ~ 1", long, groups=np.ones(len(long)), vc_formula=crossed).fit()
    low, high = fit.conf_int().loc["Intercept"]
    return dict(zip(names, (low, high, *np.sqrt([*fit.vcomp, fit.scale])), strict=True))


if __name__ == "__main__":
    main(two_by_two)
