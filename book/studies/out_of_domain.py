"""How far scores fall where songs sound otherwise than in training, and whether codec, priors or likelihood fall first.

Songs and places are those of the main evaluation. Each stem is changed by itself, as loud as before, and the mixture is
made anew of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from study import Study, main, sources_of
from tqdm import tqdm

from hybridsep.core.level import MIXTURE_RMS
from hybridsep.data.effects import EFFECTS, apply_effect, as_loud_as, draws
from hybridsep.data.minislakh.composer import COMPOSER_VERSION, compose_song
from hybridsep.data.minislakh.render import render_song
from hybridsep.data.slakh import read_tracks
from hybridsep.data.soundfont import own_soundfont
from hybridsep.evaluation.chunks import Chunks, pair_sources
from hybridsep.evaluation.comparisons import interval_columns, song_values
from hybridsep.models.prior import nats_per_code
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline

SEPARATED_BY = ("hybrid", "lass")
KEPT_METRICS = ("sdr", "si_sdr_improvement", "stft_distance", "log_evidence", "seconds")
AS_RENDERED, OTHER_SOUNDFONT = "as rendered", "other SoundFont"
# Around a chunk, so that a room still rings in it and a faster tape does not run out.
CONTEXT_SECONDS = 2.0
SOUNDFONTS = Path("/usr/share/sounds/sf2")

#: Source, name of the track, where in it, and the samples there, float32 [T] -> the same place as it sounds now.
Change = Callable[[str, str, slice, np.ndarray], np.ndarray]


def out_of_domain(study: Study) -> None:
    """Score Hybrid, LASS, the mixture itself and both codecs in every condition, and the nats of the true codes."""
    plain, rows, nats = study.evaluation(), [], []
    found = {name: changed(plain, change) for name, change in changes(study).items()}
    conditions = {AS_RENDERED: plain} | {name: Evaluation(plain.pipeline, chunks=x) for name, x in found.items()}
    for method in SEPARATED_BY:
        for name, evaluation in conditions.items():
            rows.append(evaluation.blind_run(method).assign(condition=name))
            nats.append(true_nats(evaluation, method).assign(condition=name, method=method))
    rows += [evaluation.references().assign(condition=name) for name, evaluation in conditions.items()]
    table = pd.concat(rows, ignore_index=True)
    table = table[table.metric.isin(KEPT_METRICS)]
    study.write("scores", table)
    study.write("falls", falls_table(table))
    study.write("nats", pd.concat(nats, ignore_index=True))


def falls_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the SDR under every condition, and how far it lies from the same songs as rendered, dB.

    Args:
        table: rows in the columns of evaluation.csv, with `condition`.

    Returns:
        condition, method, refine, source (or "mean"), score, and mean, low, high (95 % bootstrap interval over songs),
        std, n of the paired differences.
    """
    rows = []
    sdr = table[(table.metric == "sdr") & (table.reference == "real")]
    for (method, refine), part in sdr.groupby(["method", "refine"], sort=False):
        for source, only in sources_of(part).items():
            before = song_values(part, condition=AS_RENDERED, **only)
            labels = {"method": method, "refine": refine, "source": source}
            for condition in dict.fromkeys(part.condition):
                now = song_values(part, condition=condition, **only)
                fall = interval_columns((now - before).to_numpy())
                rows.append({"condition": condition, **labels, "score": now.mean(), **fall})
    return pd.DataFrame(rows)


def changed(evaluation: Evaluation, change: Change) -> Chunks:
    """Return the chunks with every stem changed by itself."""
    chunks, stems = evaluation.chunks, evaluation.pipeline.stems(evaluation.split)
    length, context = chunks.sources.shape[-1], round(CONTEXT_SECONDS * stems.sample_rate)
    pieces = []
    for name, start in zip(chunks.tracks, chunks.starts, strict=True):
        track = stems.names.index(name)
        around = slice(max(0, start - context), min(stems.lengths[track], start + length + context))
        sounds = []
        for p, source in enumerate(chunks.names):
            heard = stems.crop(p, track, around.start, around.stop - around.start).numpy()
            sounds.append(change(source, name, around, heard))
        pieces.append(torch.from_numpy(np.stack(sounds))[:, start - around.start :][:, :length])
    return replace(chunks, sources=pair_sources(torch.stack(pieces, 1), stems.pairing))


def true_nats(evaluation: Evaluation, method: str) -> pd.DataFrame:
    """Return nats per code of each chunk's true codes: of sources under the priors, of the mixture given them.

    Returns:
        track, part ("prior" or "likelihood"), source (of a prior), value.
    """
    separator, chunks = evaluation.pipeline.separator(method), evaluation.chunks
    # At the level that the method hears them at.
    level = MIXTURE_RMS / chunks.mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-9)
    signals = [(signal * level).to(separator.device) for signal in (*chunks.sources, chunks.mixture)]
    *sources, mixture = (separator.vqvae.encode(signal) for signal in signals)
    likelihood = separator.likelihood.log_likelihood(*(codes.flatten() for codes in (mixture, *sources)))
    parts = {
        ("prior", name): [nats_per_code(prior, row[None]) for row in codes]
        for name, prior, codes in zip(chunks.names, separator.priors, sources, strict=True)
    }
    parts["likelihood", ""] = (-likelihood.view(mixture.shape).mean(1)).tolist()
    rows = [(t, *part, value) for part, each in parts.items() for t, value in zip(chunks.tracks, each, strict=True)]
    return pd.DataFrame(rows, columns=["track", "part", "source", "value"])


def changes(study: Study) -> dict[str, Change]:
    """Return every condition by its name; note what the other SoundFont is, or why there is none."""
    pipeline = study.pipeline
    seed, sample_rate = pipeline.profile.evaluation.seed, pipeline.profile.data.sample_rate

    def by_effect(effect: str) -> Change:
        return lambda source, track, _, x: apply_effect(effect, x, sample_rate, draws(seed, effect, track, source))

    found = {effect: by_effect(effect) for effect in EFFECTS}
    font = find_soundfont()
    if font is None:
        note = f"none found in {SOUNDFONTS}"
    elif not is_minislakh(pipeline.songs()):
        note = "left out, as the songs were not composed by this version of MiniSlakh"
    else:
        note = f"{font.name}, SHA-256 {sha256(font)}"
        found[OTHER_SOUNDFONT] = rendered_with(font, pipeline)
    study.notes["soundfont"] = note
    tqdm.write(f"{OTHER_SOUNDFONT}: {note}")
    return found


def find_soundfont() -> Path | None:
    """Return the system's first SoundFont, by name, that MiniSlakh is not rendered with, such as FluidR3."""
    files = sorted({path.resolve() for path in SOUNDFONTS.glob("*.sf2")})
    own = sha256(own_soundfont())
    return next((path for path in files if path.suffix == ".sf2" and path.is_file() and sha256(path) != own), None)


def rendered_with(font: Path, pipeline: Pipeline) -> Change:
    """Play the same notes, rooms and tones with another SoundFont, every stem as loud as it was."""
    root, sample_rate = pipeline.songs(), pipeline.profile.data.sample_rate
    made = json.loads((root / "minislakh.json").read_text())
    indices = {track.name: track.metadata["minislakh"]["index"] for track in read_tracks(root, "test")}
    parts = {source: inst_class.lower() for source, inst_class in pipeline.profile.sources.items()}

    @lru_cache(maxsize=1)
    def song(track: str) -> dict[str, np.ndarray]:
        composed = compose_song(made["seed"], indices[track], made["seconds"])
        return render_song(composed, sample_rate, parts.values(), font)

    return lambda source, track, place, samples: as_loud_as(samples, song(track)[parts[source]][place])


def is_minislakh(root: Path) -> bool:
    """Tell whether songs were composed by this version of MiniSlakh, so that they can be composed again."""
    file = root / "minislakh.json"
    return file.is_file() and json.loads(file.read_text())["composer"] == COMPOSER_VERSION


@lru_cache(maxsize=8)
def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(out_of_domain)
