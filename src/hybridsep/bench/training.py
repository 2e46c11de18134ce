"""A training step of the VQ-VAE and of a prior: beside a step as published code does it, in both precisions, and against the machine's rates."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hybridsep.bench.measure import Timing, machine_rates, time_calls
from hybridsep.bench.models import PROFILE, dtype_name
from hybridsep.bench.report import Options, Row
from hybridsep.codec_training import VQVAETask
from hybridsep.data.codes import CodeSet
from hybridsep.data.minislakh import make_minislakh
from hybridsep.data.stems import FULL_SCALE, StemSet, build_stems, open_stems
from hybridsep.device import default_device, fast_dtype, seeded_generator
from hybridsep.prior import Prior, PriorTask
from hybridsep.profiles import Profile, load_profile
from hybridsep.training import Task, TrainingRun
from hybridsep.vqvae import VQVAE, Bottleneck, SpectralLoss

SONGS, SECONDS = 12, 12.0
PROFILED_STEPS = 3
COMPARED_STEPS = {"codec": 80, "prior": 40}
LAST_STEPS = 10
PRODUCTS = ("convolution", "::mm", "::bmm", "::addmm", "::baddbmm", "::linear", "matmul")


def bench_codec(options: Options) -> Iterator[Row]:
    """The VQ-VAE's step and its parts beside the same as published, its arithmetic, and float32 against bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(options, Path(folder))
        ours, published = bench.codec(VQVAETask), bench.codec(PublishedCodecTask)
        timings = bench.time({"ours": bench.steps(ours), "reference": bench.steps(published)})
        yield Row("codec-step", timings["ours"], timings["reference"], bench.codec_details | _arithmetic(bench, ours))
        for name, calls in _codec_parts(bench, ours, published).items():
            timings = bench.time(calls)
            yield Row(f"codec-step/{name}", timings["ours"], timings["reference"], bench.codec_details)
        yield from _precisions(bench, "codec", lambda dtype: bench.codec(VQVAETask, dtype), bench.codec_details)


def bench_prior(options: Options) -> Iterator[Row]:
    """A prior's step: its arithmetic, and bfloat16, which is the default where the CPU has it, against float32."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(options, Path(folder))
        task = bench.prior(torch.float32)
        timing = bench.time({"ours": bench.steps(task)})["ours"]
        yield Row("prior-step", timing, None, bench.prior_details | _arithmetic(bench, task))
        yield from _precisions(bench, "prior", bench.prior, bench.prior_details)


BENCHMARKS = {"codec": bench_codec, "prior": bench_prior}


class FileStems(StemSet):
    """Crops read from compressed files each time, as published loaders do."""

    def __init__(self, stems: StemSet, folder: Path):
        super().__init__(stems.audio, stems.names, stems.starts, stems.lengths, stems.sample_rate, stems.pairing)
        object.__setattr__(self, "_files", [[folder / f"{name}-{p}.flac" for name in stems.names] for p in range(len(stems.audio))])
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
        replaced = PublishedBottleneck(settings.codes, settings.latent_width, settings.ema_decay, settings.dead_share).to(module.codebook)
        replaced.load_state_dict(module.bottleneck.state_dict())
        module.bottleneck = replaced
        super().__init__(module, stems, linear_weight, dtype)
        self.spectral = PublishedSpectralLoss().to(self.device)


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
        training = {name: block.training for name, block in (("codec", self.profile.vqvae), ("prior", self.profile.prior))}
        self.codec_details = {"batch": training["codec"].batch, "crop_samples": self.profile.vqvae.crop_samples, "codes": self.profile.vqvae.codes}
        self.prior_details = {"batch": training["prior"].batch, "crop_codes": self.profile.prior.crop_codes, "codes": self.profile.vqvae.codes}

    def codec(self, kind: type[VQVAETask], dtype: torch.dtype = torch.float32) -> VQVAETask:
        """A task of kind `linear` whose codebook has been started; equal weights each time."""
        torch.manual_seed(0)
        module = VQVAE(self.profile.vqvae).to(self.device)
        stems = self.files if kind is PublishedCodecTask else self.stems
        with torch.no_grad():
            latent = module.latent(self.stems.random_crops(0, 8, self.profile.vqvae.crop_samples, seeded_generator(0)).to(self.device))
        module.bottleneck.start_from(latent.flatten(0, 1), seeded_generator(1))
        return kind(module, stems, self.profile.vqvae.linear_weight, dtype)

    def prior(self, dtype: torch.dtype) -> PriorTask:
        """A task on random codes with some order in them; equal weights each time."""
        torch.manual_seed(0)
        size, length = self.profile.vqvae.codes, 4 * self.profile.prior.crop_codes
        drawn = torch.randint(size, (8, 1, length), generator=seeded_generator(2)).cumsum(-1) // 7 % size
        return PriorTask(Prior(self.profile.prior, size).to(self.device), CodeSet(tuple(drawn.to(torch.int16))), 0, dtype)

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
    waveform = bench.stems.random_pairs(settings.training.batch, settings.crop_samples, seeded_generator(0)).flatten(0, 1).to(bench.device)
    with torch.no_grad():
        latent = ours.module.latent(waveform).flatten(0, 1)
        codes = ours.module.bottleneck.assign(latent)

    def each(part: Callable[[VQVAETask], object]) -> dict[str, Callable[[], object]]:
        return {name: lambda task=task: part(task) for name, task in tasks.items()}

    return {
        "loading": each(lambda task: task.stems.random_pairs(settings.training.batch, settings.crop_samples, seeded_generator(0))),
        "spectral loss": each(lambda task: task.spectral(waveform, waveform)),
        "nearest codes": each(lambda task: task.module.bottleneck.assign(latent)),
        "codebook update": each(lambda task: task.module.bottleneck.update(latent, codes, seeded_generator(0))),
    }


def _arithmetic(bench: _Bench, task: Task) -> dict[str, object]:
    """Operations of a step, the share of its time that products and convolutions take, and the rate they reach beside a large square product's."""
    step = bench.steps(task)
    with FlopCounterMode(display=False) as counter:
        step()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        for _ in range(PROFILED_STEPS):
            step()
    events = recorded.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if any(name in event.key for name in PRODUCTS))
    operations = float(counter.get_total_flops())
    rates = machine_rates(torch.float32, bench.device, bench.options.quick)
    rate = operations * PROFILED_STEPS / (1e-6 * products)
    note = "share and rate of products and convolutions from the profiler's times of one thread's operators"
    return {"flop": operations, "products_share": products / total, "products_flop_per_second": rate, "note": note} | rates.as_columns()


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
