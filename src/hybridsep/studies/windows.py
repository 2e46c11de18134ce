"""Long recordings: windows searched all at once, or one after the other with what the priors heard in the window before."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor

from hybridsep.core.files import load_weights, write_atomically
from hybridsep.evaluation.chunks import Chunks
from hybridsep.evaluation.metrics import sdr, si_sdr
from hybridsep.evaluation.statistics import bootstrap_interval, paired_permutation_test
from hybridsep.inference.separator import SearchOptions, Separator
from hybridsep.inference.wiener import wiener
from hybridsep.inference.windows import Windows
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.studies import Study

SONGS = 8
SECONDS = 12.0
METHOD = "hybrid"
# Name -> what `Separator.estimate_windows` is told: whether the past is carried on, and whether the windows of a song share its level.
WAYS = {"at once": (False, False), "at once, song's level": (False, True), "carried, song's level": (True, True)}
CLICK_SECONDS = 0.001
AROUND_SECONDS = 0.05


@dataclass(frozen=True)
class Separated:
    """What one way made of all songs.

    Attributes:
        stems: float32 [P, B, T].
        log_evidence: nats per code, float32 [B].
        figures: wall and processor time in seconds, per song of all together and of the first one alone.
    """

    stems: Tensor
    log_evidence: Tensor
    figures: dict[str, float]


def windows(study: Study) -> None:
    """Scores, evidence, jumps where windows meet and time of every way, on pieces of 12 s of validation songs: one of the ways is chosen by it."""
    evaluation = study.evaluation("validation", chunks=SONGS, chunk_seconds=SECONDS)
    chunks = evaluation.chunks
    separator = study.pipeline.separator(METHOD)
    places = Windows.over(chunks.mixture.shape[1], separator.sample_rate, separator.hop)
    found = {way: _separated(study, evaluation, separator, way) for way in WAYS}
    scores = pd.concat([_scores(chunks, way, separated, places) for way, separated in found.items()], ignore_index=True)
    study.write("scores", scores)
    study.write("differences", differences(scores))
    true = jumps(chunks.sources.numpy(), places, chunks.sample_rate)
    study.write("jumps_of_true_sources", pd.DataFrame(true.T, columns=chunks.names).assign(track=chunks.tracks))
    times = pd.DataFrame([{"way": way, **separated.figures} for way, separated in found.items()])
    study.write(
        "times",
        times.assign(
            songs_at_once=len(chunks), song_seconds=SECONDS, windows=len(places), threads=torch.get_num_threads()
        ),
    )


def _separated(study: Study, evaluation: Evaluation, separator: Separator, way: str) -> Separated:
    """Made once for a method, the songs and a way."""
    settings = study.pipeline.profile.search.model_dump(), evaluation.chunks.tracks, evaluation.chunks.starts, SECONDS
    step = study.pipeline.cache.step(
        "windows-" + way.replace(",", "").replace("'", "").replace(" ", "-"),
        study.pipeline.method_version(METHOD),
        *settings,
    )
    mixture, seed = evaluation.chunks.mixture, evaluation.settings.seed

    def make() -> dict:
        """Separate all songs together, then the first alone; what the step keeps are stems, evidence and times."""
        started = _clocks()
        stems, nats = separator.estimate_windows(mixture, SearchOptions(seed=seed, label=way), *WAYS[way])
        all_done = _clocks()
        separator.estimate_windows(mixture[:1], SearchOptions(seed=seed, label=f"{way}, one song"), *WAYS[way])
        together, alone = (all_done - started) / len(mixture), _clocks() - all_done
        tensors = {"stems": stems, "log_evidence": nats}
        write_atomically(
            step.folder / "separated.safetensors", save({name: value.contiguous() for name, value in tensors.items()})
        )
        names = ("seconds", "processor_seconds", "seconds_alone", "processor_seconds_alone")
        return dict(zip(names, [*together, *alone], strict=True))

    study.pipeline.cache.make(step, make)
    return Separated(**load_weights(step.folder / "separated.safetensors"), figures=step.record["figures"])


def _clocks() -> np.ndarray:
    """Wall and processor time in seconds: on a machine that others use too, the second says more."""
    return np.array([time.perf_counter(), time.process_time()])


def _scores(chunks: Chunks, way: str, found: Separated, places: Windows) -> pd.DataFrame:
    """One row per song, source, refinement and metric."""
    rows = []
    meeting = torch.cat([torch.arange(chunks.mixture.shape[1])[fade] for fade in places.fades])
    for refine, stems in (("none", found.stems), ("wiener", wiener(found.stems, chunks.mixture))):
        estimates, targets = stems.numpy(), chunks.sources.numpy()
        values = {
            "sdr": sdr(estimates, targets, chunks.sample_rate),
            "si_sdr": si_sdr(estimates, targets),
            "sdr_where_windows_meet": sdr(estimates[..., meeting], targets[..., meeting], len(meeting)),
            "jump_db": jumps(estimates, places, chunks.sample_rate),
        }
        rows += [
            (way, track, refine, source, metric, value[p, b])
            for metric, value in values.items()
            for p, source in enumerate(chunks.names)
            for b, track in enumerate(chunks.tracks)
        ]
    rows += [
        (way, track, "", "", "log_evidence", float(nats))
        for track, nats in zip(chunks.tracks, found.log_evidence, strict=True)
    ]
    return pd.DataFrame(rows, columns=["way", "track", "refine", "source", "metric", "value"])


def jumps(waveforms: np.ndarray, places: Windows, sample_rate: int) -> np.ndarray:
    """How much rougher waveforms are where a cross-fade of windows begins or ends than around it: float [..., T] -> dB [...].

    Roughness is the RMS second difference, within 1 ms of the place against within 50 ms of it; 0 dB on average where nothing is to be heard.
    """
    rough = np.abs(np.diff(waveforms, 2, prepend=0, append=0)).astype(np.float64) ** 2
    ends = [end for fade in places.fades for end in (fade.start, fade.stop)]

    def around(seconds: float) -> np.ndarray:
        reach = max(1, round(seconds * sample_rate))
        return np.stack([rough[..., max(0, end - reach) : end + reach].mean(-1) for end in ends])

    return 10 * np.log10((around(CLICK_SECONDS).mean(0) + 1e-20) / (around(AROUND_SECONDS).mean(0) + 1e-20))


def differences(scores: pd.DataFrame) -> pd.DataFrame:
    """What each way has over the first one in each metric: mean over songs, sources together, with a 95 % interval, and p of no difference."""
    first, *others = WAYS
    table = scores.groupby(["metric", "refine", "way", "track"]).value.mean().unstack("way")
    rows = []
    for (metric, refine), pairs in table.groupby(level=["metric", "refine"]):
        for way in others:
            interval = bootstrap_interval(pairs[way] - pairs[first])
            p = paired_permutation_test(pairs[way], pairs[first])
            figures = {"mean": interval.mean, "low": interval.low, "high": interval.high, "p": p, "songs": len(pairs)}
            rows.append({"metric": metric, "refine": refine, "way": way, "against": first, **figures})
    return pd.DataFrame(rows)
