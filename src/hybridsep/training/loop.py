"""The training loop: seeded by step, checkpointed, resumed to the bit, on one process or several.

A task draws its batch from a generator seeded by (seed, step), so a checkpoint needs no position in the data and no state of a generator.
Processes and gradients averaged over them are accelerate's. Precision is the task's, whose losses stay in float32; so the scaler is torch's.
"""

import contextlib
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hybridsep.core.deadline import NEVER, Deadline, OutOfTime
from hybridsep.core.device import seeded_generator
from hybridsep.core.distributed import Part, ranks_here
from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import TrainingSettings
from hybridsep.training.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from hybridsep.training.optimisers import make_optimisers, schedule

RECORDS = 200  # rows of a history, about
WATCHED_STEPS = 50
SUSPECT, DIVERGED = 2.0, 3.0
SMALLEST_SCALE = 2.0**-14


class StepResult(NamedTuple):
    """A scalar to differentiate, what is worth a column in the history, and a phase: losses of different phases are not compared."""

    loss: Tensor
    figures: dict[str, float]
    phase: int = 0


class Task(Protocol):
    """What the loop trains: a module in matrix products of a dtype, whose gradients are scaled where that is float16."""

    module: Any
    dtype: torch.dtype

    @property
    def audio_seconds(self) -> float:
        """Return the length of the audio in one step's batch, in seconds; 0 where it is not known."""

    def step(self, number: int, generator: torch.Generator, part: Part) -> StepResult:
        """Compute the loss of step `number` on a part of the batch drawn with `generator`."""

    def after_step(self, number: int, generator: torch.Generator) -> dict[str, float]:
        """Do whatever follows the optimiser's step, such as the codebook's moving averages, and return its figures."""


class TrainingDiverged(HybridsepError):
    """The loss is not finite, or far above the best it was."""


def train(
    task: Task, settings: TrainingSettings, folder: Path, label: str, seed: int, deadline: Deadline = NEVER
) -> list[dict[str, float]]:
    """Train `task` to its last step, going on from the newest intact checkpoint in `folder`, and return one row of figures per recorded step.

    While training runs `folder` holds the last two checkpoints, and history.csv. TrainingDiverged: the loss became NaN, infinite or far larger
    than it was; the last checkpoint is kept. OutOfTime: the deadline passed, after one step at least and with a checkpoint. HybridsepError: the
    checkpoint cannot be written, or the batch not be cut into as many parts as there are processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(task, settings, folder, label, seed)
    first = run.resume()
    task.module.train()
    with tqdm(total=settings.steps, initial=first, desc=label, unit="step", disable=not run.ranks.first) as bar:
        for number in range(first, settings.steps):
            stop = run.step(number, deadline.passed) and number + 1 < settings.steps
            bar.set_postfix_str(run.progress, refresh=False)
            bar.update()
            # A checkpoint of a loss that climbs would take the place of a good one.
            due = time.monotonic() - run.saved > settings.checkpoint_seconds and run.watch.rise <= SUSPECT
            if stop or due:
                run.save(number + 1)
            if stop:
                done = f"{number + 1} of {settings.steps} ({(number + 1) / settings.steps:.0%}); checkpoint in {folder}"
                raise OutOfTime(f"{label}: time is up, stopped after step {done}. Run the same command again to go on")
    task.module.eval()
    run.write_history()
    return run.history


class TrainingRun:
    """State of one training, and its steps."""

    def __init__(self, task: Task, settings: TrainingSettings, folder: Path, label: str, seed: int):
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.task, self.settings, self.folder, self.label, self.seed = task, settings, folder, label, seed
        self.ranks = ranks_here()
        self.parts = self.ranks.parts(settings.batch, -(-settings.accumulate // self.ranks.count))
        # Buffers are the task's own to keep equal: what they hold is computed from all processes' data.
        options = {"mixed_precision": "no", "kwargs_handlers": [DistributedDataParallelKwargs(broadcast_buffers=False)]}
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), device_placement=False, **options)
        self.model = self.accelerator.prepare_model(_Loss(task), device_placement=False)
        self.optimisers = make_optimisers(task.module, settings)
        self.peaks = [group["lr"] for group in self._groups()]
        device = next(task.module.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=task.dtype == torch.float16)
        self.watch = LossWatch()
        self.history: list[dict[str, float]] = []
        self.progress = ""
        self.every = max(1, settings.steps // RECORDS)
        self.started = self.saved = time.monotonic()
        self.recorded = (0, self.started)

    def resume(self) -> int:
        """Load the newest intact checkpoint and return the step to go on with."""
        # The first process looks first: it alone may remove a damaged file.
        found = newest_checkpoint(self.folder) if self.ranks.first else None
        self.ranks.wait()
        found = found or newest_checkpoint(self.folder)
        if found is None:
            return 0
        state, modules = found.state, {}
        moments: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimisers]
        for key, value in found.tensors.items():
            kind, _, name = key.partition(".")
            if kind == "module":
                modules[name] = value
            else:
                number, index, name = name.split(".")
                moments[int(number)].setdefault(int(index), {})[name] = value
        self.task.module.load_state_dict(modules)
        for optimiser, kept in zip(self.optimisers, moments, strict=True):
            optimiser.load_state_dict({**optimiser.state_dict(), "state": kept})
        if state["scaler"]:
            # Empty where the part before was trained in another precision, whose gradients need no scale.
            self.scaler.load_state_dict(state["scaler"])
        self.watch = LossWatch(**state["watch"])
        self.history, self.recorded = state["history"], (state["step"], time.monotonic())
        self.started -= state["seconds"]  # of the runs before
        return state["step"]

    def step(self, number: int, out_of_time: bool) -> bool:
        """Do one optimiser step and return whether time is up for any of the processes."""
        for group, peak in zip(self._groups(), self.peaks, strict=True):
            group["lr"] = peak * schedule(number, self.settings)
        loss, stop, figures, phase = self._backward(number, out_of_time)
        if not math.isfinite(loss):
            raise self._diverged(number, f"loss is {loss}")
        self.watch.add(loss, phase)
        if self.watch.rise > DIVERGED:
            course = f"{self.watch.mean:.4g} over the last steps, {self.watch.best:.4g} at its best,"
            raise self._diverged(number, f"loss diverges: {course}")
        self._optimise(number)
        figures |= self.task.after_step(number, seeded_generator(self.seed, number, 1))
        if number % self.every == 0 or number == self.settings.steps - 1:
            self._record(number, figures)
        return stop

    def save(self, step: int) -> None:
        """Write checkpoint and history, in the first process only."""
        if self.ranks.first:
            tensors = {f"module.{name}": value for name, value in self.task.module.state_dict().items()}
            for number, optimiser in enumerate(self.optimisers):
                for index, moments in optimiser.state_dict()["state"].items():
                    tensors |= {f"optimiser.{number}.{index}.{name}": value for name, value in moments.items()}
            state = {"step": step, "seconds": time.monotonic() - self.started, "history": self.history}
            state |= {"watch": asdict(self.watch), "scaler": self.scaler.state_dict()}
            save_checkpoint(Checkpoint(tensors, state), self.folder)
            self.write_history()
        self.saved = time.monotonic()

    def write_history(self) -> None:
        """Write one row per recorded step to history.csv."""
        if self.ranks.first:
            pd.DataFrame(self.history).to_csv(self.folder / "history.csv", index=False)

    def _groups(self) -> list[dict[str, Any]]:
        # Asked anew each time: loading a state replaces them.
        return [group for optimiser in self.optimisers for group in optimiser.param_groups]

    def _backward(self, number: int, out_of_time: bool) -> tuple[float, bool, dict[str, float], int]:
        """Add up the gradient of the whole batch, part by part: mean loss, whether any process is out of time, mean figures, phase."""
        self.task.module.zero_grad(set_to_none=True)
        results = []
        for turn, part in enumerate(self.parts):
            last = turn == len(self.parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, figures, phase = self.model(number, seeded_generator(self.seed, number), part)
                self.scaler.scale(loss / len(self.parts)).backward()
            results.append({"": loss.item(), **figures})
        names = list(results[0])
        means = self.ranks.mean([*(sum(r[name] for r in results) / len(results) for name in names), float(out_of_time)])
        return means[0], means[-1] > 0, dict(zip(names[1:], means[1:-1], strict=True)), phase

    def _optimise(self, number: int) -> None:
        for optimiser in self.optimisers:
            self.scaler.unscale_(optimiser)
        if torch.isfinite(nn.utils.clip_grad_norm_(self.task.module.parameters(), self.settings.clip)):
            for optimiser in self.optimisers:
                optimiser.step()
        elif not self.scaler.is_enabled() or self.scaler.get_scale() < SMALLEST_SCALE:
            raise self._diverged(number, "gradient is not finite")
        # An infinite gradient in float16 is expected now and then: the step is left out and the scale halved.
        self.scaler.update()

    def _diverged(self, number: int, what: str) -> TrainingDiverged:
        where = f"at step {number}, batch of seeded_generator({self.seed}, {number})"
        return TrainingDiverged(f"{self.label}: {what} {where}; last checkpoint kept in {self.folder}")

    def _record(self, number: int, figures: dict[str, float]) -> None:
        (last, then), now = self.recorded, time.monotonic()
        if self.task.audio_seconds:
            speed = (number + 1 - last) * self.task.audio_seconds / max(now - then, 1e-9)
            figures["audio_per_second"] = round(speed, 1)
        self.recorded = (number + 1, now)
        self.history.append({"step": number, "seconds": round(now - self.started, 3), **figures})
        self.progress = ", ".join(f"{name}={value:.3g}" for name, value in figures.items())


@dataclass
class LossWatch:
    """Running mean of the loss over about WATCHED_STEPS steps, beside the lowest it was; both start anew with a phase.

    The mean of the first steps is remembered too: above half of it, a loss has unlearnt. Small losses may rise by any factor.
    """

    phase: int = 0
    steps: int = 0
    mean: float = 0.0
    best: float = math.inf
    start: float = math.inf

    def add(self, loss: float, phase: int) -> None:
        """Take the loss of one step."""
        if phase != self.phase:
            self.phase, self.steps, self.mean, self.best, self.start = phase, 0, 0.0, math.inf, math.inf
        self.steps += 1
        self.mean += (loss - self.mean) * max(1 / self.steps, 1 / WATCHED_STEPS)
        if self.steps == WATCHED_STEPS:
            self.start = self.mean
        if self.steps >= WATCHED_STEPS:
            self.best = min(self.best, self.mean)

    @property
    def rise(self) -> float:
        """Return how many times its best the loss is; 1 while that means nothing."""
        return self.mean / max(self.best, 1e-12) if self.mean > self.start / 2 else 1.0


class _Loss(nn.Module):
    """The step of a task as the forward pass of a module, where gradient averaging hooks in."""

    def __init__(self, task: Task):
        super().__init__()
        self.task, self.module = task, task.module

    def forward(self, number: int, generator: torch.Generator, part: Part) -> StepResult:
        return self.task.step(number, generator, part)
