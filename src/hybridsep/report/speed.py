"""The recorded benchmarks of book/results/bench as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from hybridsep.bench.gpu import gpu_tables
from hybridsep.bench.report import read_json
from hybridsep.report.figures import PALETTE, WIDTH, number, results_table

BENCH = Path("book/results/bench")
GPU = Path("book/results/gpu")


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
    chosen = {key: options[key] for key in ("only", "model", "codes", "particles") if options.get(key) is not None}
    parts = ["hybridsep bench", name.split("-")[0], *(f"--{key} {value}" for key, value in chosen.items())]
    return " ".join([*parts, f"--json {BENCH / name}.json"])


def against_published(results: Mapping[str, dict]) -> pd.DataFrame:
    """Whole searches of one chunk beside re-writings of the published ones, caches kept as published."""
    rows = [r for name in ("lass", "lass-beam", "lqvae") for r in results[f"decode-{name}"]["rows"] if r.get("reference_cache", "every head") == "every head"]
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
        [{"row": r["name"], "goal": r["goal"], "measured": r[r["goal"].split()[0]], "reached": "yes" if r["goal_met"] else "no"} for r in rows]
    )


def posterior_figure(result: dict) -> Figure:
    """Milliseconds of one step without the priors over the size of the codebook, for each likelihood beside its published form."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.0), sharey=True)
    published = {"sum": "LQ-VAE: all pairs, dense", "counts": "LASS: list of counted pairs"}
    for axis, (kind, label) in zip(axes, published.items(), strict=True):
        rows = [row for row in result["rows"] if row["name"].startswith(f"{kind}-")]
        reference = {row["codes"]: 1000 * row["reference_seconds"] for row in rows}
        axis.plot(list(reference), list(reference.values()), "o--", color=PALETTE["vermillion"], label=label)
        for (dtype, matrix), colour in zip((("float32", "made"), ("bfloat16", "made"), ("bfloat16", "kept")), ("blue", "green", "purple"), strict=True):
            ours = {row["codes"]: 1000 * row["ours_seconds"] for row in rows if (row["dtype"], row["matrix"]) == (dtype, matrix)}
            axis.plot(list(ours), list(ours.values()), "o-", color=PALETTE[colour], label=f"here: {dtype}, matrix {matrix}")
        axis.set(title=f"likelihood {kind}", xlabel="codes K", xscale="log", yscale="log")
        axis.set_xticks(list(reference), [str(codes) for codes in reference])
        axis.minorticks_off()
        axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.26))
    axes[0].set_ylabel("one step (ms)")
    return figure


def step_figure(result: dict) -> Figure:
    """Where the time of one search step goes, by part."""
    rows = [row for row in result["rows"] if "share" in row]
    figure, axis = plt.subplots(figsize=(WIDTH, 2.8))
    names, times = [row["name"].split("/")[1] for row in rows], [1000 * row["ours_seconds"] for row in rows]
    bars = axis.barh(names, times, color=PALETTE["blue"])
    axis.bar_label(bars, [f"{100 * row['share']:.0f} %" for row in rows], padding=3)
    axis.set(xlabel="time in one step (ms)")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    return figure


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
        model, _, part = row["name"].partition("/")
        model, _, what = model.partition("-")
        other = row.get("reference_dtype") or ("as published" if row["reference_seconds"] is not None else "–")
        whole = "products_share" in row
        lines.append({
            "model": {"codec": "VQ-VAE"}.get(model, model), "timed": part or ("step" if what == "step" else f"step in {row['dtype']}"), "ours (ms)": 1000 * row["ours_seconds"],
            "beside": other, "that (ms)": None if row["reference_seconds"] is None else 1000 * row["reference_seconds"], "ratio": row["ratio"],
            "products (% of the step)": 100 * row["products_share"] if whole else None,
            "their rate (% of a large product's)": 100 * row["products_flop_per_second"] / row["square_flop_per_second"] if whole else None,
            "loss, ours / that": f"{number(row['ours_loss'], 3)} / {number(row['reference_loss'], 3)}" if "ours_loss" in row else None,
        })  # fmt: skip
    return pd.DataFrame(lines)


def show_training(results: Mapping[str, dict]) -> HTML:
    """`training_steps` where they were recorded."""
    if "training" not in results:
        return HTML("<p>Not recorded yet: hybridsep bench training would.</p>")
    result = results["training"]
    steps = max(row.get("steps", 0) for row in result["rows"])
    caption = f"A step of training and its parts, beside the same done as published code does it, or in float32. Losses: mean of the last steps of up to {steps}, from the same start."
    return results_table(training_steps(result).astype(object).where(lambda f: f.notna(), None), caption, measured_on(result))


def show_gpu(root: Path) -> HTML:
    """What `python -m hybridsep.bench.gpu` measured, where it ever ran."""
    tables = gpu_tables(root / GPU)
    if not tables:
        return HTML("<p>Nothing was measured on a GPU yet; <code>python -m hybridsep.bench.gpu all</code> would, a few minutes at a time.</p>")
    return HTML("".join(results_table(table.frame, table.title, table.measured).data for table in tables))
