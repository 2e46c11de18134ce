"""What L_lin buys and costs: every weight trained by itself, beside the plain codec, on validation songs."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd
from study import Study, main, sdr_rows, sources_of

from hybridsep.evaluation.comparisons import interval_columns
from hybridsep.evaluation.linearity import measure_linearity

WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
CHUNKS = 12
PLAIN = ("plain", 0.0)


def linearity(study: Study) -> None:
    """Measure each codebook's linearity, the `sum` likelihood on it, and the SDR of what the codec reconstructs."""
    figures, scores = [], []
    for kind, weight in (PLAIN, *(("linear", weight) for weight in WEIGHTS)):
        evaluation = study.evaluation("validation", CHUNKS, vqvae={"linear_weight": weight})
        pipeline, labels = evaluation.pipeline, {"kind": kind, "weight": weight}
        found = measure_linearity(pipeline.vqvae(kind).codebook.cpu(), pipeline.triples(kind, "validation"))
        pipeline.likelihood(kind, "sum")
        nats = pipeline.likelihood_step(kind, "sum").record["figures"]["validation_nats_per_code"]
        figures.append({**labels, **asdict(found), "sum_nats_per_code": nats})
        scores.append(sdr_rows(evaluation.chunks, evaluation.codec(kind)).assign(**labels))
        # A killed sweep leaves the weights that are done.
        study.write("figures", pd.DataFrame(figures))
        study.write("ceilings", ceilings_table(pd.concat(scores, ignore_index=True)))
    study.write("scores", pd.concat(scores, ignore_index=True))


def ceilings_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the codec's SDR of each source and of their mean, and what it is over the plain codec on the same songs.

    Args:
        scores: track, source, sdr (dB), kind, weight.

    Returns:
        kind, weight, source, score, and of the differences mean, low, high (95 % bootstrap interval), std, n (songs).
    """
    rows = []
    for source, only in sources_of(scores).items():
        chosen = scores[scores.source == only["source"]] if only else scores
        songs = chosen.groupby(["kind", "weight", "track"], sort=False).sdr.mean().unstack("track")
        for (kind, weight), own in songs.iterrows():
            change = interval_columns((own - songs.loc[PLAIN]).to_numpy())
            rows.append({"kind": kind, "weight": weight, "source": source, "score": own.mean(), **change})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main(linearity)
