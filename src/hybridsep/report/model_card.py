"""The model card beside the weights: a page written by hand, with the numbers of a run put in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hybridsep.data.soundfont import own_soundfont
from hybridsep.evaluation.rows import read_rows, rows_where
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.report.chapter import METHOD_LABELS, minutes, number, score_table, sdr_columns
from hybridsep.report.templates import render

BLIND = {"search": "particle", "selection": "blind", "reference": "real"}
REFINEMENTS = {"none": "as decoded", "wiener": "refined"}


def model_card(pipeline: Pipeline, provenance: Mapping, results: Path) -> str:
    """Return the card as Markdown.

    Args:
        pipeline: a finished run, evaluated.
        provenance: of its models, from `provenance_of`.
        results: folder of all studies' tables; of those that are there it quotes half-precision and out-of-domain.
    """
    profile, table = pipeline.profile, read_rows(pipeline.root / "evaluation.csv")
    floor, font = sdr_columns(profile.source_names, reference="real"), own_soundfont()
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
        scores=_markdown(score_table(table, METHOD_LABELS, _sdr(profile.source_names), "method", "method")),
        floor=_markdown(score_table(table, {"mixture": "mixture, not separated"}, floor, "method", "signal")),
        half=_half_precision(results / "half-precision"),
        outside=_outside(results / "out-of-domain" / "scores.csv", profile.source_names),
        font=font,
        sha256=hashlib.sha256(font.read_bytes()).hexdigest(),
    )


def _sdr(sources: Sequence[str]) -> dict[str, dict[str, str]]:
    return {
        f"{source}, {label} (dB)": {**BLIND, "metric": "sdr", "source": source, "refine": refine}
        for refine, label in REFINEMENTS.items()
        for source in sources
    }


def _budget(pipeline: Pipeline) -> pd.DataFrame:
    rows = []
    for step in pipeline.model_steps():
        figures, seconds = step.record["figures"], minutes(step.record["seconds"])
        counted = figures.get("parameters") or figures.get("distinct_triples")
        shown = [number(value) if value else "–" for value in (counted, figures.get("validation_nats_per_code"))]
        rows.append((step.label, shown[0], seconds, shown[1]))
    headings = ("model", "parameters or distinct triples", "wall time", "nats per code, validation songs")
    return pd.DataFrame(rows, columns=headings)


def _half_precision(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    changes, figures, same = (read_rows(folder / f"{n}.csv") for n in ("differences", "figures", "same_particles"))
    ceiling = figures[figures.unit == "dB"]
    moved = rows_where(changes, metric="sdr").groupby("compared")["mean"].agg(lambda means: means.abs().max())
    return {
        "ceiling": number((ceiling.rounded - ceiling.trained).abs().max(), 4),
        "particles": number(same.largest.max(), 3),
        "search": number(moved["rounding"]),
        "seed": number(moved["another seed"]),
    }


def _outside(file: Path, sources: Sequence[str]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    table = rows_where(read_rows(file), method="hybrid")
    scores = score_table(table, {c: c for c in table.condition.unique()}, _sdr(sources), "condition", "condition")
    return {"chunks": table.track.nunique(), "scores": _markdown(scores)}


def _markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
