"""Three rungs of test songs, each further from what was trained on: every cell beside a network, the untouched mixture and the ceilings.

MiniSlakh's own songs; songs that people wrote, by SoundFonts that were trained on; the same songs by FluidR3, which was not.
FluidR3 comes with Debian's package fluid-soundfont-gm.
"""

from __future__ import annotations

import pandas as pd
from baselines import METHOD, network_separation, scored, trained_tasnet, training_seconds
from study import Study, main, sources_of

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.comparisons import interval_columns
from hybridsep.evaluation.rows import rows_where
from hybridsep.pipeline.pipeline import RUNGS

CHUNKS = 36
METRICS = ("sdr", "si_sdr_improvement")
NETWORK = "convtasnet"


def rungs(study: Study) -> None:
    """Score the posterior means of all cells on every rung; the network trains on the same songs, as long as all of the Hybrid."""
    study.pipeline.separator(METHOD)
    network, record = trained_tasnet(study.pipeline, training_seconds(study.pipeline, METHOD))
    study.notes[NETWORK] = f"{record['figures']['steps']} steps in {record['seconds'] / 60:.0f} minutes"
    parts = []
    for rung in RUNGS:
        evaluation = study.evaluation(rung, CHUNKS)
        found = [evaluation.blind_run(method).rows for method in METHODS]
        found += [evaluation.references(), scored(evaluation, NETWORK, network_separation(network))]
        parts.append(pd.concat(found).assign(rung=rung))
    table = pd.concat(parts, ignore_index=True)
    study.write("scores", table[table.metric.isin((*METRICS, "log_evidence"))])
    study.write("levels", levels_table(table))
    study.write("gains", gains_table(table))


def levels_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return rung, method, refine, source ("mean": of both), metric, and mean, low, high, std, n over songs, median and chunks."""
    rows = []
    for (rung, method, refine, metric), part in _scores(table).groupby(
        ["rung", "method", "refine", "metric"], sort=False
    ):
        for source, only in sources_of(part).items():
            songs = by_song(rows_where(part, **only))
            labels = {"rung": rung, "method": method, "refine": refine, "source": source, "metric": metric}
            chunks = part.groupby(["track", "start_s"]).ngroups
            rows.append({**labels, **interval_columns(songs.to_numpy()), "median": songs.median(), "chunks": chunks})
    return pd.DataFrame(rows)


def gains_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return paired differences of SDR, dB: each cell, refined, minus the mixture and minus the network; columns as `levels_table`."""
    rows = []
    for rung, part in _scores(table)[lambda rows: rows.metric == "sdr"].groupby("rung", sort=False):
        for source, only in sources_of(part).items():
            for method in METHODS:
                for other in ("mixture", NETWORK):
                    one = by_song(rows_where(part, method=method, refine="wiener", **only))
                    change = one - by_song(rows_where(part, method=other, refine="none", **only))
                    labels = {"rung": rung, "method": method, "over": other, "source": source}
                    rows.append({**labels, **interval_columns(change.to_numpy()), "median": change.median()})
    return pd.DataFrame(rows)


def by_song(rows: pd.DataFrame) -> pd.Series:
    """Return the mean score of each song: of all its excerpts, which are no songs of their own, and of all sources given."""
    return rows.groupby(rows.track.str.replace(r"_\d+$", "", regex=True), sort=False).value.mean()


def _scores(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.metric.isin(METRICS) & (table.reference == "real")]


if __name__ == "__main__":
    main(rungs)
