"""The model card beside the weights: what they were made of, what they can do, what they cannot, and whose sounds are in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from hybridsep.data.soundfont import own_soundfont
from hybridsep.evaluation.chunks import read_rows, rows_where
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.report.chapter import METHOD_LABELS, mean_std, minutes, number, score_table, sdr_columns
from hybridsep.report.conclusion import REFINEMENTS
from hybridsep.report.verdicts import half_precision_verdict

BLIND = {"search": "particle", "selection": "blind", "reference": "real"}
METRICS = {"sdr": "SDR (dB)", "si_sdr_improvement": "SI-SDR improvement (dB)", "sir": "SIR (dB)", "sar": "SAR (dB)"}
OUTSIDE = Path("out-of-domain") / "scores.csv"
HALF_PRECISION = Path("half-precision")
LIMITS = """They know bass and drums, and nothing else: whatever else sounds ends up in one of the two stems. They were trained on synthesised songs
of one composer program and one SoundFont. Expect less on recordings of real players and rooms, on other instruments under the same names, on other
SoundFonts, on distorted, reverberant or detuned sound, and above half the sample rate there is nothing at all."""
LICENCE = """All training audio was rendered with the General MIDI SoundFont `{name}` that the Python package pretty_midi brings along
(SHA-256 `{sha256}`). That package is under the MIT licence; its licence text does not speak of the SoundFont. Debian ships a SoundFont of the same name
(package timgm6mb-soundfont, whose file is not the same to the byte) under the GNU General Public License, version 2, copyright 2004 Tim Brechbill and 2010
David Bolton, and quotes its author that he made some of the samples himself and that all others are in the public domain or under that licence.

What this implies for weights is not settled, and this is no legal advice. The weights hold no samples as such; they were fitted to sound rendered from
samples, and they can be made to sound like them. Whether that makes them a work derived from the SoundFont is an open question. Who wants to be safe
treats them as if they were under the same licence: pass them on with this card, and with the profile and the program that make them again from nothing,
which lie in this repository. Who cannot accept those terms should not use the weights but train models on songs whose terms suit
(`hybridsep train hybrid --train --data DIR`). Stems are made from the recording that is given, and are whosever that recording is."""


def model_card(pipeline: Pipeline, provenance: Mapping, results: Path) -> str:
    """Markdown.

    Args:
        pipeline: a finished run, evaluated.
        provenance: of its models, from `provenance_of`.
        results: folder of all studies' tables.
    """
    profile = pipeline.profile
    table = read_rows(pipeline.root / "evaluation.csv")
    sections = {
        f"Models of record, profile {profile.name}": _overview(pipeline),
        "Data": _data(pipeline),
        "Budget": _budget(pipeline, provenance),
        "Scores": _scores(pipeline, table),
        "What half precision costs": _half_precision(results),
        "What they are bad at": "\n\n".join([LIMITS, _outside(results)]),
        "Licence of the sounds they learnt from": _licence(pipeline),
    }
    first, *others = sections.items()
    return (
        "\n\n".join([f"# {first[0]}", first[1], *(part for title, text in others for part in (f"## {title}", text))])
        + "\n"
    )


def _overview(pipeline: Pipeline) -> str:
    return (
        f"Two VQ-VAEs, plain and linear, a prior of each of {', '.join(pipeline.profile.source_names)} on the codes of either, and two likelihoods on "
        f"either: all that the four methods {', '.join(METHOD_LABELS.values())} are made of. Weights are in float16, counted triples are exact; "
        "`profile.json` holds every setting, `provenance.json` where the models were made, and `sha256sum -c SHA256SUMS` checks the files. The pipeline "
        "finds each folder by its name, which is that of the step that would make it. This card was written by `hybridsep record` from the run's results."
    )


def _data(pipeline: Pipeline) -> str:
    settings = pipeline.profile.data
    if pipeline.data:
        return f"Songs in Slakh's layout from elsewhere, mono at {settings.sample_rate} Hz."
    return (
        f"MiniSlakh: {settings.tracks} songs of {settings.seconds:g} s, composed by a program with seed {settings.seed} and rendered at "
        f"{settings.sample_rate} Hz, mono. Some of them are kept for validation and testing. No recorded performance is among them."
    )


def _budget(pipeline: Pipeline, provenance: Mapping) -> str:
    rows = []
    for step in pipeline.model_steps():
        record = step.record
        size = record["figures"].get("parameters") or record["figures"].get("distinct_triples")
        nats = record["figures"].get("validation_nats_per_code")
        held_out = "–" if nats is None else number(nats)
        rows.append({"model": step.label, "parameters or distinct triples": number(int(size)) if size else "–", "wall time": minutes(record["seconds"]),
                     "nats per code, validation songs": held_out})  # fmt: skip
    where = f"on {', '.join(provenance['hardware'])}, commit {', '.join(provenance['commit'])}"
    made = f"One training of each, {number(provenance['minutes_together'], 1)} min together, {where}."
    return "\n\n".join([made, _markdown(pd.DataFrame(rows))])


def _scores(pipeline: Pipeline, table: pd.DataFrame) -> str:
    chunks, particles = table.track.nunique(), pipeline.profile.search.particles
    said = (
        f"n = {chunks} chunks of {pipeline.profile.evaluation.chunk_seconds:g} s, one per test song; mean ± standard deviation over chunks; reference: "
        f"the real sources; blind: nothing was chosen with the ground truth; particle filter, N = {particles}; weights in "
        + (
            "float16, as they lie here."
            if any(step.recorded for step in pipeline.model_steps())
            else "float32, before they were recorded."
        )
    )
    columns = {
        f"{source}, {label} (dB)": {**BLIND, "metric": "sdr", "source": source, "refine": refine}
        for refine, label in REFINEMENTS.items()
        for source in pipeline.profile.source_names
    }
    methods = score_table(table, METHOD_LABELS, columns, "method", "SDR of")
    floor = score_table(
        table,
        {"mixture": "mixture, not separated"},
        sdr_columns(pipeline.profile.source_names, reference="real"),
        "method",
        "SDR of",
    )
    rows, lines = rows_where(table, method="hybrid", **BLIND), []
    for source in pipeline.profile.source_names:
        for refine, label in REFINEMENTS.items():
            scores = {
                heading: mean_std(rows_where(rows, source=source, refine=refine, metric=metric).value)
                for metric, heading in METRICS.items()
            }
            lines.append({"Hybrid": f"{source}, {label}", **scores})
    return "\n\n".join([said, _markdown(methods), _markdown(floor), _markdown(pd.DataFrame(lines))])


def _licence(pipeline: Pipeline) -> str:
    if pipeline.data:
        return "That of the songs they were trained on, which are not part of this repository."
    font = own_soundfont()
    return LICENCE.format(name=font.name, sha256=hashlib.sha256(font.read_bytes()).hexdigest())


def _outside(results: Path) -> str:
    """How far the Hybrid's scores fall on other sounds, where that was studied."""
    if not (results / OUTSIDE).is_file():
        return "How far the scores fall on other sounds was not measured: `hybridsep study out-of-domain` would."
    table = rows_where(read_rows(results / OUTSIDE), method="hybrid", metric="sdr", selection="blind", reference="real")
    sources, conditions = (list(dict.fromkeys(table[name])) for name in ("source", "condition"))
    columns = {
        f"{source}, {label} (dB)": {"source": source, "refine": refine}
        for refine, label in REFINEMENTS.items()
        for source in sources
    }
    how = f"n = {table.track.nunique()} chunks, mean ± standard deviation"
    said = f"The Hybrid's SDR where every stem of the test chunks sounds otherwise (`hybridsep study out-of-domain`), {how}:"
    return "\n\n".join(
        [
            said,
            _markdown(
                score_table(table, dict(zip(conditions, conditions, strict=True)), columns, "condition", "condition")
            ),
        ]
    )


def _half_precision(results: Path) -> str:
    """What rounding changes, where that was studied."""
    tables = [results / HALF_PRECISION / f"{name}.csv" for name in ("differences", "figures", "same_particles")]
    if not all(path.is_file() for path in tables):
        return "What rounding the weights changes was not studied: `hybridsep study half-precision` would."
    return half_precision_verdict(*map(read_rows, tables))


def _markdown(table: pd.DataFrame) -> str:
    def line(cells: Iterable[object]) -> str:
        """A row of the table."""
        return "| " + " | ".join(map(str, cells)) + " |"

    return "\n".join(
        [line(table.columns), line("---" for _ in table.columns), *(line(row) for row in table.itertuples(index=False))]
    )
