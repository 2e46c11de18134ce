"""The training loop: seeded by step, checkpointed, resumed to the bit, on one process or several.

A task draws its batch from a generator seeded by (seed, step). So a checkpoint needs no position in the data, no state of a random
generator and no scheduler: they follow from the number of the next step. Weights, buffers (the codebook among them), the optimisers'
moments, the loss scaler and the history are the rest of the state.

Processes, gradients averaged over them and accumulation are accelerate's. Precision is the task's, whose losses and codebook stay in
float32 inside a half-precision model; so the loss scaler is torch's own.
"""

from __future__ import annotations

import contextlib
import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hybridsep.core.deadline import NEVER, Deadline, OutOfTime
from hybridsep.core.device import seeded_generator
from hybridsep.core.distributed import Part, ranks_here
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import load_weights, write_atomically
from hybridsep.core.profiles import TrainingSettings
from hybridsep.training.checkpoint import Checkpoint, clear_checkpoints, newest_checkpoint, save_checkpoint

__all__ = [
    "StepResult",
    "Task",
    "TrainingDiverged",
    "clear_checkpoints",
    "load_weights",
    "make_optimisers",
    "train",
    "write_atomically",
]

RECORDS = 200
WATCHED_STEPS = 50
SUSPECT, DIVERGED = 2.0, 3.0
SMALLEST_SCALE = 2.0**-14


@dataclass(frozen=True)
class StepResult:
    """What a step computes before the optimiser's.

    Attributes:
        loss: scalar to differentiate.
        figures: worth a column in the history.
        phase: another number, another loss: values of different phases are not compared.
    """

    loss: Tensor
    figures: dict[str, float]
    phase: int = 0


class Task(Protocol):
    """What the loop trains.

    Attributes:
        dtype: of the matrix products; float16 gradients are scaled.
        audio_seconds: length of the audio in one step's batch, in seconds; 0 where it is not known.
    """

    dtype: torch.dtype

    @property
    def module(self) -> nn.Module: ...

    @property
    def audio_seconds(self) -> float: ...

    def step(self, number: int, generator: torch.Generator, part: Part) -> StepResult:
        """Loss of step `number` on a part of the batch drawn with `generator`."""

    def after_step(self, number: int, generator: torch.Generator) -> dict[str, float]:
        """Whatever follows the optimiser's step, such as the codebook's moving averages, and its figures."""


class TrainingDiverged(HybridsepError):
    """The loss is not finite, or far above the best it was."""


def train(
    task: Task, settings: TrainingSettings, folder: Path, label: str, seed: int, deadline: Deadline = NEVER
) -> list[dict[str, float]]:
    """Train `task` to its last step, going on from the newest intact checkpoint in `folder`.

    Args:
        folder: holds the last two checkpoints while training runs, and history.csv.
        label: what the progress bar says.
        deadline: when to stop with a checkpoint, after one step at least.

    Returns:
        History, one row of figures per recorded step.

    Raises:
        TrainingDiverged: the loss became NaN, infinite or far larger than it was; the last checkpoint is kept.
        OutOfTime: the deadline passed before the last step.
        HybridsepError: the checkpoint cannot be written, or the batch not be cut into as many parts as there are processes.
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
            if stop or run.save_due:
                run.save(number + 1)
            if stop:
                done = f"stopped after step {number + 1} of {settings.steps} ({(number + 1) / settings.steps:.0%})"
                raise OutOfTime(
                    f"{label}: time is up, {done}; checkpoint in {folder}. Run the same command again to go on"
                )
    task.module.eval()
    run.write_history()
    return run.history


class TrainingRun:
    """State of one training, and its steps."""

    def __init__(self, task: Task, settings: TrainingSettings, folder: Path, label: str, seed: int):
        self.task, self.settings, self.folder, self.label, self.seed = task, settings, folder, label, seed
        self.ranks = ranks_here()
        self.parts = self.ranks.parts(settings.batch, -(-settings.accumulate // self.ranks.count))
        self.model, self.unsynchronised = _prepared(task)
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
        self.seconds_before = 0.0

    @property
    def save_due(self) -> bool:
        """Whether it is time for a checkpoint; one of a loss that climbs would take the place of a good one."""
        return time.monotonic() - self.saved > self.settings.checkpoint_seconds and self.watch.rise <= SUSPECT

    def resume(self) -> int:
        """Load the newest intact checkpoint; the step to go on with."""
        # The first process looks: it alone may remove a damaged file.
        found = newest_checkpoint(self.folder) if self.ranks.first else None
        self.ranks.wait()
        if not self.ranks.first:
            found = newest_checkpoint(self.folder)
        first = self._restore(found) if found else 0
        self.recorded = (first, time.monotonic())
        return first

    def step(self, number: int, out_of_time: bool) -> bool:
        """One optimiser step; whether time is up for any of the processes."""
        self._set_rates(number)
        loss, stop, figures, phase = self._backward(number, out_of_time)
        self._check_loss(number, loss, phase)
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
            state = {"step": step, "seconds": self._seconds(), "history": self.history}
            state |= {"watch": asdict(self.watch), "scaler": self.scaler.state_dict()}
            save_checkpoint(Checkpoint(tensors, state), self.folder)
            self.write_history()
        self.saved = time.monotonic()

    def write_history(self) -> None:
        """One row per recorded step to history.csv."""
        if self.ranks.first:
            write_history(self.folder / "history.csv", self.history)

    def _restore(self, found: Checkpoint) -> int:
        tensors, state = found.tensors, found.state
        self.task.module.load_state_dict(
            {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
        )
        for number, optimiser in enumerate(self.optimisers):
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimiser.{number}."):
                    _, _, index, name = key.split(".")
                    moments.setdefault(int(index), {})[name] = value
            optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        if state["scaler"]:
            # Empty where the part before was trained in another precision, whose gradients need no scale.
            self.scaler.load_state_dict(state["scaler"])
        self.watch = LossWatch(**state["watch"])
        self.history, self.seconds_before = state["history"], state["seconds"]
        return state["step"]

    def _set_rates(self, number: int) -> None:
        for group, peak in zip(self._groups(), self.peaks, strict=True):
            group["lr"] = peak * _schedule(number, self.settings)

    def _groups(self) -> list[dict]:
        return [group for optimiser in self.optimisers for group in optimiser.param_groups]

    def _backward(self, number: int, out_of_time: bool) -> tuple[float, bool, dict[str, float], int]:
        """Gradient of the whole batch, part by part: mean loss, whether any process is out of time, mean figures, phase."""
        self.task.module.zero_grad(set_to_none=True)
        results = []
        for turn, part in enumerate(self.parts):
            last = turn == len(self.parts) - 1
            with contextlib.nullcontext() if last else self.unsynchronised():
                loss, figures, phase = self.model(number, seeded_generator(self.seed, number), part)
                self.scaler.scale(loss / len(self.parts)).backward()
            results.append({"": loss.item(), **figures})
        names = list(results[0])
        means = self.ranks.mean([*(sum(r[name] for r in results) / len(results) for name in names), float(out_of_time)])
        return means[0], means[-1] > 0, dict(zip(names[1:], means[1:-1], strict=True)), phase

    def _check_loss(self, number: int, loss: float, phase: int) -> None:
        if not math.isfinite(loss):
            raise self._diverged(number, f"loss is {loss}")
        self.watch.add(loss, phase)
        if self.watch.rise > DIVERGED:
            raise self._diverged(
                number, f"loss diverges: {self.watch.mean:.4g} over the last steps, {self.watch.best:.4g} at its best,"
            )

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
        batch = f"batch of seeded_generator({self.seed}, {number})"
        return TrainingDiverged(
            f"{self.label}: {what} at step {number}, {batch}; last checkpoint kept in {self.folder}"
        )

    def _record(self, number: int, figures: dict[str, float]) -> None:
        (last, then), now = self.recorded, time.monotonic()
        if self.task.audio_seconds:
            figures["audio_per_second"] = round(
                (number + 1 - last) * self.task.audio_seconds / max(now - then, 1e-9), 1
            )
        self.recorded = (number + 1, now)
        self.history.append({"step": number, "seconds": round(self._seconds(), 3), **figures})
        self.progress = ", ".join(f"{name}={value:.3g}" for name, value in figures.items())

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


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
        """How many times its best the loss is; 1 while that means nothing."""
        return self.mean / max(self.best, 1e-12) if self.mean > self.start / 2 else 1.0


class _Loss(nn.Module):
    """The step of a task as the forward pass of a module, where gradient averaging hooks in."""

    def __init__(self, task: Task):
        super().__init__()
        self.task, self.module = task, task.module

    def forward(self, number: int, generator: torch.Generator, part: Part) -> tuple[Tensor, dict[str, float], int]:
        """See Task.step."""
        result = self.task.step(number, generator, part)
        return result.loss, result.figures, result.phase


def _prepared(task: Task) -> tuple[nn.Module, Callable[[], contextlib.AbstractContextManager]]:
    """The module to call, wrapped for several processes where there are, and the context in which gradients are not yet exchanged."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # Buffers are the task's own to keep equal: what they hold is computed from all processes' data.
    options = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="no", device_placement=False, kwargs_handlers=options
    )
    model = accelerator.prepare_model(_Loss(task), device_placement=False)
    return model, lambda: accelerator.no_sync(model)


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """One row per recorded step; columns are the union of the rows' figures."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def _schedule(step: int, settings: TrainingSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    left = 1 - (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.final_lr + (1 - settings.final_lr) * left


def make_optimisers(module: nn.Module, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices that `module.hidden_matrices()` names and AdamW for the rest.

    Weight decay falls on matrices only. Muon (Jordan et al. 2024, as shipped with torch) learns the priors in fewer steps: one comparison
    of 100 steps on bass gave 3.19 nats per code on validation songs, AdamW 4.07 at a rate of 1e-3 and 3.71 at 3e-3.
    """
    named: Callable[[], list[nn.Parameter]] = getattr(module, "hidden_matrices", list)
    hidden = named() if settings.matrix_learning_rate else []
    taken = {id(p) for p in hidden}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=settings.learning_rate, betas=(0.9, 0.95), foreach=True
    )
    if not hidden:
        return [adamw]
    muon = torch.optim.Muon(
        hidden,
        lr=settings.matrix_learning_rate,
        weight_decay=settings.weight_decay,
        momentum=0.95,
        adjust_lr_fn="original",
    )
    return [adamw, muon]
