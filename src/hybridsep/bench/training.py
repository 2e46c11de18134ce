"""A training step of the VQ-VAE and of a prior: beside a step as published code does it, in both precisions, and against the machine's rates."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from hybridsep.bench.measure import Timing, machine_rates, time_calls
from hybridsep.bench.models import PROFILE
from hybridsep.bench.products import Products
from hybridsep.bench.profile import callers_of
from hybridsep.bench.report import Options, Row
from hybridsep.core.device import default_device, dtype_name, fast_dtype, seeded_generator
from hybridsep.core.distributed import WHOLE, Part
from hybridsep.core.profiles import Profile, load_profile
from hybridsep.data.codes import CodeSet
from hybridsep.data.minislakh.render import make_minislakh
from hybridsep.data.stems import FULL_SCALE, StemSet, build_stems, open_stems
from hybridsep.models.losses import SpectralLoss
from hybridsep.models.prior import Attention, Prior, rotary_angles, rotate
from hybridsep.models.vqvae import VQVAE, Bottleneck
from hybridsep.training.codec import VQVAETask
from hybridsep.training.encoding import encode_songs
from hybridsep.training.loop import StepResult, Task, TrainingRun
from hybridsep.training.prior import PriorTask

SONGS, SECONDS = 12, 12.0
PROFILED_STEPS = 3
COMPARED_STEPS = {"codec": 80, "prior": 40}
LAST_STEPS = 10
PRODUCTS = ("convolution", "::mm", "::bmm", "::addmm", "::baddbmm", "::linear", "matmul")
TRANSFORMS = ("stft", "_fft")
RANGES = ("loading", "codebook", "optimiser", "interpreter")
PARTS = ("products", "elementwise", "Fourier transforms", *RANGES)


def bench_codec(options: Options) -> Iterator[Row]:
    """The VQ-VAE's step and what surrounds its networks beside the same as published, where its time goes, and float32 against bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(options, Path(folder))
        ours, published = bench.codec(VQVAETask), bench.codec(PublishedCodecTask)
        yield from _beside_published(
            bench, "codec", ours, published, _codec_parts(bench, ours, published), bench.codec_details
        )
        yield from _precisions(bench, "codec", lambda dtype: bench.codec(VQVAETask, dtype), bench.codec_details)


def bench_prior(options: Options) -> Iterator[Row]:
    """The same of a prior."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(options, Path(folder))
        ours, published = bench.prior(torch.float32), bench.published_prior()
        yield from _beside_published(
            bench, "prior", ours, published, _prior_parts(bench, ours, published), bench.prior_details
        )
        yield from _precisions(bench, "prior", bench.prior, bench.prior_details)


def _beside_published(
    bench: _Bench,
    name: str,
    ours: Task,
    published: Task,
    parts: dict[str, dict[str, Callable[[], object]]],
    details: dict,
) -> Iterator[Row]:
    timings = bench.time({"ours": bench.steps(ours), "reference": bench.steps(published)})
    shares, reached = _profiled(bench, ours)
    yield Row(f"{name}-step", timings["ours"], timings["reference"], details | reached)
    for part, calls in parts.items():
        both = bench.time(calls)
        yield Row(f"{name}-step/{part}", both["ours"], both["reference"], details)
    note = "time of a step by the clock, times the share of this part's operators in the profiler's"
    for part, share in shares.items():
        yield Row(
            f"{name}-profile/{part}", timings["ours"].scaled(share), None, details | {"share": share, "note": note}
        )


BENCHMARKS = {"codec": bench_codec, "prior": bench_prior}


class FileStems(StemSet):
    """Crops read from compressed files each time, as published loaders do."""

    def __init__(self, stems: StemSet, folder: Path):
        super().__init__(stems.audio, stems.names, stems.starts, stems.lengths, stems.sample_rate, stems.pairing)
        object.__setattr__(
            self, "_files", [[folder / f"{name}-{p}.flac" for name in stems.names] for p in range(len(stems.audio))]
        )
        for p, files in enumerate(self._files):
            for path, start, length in zip(files, stems.starts, stems.lengths, strict=True):
                soundfile.write(path, stems.audio[p, start : start + length], stems.sample_rate, subtype="PCM_16")

    def crop(self, source: int, track: int, start: int, length: int) -> Tensor:
        """See StemSet."""
        samples, _ = soundfile.read(self._files[source][track], length, start, dtype="int16")
        return torch.from_numpy(samples).float() / FULL_SCALE


class PublishedSpectralLoss(SpectralLoss):
    """A window made anew for every transform."""

    def _magnitude(self, waveform: Tensor, size: int) -> Tensor:
        setattr(self, f"window_{size}", torch.hann_window(size, device=waveform.device))
        return super()._magnitude(waveform, size)


class PublishedBottleneck(Bottleneck):
    """Distances to all codes as one matrix, and one-hot codes to add latents up; as in Dhariwal et al. 2020's published code."""

    def assign(self, latent: Tensor) -> Tensor:
        """See Bottleneck."""
        flat = latent.reshape(-1, latent.shape[-1]).float()
        distance = flat.square().sum(1, keepdim=True) - 2 * flat @ self.codebook.T + self.codebook.square().sum(1)
        return distance.argmin(1).view(latent.shape[:-1])

    def _summed(self, latent: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        one_hot = torch.zeros(len(self.codebook), len(codes), device=latent.device).scatter_(0, codes[None], 1.0)
        return one_hot.sum(1), one_hot @ latent


class PublishedCodecTask(VQVAETask):
    """A step with the same arithmetic in its networks, and around them what published code does."""

    def __init__(self, module: VQVAE, stems: StemSet, linear_weight: float, dtype: torch.dtype):
        settings = module.settings
        replaced = PublishedBottleneck(
            settings.codes, settings.latent_width, settings.ema_decay, settings.dead_share
        ).to(module.codebook)
        replaced.load_state_dict(module.bottleneck.state_dict())
        module.bottleneck = replaced
        super().__init__(module, stems, linear_weight, dtype)
        self.spectral = PublishedSpectralLoss().to(self.device)


class PublishedAttention(Attention):
    """Keys and values copied for every head, scores of all pairs of positions, and their mask made anew in every layer."""

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """See Attention."""
        length = x.shape[1]
        parts = self.project_in(x).unflatten(2, (-1, self.head_width)).transpose(1, 2)
        query, key, value = parts.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        key, value = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (rotate(key, rotation), value))
        position = torch.arange(length, device=x.device)
        distance = position[:, None] - position
        scores = rotate(query, rotation) @ key.transpose(2, 3) * self.head_width**-0.5
        scores = scores.masked_fill((distance < 0) | (distance >= self.window), -torch.inf)
        return self.project_out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class PublishedPriorTask(PriorTask):
    """A step that reads audio and encodes it, as Jukebox's published training of priors does, and attends as above."""

    def __init__(self, module: Prior, stems: FileStems, vqvae: VQVAE, dtype: torch.dtype):
        super().__init__(module, CodeSet(()), 0, dtype)
        self.stems, self.vqvae = stems, vqvae
        for block in module.blocks:
            replaced = PublishedAttention(module.settings).to(self.device)
            replaced.load_state_dict(block.attention.state_dict())
            block.attention = replaced

    def step(self, number: int, generator: torch.Generator, part: Part = WHOLE) -> StepResult:
        """See PriorTask."""
        loss = self.loss(part.of(self.load(generator)))
        return StepResult(loss, {"nats_per_code": loss.item()})

    def load(self, generator: torch.Generator) -> Tensor:
        """Codes int64 [B, T] of crops of audio."""
        settings = self.module.settings
        crops = self.stems.random_crops(
            self.source, settings.training.batch, settings.crop_codes * self.vqvae.hop, generator
        )
        return self.vqvae.encode(crops.to(self.device))


@dataclass
class _Bench:
    """Songs, settings and tasks of one benchmark."""

    options: Options
    folder: Path

    def __post_init__(self) -> None:
        self.device, quick = default_device(), self.options.quick
        self.profile: Profile = load_profile("smoke" if quick else PROFILE)
        data = self.profile.data
        songs, seconds = (10, 6.0) if quick else (SONGS, SECONDS)
        root = make_minislakh(self.folder / "songs", songs, seconds, data.seed, data.sample_rate, progress=False)
        build_stems(root, "train", self.profile.sources, data.sample_rate, self.folder)
        self.stems = open_stems(self.folder, "train")
        self.files = FileStems(self.stems, self.folder)
        training = {
            name: block.training for name, block in (("codec", self.profile.vqvae), ("prior", self.profile.prior))
        }
        self.codec_details = {
            "batch": training["codec"].batch,
            "crop_samples": self.profile.vqvae.crop_samples,
            "codes": self.profile.vqvae.codes,
        }
        self.prior_details = {
            "batch": training["prior"].batch,
            "crop_codes": self.profile.prior.crop_codes,
            "codes": self.profile.vqvae.codes,
        }

    def vqvae(self) -> VQVAE:
        """One whose codebook has been started; equal weights each time."""
        torch.manual_seed(0)
        module = VQVAE(self.profile.vqvae).to(self.device)
        with torch.no_grad():
            latent = module.latent(
                self.stems.random_crops(0, 8, self.profile.vqvae.crop_samples, seeded_generator(0)).to(self.device)
            )
        module.bottleneck.start_from(latent.flatten(0, 1), seeded_generator(1))
        return module

    def codec(self, kind: type[VQVAETask], dtype: torch.dtype = torch.float32) -> VQVAETask:
        """A task of kind `linear`."""
        stems = self.files if kind is PublishedCodecTask else self.stems
        return kind(self.vqvae(), stems, self.profile.vqvae.linear_weight, dtype)

    def prior(self, dtype: torch.dtype) -> PriorTask:
        """A task on the codes of the songs, encoded once; equal weights each time."""
        return PriorTask(self._new_prior(), encode_songs(self.vqvae(), self.stems), 0, dtype)

    def published_prior(self) -> PublishedPriorTask:
        """The same as published."""
        return PublishedPriorTask(self._new_prior(), self.files, self.vqvae(), torch.float32)

    def _new_prior(self) -> Prior:
        torch.manual_seed(0)
        return Prior(self.profile.prior, self.profile.vqvae.codes).to(self.device)

    def run(self, task: Task) -> TrainingRun:
        """Its training."""
        task.module.train()
        return TrainingRun(task, task.module.settings.training, self.folder, "bench", 0)

    def steps(self, task: Task) -> Callable[[], object]:
        """A call of which does the next step, in the quantised phase."""
        run, numbers = self.run(task), count(task.module.settings.training.steps // 2)
        return lambda: run.step(next(numbers), False)

    def time(self, calls: dict[str, Callable[[], object]]) -> dict[str, Timing]:
        """See time_calls; a step is short, so ten times the repeats."""
        repeats = 1 if self.options.quick else 10 * self.options.repeats
        return time_calls(calls, repeats, self.options.budget_seconds, self.device)


def _codec_parts(bench: _Bench, ours: VQVAETask, published: VQVAETask) -> dict[str, dict[str, Callable[[], object]]]:
    """What surrounds the networks in a step, each done by both."""
    settings, tasks = bench.profile.vqvae, {"ours": ours, "reference": published}
    waveform = (
        bench.stems.random_pairs(settings.training.batch, settings.crop_samples, seeded_generator(0))
        .flatten(0, 1)
        .to(bench.device)
    )
    with torch.no_grad():
        latent = ours.module.latent(waveform).flatten(0, 1)
        codes = ours.module.bottleneck.assign(latent)

    def each(part: Callable[[VQVAETask], object]) -> dict[str, Callable[[], object]]:
        return {name: lambda task=task: part(task) for name, task in tasks.items()}

    return {
        "loading": each(
            lambda task: task.stems.random_pairs(settings.training.batch, settings.crop_samples, seeded_generator(0))
        ),
        "spectral loss": each(lambda task: task.spectral(waveform, waveform)),
        "nearest codes": each(lambda task: task.module.bottleneck.assign(latent)),
        "codebook update": each(lambda task: task.module.bottleneck.update(latent, codes, seeded_generator(0))),
    }


def _prior_parts(
    bench: _Bench, ours: PriorTask, published: PublishedPriorTask
) -> dict[str, dict[str, Callable[[], object]]]:
    """A batch of codes, and the attention of one layer there and back, each done by both."""
    settings = bench.profile.prior
    x = torch.randn(
        settings.training.batch, settings.crop_codes, settings.width, device=bench.device, requires_grad=True
    )
    rotation = rotary_angles(torch.arange(settings.crop_codes, device=bench.device), settings)

    def attend(task: PriorTask) -> None:
        task.module.blocks[0].attention(x, rotation).sum().backward()

    return {
        "loading": {
            "ours": lambda: ours.codes.random_crops(
                0, settings.training.batch, settings.crop_codes, seeded_generator(0)
            ),
            "reference": lambda: published.load(seeded_generator(0)),
        },
        "attention": {"ours": lambda: attend(ours), "reference": lambda: attend(published)},
    }


def _profiled(bench: _Bench, task: Task) -> tuple[dict[str, float], dict[str, object]]:
    """The share of every part in a step's time; operations of its products and the rate they reach, beside the same alone and a large square one's."""
    run, numbers = bench.run(task), count(task.module.settings.training.steps // 2)
    run.step(next(numbers), False)
    number = next(numbers)
    with Products() as products:
        task.step(number, seeded_generator(0)).loss.backward()
    task.after_step(number, seeded_generator(0))
    with _ranges(run), profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        for _ in range(PROFILED_STEPS):
            with record_function("interpreter"):
                run.step(next(numbers), False)
    seconds = defaultdict(float)
    for event in recorded.events():
        chain = [event.name, *callers_of(event)]
        if "interpreter" in chain:
            seconds[_part(chain)] += 1e-6 * event.self_cpu_time_total
    total = sum(seconds.values())
    shares = {part: seconds[part] / total for part in PARTS if seconds[part]}
    rate = products.operations * PROFILED_STEPS / seconds["products"]
    alone = products.operations / products.seconds_alone(bench.device)
    note = "rate of products and convolutions from the profiler's times of their operators; alone: each by itself in the same shape"
    reached = {
        "flop": products.operations,
        "products_share": shares["products"],
        "products_flop_per_second": rate,
        "alone_flop_per_second": alone,
    }
    return shares, reached | {"note": note} | machine_rates(
        torch.float32, bench.device, bench.options.quick
    ).as_columns()


def _part(chain: list[str]) -> str:
    """Part of a step that an event belongs to, by its name and those of what it happened in."""
    where = next(name for name in chain if name in RANGES)
    if where in ("loading", "optimiser"):
        return where
    if _called(PRODUCTS, chain):
        return "products"
    if where == "codebook" or chain[0] == "interpreter":
        return where
    return "Fourier transforms" if _called(TRANSFORMS, chain) else "elementwise"


def _called(names: tuple[str, ...], chain: list[str]) -> bool:
    return any(name in called for called in chain for name in names)


@contextmanager
def _ranges(run: TrainingRun) -> Iterator[None]:
    """Calls of these methods are ranges of the profiler within the context."""
    task, module = run.task, run.task.module
    named = [(run, "_optimise", "optimiser")]
    if isinstance(task, VQVAETask):
        named += [
            (task.stems, "random_pairs", "loading"),
            (module.bottleneck, "assign", "codebook"),
            (task, "after_step", "codebook"),
        ]
    else:
        named += [(task.codes, "random_crops", "loading")]
    for owner, method, label in named:
        # Past the frozen dataclasses and modules that would not have it.
        object.__setattr__(owner, method, record_function(label)(getattr(owner, method)))
    yield
    for owner, method, _ in named:
        object.__delattr__(owner, method)


def _precisions(bench: _Bench, name: str, make: Callable[[torch.dtype], Task], details: dict) -> Iterator[Row]:
    """A step in the fastest precision beside float32, and the loss after the same steps of training from the same start."""
    fast = fast_dtype(bench.device)
    if fast == torch.float32:
        return
    dtypes = {"ours": fast, "reference": torch.float32}
    timings = bench.time({who: bench.steps(make(dtype)) for who, dtype in dtypes.items()})
    steps = 3 if bench.options.quick else COMPARED_STEPS[name]
    losses = {f"{who}_loss": _loss_after(bench, make(dtype), steps) for who, dtype in dtypes.items()}
    found = {"dtype": dtype_name(fast), "reference_dtype": dtype_name(torch.float32), "steps": steps, **losses}
    yield Row(f"{name}-precision", timings["ours"], timings["reference"], details | found)


def _loss_after(bench: _Bench, task: Task, steps: int) -> float:
    """Mean loss over the last of `steps` steps."""
    run, losses, first = bench.run(task), [], task.module.settings.training.steps // 2
    step = task.step

    def noted(*arguments: object) -> object:
        result = step(*arguments)
        losses.append(result.loss.item())
        return result

    task.step = noted
    for number in range(first, first + steps):
        run.step(number, False)
    return sum(losses[-LAST_STEPS:]) / len(losses[-LAST_STEPS:])
