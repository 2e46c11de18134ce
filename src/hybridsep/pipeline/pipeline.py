"""Profile -> songs -> stems -> VQ-VAE -> codes -> priors -> likelihood -> method, each step made once and found again.

Every step lives in `runs/<profile>/<step>-<hash>/`, where the hash covers every setting it depends on, those of the steps before it
included. `done.json` is written last: a folder without it is unfinished and is gone on with.

A model that is not there is taken from the record of its profile, where that has it (see `hybridsep.pipeline.record`). `recorded` in done.json marks
it, and `from_record` lists the recorded steps that others depend on: they are of no use where models shall be trained anew, or have been.

Several processes make a step together: all run the same lines, the first one writes, and none goes on before `done.json` is there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from hybridsep.core.deadline import NEVER, Deadline, OutOfTime
from hybridsep.core.device import default_device, dtype_name, fast_dtype, seeded_generator
from hybridsep.core.distributed import ALONE, Ranks, ranks_here
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import SUMS, load_weights, write_atomically
from hybridsep.core.profiles import METHODS, LikelihoodKind, Profile, VQVAEKind, config_hash, method_spec
from hybridsep.core.provenance import provenance
from hybridsep.core.records import RECORDS
from hybridsep.data.codes import CodeSet
from hybridsep.data.effects import EFFECTS_VERSION
from hybridsep.data.minislakh.render import make_minislakh
from hybridsep.data.stems import LARGEST, MIXTURE_RMS, StemSet, build_stems, mix, open_stems
from hybridsep.inference.counts import CountLikelihood, TripleCounter, likelihood_from_tensors, merge_counts
from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.separator import Separator
from hybridsep.inference.sums import SumLikelihood
from hybridsep.models.prior import Prior, nats_per_code
from hybridsep.models.vqvae import VQVAE
from hybridsep.pipeline.record import from_record, restore_step
from hybridsep.training.checkpoint import clear_checkpoints
from hybridsep.training.codec import VQVAETask, codec_dtype
from hybridsep.training.loop import train
from hybridsep.training.prior import PriorTask

SPLITS = ("train", "validation", "test")
PAIR_BATCH = 16
PAIR_SECONDS = 3.0


@dataclass(frozen=True)
class Step:
    """One cached step: its folder, what is known of how it was made, and the models that a recorded one fits."""

    folder: Path
    label: str
    inputs: tuple[Step, ...] = ()

    @property
    def done(self) -> bool:
        """Whether the step is complete."""
        return (self.folder / "done.json").is_file()

    @property
    def record(self) -> dict:
        """Settings, wall time in seconds and figures of a finished step."""
        return json.loads((self.folder / "done.json").read_text())

    @property
    def recorded(self) -> bool:
        """Whether the step came from a record and was not made here."""
        return self.done and self.record.get("recorded", False)


class Pipeline:
    """Makes or loads any part of a run.

    Args:
        profile: settings.
        runs: folder of all runs; this one lives in runs/<profile name>.
        data: a data set in Slakh's layout; MiniSlakh is synthesised without it.
        deadline: when to stop, in a state to go on from.
        ranks: the processes that work together; those that `torchrun` or `accelerate launch` started when not given.
        records: folder of the records that models are taken from; None to train all of them here.
    """

    def __init__(
        self,
        profile: Profile,
        runs: Path | str = "runs",
        data: Path | str | None = None,
        deadline: Deadline = NEVER,
        ranks: Ranks | None = None,
        records: Path | None = RECORDS,
    ):
        self.profile = profile
        self.root = Path(runs) / profile.name
        self.data = Path(data) if data else None
        self.records = records
        self.deadline = deadline
        self.ranks = ranks or ranks_here()
        self.device = default_device()
        self.dtype = fast_dtype(self.device, profile.precision)
        self._nested_seconds = 0.0
        self._made = False
        self._recorded_inputs: list[set[Path]] = [set()]
        self._separator: tuple[tuple[str, str], Separator] | None = None

    def alone(self) -> Pipeline:
        """The same run for this process by itself, where the others do something else."""
        return Pipeline(self.profile, self.root.parent, self.data, self.deadline, ALONE, self.records)

    # --- songs -------------------------------------------------------------------------------------------------------------

    def songs(self) -> Path:
        """Folder of the songs in Slakh's layout."""
        if self.data:
            if not self.data.is_dir():
                raise HybridsepError(f"no data folder {self.data}")
            return self.data
        settings = self.profile.data
        step = self.step("songs", settings.model_copy(update={"effects": 0.0}))

        def make() -> dict:
            if self.ranks.first:
                make_minislakh(
                    step.folder / "MiniSlakh", settings.tracks, settings.seconds, settings.seed, settings.sample_rate
                )
            return {"tracks": settings.tracks, "seconds": settings.seconds}

        self.make(step, make)
        return step.folder / "MiniSlakh"

    def stems(self, split: str) -> StemSet:
        """Memory-mapped stems of "train", "validation" or "test"."""
        step, settings = self._stems_step(), self.profile.data

        def make() -> dict:
            root = self.songs()
            for name in SPLITS if self.ranks.first else ():
                build_stems(
                    root, name, self.profile.sources, settings.sample_rate, step.folder, settings.effects, settings.seed
                )
            return {name: len(open_stems(step.folder, name)) for name in SPLITS} if self.ranks.first else {}

        self.make(step, make)
        return open_stems(step.folder, split, self.profile.data.pairing)

    # --- models ------------------------------------------------------------------------------------------------------------

    def vqvae(self, kind: VQVAEKind) -> VQVAE:
        """The trained VQ-VAE of a kind."""
        settings = self.profile.vqvae
        step = self.vqvae_step(kind)
        torch.manual_seed(self.profile.seed)
        module = VQVAE(settings)

        def make() -> dict:
            weight = self._linear_weight(kind)
            task = VQVAETask(module.to(self.device), self.stems("train"), weight, codec_dtype(self.dtype))
            history = train(task, settings.training, step.folder, f"VQ-VAE {kind}", self.profile.seed, self.deadline)
            self._save(step, "model", module.state_dict())
            lowered = {"dtype": dtype_name(codec_dtype(self.dtype))}
            return {
                "parameters": _parameters(module),
                **lowered,
                "seconds_of_audio": self._audio_seconds(),
                **history[-1],
            }

        self.make(step, make)
        module.load_state_dict(load_weights(step.folder / "model.safetensors"))
        return module.to(self.device).eval()

    def codes(self, kind: VQVAEKind, split: str) -> CodeSet:
        """Codes of every song of a split."""
        step = self.step(f"codes-{kind}-{split}", self.vqvae_step(kind).folder.name)

        def make() -> dict:
            codes = encode_songs(self.vqvae(kind), self.stems(split))
            self._save(step, "codes", codes.to_tensors())
            return {"songs": len(codes.songs)}

        self.make(step, make)
        return CodeSet.from_tensors(load_weights(step.folder / "codes.safetensors"))

    def prior(self, kind: VQVAEKind, source: str) -> Prior:
        """The trained prior of a source over the codes of a kind of VQ-VAE."""
        names = self.profile.source_names
        if source not in names:
            raise HybridsepError(f"unknown source '{source}': the profile has {', '.join(names)}")
        step = self.prior_step(kind, source)
        torch.manual_seed(self.profile.seed)
        module = Prior(self.profile.prior, self.profile.vqvae.codes)

        def make() -> dict:
            codes = self.codes(kind, "train")
            module.start_from_codebook(self.vqvae(kind).codebook.cpu(), seeded_generator(self.profile.seed, 2))
            code_seconds = self.profile.vqvae.hop / self.profile.data.sample_rate
            task = PriorTask(module.to(self.device), codes, names.index(source), self.dtype, code_seconds)
            history = train(
                task,
                self.profile.prior.training,
                step.folder,
                f"prior {source} ({kind})",
                self.profile.seed,
                self.deadline,
            )
            self._save(step, "model", module.state_dict())
            held_out = self._held_out_crops(kind, names.index(source))
            figures = {"parameters": _parameters(module), "dtype": dtype_name(self.dtype)}
            return {**figures, "validation_nats_per_code": nats_per_code(module, held_out), **history[-1]}

        self.make(step, make)
        module.load_state_dict(load_weights(step.folder / "model.safetensors"))
        return module.to(self.device).eval()

    def likelihood(self, kind: VQVAEKind, likelihood: LikelihoodKind) -> Likelihood:
        """The likelihood of a kind over the codes of a kind of VQ-VAE, its free numbers fitted on validation songs."""
        step = self.likelihood_step(kind, likelihood)

        def make() -> dict:
            made = self._fit_likelihood(kind, likelihood)
            self._save(step, "likelihood", made.to_tensors())
            triples = self.triples(kind, "validation")
            nats = -float(made.log_likelihood(triples[2], triples[0], triples[1]).mean())
            return {"validation_nats_per_code": nats, **_scalars(made)}

        self.make(step, make)
        tensors = load_weights(step.folder / "likelihood.safetensors")
        return likelihood_from_tensors({name: value.to(self.device) for name, value in tensors.items()})

    def triples(self, kind: VQVAEKind, split: str) -> Tensor:
        """Triples (first, second, mixture) of random pairs of a split that is not trained on, int64 [3, n]."""
        generator = seeded_generator(self.profile.seed, 3, SPLITS.index(split))
        return torch.cat(
            list(self._random_triples(kind, split, self.profile.likelihood.fit_seconds, generator)), 1
        ).cpu()

    def separator(self, method: str) -> Separator:
        """A trained method, also written to runs/<profile>/<method>/ for `Separator.load`. The last one asked for is kept."""
        version = self.method_version(method)
        # Models of the record and models trained here have the same name.
        version += " recorded" if any(self._comes_recorded(step) for step in self.method_steps(method)) else ""
        if self._separator is None or self._separator[0] != (method, version):
            spec = method_spec(method)
            # Whatever was kept is given up first: a likelihood keeps a gigabyte of matrices.
            self._separator = None
            priors = [self.prior(spec.vqvae, source) for source in self.profile.source_names]
            made = Separator(self.vqvae(spec.vqvae), priors, self.likelihood(spec.vqvae, spec.likelihood), self.profile)
            self._separator = (method, version), made
        self._depend_on(self.method_steps(method))
        folder = self.root / method
        marker = folder / "version.txt"
        complete = marker.is_file() and (folder / SUMS).is_file() and marker.read_text() == version
        if self.ranks.first and not complete:
            self._separator[1].save(folder)
            write_atomically(marker, version.encode())
        return self._separator[1]

    def method_version(self, method: str) -> str:
        """A hash of all that a method depends on."""
        _, *parts = self.method_steps(method)
        return config_hash(
            *(p.folder.name for p in parts), self.profile.model_dump(mode="json", exclude={"evaluation"})
        )

    def method_steps(self, method: str) -> list[Step]:
        """The models that a method is made of: VQ-VAE, likelihood, priors."""
        spec = method_spec(method)
        priors = (self.prior_step(spec.vqvae, source) for source in self.profile.source_names)
        return [self.vqvae_step(spec.vqvae), self.likelihood_step(spec.vqvae, spec.likelihood), *priors]

    def model_steps(self) -> list[Step]:
        """The models of all methods, each once."""
        return list(dict.fromkeys(step for method in METHODS for step in self.method_steps(method)))

    # --- records -----------------------------------------------------------------------------------------------------------

    def vqvae_step(self, kind: VQVAEKind) -> Step:
        """Where the VQ-VAE of a kind is kept, with its history.csv."""
        settings = self.profile.vqvae.model_dump(exclude={"linear_weight"})
        return self.step(
            f"vqvae-{kind}",
            settings,
            self._linear_weight(kind),
            self._stems_step().folder.name,
            self.profile.seed,
            *self._precision(),
        )

    def prior_step(self, kind: VQVAEKind, source: str) -> Step:
        """Where a prior is kept, with its history.csv."""
        codec = self.vqvae_step(kind)
        return self.step(
            f"prior-{kind}-{source}", self.profile.prior, *self._precision(), codec.folder.name, inputs=(codec,)
        )

    def likelihood_step(self, kind: VQVAEKind, likelihood: LikelihoodKind) -> Step:
        """Where a likelihood is kept."""
        codec = self.vqvae_step(kind)
        return self.step(f"likelihood-{kind}-{likelihood}", codec.folder.name, self.profile.likelihood, inputs=(codec,))

    def step(self, name: str, *settings: object, inputs: tuple[Step, ...] = ()) -> Step:
        """The step of that name under these settings, done or not."""
        return Step(self.root / f"{name}-{config_hash(*settings)}", name, inputs)

    def make(self, step: Step, make: Callable[[], dict]) -> None:
        """Run `make` unless the step is done or recorded; what it returns is kept, with the wall time it took itself, in seconds.

        Raises:
            OutOfTime: the deadline passed.
            HybridsepError: the record is damaged.
        """
        if self._usable(step):
            self._depend_on([step])
            return
        # All processes are past the question above before one can answer it differently. However short the time, one step is made.
        late = self.ranks.any(self.deadline.passed)
        if self._restorable(step):
            if self.ranks.first:
                self._restore(step)
            self.ranks.wait()
            self._depend_on([step])
            return
        if late and self._made:
            raise OutOfTime(
                f"time is up before {step.label}; what comes before it is done. Run the same command again to go on"
            )
        step.folder.mkdir(parents=True, exist_ok=True)
        if self.ranks.first:
            (step.folder / "done.json").unlink(missing_ok=True)
        self._recorded_inputs.append(set())
        started, outer = time.time(), self._nested_seconds
        self._nested_seconds = 0.0
        figures = make()
        finished = time.time()
        own = finished - started - self._nested_seconds
        self._nested_seconds = outer + finished - started
        recorded = self._recorded_inputs.pop()
        self._recorded_inputs[-1] |= recorded
        if self.ranks.first:
            record = {
                "step": step.label,
                "seconds": round(own, 2),
                "finished": finished,
                **provenance(self.device, self.ranks.count),
                "figures": figures,
            }
            if recorded:
                record["from_record"] = from_record(recorded, self.root)
            write_atomically(step.folder / "done.json", json.dumps(record, indent=1).encode())
            clear_checkpoints(step.folder)
        self.ranks.wait()
        self._made = True

    def steps(self) -> list[Step]:
        """Every finished step of this run's folder, oldest first."""
        made = [Step(p.parent, p.parent.name.rsplit("-", 1)[0]) for p in self.root.glob("*/done.json")]
        return sorted(made, key=lambda s: s.record["finished"])

    def write_provenance(self) -> Path:
        """Collect hardware, versions, seeds, commit and the wall time of each step in provenance.json."""
        steps = {s.folder.name: {k: v for k, v in s.record.items() if k != "settings"} for s in self.steps()}
        content = {
            **provenance(self.device, self.ranks.count),
            "profile": self.profile.model_dump(mode="json"),
            "steps": steps,
        }
        path = self.root / "provenance.json"
        self.root.mkdir(parents=True, exist_ok=True)
        if self.ranks.first:
            write_atomically(path, json.dumps(content, indent=1).encode())
        return path

    # --- inside ------------------------------------------------------------------------------------------------------------

    def _usable(self, step: Step) -> bool:
        """Whether a step is done, and neither of a record that shall not be used nor of recorded models that were trained here since."""
        if not step.done:
            return False
        if self.records is None:
            return not _recorded_folders(step)
        return all(Step(folder, "").recorded for folder in _recorded_folders(step))

    def _restorable(self, step: Step) -> bool:
        """Whether the record has a step, and the models that fit it are recorded too."""
        return (
            self.records is not None
            and (self._record / step.folder.name).is_dir()
            and all(self._comes_recorded(other) for other in step.inputs)
        )

    def _comes_recorded(self, step: Step) -> bool:
        """Whether a step is of the record, or will be once it is asked for."""
        return step.recorded if self._usable(step) else self._restorable(step)

    def _restore(self, step: Step) -> None:
        for other in step.inputs:
            if not self._usable(other):
                self._restore(other)
        restore_step(self._record, step.folder, [other.folder for other in step.inputs])

    def _depend_on(self, steps: Iterable[Step]) -> None:
        """Whatever is being made depends on these finished steps."""
        self._recorded_inputs[-1].update(folder for step in steps for folder in _recorded_folders(step))

    @property
    def _record(self) -> Path:
        return self.records / self.profile.name

    def _precision(self) -> tuple[str, ...]:
        """What a hash says of it: the setting, not what the machine makes of it, so that one machine finds what another trained."""
        return () if self.profile.precision == "auto" else (self.profile.precision,)

    def _stems_step(self) -> Step:
        source = _fingerprint(self.data) if self.data else self.profile.data
        settings = self.profile.data
        paired = () if not self.data or settings.pairing == "same-song" else (settings.pairing,)
        varied = (settings.effects, settings.seed, EFFECTS_VERSION) if settings.effects else ()
        return self.step(
            "stems", source, self.profile.sources, settings.sample_rate, MIXTURE_RMS, LARGEST, *paired, *varied
        )

    def _save(self, step: Step, name: str, tensors: dict[str, Tensor]) -> None:
        if self.ranks.first:
            plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            write_atomically(step.folder / f"{name}.safetensors", save(plain))

    def _linear_weight(self, kind: VQVAEKind) -> float:
        return self.profile.vqvae.linear_weight if kind == "linear" else 0.0

    def _audio_seconds(self) -> float:
        settings = self.profile.vqvae
        samples = settings.training.steps * settings.training.batch * 3 * settings.crop_samples
        return samples / self.profile.data.sample_rate

    def _held_out_crops(self, kind: VQVAEKind, source: int) -> Tensor:
        length = self.profile.prior.crop_codes
        return (
            self.codes(kind, "validation")
            .random_crops(source, 32, length, seeded_generator(self.profile.seed, 4))
            .to(self.device)
        )

    def _fit_likelihood(self, kind: VQVAEKind, likelihood: LikelihoodKind) -> Likelihood:
        codebook = self.vqvae(kind).codebook
        held_out = self.triples(kind, "validation").to(codebook.device)
        if likelihood == "sum":
            return SumLikelihood.fit(codebook, held_out)
        settings = self.profile.likelihood
        counter = TripleCounter(self.profile.vqvae.codes)
        generator = seeded_generator(self.profile.seed, 5)
        for triples in self._random_triples(
            kind, "train", settings.counted_seconds, generator, f"counting ({kind})", self.ranks
        ):
            counter.add(*triples)
        keys, counts = (
            merge_counts(*(self.ranks.join_uneven(part) for part in counter.result()))
            if self.ranks.count > 1
            else counter.result()
        )
        return CountLikelihood.fit(
            keys.to(codebook.device), counts.to(codebook.device), codebook, held_out, settings.power
        )

    def _random_triples(
        self,
        kind: VQVAEKind,
        split: str,
        seconds: float,
        generator: torch.Generator,
        label: str | None = None,
        ranks: Ranks = ALONE,
    ) -> Iterator[Tensor]:
        """Triples int64 [3, n] of batch after batch; of several `ranks` each encodes some of the batches that all draw."""
        vqvae, stems = self.vqvae(kind), self.stems(split)
        samples = int(PAIR_SECONDS * stems.sample_rate) // vqvae.hop * vqvae.hop
        batches = max(1, round(seconds / (PAIR_BATCH * PAIR_SECONDS)))
        for number in tqdm(range(batches), desc=label, unit="batch", disable=label is None or not ranks.first):
            sources = stems.random_pairs(PAIR_BATCH, samples, generator)
            if number % ranks.count == ranks.index:
                waveform = torch.cat([*sources, mix(sources)]).to(self.device)
                yield vqvae.encode(waveform).view(3, -1)


def encode_songs(vqvae: VQVAE, stems: StemSet) -> CodeSet:
    """Codes of every source of every song."""
    songs = []
    for track in tqdm(range(len(stems)), desc="encoding", unit="song", disable=not ranks_here().first):
        waveform = stems.song(track).to(vqvae.codebook.device)
        length = waveform.shape[1] // vqvae.hop * vqvae.hop
        songs.append(vqvae.encode(waveform[:, :length]).to(torch.int16).cpu())
    return CodeSet(tuple(songs))


def _recorded_folders(step: Step) -> list[Path]:
    """The recorded steps that a finished step depends on, itself among them."""
    record = step.record
    others = [Path(os.path.normpath(step.folder.parent / name)) for name in record.get("from_record", [])]
    return [*others, step.folder] if record.get("recorded") else others


def _fingerprint(folder: Path) -> list[str]:
    """Names and sizes of all audio files: another data set gives another hash."""
    files = sorted(p for pattern in ("*.flac", "*.wav") for p in folder.rglob(pattern))
    return [f"{p.relative_to(folder)}:{p.stat().st_size}" for p in files]


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _scalars(likelihood: Likelihood) -> dict[str, float]:
    """Fitted numbers of a likelihood, for the record."""
    return {name: float(value) for name, value in likelihood.to_tensors().items() if value.ndim == 0} | {
        "distinct_triples": len(getattr(likelihood, "keys", ())),
        "counted_triples": int(getattr(likelihood, "counts", torch.zeros(1)).sum()),
    }
