"""A training step of the VQ-VAE and of a prior, and the same in the precision that the machine is fast in: time, memory, loss."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from unittest.mock import patch

import torch
from separators import dtypes
from timing import Options, Row, main, start_settled, time_calls

from hybridsep.core.device import default_device, dtype_name, seeded_generator
from hybridsep.core.profiles import Profile, load_profile
from hybridsep.data.minislakh.render import make_minislakh
from hybridsep.data.stems import StemSet, build_stems, open_stems
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE
from hybridsep.training.codec import VQVAETask
from hybridsep.training.encoding import encode_songs
from hybridsep.training.loop import TrainingRun
from hybridsep.training.prior import PriorTask

SONGS, SECONDS, STEPS = 12, 12.0, {"codec": 80, "prior": 40}
QUICK_SONGS, QUICK_SECONDS, QUICK_STEPS = 10, 6.0, 3
LAST_STEPS = 10


def bench_training(options: Options, model: str) -> Iterator[Row]:
    """Time a step in float32, then in the fast precision beside it; losses are means over the last of the same steps from the same start."""
    with tempfile.TemporaryDirectory() as made:
        folder, device, calls, losses = Path(made), default_device(), {}, {}
        profile, stems = _songs(options, folder)
        settings = profile.vqvae if model == "codec" else profile.prior
        steps = QUICK_STEPS if options.quick else STEPS[model]
        for dtype in dtypes(device):
            training = TrainingRun(TASKS[model](profile, stems, dtype), settings.training, folder, model, 0)
            training.task.module.train()
            numbers = count(settings.training.steps // 2)
            losses[dtype] = _mean_loss(training, numbers, steps)
            calls[dtype] = lambda training=training, numbers=numbers: training.step(next(numbers), False)
        times = time_calls(calls, 1 if options.quick else 10 * options.repeats, options.budget, device)
    slow, *faster = dtypes(device)
    length = "crop_samples" if model == "codec" else "crop_codes"
    details = {"batch": settings.training.batch, length: getattr(settings, length), "steps": steps}
    yield Row(f"{model}-step", times[slow], None, details | {"dtype": dtype_name(slow), "ours_loss": losses[slow]})
    for fast in faster:
        details |= {"dtype": dtype_name(fast), "reference_dtype": dtype_name(slow)}
        details |= {"ours_loss": losses[fast], "reference_loss": losses[slow]}
        yield Row(f"{model}-precision", times[fast], times[slow], details)


def _mean_loss(training: TrainingRun, numbers: Iterator[int], steps: int) -> float:
    """Do some steps and return the mean loss of the last of them."""
    losses, step = [], training.task.step
    with patch.object(training.task, "step", lambda *given: losses.append(step(*given)) or losses[-1]):
        for _ in range(steps):
            training.step(next(numbers), False)
    last = losses[-LAST_STEPS:]
    return sum(result.loss.item() for result in last) / len(last)


def _songs(options: Options, folder: Path) -> tuple[Profile, StemSet]:
    """Compose and render songs; return the profile and their stems."""
    profile = load_profile("smoke" if options.quick else options.profile)
    songs, seconds = (QUICK_SONGS, QUICK_SECONDS) if options.quick else (SONGS, SECONDS)
    data = profile.data
    root = make_minislakh(folder / "songs", songs, seconds, data.seed, data.sample_rate, progress=False)
    build_stems([root], "train", profile.sources, data.sample_rate, folder)
    return profile, open_stems(folder, "train")


def _codec_task(profile: Profile, stems: StemSet, dtype: torch.dtype) -> VQVAETask:
    return VQVAETask(_vqvae(profile, stems), stems, profile.vqvae.linear_weight, dtype)


def _prior_task(profile: Profile, stems: StemSet, dtype: torch.dtype) -> PriorTask:
    codes = encode_songs(_vqvae(profile, stems), stems, silent=True)
    torch.manual_seed(0)
    return PriorTask(Prior(profile.prior, profile.vqvae.codes).to(default_device()), codes, 0, dtype)


def _vqvae(profile: Profile, stems: StemSet) -> VQVAE:
    """Return a VQ-VAE whose codebook has been started; equal weights each time."""
    torch.manual_seed(0)
    module = VQVAE(profile.vqvae).to(default_device())
    crops = stems.random_crops(0, 8, profile.vqvae.crop_samples, seeded_generator(0))
    with torch.no_grad():
        module.bottleneck.start_from(module.latent(crops.to(default_device())).flatten(0, 1), seeded_generator(1))
    return module


TASKS = {"codec": _codec_task, "prior": _prior_task}
BENCHMARKS = {model: partial(bench_training, model=model) for model in TASKS}

if __name__ == "__main__":
    start_settled()
    main(BENCHMARKS, __doc__)
