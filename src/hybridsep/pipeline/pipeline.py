"""Profile -> songs -> stems -> VQ-VAE -> codes -> priors -> likelihood -> method.

Every step can be asked for by itself, makes what it needs and is kept (see `hybridsep.pipeline.steps`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from hybridsep.core.deadline import NEVER, Deadline
from hybridsep.core.device import Module, default_device, dtype_name, fast_dtype, initialised, seeded_generator
from hybridsep.core.distributed import ALONE, Ranks, ranks_here
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import SUMS, load_weights, write_atomically
from hybridsep.core.level import MIXTURE_RMS
from hybridsep.core.profiles import METHODS, LikelihoodKind, Profile, VQVAEKind, config_hash, method_spec
from hybridsep.core.provenance import provenance
from hybridsep.core.records import RECORDS
from hybridsep.data.codes import CodeSet
from hybridsep.data.effects import EFFECTS_VERSION
from hybridsep.data.midi import RECIPE_VERSION, Recipe, make_songs
from hybridsep.data.minislakh.render import make_minislakh
from hybridsep.data.people import make_people, unseen_soundfont
from hybridsep.data.stems import LARGEST, StemSet, build_stems, open_stems
from hybridsep.inference.counts import (
    CountLikelihood,
    UnigramLikelihood,
    count_batches,
    likelihood_from_tensors,
    merge_counts,
    symmetrised,
    tuned,
)
from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.separator import Separator
from hybridsep.inference.sums import SumLikelihood
from hybridsep.models.prior import Prior, nats_per_code
from hybridsep.models.vqvae import VQVAE
from hybridsep.pipeline.steps import Step, StepCache
from hybridsep.training.codec import VQVAETask, codec_dtype
from hybridsep.training.encoding import encode_songs, random_triples
from hybridsep.training.loop import train
from hybridsep.training.prior import PriorTask

SPLITS = ("train", "validation", "test")
RUNGS = ("minislakh", "people", "unseen-font")
"""Test songs, each further from the training songs than those before it."""
EXCERPTS = 4
"""Of each song that people wrote, where it is not trained on."""


class Pipeline:
    """Make or load any part of a run.

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
        self.data = Path(data) if data else None
        self.records = records
        self.ranks = ranks or ranks_here()
        self.device = default_device()
        self.dtype = fast_dtype(self.device, profile.precision)
        record = records / profile.name if records else None
        self.cache = StepCache(Path(runs) / profile.name, self.device, deadline, self.ranks, record)
        self._separator: tuple[str, Separator] | None = None

    @property
    def root(self) -> Path:
        """Return the folder of this run."""
        return self.cache.root

    def alone(self) -> Pipeline:
        """Return the same run for this process by itself, where the others do something else."""
        return Pipeline(self.profile, self.root.parent, self.data, self.cache.deadline, ALONE, self.records)

    # --- songs -------------------------------------------------------------------------------------------------------------

    def songs(self) -> Path:
        """Return the folder of the songs in Slakh's layout."""
        if self.data:
            if not self.data.is_dir():
                raise HybridsepError(f"no data folder {self.data}")
            return self.data
        settings = self.profile.data
        size = {"tracks": settings.tracks, "seconds": settings.seconds}
        step = self.cache.step("songs", size, settings.seed, settings.sample_rate)

        def make() -> dict:
            if self.ranks.first:
                out = step.folder / "MiniSlakh"
                make_minislakh(out, settings.tracks, settings.seconds, settings.seed, settings.sample_rate)
            return size

        self.cache.make(step, make)
        return step.folder / "MiniSlakh"

    def people(self, split: str) -> Path:
        """Return the folder of one split of the songs that people wrote, in Slakh's layout."""
        settings = self.profile.data
        excerpts = settings.people if split == "train" else EXCERPTS
        recipe = Recipe((), settings.seconds, excerpts, settings.seed, settings.sample_rate, settings.variety)
        step = self.cache.step(f"people-{split}", asdict(recipe), RECIPE_VERSION)

        def make() -> dict:
            return make_people(step.folder, recipe, split=split).tracks if self.ranks.first else {}

        self.cache.make(step, make)
        return step.folder

    def unseen_font(self) -> Path:
        """Return the folder of the test songs that people wrote, played by a SoundFont that is never trained on."""
        settings, font = self.profile.data, unseen_soundfont()
        recipe = Recipe((font,), settings.seconds, EXCERPTS, settings.seed, settings.sample_rate)
        step = self.cache.step("unseen-font", recipe.settings())

        def make() -> dict:
            midi = self.people("test") / "midi"
            return make_songs(step.folder, midi, recipe, split="test").tracks if self.ranks.first else {}

        self.cache.make(step, make)
        return step.folder

    def stems(self, split: str) -> StemSet:
        """Return the memory-mapped stems of "train", "validation", "test", or of a rung: `RUNGS`, the first of which is "test"."""
        split = "test" if split == RUNGS[0] else split
        step, settings, sources = self.stems_step(split), self.profile.data, self.profile.sources
        inside = "test" if split in RUNGS else split

        def make() -> dict:
            roots = self._roots(split)
            if not self.ranks.first:
                return {}
            build_stems(roots, inside, sources, settings.sample_rate, step.folder, settings.effects, settings.seed)
            return {"songs": len(open_stems(step.folder, inside))}

        self.cache.make(step, make)
        return open_stems(step.folder, inside, settings.pairing)

    def _roots(self, split: str) -> list[Path]:
        if split == "people":
            return [self.people("test")]
        if split == "unseen-font":
            return [self.unseen_font()]
        mixed = self.profile.data.people and not self.data and split != "test"
        return [self.songs(), self.people(split)] if mixed else [self.songs()]

    # --- models ------------------------------------------------------------------------------------------------------------

    def vqvae(self, kind: VQVAEKind) -> VQVAE:
        """Return the trained VQ-VAE of a kind."""
        settings, step = self.profile.vqvae, self.vqvae_step(kind)
        module = initialised(lambda: VQVAE(settings), self.profile.seed)

        def make() -> dict:
            dtype = codec_dtype(self.dtype)
            task = VQVAETask(module.to(self.device), self.stems("train"), self._linear_weight(kind), dtype)
            figures = self._train(step, task, f"VQ-VAE {kind}")
            seconds = settings.training.steps * task.audio_seconds
            return {
                "parameters": _parameters(module),
                "dtype": dtype_name(dtype),
                "seconds_of_audio": seconds,
                **figures,
            }

        self.cache.make(step, make)
        return self._loaded(step, module)

    def codes(self, kind: VQVAEKind, split: str) -> CodeSet:
        """Return the codes of every song of a split."""
        step = self.cache.step(f"codes-{kind}-{split}", inputs=[self.stems_step(split), self.vqvae_step(kind)])

        def make() -> dict:
            codes = encode_songs(self.vqvae(kind), self.stems(split), silent=not self.ranks.first)
            self._save(step, "codes", codes.to_tensors())
            return {"songs": len(codes.songs)}

        self.cache.make(step, make)
        return CodeSet.from_tensors(load_weights(step.folder / "codes.safetensors"))

    def prior(self, kind: VQVAEKind, source: str) -> Prior:
        """Return the trained prior of a source over the codes of a kind of VQ-VAE."""
        names, seed = self.profile.source_names, self.profile.seed
        if source not in names:
            raise HybridsepError(f"unknown source '{source}': the profile has {', '.join(names)}")
        settings, step = self.profile.prior, self.prior_step(kind, source)
        module = initialised(lambda: Prior(settings, self.profile.vqvae.codes), seed)

        def make() -> dict:
            codes = self.codes(kind, "train")
            module.start_from_codebook(self.vqvae(kind).codebook.cpu(), seeded_generator(seed, 2))
            code_seconds = self.profile.vqvae.hop / self.profile.data.sample_rate
            task = PriorTask(module.to(self.device), codes, names.index(source), self.dtype, code_seconds)
            figures = self._train(step, task, f"prior {source} ({kind})")
            validation, generator = self.codes(kind, "validation"), seeded_generator(seed, 4)
            held_out = validation.random_crops(names.index(source), 32, settings.crop_codes, generator)
            nats = nats_per_code(module, held_out.to(self.device))
            known = {"parameters": _parameters(module), "dtype": dtype_name(self.dtype)}
            return {**known, "validation_nats_per_code": nats, **figures}

        self.cache.make(step, make)
        return self._loaded(step, module)

    def likelihood(self, kind: VQVAEKind, likelihood: LikelihoodKind) -> Likelihood:
        """Return the likelihood of a kind over the codes of a kind of VQ-VAE, fitted on validation songs and tuned by the profile."""
        step = self.likelihood_step(kind, likelihood)

        def make() -> dict:
            made = self._fit_likelihood(kind, likelihood)
            self._save(step, "likelihood", made.to_tensors())
            triples = self.triples(kind, "validation")
            nats = -float(made.log_likelihood(triples[2], triples[0], triples[1]).mean())
            return {"validation_nats_per_code": nats, **_scalars(made)}

        self.cache.make(step, make)
        tensors = tuned(load_weights(step.folder / "likelihood.safetensors"), self.profile.tuning(kind, likelihood))
        return likelihood_from_tensors({name: value.to(self.device) for name, value in tensors.items()})

    def triples(self, kind: VQVAEKind, split: str) -> Tensor:
        """Return triples (first, second, mixture) of random pairs of a split that is not trained on, int64 [3, n]."""
        generator = seeded_generator(self.profile.seed, 3, SPLITS.index(split))
        seconds = self.profile.likelihood.fit_seconds
        return torch.cat(list(random_triples(self.vqvae(kind), self.stems(split), seconds, generator)), 1).cpu()

    # --- methods -----------------------------------------------------------------------------------------------------------

    def separator(self, method: str) -> Separator:
        """Return a trained method. The last one asked for is kept."""
        version = self.method_version(method)
        if self._separator is None or self._separator[0] != version:
            spec = method_spec(method)
            # Whatever was kept is given up first: a likelihood keeps a gigabyte of matrices.
            self._separator = None
            priors = [self.prior(spec.vqvae, source) for source in self.profile.source_names]
            cell = (spec.vqvae, spec.likelihood)
            made = Separator(self.vqvae(spec.vqvae), priors, self.likelihood(*cell), self.profile.for_cell(*cell))
            self._separator = version, made
        return self._separator[1]

    def export(self, method: str) -> Path:
        """Write a trained method to runs/<profile>/<method>/, which `Separator.load` reads, and return that folder."""
        folder, version = self.root / method, self.method_version(method)
        marker = folder / "version.txt"
        complete = marker.is_file() and (folder / SUMS).is_file() and marker.read_text() == version
        if not complete:
            separator = self.separator(method)
            if self.ranks.first:
                separator.save(folder)
                write_atomically(marker, version.encode())
        return folder

    def method_version(self, method: str) -> str:
        """Return a hash of all that a method depends on."""
        parts = [step.folder.name for step in self.method_steps(method)]
        return config_hash(*parts, self.profile.model_dump(mode="json", exclude={"evaluation"}))

    def method_steps(self, method: str) -> list[Step]:
        """List the models that a method is made of: VQ-VAE, likelihood, priors."""
        spec = method_spec(method)
        priors = (self.prior_step(spec.vqvae, source) for source in self.profile.source_names)
        return [self.vqvae_step(spec.vqvae), self.likelihood_step(spec.vqvae, spec.likelihood), *priors]

    def model_steps(self) -> list[Step]:
        """List the models of all methods, each once."""
        return list(dict.fromkeys(step for method in METHODS for step in self.method_steps(method)))

    def write_provenance(self) -> Path:
        """Collect hardware, versions, seeds, commit and the wall time of each step in provenance.json."""
        known = {**provenance(self.device, self.ranks.count), "profile": self.profile.model_dump(mode="json")}
        content = {**known, "steps": {step.folder.name: step.record for step in self.cache.finished()}}
        path = self.root / "provenance.json"
        if self.ranks.first:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content, indent=1).encode())
        return path

    # --- where they are kept -----------------------------------------------------------------------------------------------

    def stems_step(self, split: str = "train") -> Step:
        """Return where the stems of a split, or of a rung, are kept."""
        settings = self.profile.data
        written = (settings.people, settings.variety, RECIPE_VERSION) if settings.people or split in RUNGS else ()
        made = {"tracks": settings.tracks, "seconds": settings.seconds, "seed": settings.seed}
        source = (_fingerprint(self.data),) if self.data else (made, *written)
        varied = (settings.effects, settings.seed, EFFECTS_VERSION)
        scale = (settings.sample_rate, MIXTURE_RMS, LARGEST)
        return self.cache.step(f"stems-{split}", *source, self.profile.sources, *scale, *varied)

    def vqvae_step(self, kind: VQVAEKind) -> Step:
        """Return where the VQ-VAE of a kind is kept, with its history.csv."""
        settings = self.profile.vqvae.model_dump(mode="json", exclude={"linear_weight"})
        trained = (self._linear_weight(kind), self.profile.data.pairing, self.profile.seed, self.profile.precision)
        return self.cache.step(f"vqvae-{kind}", settings, *trained, inputs=[self.stems_step()])

    def prior_step(self, kind: VQVAEKind, source: str) -> Step:
        """Return where a prior is kept, with its history.csv."""
        inputs = [self.stems_step(), self.vqvae_step(kind)]
        return self.cache.step(f"prior-{kind}-{source}", self.profile.prior, self.profile.precision, inputs=inputs)

    def likelihood_step(self, kind: VQVAEKind, likelihood: LikelihoodKind) -> Step:
        """Return where a likelihood is kept."""
        inputs = [self.stems_step(), self.vqvae_step(kind)]
        counted = {"base", "symmetric", "counted_seconds"} if likelihood == "sum" else set()
        settings = self.profile.likelihood.model_dump(mode="json", exclude={"power"} | counted)
        return self.cache.step(f"likelihood-{kind}-{likelihood}", settings, inputs=inputs)

    # --- inside ------------------------------------------------------------------------------------------------------------

    def _train(self, step: Step, task: VQVAETask | PriorTask, label: str) -> dict[str, float]:
        """Train a model, keep its weights, and return the last row of its history."""
        training = task.module.settings.training
        history = train(task, training, step.folder, label, self.profile.seed, self.cache.deadline)
        self._save(step, "model", task.module.state_dict())
        return history[-1]

    def _loaded(self, step: Step, module: Module) -> Module:
        module.load_state_dict(load_weights(step.folder / "model.safetensors"))
        return module.to(self.device).eval()

    def _save(self, step: Step, name: str, tensors: dict[str, Tensor]) -> None:
        if self.ranks.first:
            step.save(name, tensors)

    def _linear_weight(self, kind: VQVAEKind) -> float:
        return self.profile.vqvae.linear_weight if kind == "linear" else 0.0

    def _fit_likelihood(self, kind: VQVAEKind, likelihood: LikelihoodKind) -> Likelihood:
        vqvae, settings, codes = self.vqvae(kind), self.profile.likelihood, self.profile.vqvae.codes
        held_out = self.triples(kind, "validation").to(self.device)
        if likelihood == "sum":
            return SumLikelihood.fit(vqvae.codebook, held_out)
        keys, counts = self._counted(kind)
        if settings.symmetric:
            keys, counts = symmetrised(keys, counts, codes)
        unigram = settings.base == "unigram"
        base = UnigramLikelihood(keys, counts, codes) if unigram else SumLikelihood.fit(vqvae.codebook, held_out)
        return CountLikelihood.fit(keys, counts, base, held_out)

    def _counted(self, kind: VQVAEKind) -> tuple[Tensor, Tensor]:
        """Return keys and counts of random training pairs, counted once for every way to smooth them."""
        seconds, inputs = self.profile.likelihood.counted_seconds, [self.stems_step(), self.vqvae_step(kind)]
        step = self.cache.step(f"counted-{kind}", seconds, inputs=inputs)

        def make() -> dict:
            vqvae, stems, generator = self.vqvae(kind), self.stems("train"), seeded_generator(self.profile.seed, 5)
            batches = random_triples(vqvae, stems, seconds, generator, f"counting ({kind})", self.ranks)
            keys, counts = count_batches(batches, self.profile.vqvae.codes)
            if self.ranks.count > 1:
                keys, counts = merge_counts(self.ranks.join_uneven(keys), self.ranks.join_uneven(counts))
            self._save(step, "counted", {"keys": keys, "counts": counts})
            return {"distinct_triples": len(keys), "counted_triples": int(counts.sum())}

        self.cache.make(step, make)
        found = load_weights(step.folder / "counted.safetensors")
        return found["keys"].to(self.device), found["counts"].to(self.device)


def _fingerprint(folder: Path) -> list[str]:
    """List names and sizes of all audio files: another data set gives another hash."""
    files = sorted(p for pattern in ("*.flac", "*.wav") for p in folder.rglob(pattern))
    return [f"{p.relative_to(folder)}:{p.stat().st_size}" for p in files]


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _scalars(likelihood: Likelihood) -> dict[str, float]:
    """Return the fitted numbers of a likelihood, for the record."""
    return {name: float(value) for name, value in likelihood.to_tensors().items() if value.ndim == 0} | {
        "distinct_triples": len(getattr(likelihood, "keys", ())),
        "counted_triples": int(getattr(likelihood, "counts", torch.zeros(1)).sum()),
    }
