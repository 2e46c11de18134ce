"""Profile -> songs -> stems -> VQ-VAE -> codes -> priors -> likelihood -> method, each of which is kept (see `hybridsep.pipeline.steps`)."""

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
from hybridsep.training.codec import VQVAETask
from hybridsep.training.encoding import encode_songs, random_triples
from hybridsep.training.loop import train
from hybridsep.training.prior import PriorTask

SPLITS = ("train", "validation", "test")
RUNGS = ("minislakh", "people", "unseen-font")  # test songs, each further from the training songs than those before it
EXCERPTS = 4  # of each song that people wrote, where it is not trained on


class Pipeline:
    """Make or load any part of a run, and what it needs.

    Args:
        runs: folder of all runs; this one lives in runs/<profile name>.
        data: a data set in Slakh's layout; MiniSlakh is synthesised without it.
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
        self.profile, self.data, self.records = profile, Path(data) if data else None, records
        self.ranks = ranks or ranks_here()
        self.device = default_device()
        self.dtype = fast_dtype(self.device, profile.precision)
        record = records / profile.name if records else None
        self.root = Path(runs) / profile.name
        self.cache = StepCache(self.root, self.device, deadline, self.ranks, record)
        self._separator: tuple[str, Separator] | None = None

    def alone(self) -> "Pipeline":
        """Return the same run for this process by itself, where the others do something else."""
        return Pipeline(self.profile, self.root.parent, self.data, self.cache.deadline, ALONE, self.records)

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

        return self.cache.make(step, make) / "MiniSlakh"

    def people(self, split: str) -> Path:
        """Return the folder of one split of the songs that people wrote, in Slakh's layout."""
        settings = self.profile.data
        excerpts = settings.people if split == "train" else EXCERPTS
        recipe = Recipe((), settings.seconds, excerpts, settings.seed, settings.sample_rate, settings.variety)
        step = self.cache.step(f"people-{split}", asdict(recipe), RECIPE_VERSION)

        def make() -> dict:
            return make_people(step.folder, recipe, split=split).tracks if self.ranks.first else {}

        return self.cache.make(step, make)

    def unseen_font(self) -> Path:
        """Return the folder of the test songs that people wrote, played by a SoundFont that is never trained on."""
        settings, font = self.profile.data, unseen_soundfont()
        recipe = Recipe((font,), settings.seconds, EXCERPTS, settings.seed, settings.sample_rate)
        step = self.cache.step("unseen-font", recipe.settings())

        def make() -> dict:
            midi = self.people("test") / "midi"
            return make_songs(step.folder, midi, recipe, split="test").tracks if self.ranks.first else {}

        return self.cache.make(step, make)

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

        return open_stems(self.cache.make(step, make), inside, settings.pairing)

    def _roots(self, split: str) -> list[Path]:
        if split in RUNGS:
            return [self.unseen_font() if split == "unseen-font" else self.people("test")]
        mixed = self.profile.data.people and not self.data and split != "test"
        return [self.songs(), self.people(split)] if mixed else [self.songs()]

    def vqvae(self, kind: VQVAEKind) -> VQVAE:
        """Return the trained VQ-VAE of a kind."""
        settings, step = self.profile.vqvae, self.vqvae_step(kind)
        module = initialised(lambda: VQVAE(settings), self.profile.seed)

        def make() -> dict:
            # Convolutions gain by half precision on a GPU only.
            dtype = self.dtype if self.dtype == torch.float16 else torch.float32
            task = VQVAETask(module.to(self.device), self.stems("train"), self._linear_weight(kind), dtype)
            figures = self._train(step, task, f"VQ-VAE {kind}")
            return {"seconds_of_audio": settings.training.steps * task.audio_seconds, **figures}

        return self._loaded(self.cache.make(step, make), module)

    def codes(self, kind: VQVAEKind, split: str) -> CodeSet:
        """Return the codes of every song of a split."""
        step = self.cache.step(f"codes-{kind}-{split}", inputs=[self.stems_step(split), self.vqvae_step(kind)])

        def make() -> dict:
            codes = encode_songs(self.vqvae(kind), self.stems(split), silent=not self.ranks.first)
            self.cache.save(step, "codes", codes.to_tensors())
            return {"songs": len(codes.songs)}

        return CodeSet.from_tensors(load_weights(self.cache.make(step, make) / "codes.safetensors"))

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
            return {"validation_nats_per_code": nats_per_code(module, held_out.to(self.device)), **figures}

        return self._loaded(self.cache.make(step, make), module)

    def likelihood(self, kind: VQVAEKind, likelihood: LikelihoodKind) -> Likelihood:
        """Return the likelihood of a kind over the codes of a kind of VQ-VAE, fitted on validation songs and tuned by the profile."""
        step = self.likelihood_step(kind, likelihood)

        def make() -> dict:
            made = self._fit_likelihood(kind, likelihood)
            tensors, triples = made.to_tensors(), self.triples(kind, "validation")
            self.cache.save(step, "likelihood", tensors)
            figures = {"validation_nats_per_code": -float(made.log_likelihood(triples[2], *triples[:2]).mean())}
            figures |= {name: float(value) for name, value in tensors.items() if value.ndim == 0}
            figures["distinct_triples"] = len(tensors.get("keys", ()))
            return {**figures, "counted_triples": int(tensors.get("counts", torch.zeros(1)).sum())}

        fitted = load_weights(self.cache.make(step, make) / "likelihood.safetensors")
        tensors = tuned(fitted, self.profile.tuning(kind, likelihood))
        return likelihood_from_tensors({name: value.to(self.device) for name, value in tensors.items()})

    def triples(self, kind: VQVAEKind, split: str) -> Tensor:
        """Return triples (first, second, mixture) of random pairs of a split that is not trained on, int64 [3, n]."""
        generator = seeded_generator(self.profile.seed, 3, SPLITS.index(split))
        seconds = self.profile.likelihood.fit_seconds
        return torch.cat(list(random_triples(self.vqvae(kind), self.stems(split), seconds, generator)), 1).cpu()

    def separator(self, method: str) -> Separator:
        """Return a trained method. The last one asked for is kept."""
        version = self.method_version(method)
        if self._separator is None or self._separator[0] != version:
            # Whatever was kept is given up first: a likelihood keeps a gigabyte of matrices.
            self._separator, spec = None, method_spec(method)
            priors = [self.prior(spec.vqvae, source) for source in self.profile.source_names]
            made = Separator(self.vqvae(spec.vqvae), priors, self.likelihood(*spec), self.profile.for_cell(*spec))
            self._separator = version, made
        return self._separator[1]

    def export(self, method: str) -> Path:
        """Write a trained method to runs/<profile>/<method>/, which `Separator.load` reads, and return that folder."""
        folder, version = self.root / method, self.method_version(method)
        marker = folder / "version.txt"
        if not (marker.is_file() and (folder / SUMS).is_file() and marker.read_text() == version):
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
        return [self.vqvae_step(spec.vqvae), self.likelihood_step(*spec), *priors]

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

    def stems_step(self, split: str = "train") -> Step:
        """Return where the stems of a split, or of a rung, are kept."""
        settings = self.profile.data
        written = (settings.people, settings.variety, RECIPE_VERSION) if settings.people or split in RUNGS else ()
        made = settings.model_dump(include={"tracks", "seconds", "seed"})
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

    def _train(self, step: Step, task: VQVAETask | PriorTask, label: str) -> dict:
        """Train a model, keep its weights, and return its size, the dtype it was trained in and the last row of its history."""
        module = task.module
        history = train(task, module.settings.training, step.folder, label, self.profile.seed, self.cache.deadline)
        self.cache.save(step, "model", module.state_dict())
        parameters = sum(p.numel() for p in module.parameters())
        return {"parameters": parameters, "dtype": dtype_name(task.dtype), **history[-1]}

    def _loaded(self, folder: Path, module: Module) -> Module:
        module.load_state_dict(load_weights(folder / "model.safetensors"))
        return module.to(self.device).eval()

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
            keys, counts = merge_counts(self.ranks.join_uneven(keys), self.ranks.join_uneven(counts))
            self.cache.save(step, "counted", {"keys": keys, "counts": counts})
            return {"distinct_triples": len(keys), "counted_triples": int(counts.sum())}

        found = load_weights(self.cache.make(step, make) / "counted.safetensors")
        return found["keys"].to(self.device), found["counts"].to(self.device)


def _fingerprint(folder: Path) -> list[str]:
    """List names and sizes of all audio files: another data set gives another hash."""
    files = sorted(p for pattern in ("*.flac", "*.wav") for p in folder.rglob(pattern))
    return [f"{p.relative_to(folder)}:{p.stat().st_size}" for p in files]
