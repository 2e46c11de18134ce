"""The model card beside the weights: a page written by hand, with the numbers of a run put in."""

import hashlib
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from hybridsep.data.soundfont import own_soundfont
from hybridsep.evaluation.comparisons import BLIND
from hybridsep.evaluation.rows import read_rows, rows_where
from hybridsep.pipeline.pipeline import RUNGS, Pipeline
from hybridsep.report.chapter import METHOD_LABELS, minutes, number, score_table, sdr_columns
from hybridsep.report.templates import render

RUNG_SIGNALS = {
    "mixture": "mixture, not separated",
    "hybrid": "Hybrid, refined",
    "lass": "LASS, refined",
    "convtasnet": "Conv-TasNet, trained as long on the same songs",
    "codec-linear": "codec ceiling, linear",
    "irm": "ideal ratio mask",
}


def model_card(pipeline: Pipeline, provenance: Mapping, results: Path) -> str:
    """Return the card of a finished run as Markdown; it quotes the study `rungs`, if that is among the results."""
    profile, table = pipeline.profile, read_rows(pipeline.root / "evaluation.csv")
    floor, font = sdr_columns(profile.source_names, reference="real"), own_soundfont()
    columns = {
        f"{source}, {label} (dB)": {**BLIND, "search": "particle", "source": source, "refine": refine}
        for refine, label in (("none", "as decoded"), ("wiener", "refined"))
        for source in profile.source_names
    }
    return render(
        "model_card.md",
        profile=profile,
        made=provenance,
        methods=METHOD_LABELS.values(),
        elsewhere=pipeline.data,
        minutes=number(provenance["minutes_together"], 1),
        budget=_markdown(_budget(pipeline)),
        chunks=table.track.nunique(),
        rounded=any(step.recorded for step in pipeline.model_steps()),
        scores=_markdown(score_table(table, METHOD_LABELS, columns, "method", "method")),
        floor=_markdown(score_table(table, {"mixture": "mixture, not separated"}, floor, "method", "signal")),
        rungs=_rungs(levels) if (levels := results / "rungs" / "levels.csv").is_file() else "",
        hits=_hits(linearity) if (linearity := results / "rungs" / "linearity.csv").is_file() else {},
        font=font,
        sha256=hashlib.sha256(font.read_bytes()).hexdigest(),
    )


def _budget(pipeline: Pipeline) -> pd.DataFrame:
    rows = []
    for step in pipeline.model_steps():
        figures, seconds = step.record["figures"], minutes(step.record["seconds"])
        counted = figures.get("parameters") or figures.get("distinct_triples")
        shown = [number(value) if value else "–" for value in (counted, figures.get("validation_nats_per_code"))]
        rows.append((step.label, shown[0], seconds, shown[1]))
    headings = ("model", "parameters or distinct triples", "wall time", "nats per code, validation songs")
    return pd.DataFrame(rows, columns=headings)


def _rungs(file: Path) -> str:
    """Return the table of the study of the three rungs as Markdown."""
    table = rows_where(read_rows(file), metric="sdr")
    table = table[table.method.isin(RUNG_SIGNALS) & (table.source != "mean") & table.search.isin(("particle", ""))]
    table = table[table.refine == np.where(table.method.isin(METHOD_LABELS), "wiener", "none")]
    kept = table.pivot(index=["rung", "method"], columns="source", values="mean").map(lambda score: number(score, 1))
    kept = kept.loc[[place for place in product(RUNGS, RUNG_SIGNALS) if place in kept.index]]
    return _markdown(kept.reset_index().replace({"method": RUNG_SIGNALS}))


def _hits(file: Path) -> dict[str, str]:
    """Return how often the mean of two codes is nearest to the mixture's own, in percent, by codebook."""
    return {row.kind: number(100 * row.hit_rate, 1) for row in read_rows(file).itertuples()}


def _markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
