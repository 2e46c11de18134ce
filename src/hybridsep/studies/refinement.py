"""Window and trust of the Wiener filter that refines the stems, chosen on validation songs."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.metrics import sdr
from hybridsep.inference.wiener import wiener
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.studies import Study

CHUNKS = 12
SIZES = (1024, 2048, 4096, 8192)
TRUSTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def refinement(study: Study) -> None:
    """Blind SDR of every cell's particle filter after refinement with every window and trust; the separations are the same."""
    evaluation = study.evaluation("validation", chunks=CHUNKS)
    frames = []
    for method in METHODS:
        found = evaluation.pipeline.separator(method).estimate(
            evaluation.chunks.mixture, seed=evaluation.settings.seed, label=method
        )
        stems, mixture = found.stems.cpu(), found.mixture.cpu()
        frames.append(_scores(evaluation, stems).assign(method=method, size=0, trust=float("nan")))
        frames += [
            _scores(evaluation, wiener(stems, mixture, size, trust)).assign(method=method, size=size, trust=trust)
            for size in SIZES
            for trust in TRUSTS
        ]
    study.write("scores", pd.concat(frames, ignore_index=True))


def _scores(evaluation: Evaluation, stems: Tensor) -> pd.DataFrame:
    """SDR in dB of stems [P, B, T]: one row per source and chunk."""
    chunks = evaluation.chunks
    values = sdr(stems.numpy(), chunks.sources[..., : stems.shape[-1]].numpy(), chunks.sample_rate)
    rows = [
        (track, source, values[p, b]) for p, source in enumerate(chunks.names) for b, track in enumerate(chunks.tracks)
    ]
    return pd.DataFrame(rows, columns=("track", "source", "sdr"))
