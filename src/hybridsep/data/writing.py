"""What all makers of song collections share: a folder claimed for its settings, tracks and tables written whole, several processes."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import joblib
import numpy as np
import soundfile
import yaml
from tqdm import tqdm

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.data.slakh import SPLITS

PEAK = 0.95  # of a mix and its stems at most


def claim_folder(out: Path, file: str, settings: dict) -> None:
    """Write what songs are made with beside them; HybridsepError if `out` holds songs made with other settings or otherwise."""
    path = out / file
    if path.is_file():
        try:
            there = json.loads(path.read_text())
        except ValueError:
            raise HybridsepError(f"{path} is damaged: remove it or choose another folder") from None
        if there != settings:
            what = f"{out} holds songs made with {there}, not {settings}"
            raise HybridsepError(f"{what}: choose another folder or remove it")
    elif any((out / split).exists() for split in SPLITS):
        raise HybridsepError(f"{out} holds songs that another command made: choose another folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")


def write_track(target: Path, stems: Sequence[np.ndarray], rate: int, scores: Mapping, describe: Callable) -> None:
    """Write one track and its mix in a temporary folder, and move it into place whole.

    `stems`, mono float32 [samples] at `rate` Hz, become S00, S01, ... in 16-bit FLAC, `scores` of symusic have names such as "MIDI/S00";
    `describe` returns what metadata.yaml says besides where files lie, given the gain of the mix.
    """
    mix = np.add.reduce(stems)
    gain = min(1.0, PEAK / max(float(np.abs(mix).max()), 1e-9))
    places = {"audio_dir": "stems", "midi_dir": "MIDI", "lmd_midi_dir": None, "normalized": True, "overall_gain": gain}
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        work = Path(folder, target.name)
        for name in ("stems", "MIDI"):
            (work / name).mkdir(parents=True)
        for name, samples in [("mix", mix * gain), *((f"stems/S{i:02d}", stem) for i, stem in enumerate(stems))]:
            soundfile.write(work / f"{name}.flac", samples, rate, subtype="PCM_16", format="FLAC")
        for name, score in scores.items():
            score.dump_midi(str(work / f"{name}.mid"))
        text = yaml.safe_dump({**places, **describe(gain)}, default_flow_style=False)
        (work / "metadata.yaml").write_text(text, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)


def write_table(path: Path, rows: Iterable[Iterable]) -> None:
    """Write rows as CSV."""
    csv.writer(text := io.StringIO(), lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def in_processes(jobs: Sequence[Callable], what: str, workers: int | None, at_least: int, progress=True) -> Iterator:
    """Call `jobs`, in several processes if there are `at_least` so many, and yield what they return in their order."""
    workers = min(workers or os.cpu_count() or 1, len(jobs)) if len(jobs) >= at_least else 1
    # joblib's are fresh processes: a fork would freeze on the caller's threads, spawn would run its script again
    results = joblib.Parallel(workers, return_as="generator")(joblib.delayed(job)() for job in jobs)
    yield from tqdm(results, total=len(jobs), desc=what, disable=not (progress and jobs))
