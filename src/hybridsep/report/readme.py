"""The README's figures, written from the results of a run: `python -m hybridsep.report.readme cpu`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pandas as pd

from hybridsep.bench.report import plot_scaling
from hybridsep.evaluation.chunks import Evaluation
from hybridsep.report import repository_root
from hybridsep.report.chapter import (
    METHOD_LABELS,
    chunk_label,
    chunk_values,
    estimates,
    latest_steps,
    minutes,
    number,
    open_book,
    provenance_line,
    recorded_note,
    score_table,
    sdr_columns,
    step_times,
    typical_chunk,
)
from hybridsep.report.figures import plot_spectrograms
from hybridsep.report.rehearsal import RESULT
from hybridsep.report.speed import BENCH, recorded_benchmarks, recording_line

PICTURE = Path("book/assets/result.png")
SCALING = Path("book/assets/scaling.png")
SCREENSHOT = Path("book/assets/chapter0.png")
SCREEN = {"width": 1100, "height": 1080}  # CSS pixels
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
_REHEARSED = {"clone": "the clone", "install": "installation", "book": "`make book`", "test": "`make test`"}
_NOT_REHEARSED = "The whole way from a clone to the page is timed with `python -m hybridsep.report.rehearsal FOLDER`; that was not done yet."


def write_readme(profile: str, root: Path) -> None:
    """Fill the parts of README.md between `<!-- times -->` / `<!-- results -->` and their end marks, and draw its pictures.

    The screenshot is of the built book, which should be one of the same profile.
    """
    _, evaluation = open_book(profile)
    _fill(root, {"times": _times(evaluation), "results": _results(evaluation, root)})
    write_rehearsal(root)
    write_speed(root)
    write_screenshot(root / "_build" / "html", root / SCREENSHOT)


def write_screenshot(site: Path, picture: Path) -> None:
    """Photograph the top of the landing page of a built book, with Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--mute-audio"])
        page = browser.new_page(viewport=SCREEN)
        page.goto((site / "book" / "index.html").as_uri(), wait_until="load")
        page.screenshot(path=str(picture))
        browser.close()


def write_rehearsal(root: Path) -> None:
    """Fill the part between `<!-- rehearsal -->` and its end mark from book/results/rehearsal.json."""
    _fill(
        root,
        {
            "rehearsal": _rehearsal(json.loads((root / RESULT).read_text(encoding="utf-8")))
            if (root / RESULT).is_file()
            else _NOT_REHEARSED
        },
    )


def write_speed(root: Path) -> None:
    """Fill the part between `<!-- speed -->` and its end mark from book/results/bench, and draw its picture."""
    recorded = recorded_benchmarks(root)
    results = {name: recorded[f"decode-{name}"] for name in ("particles", "length", "lass", "lqvae")}
    scaling = {**results["particles"], "rows": results["particles"]["rows"] + results["length"]["rows"]}
    plot_scaling(scaling).savefig(root / SCALING, dpi=80)
    lines = [
        f"| {row['particles']} | {number(row['ours_seconds'], 1)} | {number(row['nats_per_code'], 3)} |"
        for row in results["particles"]["rows"]
    ]
    published = [
        r
        for name in ("lass", "lqvae")
        for r in results[name]["rows"]
        if r.get("reference_cache", "every head") == "every head"
    ]
    ratios = [
        f"| {r['reference_search']}, K = {r['codes']} | {r['dtype']} | {number(r['ours_seconds'], 1)} | {number(r['reference_seconds'], 0)} | {number(r['ratio'], 1)} |"
        for r in published
    ]
    made = results["particles"]["provenance"]
    text = ["One chunk of 3 s with LASS's models and the particle filter, audio to audio:", "", "| N | seconds | evidence (nats per code) |", "|---|---|---|", *lines, "",
            "Search alone, N = 32, beside re-writings of the published code on the same models (LQ-VAE's with untrained ones, timed on its first steps and scaled up):", "",
            "| reference | precision | particle filter (s) | reference (s) | ratio |", "|---|---|---|---|---|", *ratios, "",
            f"Medians, {made['hardware']}, {made['threads']} threads, commit {made['commit']}. All rows, with extremes, are in {BENCH}.", "",
            *([f"{recording_line(recorded['recording'])}.", ""] if "recording" in recorded else []),
            f"![Time against the number of particles and against the length of the audio]({SCALING})"]  # fmt: skip
    _fill(root, {"speed": "\n".join(text)})


def _fill(root: Path, parts: dict[str, str]) -> None:
    text = (root / "README.md").read_text()
    for name, content in parts.items():
        before, rest = text.split(f"<!-- {name} -->", 1)
        _, after = rest.split(f"<!-- /{name} -->", 1)
        text = f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{after}"
    (root / "README.md").write_text(text)


def _rehearsal(made: dict) -> str:
    """What a newcomer waits for, step by step."""
    took = {what: made["seconds"][step] for step, what in _REHEARSED.items() if step in made["seconds"]}
    size = {
        what: f"{number(count / 1e9, 1)} GB" if count >= 1e9 else f"{number(count / 1e6, 0)} MB"
        for what, count in made["bytes"].items()
    }
    longest = max(made["chapters"], key=made["chapters"].get)
    return (
        f"A newcomer's way, from an empty folder to the page: {', '.join(f'{what} {minutes(seconds)}' for what, seconds in took.items())}, "
        f"together {minutes(sum(took.values()))}. The longest of {len(made['chapters'])} chapters was `{longest}`, {minutes(made['chapters'][longest])}. "
        f"The clone has {size['repository']}, its `.venv` {size['environment']}, the run's files {size['run']}.\n"
        f"Rehearsed on {made['date']} with `python -m hybridsep.report.rehearsal FOLDER`: profile {made['profile']}, commit {made['commit']}, {made['hardware']}."
    )


def _times(evaluation: Evaluation) -> str:
    pipeline = evaluation.pipeline
    times = step_times(pipeline)
    groups = {
        "songs and stems": ("songs", "stems"),
        "both VQ-VAEs": ("vqvae",),
        "encoding": ("codes",),
        "four priors": ("prior",),
        "four likelihoods": ("likelihood",),
        f"{times.step.str.startswith('separated').sum()} separations of {len(evaluation.chunks)} chunks, with scores": (
            "separated",
            "references",
        ),
    }
    lines, rows = [], {}
    for what, starts in groups.items():
        of_group = times[times.step.str.startswith(starts)]
        own, recorded = (of_group[of_group.recorded == state].seconds.sum() for state in (False, True))
        took = [minutes(own)] * bool(own or not recorded) + [f"recorded: {minutes(recorded)}"] * bool(recorded)
        lines.append(f"| {what} | {' + '.join(took)} |")
        rows[what] = own
    hardware = ", ".join(sorted(set(times[~times.recorded].hardware)))
    table = [
        f"What the steps of a run took on {hardware}:",
        "",
        "| step | wall time |",
        "|---|---|",
        *lines,
        f"| **together** | **{minutes(sum(rows.values()))}** |",
    ]
    note = recorded_note(step for step in latest_steps(pipeline) if step.recorded)
    return "\n".join([*table, *(["", f"{note.strip()} Their time is not in the sum."] if note else [])])


def _results(evaluation: Evaluation, root: Path) -> str:
    best = evaluation.best_method()
    strong = evaluation.run(best, "particle", evaluation.settings.many_particles)
    table = pd.concat(
        [evaluation.references(), *(evaluation.run(method, "particle").rows for method in METHOD_LABELS)],
        ignore_index=True,
    )
    where = {"search": "particle", "selection": "blind", "reference": "real", "metric": "sdr"}
    columns = {
        f"{name}{label} (dB)": {**where, "source": name, "refine": refine}
        for refine, label in (("none", ""), ("wiener", ", refined"))
        for name in evaluation.chunks.names
    }
    frame = score_table(table, METHOD_LABELS, columns, "method", "method")
    frame["seconds per chunk"] = [
        number(float(chunk_values(table, method=m, search="particle", metric="seconds").mean()), 1)
        for m in METHOD_LABELS
    ]
    stronger = score_table(
        strong.rows, {best: f"{METHOD_LABELS[best]}, N = {strong.particles}"}, columns, "method", "method"
    )
    stronger["seconds per chunk"] = number(float(chunk_values(strong.rows, metric="seconds").mean()), 1)
    references = {
        "mixture": "mixture, not separated",
        "codec-plain": "codec ceiling, plain",
        "codec-linear": "codec ceiling, linear",
        "irm": "ideal ratio mask",
    }
    floor = score_table(table, references, sdr_columns(evaluation.chunks.names, reference="real"), "method", "method")
    frame = pd.concat([frame, stronger, floor], ignore_index=True).fillna("")
    run = evaluation.run(best, "particle")
    typical = typical_chunk(run)
    _picture(evaluation, estimates(evaluation, run), typical, root / PICTURE)
    head = "| " + " | ".join(frame.columns) + " |\n|" + "---|" * len(frame.columns)
    body = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False))
    return "\n".join(
        [
            "Blind SDR (nothing chosen with the ground truth), particle filter:",
            "",
            head,
            body,
            "",
            provenance_line(evaluation, f"N = {run.particles} particles where not said otherwise"),
            "",
            f"![Spectrograms of a mixture, of what {METHOD_LABELS[best]} makes of it, and of the true sources]({PICTURE})",
            "",
            f"*{chunk_label(evaluation, typical)}, the chunk of median score, separated by {METHOD_LABELS[best]}: mixture, separated and true sources.*",
        ]
    )


def _picture(evaluation: Evaluation, refined, chunk: int, path: Path) -> None:
    chunks = evaluation.chunks
    panels = {"mixture": chunks.mixture[chunk]}
    panels |= {f"{name}, separated": 0.5 * refined[p, chunk] for p, name in enumerate(chunks.names)}
    panels |= {f"{name}, true": 0.5 * chunks.sources[p, chunk] for p, name in enumerate(chunks.names)}
    plot_spectrograms(panels, chunks.sample_rate, columns=3).savefig(path, dpi=80)


if __name__ == "__main__":
    write_readme(sys.argv[1], repository_root())
