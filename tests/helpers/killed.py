"""What test_training kills: `python killed.py FOLDER` trains a tiny VQ-VAE once undisturbed and then 20 times with a SIGKILL on the way.

Moments are counted, not timed: each step and each call that writes a checkpoint is one, and chance of a fixed seed picks 20 of them.
Prints what it killed at and a digest of the weights that each resumed training ended with, as JSON.
"""

import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
from ranks import stems
from tiny import vqvae_settings

from hybridsep.models.vqvae import VQVAE
from hybridsep.training.codec import VQVAETask
from hybridsep.training.loop import train

TRAINING = {"steps": 6, "batch": 2, "learning_rate": 1e-3, "warmup": 2, "checkpoint_seconds": 1e-9}


class Moments:
    """Counts moments and kills this process at one of them."""

    def __init__(self, fatal: int | None = None):
        self.fatal, self.seen = fatal, []

    def reached(self, name: str) -> None:
        """A moment has come."""
        self.seen.append(name)
        if len(self.seen) - 1 == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch_files(self) -> None:
        """Every call that a checkpoint is written by becomes a moment."""
        fsync, replace, opened = os.fsync, os.replace, Path.open
        moved = []

        def slow_open(path: Path, mode: str = "r", *args, **kwargs):
            file = opened(path, mode, *args, **kwargs)
            return HalfAtATime(file, self) if "b" in mode and "w" in mode else file

        def watched_replace(*args) -> None:
            replace(*args)
            moved.append(args)
            self.reached("moved both" if str(args[0]).endswith(".tmp") else "moved one")

        def watched_fsync(descriptor: int) -> None:
            self.reached("unsynced")
            fsync(descriptor)
            self.reached("written")

        os.fsync, os.replace, Path.open = watched_fsync, watched_replace, slow_open


class HalfAtATime:
    """A file that is written in two halves, with a moment between them."""

    def __init__(self, file, moments: Moments):
        self.file, self.moments = file, moments

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def write(self, content: bytes) -> None:
        """Half on the disk, the moment, the other half."""
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.moments.reached("half written")
        self.file.write(content[len(content) // 2 :])


class Watched(VQVAETask):
    """Each step a moment, before the optimiser and after the codebook."""

    def __init__(self, *args, moments: Moments):
        super().__init__(*args)
        self.moments = moments

    def step(self, *args):
        """See VQVAETask."""
        result = super().step(*args)
        self.moments.reached("step")
        return result

    def after_step(self, *args):
        """See VQVAETask."""
        figures = super().after_step(*args)
        self.moments.reached("after step")
        return figures


def run(folder: Path, moments: Moments) -> str:
    """Train to the end, or to the fatal moment: digest of the weights, buffers included."""
    settings = vqvae_settings(training=TRAINING, dead_share=0.5, unquantised_share=0.3, crop_samples=2048)
    torch.manual_seed(0)
    module = VQVAE(settings)
    train(Watched(module, stems(), 1.0, torch.float32, moments=moments), settings.training, folder, "killed", 3)
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def in_a_process(folder: Path, fatal: int | None = None) -> tuple[int, str, list[str]]:
    """`run` in a fork: the signal that ended it, the digest and the moments it came to."""
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        signalled = os.waitpid(child, 0)[1] & 0x7F
        return (signalled, *json.loads(said)) if said else (signalled, "", [])
    moments = Moments(fatal)
    moments.watch_files()
    digest = run(folder, moments)
    with os.fdopen(write, "w") as pipe:
        json.dump([digest, moments.seen], pipe)
    os._exit(0)


def main(folder: Path) -> None:
    """See the top of this file."""
    # What torch imports at its first step is imported once, before the forks.
    run(folder / "here", Moments())
    _, whole, names = in_a_process(folder / "whole")
    chance = random.Random(4)
    kinds = {name: [i for i, n in enumerate(names) if n == name] for name in sorted(set(names))}
    # One of every kind, the rest anywhere.
    fatal = {chance.choice(places) for places in kinds.values()}
    while len(fatal) < 20:
        fatal.add(chance.randrange(len(names)))
    resumed = []
    for moment in sorted(fatal):
        signalled, *_ = in_a_process(folder / str(moment), moment)
        assert signalled == signal.SIGKILL, (moment, names[moment], signalled)
        resumed.append(in_a_process(folder / str(moment))[1])
    for moment in (7, 3, 11):
        in_a_process(folder / "often", moment)
    often = in_a_process(folder / "often")[1]
    print(
        json.dumps(
            {"whole": whole, "killed": [names[m] for m in sorted(fatal)], "resumed": resumed, "again and again": often}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
