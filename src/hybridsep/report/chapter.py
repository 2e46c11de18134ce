"""What the chapters of the book share: opening a run, numbers for the prose, scores as tables, and players for separations."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor

from hybridsep.core.profiles import load_profile, method_spec
from hybridsep.core.records import RECORDS
from hybridsep.evaluation.comparisons import BLIND, song_values
from hybridsep.inference.wiener import wiener
from hybridsep.pipeline.evaluate import Evaluation, Run
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.pipeline.steps import Step
from hybridsep.report import runs_root, trains_anew
from hybridsep.report.figures import PALETTE, WIDTH, number, use_style
from hybridsep.report.players import stem_player

METHOD_LABELS = {"plain-sum": "plain-sum", "lass": "LASS", "lqvae": "LQ-VAE", "hybrid": "Hybrid"}
METHOD_COLOURS = dict(
    zip(METHOD_LABELS, (PALETTE[name] for name in ("purple", "blue", "green", "vermillion")), strict=True)
)
SEARCH_LABELS = {"ancestral": "ancestral", "topk": "top-k", "beam": "beam", "particle": "particle filter"}
KIND_COLOURS = {"plain": PALETTE["blue"], "linear": PALETTE["vermillion"]}
# Of fewer chunks a mean says nothing about songs in general: no exact test of six differences gets below 5 %.
SMALLEST_MEANINGFUL = 8
TOO_SMALL = """<div role="note" style="border:2px solid #D55E00;border-radius:.4rem;padding:.5rem .8rem;margin:.5rem 0 1rem">
<strong>The numbers on this page mean nothing.</strong> The book was built with the profile <code>{profile}</code>, whose models are trained for
seconds and heard on {chunks} chunks: it shows that every step runs. Build it with <code>make book</code> for results.</div>"""


def open_book(profile: str) -> tuple[Pipeline, Evaluation]:
    """Open the run of a profile, set the style of the figures, and warn the reader of a run too small to mean anything.

    Args:
        profile: name of a profile that ships with the library, or a YAML file.
    """
    use_style()
    pipeline = _pipeline(profile)
    evaluation = Evaluation(pipeline)
    if len(evaluation.chunks) < SMALLEST_MEANINGFUL:
        display(HTML(TOO_SMALL.format(profile=pipeline.profile.name, chunks=len(evaluation.chunks))))
    return pipeline, evaluation


@functools.lru_cache
def _pipeline(profile: str) -> Pipeline:
    return Pipeline(load_profile(profile), runs_root(), records=None if trains_anew() else RECORDS)


# --- numbers for the prose -------------------------------------------------------------------------------------------------


def publish(**values: Any) -> None:
    """Glue values so that the prose of the chapter can quote them as {glue:text}`name`.

    Args:
        values: text as it is to be read; whole numbers get thousands separators, other numbers two decimals.
    """
    from myst_nb import glue

    for name, value in values.items():
        glue(name, _Quoted(value if isinstance(value, str) else number(value)), display=False)


class _Quoted(str):
    """Text that `glue` stores in plain quotes: bare, "+0.50" would be read as a number and lose its sign; repr would escape spaces."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{self}'"


def signed(value: float, decimals: int = 2) -> str:
    """A difference, with its sign; none before what rounds to zero."""
    return ("+" if round(float(value), decimals) > 0 else "") + number(float(value), decimals)


def p_value(p: float) -> str:
    """A p-value for a table: "0.012", or "< 0.001" where it would round to zero."""
    return "< 0.001" if p < 0.001 else number(float(p), 3)


def p_relation(p: float) -> str:
    """A p-value for a sentence: "p = 0.012" or "p < 0.001"."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def mean_std(values: Iterable[float], decimals: int = 2) -> str:
    """Mean ± standard deviation over chunks, NaN left out; a dash where nothing is left."""
    found = np.asarray([v for v in values if np.isfinite(v)], dtype=float)
    if not found.size:
        return "–"
    spread = f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{number(found.std(ddof=1), decimals)}" if found.size > 1 else ""
    return number(found.mean(), decimals) + spread


def minutes(seconds: float) -> str:
    """A duration for people: "42 s" or "3.4 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


# --- scores ----------------------------------------------------------------------------------------------------------------


def chunk_values(table: pd.DataFrame, **where: str) -> np.ndarray:
    """`song_values` as an array: one value per chunk, and there is one chunk of each song."""
    return song_values(table, **where).to_numpy()


def score_table(
    rows: pd.DataFrame, index: Mapping[str, str], columns: Mapping[str, Mapping[str, str]], key: str, title: str
) -> pd.DataFrame:
    """Table of "mean ± std" over chunks.

    Args:
        rows: scores, in the columns of evaluation.csv.
        index: value in the column `key` -> label of the row.
        columns: heading -> what selects its rows.
        key: column that tells the lines apart.
        title: heading of the first column.
    """

    def cells(value: str) -> dict[str, str]:
        return {heading: mean_std(chunk_values(rows, **{key: value}, **w)) for heading, w in columns.items()}

    return pd.DataFrame([{title: label, **cells(value)} for value, label in index.items()])


def sdr_columns(names: Sequence[str], **where: str) -> dict[str, dict[str, str]]:
    """One column of SDR for each source, for `score_table`."""
    return {f"{name} (dB)": {"metric": "sdr", "source": name, **where} for name in names}


def provenance_line(
    evaluation: Evaluation,
    *facts: str,
    spread: str = "mean ± standard deviation over chunks",
    reference: str = "the real sources",
) -> str:
    """What a reader needs to judge a table of scores: n, spread, reference and hardware."""
    chunks = evaluation.chunks
    sample = f"n = {len(chunks)} chunks of {chunks.sources.shape[-1] / chunks.sample_rate:.2g} s, one per test song"
    return "; ".join([sample, spread, f"reference: {reference}", *facts, made_with(evaluation.pipeline)]) + "."


def made_with(pipeline: Pipeline) -> str:
    """Profile, commits and hardware of the finished steps of a run."""
    records = [step.record for step in latest_steps(pipeline)]
    known = {key: ", ".join(dict.fromkeys(r[key] for r in records if key in r)) for key in ("hardware", "commit")}
    return f"profile {pipeline.profile.name}, commit {known['commit'] or 'unknown'}, {known['hardware'] or 'hardware unknown'}"


def typical_chunk(run: Run) -> int:
    """Index of the chunk whose blind, refined SDR is the median: neither a lucky nor an unlucky example."""
    scores = chunk_values(run.rows, **BLIND, refine="wiener")
    return int(np.argsort(scores)[len(scores) // 2])


# --- steps -----------------------------------------------------------------------------------------------------------------


def history(step: Step) -> pd.DataFrame:
    """Training curves of a finished step."""
    return pd.read_csv(step.folder / "history.csv")


def latest_steps(pipeline: Pipeline) -> list[Step]:
    """The newest finished step of each name, oldest first: what other settings left in the folder does not count."""
    newest = {step.label: step for step in pipeline.cache.finished()}
    return sorted(newest.values(), key=lambda step: step.record["finished"])


def step_times(pipeline: Pipeline) -> pd.DataFrame:
    """Every step with the seconds it took itself, those of the steps it had made first left out, and whether it was recorded elsewhere."""
    return pd.DataFrame(
        {"step": s.label, "recorded": s.recorded}
        | {k: s.record.get(k, "") for k in ("seconds", "finished", "hardware")}
        for s in latest_steps(pipeline)
    )


def recorded_note(steps: Iterable[Step]) -> str:
    """Return a sentence on those of the steps that were not made here, to stand behind a caption; empty where all were."""
    records = [step.record for step in steps if step.recorded]
    if not records:
        return ""
    hardware, commit = (
        ", ".join(dict.fromkeys(str(r.get(k, "unknown")) for r in records)) for k in ("hardware", "commit")
    )
    models = f"{len(records)} {'model' if len(records) == 1 else 'models'}"
    taken = minutes(sum(r["seconds"] for r in records))
    return f" Recorded, not trained in this build: {models} on {hardware}, {taken}, commit {commit}; make book TRAIN=1 trains again."


def budget(pipeline: Pipeline, method: str) -> pd.DataFrame:
    """Return what a method's models took to make: step, wall time and parameters, in the order of the pipeline."""
    spec = method_spec(method)
    pipeline.separator(method)
    steps = {step.label: step for step in latest_steps(pipeline)}
    times = step_times(pipeline).set_index("step").seconds
    names = {
        "songs": "composing and rendering",
        f"vqvae-{spec.vqvae}": f"VQ-VAE, kind {spec.vqvae}",
        f"codes-{spec.vqvae}-train": "encoding the training songs",
        **{f"prior-{spec.vqvae}-{source}": f"prior of {source}" for source in pipeline.profile.source_names},
        f"likelihood-{spec.vqvae}-{spec.likelihood}": f"likelihood, kind {spec.likelihood}",
    }
    rows = []
    for label, name in names.items():
        if label in steps:
            size = steps[label].record["figures"].get("parameters")
            took = minutes(times[label]) + (", recorded" if steps[label].recorded else "")
            rows.append({"step": name, "wall time": took, "parameters": number(int(size)) if size else "–"})
    return pd.DataFrame(rows)


def training_figure(pipeline: Pipeline, method: str) -> Figure:
    """Draw the loss of a method's VQ-VAE beside that of its priors, over the seconds of their training; what is not trained yet gets trained."""
    spec = method_spec(method)
    pipeline.separator(method)
    codec = history(pipeline.vqvae_step(spec.vqvae))
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.8))
    labels = {"error": "squared error / energy", "spectral": "spectral loss", "linear": r"$L_\mathrm{lin}$"}
    if spec.vqvae != "linear":
        labels["linear"] += ", not trained on"
    for (column, label), colour in zip(labels.items(), ("blue", "green", "vermillion"), strict=True):
        axes[0].plot(codec.seconds, smoothed(codec[column]), color=PALETTE[colour], label=label)
    axes[0].set(title=f"VQ-VAE, kind {spec.vqvae}", xlabel="seconds of training", ylabel="loss", yscale="log")
    for source, colour in zip(pipeline.profile.source_names, PALETTE.values(), strict=False):
        step = pipeline.prior_step(spec.vqvae, source)
        curve, at_the_end = history(step), step.record["figures"]["validation_nats_per_code"]
        axes[1].plot(curve.seconds, smoothed(curve.nats_per_code), color=colour, label=f"{source}, training songs")
        axes[1].axhline(at_the_end, color=colour, linestyle="--", label=f"{source}, validation, at the end")
    axes[1].axhline(math.log(pipeline.profile.vqvae.codes), color="black", linestyle=":", label="uniform guess")
    axes[1].set(title="priors", xlabel="seconds of training", ylabel="nats per code", ylim=(0, None))
    for axis in axes:
        axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.3))
    return figure


def smoothed(curve: pd.Series) -> pd.Series:
    """Running mean over a twentieth of a training curve; missing where nothing was measured."""
    return curve.rolling(max(1, len(curve) // 20), min_periods=1).mean().where(curve.notna())


# --- listening -------------------------------------------------------------------------------------------------------------


def chunk_label(evaluation: Evaluation, chunk: int) -> str:
    """Name and place of a chunk, such as "Track00019, from 12.3 s"."""
    chunks = evaluation.chunks
    return f"{chunks.tracks[chunk]}, from {chunks.starts[chunk] / chunks.sample_rate:.1f} s"


def estimates(evaluation: Evaluation, run: Run, refine: bool = True) -> Tensor:
    """Blind estimates of a run, float32 [P, B, T], through Wiener masks or as the decoder left them."""
    return wiener(run.estimates, evaluation.chunks.mixture) if refine else run.estimates


def separation_player(evaluation: Evaluation, chunk: int, stems: Mapping[str, Tensor]) -> HTML:
    """Stem player of one chunk: mixture, true sources and estimates in step.

    Args:
        chunk: its index.
        stems: heading -> estimates [P, B, T] of all chunks.

    Sources are played at half their level, as they are in the mixture.
    """
    chunks = evaluation.chunks
    sounds: dict[str, Tensor] = {"mixture": chunks.mixture[chunk]}
    groups = {"Mixture": ["mixture"]}
    for heading, estimate in {"True sources": chunks.sources, **stems}.items():
        names = [f"{name} ({heading})" for name in chunks.names]
        groups[heading] = names
        sounds |= {name: 0.5 * estimate[p, chunk] for p, name in enumerate(names)}
    return stem_player(sounds, chunks.sample_rate, chunk_label(evaluation, chunk), groups)


def execution_status() -> pd.DataFrame:
    """Chapters executed so far in this build, from the build's status.json; empty outside a build."""
    file = Path.cwd().parent / "status.json"
    return pd.DataFrame(json.loads(file.read_text())) if file.is_file() else pd.DataFrame()
