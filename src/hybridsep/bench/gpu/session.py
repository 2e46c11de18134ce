"""One call of the script: what is left of a stage, until the time is up, and what it found, in files from which the next call goes on."""

from __future__ import annotations

import gc
import json
import resource
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from hybridsep.bench.report import read_json, write_json
from hybridsep.core.deadline import Deadline
from hybridsep.core.device import default_device
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.core.provenance import provenance

STATE, LOG = "state.json", "log.txt"


@dataclass(frozen=True)
class Part:
    """Some minutes of a stage at most.

    Attributes:
        name: in OUT/state.json.
        measure: makes the part's rows. One with a text under "left" says what the next call has to go on with; one whose "passed" is false
            that something is wrong.
        minutes: that it is thought to take on a fast GPU at most; with less time left it is not begun.
    """

    name: str
    measure: Callable[[], list[dict]]
    minutes: float = 0.5


class Session:
    """Results in a folder, and the time that a call has for more.

    Args:
        out: folder of the results.
        runs: folder of the trained models.
        minutes: in which to be done.
        quick: sizes that say nothing, on any device.
        say: gets one line per part.

    Raises:
        HybridsepError: no CUDA device, or the folder holds results of another device or of other sizes.
    """

    def __init__(
        self, out: Path, runs: Path, minutes: float, quick: bool, say: Callable[[str], object] = lambda line: None
    ):
        self.out, self.runs, self.quick, self._tell = out, runs, quick, say
        self.deadline, self.device = Deadline(minutes), default_device()
        if not quick and self.device.type != "cuda":
            raise HybridsepError(
                "no CUDA device: nothing can be measured here (--quick runs everything at sizes that say nothing)"
            )
        self.seed = secrets.randbits(31)
        self.provenance = provenance(self.device) | {"quick": quick}
        self._state = self._read_state()
        self._made = False

    def run(self, stage: str, parts: Iterable[Part]) -> bool:
        """Make what is left of a stage; whether nothing went wrong."""
        done, wrong, left = self._state["done"].setdefault(stage, {}), [], ""
        for part in parts:
            if part.name in done:
                continue
            # However short the time, one part is made.
            if self._made and Deadline(self.deadline.minutes - part.minutes, self.deadline.started).passed:
                left = f"{part.name} and what follows"
                break
            started = time.perf_counter()
            rows = self._rows(stage, part)
            seconds, self._made = round(time.perf_counter() - started, 2), True
            wrong += [part.name] if any("error" in row or row.get("passed") is False for row in rows) else []
            self._keep(stage, part, rows)
            left = next((row["left"] for row in rows if row.get("left")), "")
            if left:
                break
            if not any("error" in row for row in rows):
                done[part.name] = seconds
                write_atomically(self.out / STATE, json.dumps(self._state, indent=1).encode())
            self.say(f"{stage}/{part.name}: {len(rows)} rows, {seconds:.1f} s")
        if wrong:
            self.say(f"{stage}: wrong in {', '.join(wrong)}; see {self.out / LOG} and {stage}.json")
        self.say(
            f"{stage}: not finished, {left}; run the same command again to go on"
            if left
            else f"{stage}: {len(done)} parts done"
        )
        self._unfinished = bool(left)
        return not wrong

    @property
    def unfinished(self) -> bool:
        """Whether the stage that ran last has something left."""
        return self._unfinished

    def forget(self, stage: str) -> None:
        """Make all parts of a stage anew."""
        self._state["done"].pop(stage, None)

    def kept(self, stage: str) -> list[dict]:
        """The rows of a stage so far."""
        path = self.out / f"{stage}.json"
        return read_json(path)["rows"] if path.is_file() else []

    def say(self, line: str) -> None:
        """Tell the caller, and the log."""
        self._tell(line)
        self._log(line)

    def _rows(self, stage: str, part: Part) -> list[dict]:
        """What a part finds; an error is a row too, so that one broken kernel does not keep the other parts from being made."""
        try:
            return part.measure()
        except Exception as error:
            self._log(traceback.format_exc())
            self.say(f"{stage}/{part.name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return [{"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}]
        finally:
            release_memory(self.device)

    def _keep(self, stage: str, part: Part, rows: list[dict]) -> None:
        """In the place of what an earlier call found."""
        made = {"part": part.name, "hardware": self.provenance["hardware"], "commit": self.provenance["commit"]}
        others = [row for row in self.kept(stage) if row["part"] != part.name]
        write_json(
            {"provenance": self.provenance, "rows": others + [row | made for row in rows]}, self.out / f"{stage}.json"
        )

    def _read_state(self) -> dict:
        own = {"hardware": self.provenance["hardware"], "quick": self.quick}
        path = self.out / STATE
        if not path.is_file():
            return own | {"done": {}}
        state = json.loads(path.read_text())
        if {name: state.get(name) for name in own} != own:
            sizes = " at quick sizes" if state.get("quick") else ""
            raise HybridsepError(
                f"{self.out} holds results of {state.get('hardware')}{sizes}: give another --out, or remove them"
            )
        return state

    def _log(self, text: str) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / LOG).open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.rstrip()}\n")


def release_memory(device: torch.device) -> None:
    """Give back what nothing uses on a GPU, so that a peak is that of what follows."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> dict[str, float]:
    """The most memory in use since `release_memory`, and the most that torch took from the GPU for it, which is what must fit into one.

    On a CPU both are the most that the process ever had resident.
    """
    if device.type == "cuda":
        peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    else:
        peaks = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),) * 2
    return dict(zip(("used_peak_gib", "memory_peak_gib"), (round(peak / 2**30, 3) for peak in peaks), strict=True))
