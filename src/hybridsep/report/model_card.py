"""The model card beside the weights: a page written by hand, with the numbers of a run put in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hybridsep.data.soundfont import own_soundfont
from hybridsep.evaluation.rows import read_rows, rows_where
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.report.chapter import METHOD_LABELS, minutes, number, score_table, sdr_columns

BLIND = {"search": "particle", "selection": "blind", "reference": "real"}
REFINEMENTS = {"none": "as decoded", "wiener": "refined"}
CARD = """# Models of record, profile {profile}

Two VQ-VAEs, plain and linear, a prior of each of {sources} on the codes of either, and two likelihoods on either: all that the methods
{methods} are made of. Weights are in float16, counted triples are exact. `profile.json` holds every setting, `provenance.json` where the
models were made, and `sha256sum -c SHA256SUMS` checks the files. `hybridsep record` wrote this card from the run's results.

## Data

{data}

## Budget

One training of each model, {minutes} min together, on {hardware}, commit {commit}.

{budget}

## Scores

n = {chunks} chunks of {seconds:g} s, one per test song; SDR, mean ± standard deviation over chunks; reference: the real sources; blind: nothing
was chosen with the ground truth; particle filter, N = {particles}; weights in {precision}.

{scores}

{floor}
{half}
## What they are bad at

They know {sources}, and nothing else: whatever else sounds ends up in one of the stems. They were trained on songs composed by a program and
played by one SoundFont, once, for the minutes above. Expect less on other SoundFonts and rooms; on songs that people wrote, played by a
SoundFont they never heard, expect less than the untouched mixture. Above half the sample rate there is nothing at all.
{outside}
## Licence of the sounds they learnt from

{licence}
"""
MADE = """MiniSlakh: {tracks} songs of {seconds:g} s, composed by a program with seed {seed} and rendered at {sample_rate} Hz, mono. Some of them are kept
for validation and testing. No recorded performance is among them."""
HALF = """
## What half precision costs

Rounding the weights changes the codec's ceiling by {ceiling} dB at most, and every blind score of the same particles by {particles} dB at most
in any chunk. A search made anew draws other particles: its SDR then moves by up to {search} dB on average, and by another seed alone by up to {seed}.
"""
OUTSIDE = """
The Hybrid's SDR where every stem of the test chunks sounds otherwise, n = {chunks} chunks, mean ± standard deviation:

{table}
"""
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
    """Return the card as Markdown.

    Args:
        pipeline: a finished run, evaluated.
        provenance: of its models, from `provenance_of`.
        results: folder of all studies' tables; of those that are there it quotes half-precision and out-of-domain.
    """
    profile, table = pipeline.profile, read_rows(pipeline.root / "evaluation.csv")
    rounded = any(step.recorded for step in pipeline.model_steps())
    floor, font = sdr_columns(profile.source_names, reference="real"), own_soundfont()
    licence = LICENCE.format(name=font.name, sha256=hashlib.sha256(font.read_bytes()).hexdigest())
    return CARD.format(
        profile=profile.name,
        sources=" and ".join(profile.source_names),
        methods=", ".join(METHOD_LABELS.values()),
        data="Songs in Slakh's layout from elsewhere." if pipeline.data else MADE.format(**profile.data.model_dump()),
        minutes=number(provenance["minutes_together"], 1),
        hardware=", ".join(provenance["hardware"]),
        commit=", ".join(provenance["commit"]),
        budget=_markdown(_budget(pipeline)),
        chunks=table.track.nunique(),
        seconds=profile.evaluation.chunk_seconds,
        particles=profile.search.particles,
        precision="float16, as they lie here" if rounded else "float32, before they were recorded",
        scores=_markdown(score_table(table, METHOD_LABELS, _sdr(profile.source_names), "method", "method")),
        floor=_markdown(score_table(table, {"mixture": "mixture, not separated"}, floor, "method", "signal")),
        half=_half_precision(results / "half-precision"),
        outside=_outside(results / "out-of-domain" / "scores.csv", profile.source_names),
        licence="That of the songs they were trained on." if pipeline.data else licence,
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
        figures = step.record["figures"]
        size = figures.get("parameters") or figures.get("distinct_triples")
        nats = figures.get("validation_nats_per_code")
        cells = (
            number(int(size)) if size else "–",
            minutes(step.record["seconds"]),
            "–" if nats is None else number(nats),
        )
        rows.append((step.label, *cells))
    headings = ("model", "parameters or distinct triples", "wall time", "nats per code, validation songs")
    return pd.DataFrame(rows, columns=headings)


def _half_precision(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    changes, figures, same = (read_rows(folder / f"{n}.csv") for n in ("differences", "figures", "same_particles"))
    ceiling = figures[figures.unit == "dB"]
    moved = rows_where(changes, metric="sdr").groupby("compared")["mean"].agg(lambda means: means.abs().max())
    return HALF.format(
        ceiling=number((ceiling.rounded - ceiling.trained).abs().max(), 4),
        particles=number(same.largest.max(), 3),
        search=number(moved["rounding"]),
        seed=number(moved["another seed"]),
    )


def _outside(file: Path, sources: Sequence[str]) -> str:
    if not file.is_file():
        return ""
    table = rows_where(read_rows(file), method="hybrid")
    conditions = {name: name for name in table.condition.unique()}
    shown = score_table(table, conditions, _sdr(sources), "condition", "condition")
    return OUTSIDE.format(chunks=table.track.nunique(), table=_markdown(shown))


def _markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
