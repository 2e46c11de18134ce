"""Training of the t4 profile in several calls: memory, steps per second and loss of every model, and whether a stopped training goes on exactly."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from hybridsep.bench.gpu.session import Part, Session, peak_gib
from hybridsep.bench.gpu.weights import VQVAE_KINDS, export_weights, restore_weights
from hybridsep.bench.report import Goal
from hybridsep.core.deadline import NEVER, Deadline, OutOfTime
from hybridsep.core.files import load_weights
from hybridsep.core.profiles import Profile, load_profile
from hybridsep.pipeline.pipeline import Pipeline, Step

PROFILE = "t4"
MEMORY = Goal("memory_peak_gib", 15, at_most=True)
STOPPED_AFTER = 7
"""Calls of a deadline after which the small training is stopped, again and again."""
NOISE = 10.0
"""How many times further than two whole trainings a stopped one may end from a whole one, where the device does not repeat itself."""
SMALL = {
    "data": {"tracks": 10, "seconds": 6.0, "sample_rate": 8000},
    "vqvae": {"codes": 16, "strides": (16, 8), "widths": (4, 8), "encoder_depth": 1, "decoder_depth": 1, "latent_width": 4, "crop_samples": 4096},
    "prior": {"layers": 1, "width": 16, "heads": 2, "window": 16, "crop_codes": 64},
    "likelihood": {"counted_seconds": 96, "fit_seconds": 48},
    "search": {"particles": 3},
    "evaluation": {"chunks": 1, "chunk_seconds": 1.0, "searches": ("particle",)},
}  # fmt: skip


def parts(session: Session) -> Iterator[Part]:
    """The exact resume at small scale, the songs, then model after model, each with all that it needs.

    A training stops in time by itself, what comes before and after it does not.
    """
    yield Part("resume", partial(_resume, session), 2.0)
    pipeline = Pipeline(trained_profile(session), session.runs, deadline=session.deadline, records=None)
    yield Part("songs", partial(_songs, session, pipeline), 2.0)
    for kind in VQVAE_KINDS:
        yield Part(f"vqvae-{kind}", partial(_model, session, pipeline.vqvae_step(kind), partial(pipeline.vqvae, kind)))
        for source in pipeline.profile.source_names:
            make = partial(pipeline.prior, kind, source)
            yield Part(f"prior-{kind}-{source}", partial(_model, session, pipeline.prior_step(kind, source), make))
        for likelihood in ("sum", "counts"):
            make = partial(pipeline.likelihood, kind, likelihood)
            yield Part(
                f"likelihood-{kind}-{likelihood}",
                partial(_likelihood, pipeline.likelihood_step(kind, likelihood), make),
                3.0,
            )


def trained_profile(session: Session) -> Profile:
    """The profile that is trained: t4, or with `quick` a toy."""
    return small_profile(session, vqvae_steps=6, prior_steps=4) if session.quick else load_profile(PROFILE)


def small_profile(session: Session, vqvae_steps: int, prior_steps: int) -> Profile:
    """Ten songs and models of some thousand weights; with `quick` smaller still."""
    values = load_profile("smoke").model_dump()
    for block, changes in SMALL.items() if session.quick else ():
        values[block] |= changes
    values["data"] |= {"tracks": 10, "seconds": 6.0}
    for block, steps in (("vqvae", vqvae_steps), ("prior", prior_steps)):
        values[block]["training"] |= {"steps": steps, "checkpoint_seconds": 3600.0}
    return Profile.model_validate(values | {"name": "gpu-small"})


def _songs(session: Session, pipeline: Pipeline) -> list[dict]:
    """Songs and stems; models that were exported are taken up."""
    restored = restore_weights(pipeline, session.out / "weights")
    data = pipeline.profile.data
    return [
        {
            "model": "songs",
            "songs": data.tracks,
            "sample_rate": data.sample_rate,
            "train": len(pipeline.stems("train")),
            "restored": restored,
        }
    ]


def _model(session: Session, step: Step, make: Callable[[], object]) -> list[dict]:
    """Train until it is done or the time is up; one row of the model so far, the memory of all calls together."""
    left = _until_out_of_time(make)
    before = next((row for row in session.kept("train") if row["part"] == step.label), {})
    peaks = {name: max(gib, before.get(name, 0.0)) for name, gib in peak_gib(session.device).items()}
    row = {
        "model": step.label,
        **_progress(step),
        **peaks,
        "goal": str(MEMORY),
        "goal_met": MEMORY.met(peaks),
        "left": left,
    }
    if step.done:
        row |= {
            "finished": step.record["figures"],
            "files": [path.name for path in export_weights(step, session.out / "weights")],
        }
    return [row]


def _likelihood(step: Step, make: Callable[[], object]) -> list[dict]:
    left = _until_out_of_time(make)
    record = {} if left else {"minutes": step.record["seconds"] / 60, "finished": step.record["figures"]}
    return [{"model": step.label, **record, "left": left}]


def _until_out_of_time(make: Callable[[], object]) -> str:
    """What is left, in words; nothing where all was made."""
    try:
        make()
    except OutOfTime as stop:
        return str(stop).removesuffix(". Run the same command again to go on")
    return ""


def _progress(step: Step) -> dict:
    """How far a training is by its history.csv: steps, minutes of all calls, steps per second, and the newest figures."""
    path = step.folder / "history.csv"
    if not path.is_file():
        return {"steps": 0}
    history = pd.read_csv(path)
    last = history.iloc[-1]
    speed = (last.step - history.step.iloc[0]) / max(1e-9, last.seconds - history.seconds.iloc[0])
    figures = {name: float(value) for name, value in last.drop(["step", "seconds"]).items() if pd.notna(value)}
    loss = figures.get("loss", figures.get("nats_per_code"))
    return {
        "steps": int(last.step) + 1,
        "minutes": last.seconds / 60,
        "steps_per_second": speed,
        "loss": loss,
        "figures": figures,
    }


# --- exact resume ----------------------------------------------------------------------------------------------------------


class RepeatedStop:
    """A deadline that passes after so many questions, whatever the time."""

    def __init__(self, questions: int):
        self._left = questions

    @property
    def passed(self) -> bool:
        """Whether it was asked often enough."""
        self._left -= 1
        return self._left < 0


def _resume(session: Session) -> list[dict]:
    """A small VQ-VAE and a prior on its codes, trained twice without a stop and once with many: how far apart their weights end.

    Operations without a deterministic form on this device are named. Where there are none, stopping may change no bit.
    """
    profile = small_profile(session, vqvae_steps=20, prior_steps=12)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        songs = Pipeline(profile, Path(folder) / "songs").songs()
        runs = {name: partial(Pipeline, profile, Path(folder) / name, songs) for name in ("whole", "again", "stopped")}
        with _deterministic():
            stops = {name: _trained(pipeline, NEVER if name != "stopped" else None) for name, pipeline in runs.items()}
        models = {name: _weights(pipeline()) for name, pipeline in runs.items()}
    unrepeatable = sorted(
        {str(w.message).split(" does not have")[0][:80] for w in caught if "deterministic" in str(w.message)}
    )
    rows = []
    for label, whole in models["whole"].items():
        stopped, again = (
            max(float((models[run][label][key].double() - whole[key].double()).abs().max()) for key in whole)
            for run in ("stopped", "again")
        )
        passed = (
            stopped == 0
            if not unrepeatable and again == 0
            else stopped <= NOISE * max(again, torch.finfo(torch.float16).eps)
        )
        differences = {
            "stopped_differs": stopped,
            "whole_differs": again,
            "bit_equal": stopped == 0,
            "not_deterministic": unrepeatable,
        }
        rows.append(
            {
                "model": f"resume of {label}",
                "stops": stops["stopped"],
                **differences,
                "passed": passed and stops["stopped"] > 1,
            }
        )
    return rows


def _trained(pipeline: Callable[..., Pipeline], deadline: Deadline | None) -> int:
    """Train to the end, with a deadline that passes again and again where none is given; how often it was stopped."""
    stops = 0
    while True:
        run = pipeline(deadline=deadline or RepeatedStop(STOPPED_AFTER))
        if not _until_out_of_time(partial(run.prior, "linear", run.profile.source_names[0])):
            return stops
        stops += 1


def _weights(pipeline: Pipeline) -> dict[str, dict[str, torch.Tensor]]:
    steps = pipeline.vqvae_step("linear"), pipeline.prior_step("linear", pipeline.profile.source_names[0])
    return {step.label: load_weights(step.folder / "model.safetensors") for step in steps}


class _deterministic:
    """Inside, operations take their deterministic form, and those that have none warn."""

    def __enter__(self) -> None:
        self._before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self._before[0], warn_only=self._before[1])
