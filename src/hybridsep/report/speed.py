"""The recorded benchmarks of book/results/bench as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hybridsep.bench.report import read_json
from hybridsep.core.device import dtype_name
from hybridsep.report.chapter import signed
from hybridsep.report.figures import PALETTE, WIDTH, number, results_table, show
from hybridsep.training.codec import codec_dtype

BENCH = Path("book/results/bench")
TRAINED = {"codec": "VQ-VAE", "prior": "prior"}


def recorded_benchmarks(root: Path) -> dict[str, dict]:
    """Every recorded result by the name of its file, such as "posterior" or "decode-lass"."""
    return {path.stem: read_json(path) for path in sorted((root / BENCH).glob("*.json"))}


def measured_on(result: dict) -> str:
    """What a reader needs to judge recorded times: hardware, threads, commit and day."""
    made = result["provenance"]
    return f"medians; {made['hardware']}, {made['threads']} threads, commit {made['commit']}, {made['began'][:10]}"


def command_of(name: str, result: dict) -> str:
    """The command that measures a recorded result again."""
    options = result["provenance"]["options"]
    chosen = {
        key: options[key] for key in ("only", "model", "codes", "particles", "minutes") if options.get(key) is not None
    }
    parts = ["hybridsep bench", name.split("-")[0], *(f"--{key} {value}" for key, value in chosen.items())]
    return " ".join([*parts, f"--json {BENCH / name}.json"])


def against_published(results: Mapping[str, dict]) -> pd.DataFrame:
    """Whole searches of one chunk beside re-writings of the published ones, caches kept as published."""
    rows = [
        r
        for name in ("lass", "lass-beam", "lqvae")
        for r in results[f"decode-{name}"]["rows"]
        if r.get("reference_cache", "every head") == "every head"
    ]
    return pd.DataFrame(
        [
            {
                "reference": f"{r['reference_search']}, K = {r['codes']}", "ours": {"particle": "particle filter"}.get(r["search"], r["search"]),
                "precision": r["dtype"], "ours (s)": r["ours_seconds"], "reference (s)": number(r["reference_seconds"], 1), "ratio": r["ratio"],
            }
            for r in rows
        ]
    )  # fmt: skip


def shared_past(result: dict) -> pd.DataFrame:
    """Milliseconds of a step late in a chunk with the past kept once and kept by every particle, and how much of it they share."""
    latest = {row["particles"]: row for row in sorted(result["rows"], key=lambda row: row["position"])}
    return pd.DataFrame(
        [
            {
                "N": particles, "codes since the common ancestor": row["suffix_mean"], "of a past of": row["position"],
                "kept once (ms)": 1000 * row["ours_seconds"], "kept by each (ms)": 1000 * row["reference_seconds"],
                "kept once (MB)": row["ours_cache_bytes"] / 1e6, "kept by each (MB)": row["reference_cache_bytes"] / 1e6,
            }
            for particles, row in latest.items()
        ]
    )  # fmt: skip


def goals(results: Mapping[str, dict]) -> pd.DataFrame:
    """Every row that a goal was set for before it was measured."""
    rows = [row for result in results.values() for row in result["rows"] if "goal" in row]
    return pd.DataFrame(
        [
            {
                "row": r["name"],
                "goal": r["goal"],
                "measured": r[r["goal"].split()[0]],
                "reached": "yes" if r["goal_met"] else "no",
            }
            for r in rows
        ]
    )


def posterior_figure(result: dict) -> Figure:
    """Milliseconds of one step without the priors over the size of the codebook, for each likelihood beside its published form."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.0), sharey=True)
    published = {"sum": "LQ-VAE: all pairs, dense", "counts": "LASS: list of counted pairs"}
    for axis, (kind, label) in zip(axes, published.items(), strict=True):
        rows = [row for row in result["rows"] if row["name"].startswith(f"{kind}-")]
        reference = {row["codes"]: 1000 * row["reference_seconds"] for row in rows}
        axis.plot(list(reference), list(reference.values()), "o--", color=PALETTE["vermillion"], label=label)
        for (dtype, matrix), colour in zip(
            (("float32", "made"), ("bfloat16", "made"), ("bfloat16", "kept")), ("blue", "green", "purple"), strict=True
        ):
            ours = {
                row["codes"]: 1000 * row["ours_seconds"]
                for row in rows
                if (row["dtype"], row["matrix"]) == (dtype, matrix)
            }
            axis.plot(
                list(ours), list(ours.values()), "o-", color=PALETTE[colour], label=f"here: {dtype}, matrix {matrix}"
            )
        axis.set(title=f"likelihood {kind}", xlabel="codes K", xscale="log", yscale="log")
        axis.set_xticks(list(reference), [str(codes) for codes in reference])
        axis.minorticks_off()
        axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.26))
    axes[0].set_ylabel("one step (ms)")
    return figure


def step_figure(result: dict) -> Figure:
    """Where the time of one search step goes, by part."""
    figure, axis = plt.subplots(figsize=(WIDTH, 2.8))
    _part_bars(axis, [row for row in result["rows"] if "share" in row])
    return figure


def training_figure(result: dict) -> Figure:
    """The same of a training step of each model."""
    figure, axes = plt.subplots(len(TRAINED), 1, figsize=(WIDTH, 4.8), layout="constrained")
    for axis, (model, label) in zip(axes, TRAINED.items(), strict=True):
        _part_bars(axis, [row for row in result["rows"] if row["name"].startswith(f"{model}-profile/")])
        axis.set(title=label)
    return figure


def _part_bars(axis: Axes, rows: list[dict]) -> None:
    names, times = [row["name"].split("/")[1] for row in rows], [1000 * row["ours_seconds"] for row in rows]
    bars = axis.barh(names, times, color=PALETTE["blue"])
    axis.bar_label(bars, [f"{100 * row['share']:.0f} %" for row in rows], padding=3)
    axis.set(xlabel="time in one step (ms)")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def floors(result: dict) -> pd.DataFrame:
    """The products with weights in one search step: rate within the search, rate of the same product alone, and the ratio of the times."""
    rows = [row for row in result["rows"] if "alone_flop_per_second" in row]
    return pd.DataFrame(
        [
            {
                "product": row["name"].split("/")[1], "in the search (GFLOP/s)": row["flop_per_second"] / 1e9, "alone (GFLOP/s)": row["alone_flop_per_second"] / 1e9,
                "times its floor": row["times_floor"],
            }
            for row in rows
        ]
    )  # fmt: skip


def training_steps(result: dict) -> pd.DataFrame:
    """Steps of training and their parts beside what they are compared with; of whole steps the share and the rate of their products."""
    lines = []
    for row in result["rows"]:
        if "share" in row:
            continue
        model, _, part = row["name"].partition("/")
        model, _, what = model.partition("-")
        compared, profiled = row["reference_seconds"] is not None, "alone_flop_per_second" in row
        lines.append({
            "model": TRAINED[model], "timed": part or ("whole step" if what == "step" else f"whole step, {row['dtype']}"),
            "ours (ms)": 1000 * row["ours_seconds"], "reference": row.get("reference_dtype", "as published") if compared else None,
            "reference (ms)": 1000 * row["reference_seconds"] if compared else None, "ratio": row["ratio"],
            "products (% of the time)": 100 * row["products_share"] if profiled else None,
            "their rate (%)": 100 * row["products_flop_per_second"] / row["alone_flop_per_second"] if profiled else None,
            "loss, ours / reference": f"{number(row['ours_loss'], 3)} / {number(row['reference_loss'], 3)}" if "ours_loss" in row else None,
        })  # fmt: skip
    return pd.DataFrame(lines)


def show_training(results: Mapping[str, dict]) -> HTML:
    """`training_steps` where they were recorded, where the time of a step goes, and which precision follows."""
    if "training" not in results:
        return HTML("<p>Not recorded yet: hybridsep bench training would.</p>")
    result = results["training"]
    steps = max(row.get("steps", 0) for row in result["rows"])
    caption = (
        "A step of training and parts of it, in float32 where nothing else is said, beside the same done as published code does it, or beside float32. "
        "Products are those of matrices and convolutions: their share of a step's time, and their rate in % of that of the very same products, each alone."
    )
    losses = f" Losses: mean over the last steps of up to {steps} from the same start." if steps else ""
    shown = [results_table(training_steps(result), caption + losses, measured_on(result))]
    if any("share" in row for row in result["rows"]):
        shown.append(show(training_figure(result), "Where the time of a training step goes, by the operators of each part. Interpreter: what Python takes between them.",
                          "Horizontal bars of milliseconds for the parts of a step of the VQ-VAE and of a prior, labelled with their share."))  # fmt: skip
    shown += [HTML(f"<p>{escape(line)}</p>") for line in precision_lines(result)]
    return HTML("".join(part.data for part in shown))


def precision_lines(result: dict) -> list[str]:
    """What the lower precision wins in a step and changes in the loss, and which one is the default; a sentence for each model."""
    lines = []
    for row in result["rows"]:
        model, _, what = row["name"].partition("-")
        if what != "precision":
            continue
        fast = getattr(torch, row["dtype"])
        chosen = dtype_name(codec_dtype(fast) if model == "codec" else fast)
        change = row["ours_loss"] - row["reference_loss"]
        lines.append(
            f"{TRAINED[model]}: a step in {row['dtype']} is {number(row['ratio'])} times as fast as in {row['reference_dtype']}; after {row['steps']} steps "
            f"the loss is {number(row['ours_loss'], 4)} instead of {number(row['reference_loss'], 4)} ({signed(100 * change / row['reference_loss'], 3)} %). The default of its training on such a CPU is {chosen}."
        )
    return lines


def recording_line(result: dict) -> str:
    """Time and peak memory of separating long recordings."""
    cases = []
    for row in result["rows"]:
        length = "an hour" if row["minutes"] == 60 else f"{row['minutes']:g} minutes"
        cases.append(
            f"{length} took {number(row['ours_seconds'] / 60, 1)} minutes with N = {row['particles']} and {number(row['ours_peak_bytes'] / 1e9, 1)} GB of memory at most, "
            f"{number(row['start_bytes'] / 1e9, 1)} GB of them Python and torch before it began"
        )
    first = result["rows"][0]
    return f"Stereo at {first['sample_rate'] / 1000:g} kHz, from file to files (model: {first['model']}): {'; '.join(cases)}"


def show_recording(results: Mapping[str, dict]) -> HTML:
    """`recording_line` where it was recorded."""
    if "recording" not in results:
        return HTML("<p>Not recorded yet: hybridsep bench recording would.</p>")
    return HTML(f"<p>{escape(recording_line(results['recording']))}; {escape(measured_on(results['recording']))}.</p>")


def show_gpu(root: Path) -> HTML:
    """Say that nothing was measured on a GPU, and what would check and measure one."""
    return HTML("<p>Nothing was measured on a GPU yet; <code>pytest -m gpu</code> checks the kernels on one.</p>")
