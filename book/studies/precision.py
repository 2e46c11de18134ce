"""What bfloat16 does to scores, evidence and time of the Hybrid's search, song by song."""

from __future__ import annotations

import pandas as pd
from study import Study, main, sources_of

from hybridsep.evaluation.comparisons import BLIND, interval_columns, song_values
from hybridsep.evaluation.rows import rows_where
from hybridsep.inference.separator import Separator

CHUNKS, SEEDS = 12, 2
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}  # as in profiles


def precision(study: Study) -> None:
    """Search in float32 and in bfloat16 with the same seeds, and compare."""
    evaluation, rows = study.evaluation(chunks=CHUNKS), []
    for name in PRECISIONS:
        for seed in range(SEEDS):
            run = evaluation.blind_run("hybrid", seed=seed, change=with_precision, precision=name)
            rows.append(run.assign(precision=name, seed=seed))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(("sdr", "log_evidence", "seconds"))])
    study.write("differences", precision_differences(table))


def with_precision(separator: Separator, precision: str) -> Separator:
    """Return the same models with their matrix products in one of PRECISIONS."""
    profile = separator.profile.model_copy(update={"precision": PRECISIONS[precision]})
    return Separator(separator.vqvae, separator.priors, separator.likelihood, profile)


def precision_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Return bfloat16 minus float32, paired by song and averaged over seeds, and the ratio of the times.

    Args:
        table: rows in the columns of evaluation.csv with `precision` and `seed`.

    Returns:
        metric, source ("mean": of both), mean, low, high (95 % bootstrap interval over songs), std, n (songs). "sdr" is
        refined, dB, "log_evidence" in nats per code. "seconds_ratio", bfloat16 over float32, has no interval, and
        seeds in place of songs.
    """
    wanted = {("sdr", source): {**BLIND, "refine": "wiener", **only} for source, only in sources_of(table).items()}
    wanted[("log_evidence", "")] = {"metric": "log_evidence"}
    full, half = (table[table.precision == name] for name in PRECISIONS)
    rows = []
    for (metric, source), where in wanted.items():
        change = song_values(half, **where) - song_values(full, **where)
        rows.append({"metric": metric, "source": source, **interval_columns(change.to_numpy())})
    seconds, reference = (rows_where(kind, metric="seconds").groupby("seed").value.mean() for kind in (half, full))
    ratio = seconds / reference
    rows.append({"metric": "seconds_ratio", "source": "", "mean": ratio.mean(), "std": ratio.std(), "n": len(ratio)})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main(precision)
