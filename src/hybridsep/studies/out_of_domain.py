"""How far the scores fall where songs sound otherwise than those that were trained on, and whether codec, priors or likelihood fall first.

Songs and places are those of the main evaluation. Each stem is changed by itself, as loud as before, and the mixture is made anew of them.
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
from torch import Tensor
from tqdm import tqdm

from hybridsep.core.files import write_atomically
from hybridsep.data.effects import EFFECTS, apply_effect, as_loud_as, draws
from hybridsep.data.minislakh.composer import COMPOSER_VERSION, compose_song
from hybridsep.data.minislakh.render import render_song
from hybridsep.data.slakh import read_tracks
from hybridsep.data.soundfont import own_soundfont
from hybridsep.data.stems import MIXTURE_RMS
from hybridsep.evaluation.chunks import pair_sources
from hybridsep.evaluation.comparisons import SOURCES_MEAN, interval_columns, song_values
from hybridsep.evaluation.rows import read_rows
from hybridsep.models.prior import nats_per_code
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.studies import Study

SEPARATED_BY = ("hybrid", "lass")
KEPT_METRICS = ("sdr", "si_sdr_improvement", "stft_distance", "log_evidence", "seconds")
AS_RENDERED, OTHER_SOUNDFONT = "as rendered", "other SoundFont"
# Around a chunk, so that a room still rings in it and a faster tape does not run out.
CONTEXT_SECONDS = 2.0
SOUNDFONTS = Path("/usr/share/sounds/sf2")

#: Source, name of the track, where in it, and the samples there, float32 [T] -> the same place as it sounds now, float32 [T].
Change = Callable[[str, str, slice, np.ndarray], np.ndarray]


class ChangedSound(Evaluation):
    """The evaluation of a pipeline's test chunks, with every stem changed."""

    def __init__(self, pipeline: Pipeline, change: Change | None = None):
        super().__init__(pipeline)
        self.changed = change is not None
        if change is not None:
            self.chunks = replace(self.chunks, sources=self._sources(change))

    def _sources(self, change: Change) -> Tensor:
        stems, length = self.pipeline.stems(self.split), self.chunks.sources.shape[-1]
        context = round(CONTEXT_SECONDS * stems.sample_rate)
        pieces = []
        for name, start in zip(self.chunks.tracks, self.chunks.starts, strict=True):
            track = stems.names.index(name)
            around = slice(max(0, start - context), min(stems.lengths[track], start + length + context))
            heard = [
                stems.crop(p, track, around.start, around.stop - around.start).numpy() for p in range(len(stems.audio))
            ]
            changed = np.stack(
                [
                    change(source, name, around, samples)
                    for source, samples in zip(self.chunks.names, heard, strict=True)
                ]
            )
            pieces.append(torch.from_numpy(changed)[:, start - around.start :][:, :length])
        return pair_sources(torch.stack(pieces, 1), stems.pairing)

    def nats(self, method: str) -> pd.DataFrame:
        """Nats per code of the true codes of each chunk under a method's priors, and of the mixture's given them under its likelihood.

        Returns:
            track, part ("prior" or "likelihood"), source (of a prior), value.
        """
        step = self.pipeline.cache.step(f"nats-{method}", self.pipeline.method_version(method), self.chunks.digest)

        def make() -> dict:
            """Encode the changed stems and their mixtures at the level that the method hears them at."""
            separator, chunks = self.pipeline.separator(method), self.chunks
            level = MIXTURE_RMS / chunks.mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-9)
            *sources, mixture = (
                separator.vqvae.encode((x * level).to(separator.device)) for x in (*chunks.sources, chunks.mixture)
            )
            rows = [
                (track, "prior", name, nats_per_code(prior, codes[b : b + 1]))
                for name, prior, codes in zip(chunks.names, separator.priors, sources, strict=True)
                for b, track in enumerate(chunks.tracks)
            ]
            given = (
                separator.likelihood.log_likelihood(*(codes.flatten() for codes in (mixture, *sources)))
                .view(mixture.shape)
                .mean(1)
            )
            rows += [
                (track, "likelihood", "", -float(value)) for track, value in zip(chunks.tracks, given, strict=True)
            ]
            table = pd.DataFrame(rows, columns=["track", "part", "source", "value"])
            write_atomically(step.folder / "nats.csv", table.to_csv(index=False, na_rep="nan").encode())
            return {"chunks": len(chunks)}

        self.pipeline.cache.make(step, make)
        return read_rows(step.folder / "nats.csv")


def out_of_domain(study: Study) -> None:
    """Hybrid and LASS, the mixture itself and both codecs on the test chunks in every condition; nats per code of the true codes."""
    pipeline = study.evaluation().pipeline
    conditions = {
        AS_RENDERED: ChangedSound(pipeline),
        **{name: ChangedSound(pipeline, change) for name, change in _changes(study, pipeline).items()},
    }
    rows, nats = [], []
    for method in SEPARATED_BY:
        for name, evaluation in conditions.items():
            rows.append(evaluation.blind_run(method).rows.assign(condition=name))
            nats.append(evaluation.nats(method).assign(condition=name, method=method))
    rows += [evaluation.references().assign(condition=name) for name, evaluation in conditions.items()]
    table = pd.concat(rows, ignore_index=True)
    table = table[table.metric.isin(KEPT_METRICS)]
    study.write("scores", table)
    study.write("falls", falls_table(table))
    study.write("nats", pd.concat(nats, ignore_index=True))


def falls_table(table: pd.DataFrame) -> pd.DataFrame:
    """SDR of everything under every condition, and how far it lies from the same songs as rendered.

    Args:
        table: rows in the columns of evaluation.csv, with `condition`.

    Returns:
        condition, method, refine, source (or their mean), score, and mean, low, high (95 % bootstrap interval over songs), std, n of the paired
        differences; dB.
    """
    rows = []
    sdr = table[(table.metric == "sdr") & (table.reference == "real")]
    for (method, refine), of_signal in sdr.groupby(["method", "refine"], sort=False):
        for source in (SOURCES_MEAN, *dict.fromkeys(of_signal.source)):
            only = {} if source == SOURCES_MEAN else {"source": source}
            before = song_values(of_signal, condition=AS_RENDERED, **only)
            for condition in dict.fromkeys(of_signal.condition):
                now = song_values(of_signal, condition=condition, **only)
                labels = {
                    "condition": condition,
                    "method": method,
                    "refine": refine,
                    "source": source,
                    "score": now.mean(),
                }
                rows.append({**labels, **interval_columns((now - before).to_numpy())})
    return pd.DataFrame(rows)


def _changes(study: Study, pipeline: Pipeline) -> dict[str, Change]:
    """Every condition by its name; what the other SoundFont is, or why there is none, is noted."""
    seed, sample_rate = pipeline.profile.evaluation.seed, pipeline.profile.data.sample_rate

    def by_effect(effect: str) -> Change:
        return lambda source, track, _, samples: apply_effect(
            effect, samples, sample_rate, draws(seed, effect, track, source)
        )

    changes = {effect: by_effect(effect) for effect in EFFECTS}
    font = find_soundfont()
    if font is None:
        note = f"none found in {SOUNDFONTS}"
    elif not _is_minislakh(pipeline.songs()):
        note = "left out, as the songs were not composed by this version of MiniSlakh"
    else:
        note = f"{font.name}, SHA-256 {_sha256(font)}"
        changes[OTHER_SOUNDFONT] = _rendered_with(font, pipeline)
    study.notes["soundfont"] = note
    tqdm.write(f"{OTHER_SOUNDFONT}: {note}")
    return changes


def find_soundfont() -> Path | None:
    """The first .sf2 file, by name, that the system has and MiniSlakh was not rendered with; Debian's fluid-soundfont-gm brings one."""
    files = sorted({path.resolve() for path in SOUNDFONTS.glob("*.sf2")})
    own = _sha256(own_soundfont())
    return next((path for path in files if path.suffix == ".sf2" and path.is_file() and _sha256(path) != own), None)


def _rendered_with(font: Path, pipeline: Pipeline) -> Change:
    """The same notes, rooms and tones played with another SoundFont, every stem as loud as it was."""
    root, sample_rate = pipeline.songs(), pipeline.profile.data.sample_rate
    made = json.loads((root / "minislakh.json").read_text())
    indices = {track.name: track.metadata["minislakh"]["index"] for track in read_tracks(root, "test")}
    parts = {source: inst_class.lower() for source, inst_class in pipeline.profile.sources.items()}

    @lru_cache(maxsize=1)
    def song(track: str) -> dict[str, np.ndarray]:
        return render_song(
            compose_song(made["seed"], indices[track], made["seconds"]), sample_rate, parts.values(), font
        )

    return lambda source, track, place, samples: as_loud_as(samples, song(track)[parts[source]][place])


def _is_minislakh(root: Path) -> bool:
    file = root / "minislakh.json"
    return file.is_file() and json.loads(file.read_text())["composer"] == COMPOSER_VERSION


@lru_cache(maxsize=8)
def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
