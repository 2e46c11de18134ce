"""Steps that are made once and found again, or taken from a record.

A step lives in `<root>/<name>-<hash>/`, where the hash covers every setting it depends on, those of the steps before it included.
`done.json` is written last: a folder without it is unfinished and is gone on with.
A model that a record has and that was not trained here is taken from there (see `hybridsep.pipeline.record`), into a folder `...-recorded`. What
is made of it has another hash than what is made of a model trained here, so the two never mix.
Several processes make a step together: all run the same lines, the first one writes, and none goes on before `done.json` is there.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from hybridsep.core.deadline import Deadline, OutOfTime
from hybridsep.core.distributed import Ranks
from hybridsep.core.files import write_atomically
from hybridsep.core.profiles import config_hash
from hybridsep.core.provenance import provenance
from hybridsep.pipeline.record import restore_step
from hybridsep.training.checkpoint import clear_checkpoints


@dataclass(frozen=True)
class Step:
    """One cached step, its name without the hash, and its key in a record, which does not depend on where the models before it come from."""

    folder: Path
    label: str
    key: str
    recorded: bool = False

    @property
    def done(self) -> bool:
        """Whether the step is complete."""
        return (self.folder / "done.json").is_file()

    @property
    def record(self) -> dict:
        """Return what done.json holds: wall time in seconds, figures and where the step was made."""
        return json.loads((self.folder / "done.json").read_text())


class StepCache:
    """Make the steps of a run in its folder `root`, or find them made there, or in the folder of a record where one is given."""

    def __init__(self, root: Path, device: torch.device, deadline: Deadline, ranks: Ranks, record: Path | None):
        self.root, self.device, self.deadline, self.ranks, self.record = root, device, deadline, ranks, record
        self._nested_seconds = 0.0
        self._made = False

    def step(self, name: str, *settings: object, inputs: Iterable[Step] = ()) -> Step:
        """Return the step of that name under these settings, made from these inputs, done or not."""
        inputs = tuple(inputs)
        key = f"{name}-{config_hash(*settings, *(step.key for step in inputs))}"
        own = Step(self.root / f"{name}-{config_hash(*settings, *(step.folder.name for step in inputs))}", name, key)
        # A recorded model fits those recorded models that it was trained on, and no others.
        fits = self._has(key) and all(step.recorded or not self._has(step.key) for step in inputs)
        if own.done or not fits:
            return own
        return Step(self.root / f"{key}-recorded", name, key, recorded=True)

    def make(self, step: Step, make: Callable[[], dict]) -> Path:
        """Run `make` unless the step is done or recorded, keep its figures and own seconds, return the folder; OutOfTime; HybridsepError: damaged."""
        if step.done:
            return step.folder
        # All processes are past the question above before one can answer it differently.
        late = self.ranks.any(self.deadline.passed)
        if step.recorded and self.record:
            if self.ranks.first:
                restore_step(self.record, step.key, step.folder)
        # However short the time, one step is made.
        elif late and self._made:
            done = f"time is up before {step.label}; what comes before it is done"
            raise OutOfTime(f"{done}. Run the same command again to go on")
        else:
            self._make(step, make)
        self.ranks.wait()
        return step.folder

    def _make(self, step: Step, make: Callable[[], dict]) -> None:
        step.folder.mkdir(parents=True, exist_ok=True)
        started, outer, self._nested_seconds = time.time(), self._nested_seconds, 0.0
        figures = make()
        finished = time.time()
        own, self._nested_seconds = finished - started - self._nested_seconds, outer + finished - started
        if self.ranks.first:
            # A training that was gone on with knows how long it took in all.
            own = max(own, figures.get("seconds", 0.0))
            known = {"step": step.label, "seconds": round(own, 2), "finished": finished}
            content = {**known, **provenance(self.device, self.ranks.count), "figures": figures}
            write_atomically(step.folder / "done.json", json.dumps(content, indent=1).encode())
            clear_checkpoints(step.folder)
        self._made = True

    def save(self, step: Step, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write `name`.safetensors into a step's folder."""
        if self.ranks.first:
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            write_atomically(step.folder / f"{name}.safetensors", save(plain))

    def finished(self) -> list[Step]:
        """List every finished step of this run's folder, oldest first."""
        folders = {path.parent: json.loads(path.read_text()) for path in self.root.glob("*/done.json")}
        return [
            Step(folder, known["step"], folder.name.removesuffix("-recorded"), known.get("recorded", False))
            for folder, known in sorted(folders.items(), key=lambda item: item[1]["finished"])
        ]

    def _has(self, key: str) -> bool:
        return self.record is not None and (self.record / key).is_dir()
