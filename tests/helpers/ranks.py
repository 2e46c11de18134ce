"""What test_distributed runs in two processes at once: `torchrun --nproc-per-node 2 tests/helpers/ranks.py FOLDER [codec|prior]`.

Every process writes what it ended with to FOLDER/<name>.<rank>.safetensors; test_distributed compares it with one process.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tiny import prior_settings, seeded, vqvae_settings

from hybridsep.core.distributed import mean_over_ranks, ranks_here
from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import load_profile
from hybridsep.data.codes import CodeSet
from hybridsep.data.stems import StemSet
from hybridsep.evaluation import protocols
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.training.codec import VQVAETask
from hybridsep.training.loop import train
from hybridsep.training.prior import PriorTask

TRAINING = {"steps": 16, "batch": 4, "learning_rate": 1e-3, "warmup": 2}
LENGTH = 20_000


def stems() -> StemSet:
    """Two songs of two sources, noise with a slow envelope."""
    envelope = 0.3 + 0.2 * np.sin(np.arange(2 * LENGTH) / 700)
    audio = np.random.default_rng(0).standard_normal((2, 2 * LENGTH)) * envelope * 16_000
    return StemSet(audio.clip(-32_000, 32_000).astype(np.int16), ("a", "b"), (0, LENGTH), (LENGTH, LENGTH), 8000)


def codec_run(folder: Path, **changes) -> tuple[VQVAE, list[dict]]:
    """A VQ-VAE whose codes die often, and its history.

    Without L_lin: the mean of two codes is as far from either, so that B of it hangs on the last bit.
    """
    settings = vqvae_settings(training={**TRAINING, **changes}, dead_share=0.5, unquantised_share=0.2, codes=32)
    torch.manual_seed(0)
    module = VQVAE(settings)
    return module, train(VQVAETask(module, stems(), 0.0, torch.float32), settings.training, folder, "codec", 3)


def prior_run(folder: Path, **changes) -> tuple[Prior, list[dict]]:
    """A prior trained with both optimisers, and its history."""
    settings = prior_settings(training={**TRAINING, "matrix_learning_rate": 0.01, **changes})
    songs = tuple(torch.randint(12, (2, 90), generator=seeded(i)).to(torch.int16) for i in range(3))
    torch.manual_seed(0)
    module = Prior(settings, 12)
    return module, train(PriorTask(module, CodeSet(songs), 1, torch.float32), settings.training, folder, "prior", 3)


def quick_bss_eval(estimates, *_):
    """museval takes most of an evaluation's time and is held to account in test_metrics."""
    return {name: estimates.std(-1) for name in ("isr", "sir", "sar")}


RUNS = {"codec": (codec_run, "loss"), "prior": (prior_run, "nats_per_code")}


def keep(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write what this process ended with."""
    save_file(
        {k: v.detach().contiguous() for k, v in tensors.items()}, folder / f"{name}.{ranks_here().index}.safetensors"
    )


def trained(folder: Path, name: str) -> None:
    """Weights and curve of one of RUNS."""
    run, figure = RUNS[name]
    module, history = run(folder / name)
    keep(
        folder,
        name,
        {**module.state_dict(), "curve": torch.tensor([row[figure] for row in history], dtype=torch.float64)},
    )


def main(folder: Path) -> None:
    """Everything that takes two processes, in one start of them."""
    ranks = ranks_here()
    for name in RUNS:
        trained(folder, name)
    joined = ranks.join_uneven(torch.arange(3 + 2 * ranks.index) + 10 * ranks.index)
    weight = torch.tensor(2.0 + ranks.index, requires_grad=True)
    # Every process's loss is (mean of both weights)² times 1 or 2.
    (mean_over_ranks(weight).square() * (1 + ranks.index)).backward()
    keep(
        folder,
        "talk",
        {"joined": joined, "gradient": weight.grad, "mean": torch.tensor(ranks.mean([1.0, float(ranks.index)]))},
    )
    try:
        codec_run(folder / "odd", batch=3)
        raise AssertionError("a batch of 3 was cut in two")
    except HybridsepError as error:
        assert "batch of 3" in str(error) and "2 processes" in str(error)
    protocols.bss_eval = quick_bss_eval
    Evaluation(Pipeline(load_profile(folder / "micro.yml"), folder)).table()


if __name__ == "__main__":
    where, *only = sys.argv[1:]
    trained(Path(where), *only) if only else main(Path(where))
