"""What the chapters of the book share: opening a run, numbers for the prose, scores as tables, and players for separations."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor

from hybridsep.core.profiles import load_profile, method_spec
from hybridsep.core.records import RECORDS
from hybridsep.data.slakh import parse_metadata
from hybridsep.evaluation.comparisons import BLIND, song_values
from hybridsep.evaluation.metrics import sdr
from hybridsep.inference.wiener import wiener
from hybridsep.pipeline.evaluate import Evaluation, Run
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.pipeline.steps import Step
from hybridsep.report import repository_root
from hybridsep.report.figures import PALETTE, WIDTH, number, use_style
from hybridsep.report.players import stem_player

METHOD_LABELS = {"plain-sum": "plain-sum", "lass": "LASS", "lqvae": "LQ-VAE", "hybrid": "Hybrid"}
COLOURS = ("purple", "blue", "green", "vermillion")
METHOD_COLOURS = {method: PALETTE[name] for method, name in zip(METHOD_LABELS, COLOURS, strict=True)}
SEARCH_LABELS = {"ancestral": "ancestral", "topk": "top-k", "beam": "beam", "particle": "particle filter"}
SEARCH_LABELS |= {"lass-topk": "top-k as LASS runs it", "lass-beam": "beam as LASS runs it"}
COLOUR_NAMES = {"ancestral": "vermillion", "topk": "green", "beam": "purple", "particle": "blue"}
SEARCH_COLOURS = {search: PALETTE[name] for search, name in COLOUR_NAMES.items()}
KIND_COLOURS = {"plain": PALETTE["blue"], "linear": PALETTE["vermillion"]}
SPREAD = "mean ± standard deviation over chunks"
SMALLEST_MEANINGFUL = 4  # fewer chunks are those of a run that only shows that every step runs
TOO_SMALL = """<div role="note" style="border:2px solid #D55E00;border-radius:.4rem;padding:.5rem .8rem;margin:.5rem 0 1rem">
<strong>The numbers on this page mean nothing.</strong> The book was built with the profile <code>{profile}</code>, whose models are trained for
seconds and heard on {chunks} chunks: it shows that every step runs. Build it with <code>make book</code> for results.</div>"""


def open_book(profile: str) -> tuple[Pipeline, Evaluation]:
    """Open the run of a profile, by name or YAML file, set the style of figures, and warn of a run too small to mean anything."""
    use_style()
    runs = os.environ.get("HYBRIDSEP_RUNS") or repository_root() / "runs"
    anew = bool(os.environ.get("HYBRIDSEP_TRAIN"))  # set by `make book TRAIN=1`
    pipeline = Pipeline(load_profile(profile), runs, records=None if anew else RECORDS)
    evaluation = Evaluation(pipeline)
    if len(evaluation.chunks) < SMALLEST_MEANINGFUL:
        display(HTML(TOO_SMALL.format(profile=pipeline.profile.name, chunks=len(evaluation.chunks))))
    return pipeline, evaluation


def publish(**values: Any) -> None:
    """Glue values for {glue:text}`name` in the prose: text, whole numbers with thousands separators, others with two decimals."""
    from myst_nb import glue

    for name, value in values.items():
        glue(name, _Quoted(value if isinstance(value, str) else number(value)), display=False)


class _Quoted(str):
    """Text that `glue` stores in plain quotes: bare, "+0.50" would lose its sign as a number; repr would escape spaces."""

    def __repr__(self) -> str:
        return f"'{self}'"


def signed(value: float, decimals: int = 2) -> str:
    """Return a difference with its sign; none before what rounds to zero."""
    return ("+" if round(float(value), decimals) > 0 else "") + number(float(value), decimals)


def p_value(p: float) -> str:
    """Return a p-value for a table: "0.012", or "< 0.001" where it would round to zero."""
    return "< 0.001" if p < 0.001 else number(float(p), 3)


def p_relation(p: float) -> str:
    """Return a p-value for a sentence: "p = 0.012" or "p < 0.001"."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def mean_std(values: Iterable[float], decimals: int = 2) -> str:
    """Return mean ± standard deviation over chunks, NaN left out; a dash where nothing is left."""
    found = np.asarray([v for v in values if np.isfinite(v)], dtype=float)
    spread = f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{number(found.std(ddof=1), decimals)}" if found.size > 1 else ""
    return number(found.mean(), decimals) + spread if found.size else "–"


def minutes(seconds: float) -> str:
    """Return a duration for people: "42 s" or "3.4 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def chunk_values(table: pd.DataFrame, **where: str) -> np.ndarray:
    """Return `song_values` as an array: one value per chunk, and there is one chunk of each song."""
    return song_values(table, **where).to_numpy()


def score_table(
    rows: pd.DataFrame, index: Mapping[str, str], columns: Mapping[str, Mapping[str, str]], key: str, title: str
) -> pd.DataFrame:
    """Return a table of "mean ± std" over chunks: headings select scores, `index` maps their values of `key` to labels in the column `title`."""
    table = pd.DataFrame({title: list(index.values())})
    for heading, where in columns.items():
        table[heading] = [mean_std(chunk_values(rows, **{key: value}, **where)) for value in index]
    return table


def sdr_columns(names: Sequence[str], **where: str) -> dict[str, dict[str, str]]:
    """Return one column of SDR for each source, for `score_table`."""
    return {f"{name} (dB)": {"metric": "sdr", "source": name, **where} for name in names}


def provenance_line(
    evaluation: Evaluation, *facts: str, spread: str = SPREAD, reference: str = "the real sources"
) -> str:
    """Return what a reader needs to judge a table of scores: n, spread and reference."""
    chunks = evaluation.chunks
    sample = f"n = {len(chunks)} chunks of {chunks.sources.shape[-1] / chunks.sample_rate:.2g} s, one per test song"
    return "; ".join([sample, spread, f"reference: {reference}", *facts]) + "."


def made_with(pipeline: Pipeline) -> str:
    """Return profile, commits and hardware of the finished steps of a run."""
    return f"profile {pipeline.profile.name}, {_origin(latest_steps(pipeline))}"


def _origin(steps: Iterable[Step]) -> str:
    records = [step.record for step in steps]
    known = {key: ", ".join(dict.fromkeys(r[key] for r in records if key in r)) for key in ("hardware", "commit")}
    return f"commit {known['commit'] or 'unknown'}, {known['hardware'] or 'hardware unknown'}"


def typical_chunk(run: Run) -> int:
    """Return the index of the chunk whose blind, refined SDR is the median: neither a lucky nor an unlucky example."""
    scores = chunk_values(run.rows, **BLIND, refine="wiener")
    return int(np.argsort(scores)[len(scores) // 2])


def history(step: Step) -> pd.DataFrame:
    """Read the training curves of a finished step."""
    return pd.read_csv(step.folder / "history.csv")


def latest_steps(pipeline: Pipeline) -> list[Step]:
    """Return the newest finished step of each name, oldest first: what other settings left in the folder does not count."""
    newest = {step.label: step for step in pipeline.cache.finished()}
    return sorted(newest.values(), key=lambda step: step.record["finished"])


def step_times(pipeline: Pipeline) -> pd.DataFrame:
    """Return every step: label, own seconds without those of the steps it made first, and whether it was recorded before."""
    steps = latest_steps(pipeline)
    return pd.DataFrame([{"step": s.label, "recorded": s.recorded, "seconds": s.record["seconds"]} for s in steps])


def trained_line(steps: Iterable[Step]) -> str:
    """Return where models come from: how many, what their training took, commit, hardware, and how many were recorded before."""
    steps = list(steps)
    facts = [f"{len(steps)} models", minutes(sum(step.record["seconds"] for step in steps)), _origin(steps)]
    recorded = sum(step.recorded for step in steps)
    facts += [f"recorded, not trained in this build: {recorded} (make book TRAIN=1 trains again)"] * bool(recorded)
    return "; ".join(facts) + "."


def budget(pipeline: Pipeline, method: str) -> pd.DataFrame:
    """Return what a method's models took to make: step, wall time and parameters, in the order of the pipeline."""
    spec = method_spec(method)
    pipeline.separator(method)
    names = {
        "songs": "composing and rendering",
        f"vqvae-{spec.vqvae}": f"VQ-VAE, kind {spec.vqvae}",
        f"codes-{spec.vqvae}-train": "encoding the training songs",
        **{f"prior-{spec.vqvae}-{source}": f"prior of {source}" for source in pipeline.profile.source_names},
        f"likelihood-{spec.vqvae}-{spec.likelihood}": f"likelihood, kind {spec.likelihood}",
    }
    steps = {step.label: step for step in latest_steps(pipeline)}
    rows = []
    for label in (label for label in names if label in steps):
        record, recorded = steps[label].record, steps[label].recorded
        parameters = record["figures"].get("parameters")
        size = number(int(parameters)) if parameters else "–"
        rows.append((names[label], minutes(record["seconds"]) + ", recorded" * recorded, size))
    return pd.DataFrame(rows, columns=["step", "wall time", "parameters"])


def training_figure(pipeline: Pipeline, method: str) -> Figure:
    """Draw the loss of a method's VQ-VAE beside that of its priors, over the seconds of their training."""
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
    """Return the running mean over a twentieth of a training curve; missing where nothing was measured."""
    return curve.rolling(max(1, len(curve) // 20), min_periods=1).mean().where(curve.notna())


def chunk_label(evaluation: Evaluation, chunk: int) -> str:
    """Return style, name and place of a chunk, such as "slow blues (Track00019), from 12.3 s"; without a style where songs have none."""
    chunks, name = evaluation.chunks, evaluation.chunks.tracks[chunk]
    file = next(evaluation.pipeline.songs().glob(f"*/{name}/metadata.yaml"), None)
    style = parse_metadata(file.read_bytes(), file).get("minislakh", {}).get("style", "") if file else ""
    title = f"{style.replace('_', ' ')} ({name})" if style else name.removeprefix("Track_")
    return f"{title}, from {chunks.starts[chunk] / chunks.sample_rate:.1f} s"


def estimates(evaluation: Evaluation, run: Run, refine: bool = True) -> Tensor:
    """Return the blind estimates of a run, float32 [P, B, T], through Wiener masks or as the decoder left them."""
    return wiener(run.estimates, evaluation.chunks.mixture) if refine else run.estimates


def separation_player(evaluation: Evaluation, chunk: int, stems: Mapping[str, Tensor]) -> HTML:
    """Return a stem player of one chunk: mixture, true sources and estimates [P, B, T] by heading, each with its SDR, at half level as in the mixture."""
    chunks = evaluation.chunks
    sounds: dict[str, Tensor] = {"mixture": chunks.mixture[chunk]}
    groups, notes = {"Mixture": ["mixture"]}, dict[str, str]()
    for heading, estimate in {"True sources": chunks.sources, **stems}.items():
        names = [f"{name} ({heading})" for name in chunks.names]
        groups[heading] = names
        sounds |= {name: 0.5 * estimate[p, chunk] for p, name in enumerate(names)}
        if heading in stems:
            found = sdr(estimate[:, chunk].numpy(), chunks.sources[:, chunk].numpy(), chunks.sample_rate)
            notes |= {name: f"{number(value, 1)} dB" for name, value in zip(names, found, strict=True)}
            rest = chunks.mixture[chunk] - 0.5 * estimate[:, chunk].sum(0)
            # Refined stems add up to the mixture; others leave something over.
            if rest.square().mean() > 1e-4 * chunks.mixture[chunk].square().mean():
                groups[heading] = [*names, f"left over ({heading})"]
                sounds[f"left over ({heading})"] = rest
    return stem_player(sounds, chunks.sample_rate, chunk_label(evaluation, chunk), groups, notes)
