"""Three rungs of test songs, each further from what was trained on: every cell beside the untouched mixture and the ceilings.

MiniSlakh's own songs; songs that people wrote, by SoundFonts that were trained on; the same songs by FluidR3, which was not.
FluidR3 comes with Debian's package fluid-soundfont-gm.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import product

import pandas as pd
from study import Study, main, sources_of

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.comparisons import effects_table, interval_columns
from hybridsep.evaluation.linearity import measure_linearity
from hybridsep.evaluation.rows import rows_where
from hybridsep.pipeline.evaluate import KINDS
from hybridsep.pipeline.pipeline import RUNGS

CHUNKS = 30
SEARCHES = ("particle", "lass-beam")
METRICS = ("sdr", "si_sdr_improvement")
BORROWING = "-borrowing"


def rungs(study: Study) -> None:
    """Score the estimates of all cells on every rung, and what each ingredient is worth there."""
    study.write("linearity", linearity_table(study))
    levels, gains, effects, scores = [], [], [], []
    for rung in RUNGS:
        evaluation = study.evaluation(rung, CHUNKS)
        runs = [evaluation.blind_run(method, search) for search in SEARCHES for method in METHODS]
        borrowed = with_borrowing(study, rung) if rung == RUNGS[0] else []
        found = pd.concat([*runs, *borrowed, evaluation.references()], ignore_index=True)
        effects.append(effects_table(found.assign(track=song_of(found.track), start_s=0.0)).assign(rung=rung))
        found = found[found.metric.isin((*METRICS, "log_evidence"))].assign(rung=rung)
        scores.append(found)
        levels.append(levels_table(found))
        gains.append(gains_table(found))
        # A killed study leaves the rungs that are done.
        for name, parts in {"scores": scores, "levels": levels, "gains": gains, "effects": effects}.items():
            study.write(name, pd.concat(parts, ignore_index=True))


def linearity_table(study: Study) -> pd.DataFrame:
    """Return how linear the two codebooks are on pairs of test songs: kind, hit_rate, hit_rate_without_top, by_chance, distance."""
    pipeline = study.pipeline
    found = {k: measure_linearity(pipeline.vqvae(k).codebook.cpu(), pipeline.triples(k, "test")) for k in KINDS}
    return pd.DataFrame([{"kind": kind, **asdict(measured)} for kind, measured in found.items()])


def with_borrowing(study: Study, rung: str) -> list[pd.DataFrame]:
    """Return scores of the counting cells with counts smoothed towards the summed codebook, as METHOD-borrowing."""
    counting = {method: spec for method, spec in METHODS.items() if spec.likelihood == "counts"}
    cells = {
        f"{spec.vqvae}_counts": getattr(study.pipeline.profile.search, f"{spec.vqvae}_counts")
        for spec in counting.values()
    }
    # The pseudo-counts were tuned for the other base: here those of highest likelihood on validation pairs count.
    fitted = {name: tuning.model_copy(update={"smoothing": None}) for name, tuning in cells.items()}
    evaluation = study.evaluation(rung, CHUNKS, likelihood={"base": "sum"}, search=fitted)
    return [evaluation.blind_run(method).assign(method=f"{method}{BORROWING}") for method in counting]


def levels_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return scores of one rung: rung, method, search, refine, source ("mean": of both), metric, mean, low, high, std, n (songs), median, chunks."""
    rows = []
    names = ["rung", "method", "search", "refine", "metric"]
    for labels, part in _scores(table).groupby(names, sort=False):
        for source, only in sources_of(part).items():
            songs = by_song(rows_where(part, **only))
            known = {**dict(zip(names, labels, strict=True)), "source": source}
            chunks = part.groupby(["track", "start_s"]).ngroups
            rows.append({**known, **interval_columns(songs.to_numpy()), "median": songs.median(), "chunks": chunks})
    return pd.DataFrame(rows)


def gains_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return paired differences of SDR on one rung, dB: each cell, refined, minus the mixture, and with borrowing minus without."""
    rows, part = [], _scores(table)[lambda rows: rows.metric == "sdr"]
    compared = [(search, method, "mixture") for search, method in product(SEARCHES, METHODS)]
    compared += [("particle", m, m.removesuffix(BORROWING)) for m in part.method.unique() if m.endswith(BORROWING)]
    for search, method, other in compared:
        for source, only in sources_of(part).items():
            one = by_song(rows_where(part, method=method, search=search, refine="wiener", **only))
            is_cell = {"search": search, "refine": "wiener"} if other in METHODS else {"refine": "none"}
            change = one - by_song(rows_where(part, method=other, **is_cell, **only))
            labels = {"rung": part.rung.iloc[0], "method": method, "search": search, "over": other, "source": source}
            rows.append({**labels, **interval_columns(change.to_numpy()), "median": change.median()})
    return pd.DataFrame(rows)


def by_song(rows: pd.DataFrame) -> pd.Series:
    """Return the mean score of each song, over all its excerpts, which are no songs of their own, and all sources given."""
    return rows.groupby(song_of(rows.track), sort=False).value.mean()


def song_of(tracks: pd.Series) -> pd.Series:
    """Return the name of the song that a track is an excerpt of."""
    return tracks.str.replace(r"_\d+$", "", regex=True)


def _scores(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.metric.isin(METRICS) & (table.reference == "real")]


if __name__ == "__main__":
    main(rungs)
