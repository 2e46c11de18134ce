"""Controls for a live notebook: pick a track, a method, a search and a number of particles, and separate on the spot.

In a page without a kernel, track and method still choose among separations kept in it, linked by the browser.
"""

from __future__ import annotations

import ipywidgets as widgets
import numpy as np
from IPython.display import HTML

from hybridsep.evaluation.metrics import sdr
from hybridsep.inference.selection import posterior_mean
from hybridsep.inference.separator import SearchOptions
from hybridsep.inference.wiener import wiener
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.report.chapter import METHOD_LABELS, SEARCH_LABELS, chunk_label, chunk_values, separation_player
from hybridsep.report.figures import number
from hybridsep.report.players import player_table


def explorer(evaluation: Evaluation, tracks: int = 4) -> widgets.VBox:
    """Return the controls, the kept separation that they point at, and below it the newest one made.

    Args:
        evaluation: of a trained run.
        tracks: how many test chunks to offer, spread from the lowest to the highest score.
    """
    offered = spread_chunks(evaluation, tracks)
    default = evaluation.pipeline.profile.search.particles
    labels = [chunk_label(evaluation, chunk) for chunk in offered]
    track = widgets.Dropdown(options=labels, description="track")
    method = widgets.Dropdown(options={label: name for name, label in METHOD_LABELS.items()}, description="method")
    searches = {label: name for name, label in SEARCH_LABELS.items()}
    search = widgets.Dropdown(options=searches, value="particle", description="search")
    particles = widgets.BoundedIntText(default, min=1, max=1024, description="particles")
    seed = widgets.BoundedIntText(0, min=0, max=2**31 - 1, description="seed")
    button = widgets.Button(description="Separate", tooltip="Separate with these settings; needs a live notebook")
    made = widgets.Output()

    def on_click(_: widgets.Button) -> None:
        """Show the separation that the menus ask for; the button waits meanwhile."""
        button.disabled, button.description = True, "Separating …"
        try:
            chosen = (offered[track.index], method.value, search.value, particles.value, seed.value)
            found = separate_chunk(evaluation, *chosen)
            made.outputs = ()
            made.append_display_data(found)
        finally:
            button.disabled, button.description = False, "Separate"

    button.on_click(on_click)
    kept = _kept(evaluation, offered, track, method)
    return widgets.VBox([track, method, kept, search, particles, seed, button, made])


def spread_chunks(evaluation: Evaluation, count: int) -> list[int]:
    """Return `count` chunks, or all, from the lowest to the highest blind, refined SDR of the best cell."""
    rows = evaluation.run(evaluation.best_method(), "particle").rows
    scores = chunk_values(rows, metric="sdr", selection="blind", refine="wiener", reference="real")
    order = scores.argsort().tolist()
    count = min(count, len(order))
    return [order[round(place * (len(order) - 1) / max(1, count - 1))] for place in range(count)]


def separate_chunk(evaluation: Evaluation, chunk: int, method: str, search: str, particles: int, seed: int) -> HTML:
    """Separate one test chunk now and return its stem player, raw and refined, with SDR, evidence and time.

    Raises:
        HybridsepError: unknown method or search, or no particles.
    """
    chunks = evaluation.chunks
    found = evaluation.pipeline.separator(method).candidates(
        chunks.mixture[chunk : chunk + 1], SearchOptions(search, particles, seed)
    )
    raw = posterior_mean(found).cpu()
    refined = wiener(raw, found.mixture.cpu())
    scores = np.asarray(sdr(refined[:, 0].numpy(), chunks.sources[:, chunk].numpy(), chunks.sample_rate))
    length = found.search.codes.shape[-1]
    facts = [f"{name} {number(score, 1)} dB refined" for name, score in zip(chunks.names, scores, strict=True)]
    facts.append(f"evidence {number(float(found.search.log_evidence[0]) / length, 3)} nats per code")
    facts.append(f"{number(found.seconds, 1)} s")
    label = f"{METHOD_LABELS[method]}, {SEARCH_LABELS[search]}, N = {particles}, seed {seed}"
    stems = {label: raw, f"{label}, refined": refined}
    sounds = {heading: estimate.expand(-1, len(chunks), -1) for heading, estimate in stems.items()}
    return HTML(f"<p>{', '.join(facts)}.</p>{separation_player(evaluation, chunk, sounds).data}")


def _kept(
    evaluation: Evaluation, offered: list[int], track: widgets.Dropdown, method: widgets.Dropdown
) -> widgets.Stack:
    """Return what the chapters' runs made of the offered chunks; browsers show the one that the menus point at."""
    chunks, by_track = evaluation.chunks, []
    runs = {name: evaluation.run(name, "particle").estimates for name in METHOD_LABELS}
    kept = {name: wiener(raw, chunks.mixture) for name, raw in runs.items()}
    for chunk in offered:
        pages = []
        for name, label in METHOD_LABELS.items():
            rows = [{"sound": "mixture", "listen": chunks.mixture[chunk]}]
            rows += [
                {"sound": f"{source}, {label}", "listen": 0.5 * kept[name][p, chunk]}
                for p, source in enumerate(chunks.names)
            ]
            caption = f"{chunk_label(evaluation, chunk)}, kept: {label}, particle filter, refined"
            pages.append(widgets.HTML(player_table(rows, chunks.sample_rate, caption).data))
        by_track.append(widgets.Stack(pages, selected_index=0))
        widgets.jslink((method, "index"), (by_track[-1], "selected_index"))
    outer = widgets.Stack(by_track, selected_index=0)
    widgets.jslink((track, "index"), (outer, "selected_index"))
    return outer
