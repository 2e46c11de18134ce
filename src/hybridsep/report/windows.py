"""A stretch of a song longer than one window, separated on the spot in both ways."""

from __future__ import annotations

import time

import torch
from IPython.display import HTML

from hybridsep.data.stems import mix
from hybridsep.evaluation.chunks import Evaluation
from hybridsep.report.chapter import METHOD_LABELS, number, typical_chunk
from hybridsep.report.players import player_table

SECONDS = 8.0  # three windows, where the song is so long
PARTICLES = 8
WAYS = {"all windows at once": False, "one after the other, carried on": True}


def window_player(evaluation: Evaluation) -> HTML:
    """Stems of the song with the chunk of median score, from around that chunk, by the best method with few particles: refined, in both ways."""
    pipeline, chunks, method = evaluation.pipeline, evaluation.chunks, evaluation.best_method()
    chunk, stems, separator = (
        typical_chunk(evaluation.run(method, "particle")),
        pipeline.stems("test"),
        pipeline.separator(method),
    )
    track = stems.names.index(chunks.tracks[chunk])
    length = min(round(SECONDS * stems.sample_rate), stems.lengths[track])
    start = min(chunks.starts[chunk], stems.lengths[track] - length)
    sources = torch.stack([stems.crop(p, track, start, length) for p in range(len(chunks.names))])
    rows = [
        {
            "windows": "true sources",
            **{name: source / len(sources) for name, source in zip(chunks.names, sources, strict=True)},
            "evidence (nats per code)": None,
            "seconds": None,
        }
    ]
    for label, carry in WAYS.items():
        began = time.perf_counter()
        found = separator.separate(
            mix(sources), stems.sample_rate, particles=PARTICLES, seed=evaluation.settings.seed, carry=carry
        )
        made = dict(zip(chunks.names, found.stems, strict=True))
        rows.append(
            {
                "windows": label,
                **made,
                "evidence (nats per code)": number(found.log_evidence, 3),
                "seconds": number(time.perf_counter() - began, 1),
            }
        )
    place = f"{chunks.tracks[chunk]}, {length / stems.sample_rate:g} s from {start / stems.sample_rate:.1f} s"
    return player_table(
        rows,
        stems.sample_rate,
        f"{METHOD_LABELS[method]}, N = {PARTICLES}, refined, separated while this page was made: {place}. Listen for places where one window gives way to the next.",
    )
