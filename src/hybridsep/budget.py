"""What a profile costs before it is run: arithmetic, hours on a T4, and memory, counted on tensors that have shapes but no data.

Arithmetic is counted by torch's FLOP counter over one whole training step, forward and backward; a multiplication and an addition are two
operations. Hours follow from a rate that nobody measured here: see T4_RATES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from hybridsep.codec_training import WAVEFORMS, VQVAETask
from hybridsep.prior import Prior, PriorTask
from hybridsep.profiles import PriorSettings, Profile, TrainingSettings
from hybridsep.vqvae import VQVAE

GIBIBYTE = 2**30
HALF_PRECISION_COPIES = 1.5
"""Activations are counted in float32. In float16 most take half of that, but some layers keep what they are given in both: at worst 4 + 2 bytes."""
T4_RATES = {"vqvae": 1.0e12, "prior": 10.0e12}
"""Operations a second that a T4 is assumed to keep up in training, in float16.

A T4 held 24e12 in products of 4096 × 4096 matrices, by a user's measurement, as its 70 W allow no more
(https://forums.developer.nvidia.com/t/about-gpu-peak-performance/264462). Priors are such products between memory-bound layers: taken at two
fifths of it. Convolutions of 32 channels do about 30 operations for each byte that they read or write, elementwise layers less than one;
at the T4's 320 GB/s that ends at a few 1e12 at the very best: taken at 1e12.
"""


@dataclass(frozen=True)
class ModelBudget:
    """What training one model takes.

    Attributes:
        parameters: learnt numbers.
        flops: operations of all steps together.
        rate: operations a second that `hours` assumes.
        weight_bytes: parameters and buffers, float32.
        gradient_bytes: float32.
        moment_bytes: of the optimisers, float32.
        activation_bytes: what the forward pass of one part of a batch keeps for the backward pass, at most.
    """

    parameters: int
    flops: float
    rate: float
    weight_bytes: int
    gradient_bytes: int
    moment_bytes: int
    activation_bytes: int

    @property
    def hours(self) -> float:
        """Training time at the assumed rate."""
        return self.flops / self.rate / 3600

    @property
    def bytes(self) -> int:
        """Memory of a training step, without what the allocator and CUDA's own libraries add."""
        return self.weight_bytes + self.gradient_bytes + self.moment_bytes + self.activation_bytes


def vqvae_budget(profile: Profile, rate: float = T4_RATES["vqvae"]) -> ModelBudget:
    """Of a VQ-VAE of kind `linear`, whose step does all that one of kind `plain` does."""
    settings = profile.vqvae
    with torch.device("meta"):
        module = VQVAE(settings)
        task = VQVAETask(module, None, settings.linear_weight, torch.float32)
        pairs = settings.training.batch // settings.training.accumulate
        waveform = torch.empty(WAVEFORMS * pairs, settings.crop_samples)
    return _budget(module, settings.training, lambda: task.loss(waveform, quantised=True)[0], rate)


def prior_budget(profile: Profile, rate: float = T4_RATES["prior"]) -> ModelBudget:
    """Of the prior of one source."""
    settings = profile.prior
    with torch.device("meta"):
        module = Prior(settings, profile.vqvae.codes)
        task = PriorTask(module, None, 0, torch.float32)
        batch = torch.empty(settings.training.batch // settings.training.accumulate, settings.crop_codes, dtype=torch.long)
    return _budget(module, settings.training, lambda: task.loss(batch), rate)


def cache_bytes(settings: PriorSettings, rows: int, dtype: torch.dtype = torch.float16, sources: int = 2) -> int:
    """Keys and values of `rows` particles (mixtures times N) under the priors of all sources, when no two share a past: the most there can be."""
    head_width = settings.width // settings.heads
    return sources * rows * settings.layers * 2 * settings.kv_heads * head_width * settings.window * dtype.itemsize


def search_bytes(profile: Profile, dtype: torch.dtype = torch.float16) -> int:
    """Weights of the priors of all sources, and the cache of as many particles as a search advances at once."""
    with torch.device("meta"):
        parameters = _size(Prior(profile.prior, profile.vqvae.codes).parameters())
    sources = len(profile.sources)
    return sources * parameters * dtype.itemsize + cache_bytes(profile.prior, profile.search.max_rows, dtype, sources)


def summary(profile: Profile) -> str:
    """The whole budget in a few lines, for people."""
    lines = []
    for name, found in (("VQ-VAE", vqvae_budget(profile)), ("prior", prior_budget(profile))):
        lines.append(
            f"{name}: {found.parameters / 1e6:.1f} M parameters, {found.flops:.2e} operations, "
            f"{found.hours:.1f} h on a T4 at {found.rate / 1e12:g} TFLOP/s (assumed), {found.bytes / GIBIBYTE:.1f} GiB (weights {found.weight_bytes / GIBIBYTE:.2f}, gradients {found.gradient_bytes / GIBIBYTE:.2f}, "
            f"moments {found.moment_bytes / GIBIBYTE:.2f}, activations {found.activation_bytes / GIBIBYTE:.2f})"
        )
    cache = cache_bytes(profile.prior, profile.search.max_rows, sources=len(profile.sources))
    whole, rows = search_bytes(profile) / GIBIBYTE, profile.search.max_rows
    lines.append(f"search: {whole:.1f} GiB, of which {cache / GIBIBYTE:.2f} are keys and values of {rows} particles")
    return "\n".join(lines)


def _budget(module: nn.Module, settings: TrainingSettings, loss: Callable[[], Tensor], rate: float) -> ModelBudget:
    module.train()
    kept = _Kept(module)
    counter = FlopCounterMode(display=False)
    with counter, saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        loss().backward()
    hidden = module.hidden_matrices() if settings.matrix_learning_rate and hasattr(module, "hidden_matrices") else []
    parameters = _size(module.parameters())
    # AdamW keeps two moments of a parameter, Muon one.
    moments = 2 * parameters - _size(hidden)
    flops = float(counter.get_total_flops()) * settings.accumulate * settings.steps
    buffers = _size(module.buffers())
    return ModelBudget(parameters, flops, rate, 4 * (parameters + buffers), 4 * parameters, 4 * moments, round(HALF_PRECISION_COPIES * kept.bytes))


class _Kept:
    """Bytes that autograd keeps for the backward pass; weights, and views of what is kept already, count once or not at all."""

    def __init__(self, module: nn.Module):
        self.known = {_storage(p) for p in (*module.parameters(), *module.buffers())}
        self.alive: list[Tensor] = []
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        """Hook of saved_tensors_hooks."""
        if _storage(tensor) not in self.known:
            self.known.add(_storage(tensor))
            # A storage that died could lend its address to another one.
            self.alive.append(tensor)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
