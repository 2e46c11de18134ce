"""What a profile costs before it is run: arithmetic, hours on a T4, and memory, counted on tensors that have shapes but no data.

Arithmetic is counted by torch's FLOP counter over one whole training step, forward and backward; a multiplication and an addition are two
operations. Hours follow from a rate that nobody measured here: see T4_RATES.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hybridsep.core.profiles import PriorSettings, Profile, TrainingSettings
from hybridsep.inference.counts import MERGE_EVERY
from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.separator import DECODED_CODES
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE
from hybridsep.training.codec import WAVEFORMS, VQVAETask
from hybridsep.training.encoding import PAIR_BATCH, PAIR_SECONDS
from hybridsep.training.prior import PriorTask

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
        batch = torch.empty(
            settings.training.batch // settings.training.accumulate, settings.crop_codes, dtype=torch.long
        )
    return _budget(module, settings.training, lambda: task.loss(batch), rate)


def cache_bytes(settings: PriorSettings, rows: int, dtype: torch.dtype = torch.float16, sources: int = 2) -> int:
    """Keys and values of `rows` particles (mixtures times N) under the priors of all sources, when no two share a past: the most there can be."""
    head_width = settings.width // settings.heads
    return sources * rows * settings.layers * 2 * settings.kv_heads * head_width * settings.window * dtype.itemsize


def counts_bytes(codes: int, triples: int) -> int:
    """Tables of a counted likelihood of K = `codes` and so many distinct triples."""
    pairs = codes * codes
    # Of every pair: its sum as two integers, table, share, and where its row starts; of every triple: key, count, pair, value.
    return (4 + 8 + 4 + 4 + 4 + 8) * pairs + 8 + (8 + 8 + 8 + 4) * triples


def search_bytes(profile: Profile, dtype: torch.dtype = torch.float16) -> int:
    """What a search needs at most.

    Weights of the priors of all sources, the cache of as many particles as advance at once, the counted likelihood were no triple to come
    twice, the matrices that it keeps, and the decoder with the codes that it takes at once.
    """
    with torch.device("meta"):
        parameters = _size(Prior(profile.prior, profile.vqvae.codes).parameters())
        vqvae = VQVAE(profile.vqvae).eval()
        codes = torch.empty(1, DECODED_CODES, dtype=torch.long)
    sources = len(profile.sources)
    triples = round(profile.likelihood.counted_seconds * profile.data.sample_rate / vqvae.hop)
    likelihood = counts_bytes(profile.vqvae.codes, triples) + Likelihood.cache_bytes
    decoding = 4 * _size(vqvae.parameters()) + peak_bytes(lambda: vqvae.decode(codes))
    return (
        sources * parameters * dtype.itemsize
        + cache_bytes(profile.prior, profile.search.max_rows, dtype, sources)
        + likelihood
        + decoding
    )


def counting_bytes(profile: Profile) -> int:
    """What counting needs at most: the encoder with a batch of pairs, and triples that wait to be merged, joined and sorted."""
    with torch.device("meta"):
        vqvae = VQVAE(profile.vqvae).eval()
        samples = int(PAIR_SECONDS * profile.data.sample_rate) // vqvae.hop * vqvae.hop
        waveform = torch.empty(WAVEFORMS * PAIR_BATCH, samples)
    with torch.no_grad():
        encoding = peak_bytes(lambda: vqvae.latent(waveform))
    # Three codes of a triple, the same joined, and its key, the sorted key and the count.
    return 4 * _size(vqvae.parameters()) + encoding + 8 * (3 + 3 + 3) * MERGE_EVERY


def summary(profile: Profile) -> list[dict[str, object]]:
    """The whole budget, a row for each thing that takes time or memory of its own; a key that does not apply is left out."""
    models = {"VQ-VAE": vqvae_budget(profile), "prior of one source": prior_budget(profile)}
    rows: list[dict[str, object]] = [
        {
            "what": name, "parameters (M)": found.parameters / 1e6, "operations": f"{found.flops:.1e}", "assumed rate (TFLOP/s)": found.rate / 1e12,
            "on a T4 (h)": found.hours, "memory (GiB)": found.bytes / GIBIBYTE,
        }
        for name, found in models.items()
    ]  # fmt: skip
    codec, prior = models.values()
    rows.append(
        {"what": "training of a method's models", "on a T4 (h)": codec.hours + len(profile.sources) * prior.hours}
    )
    rows.append({"what": "counting", "memory (GiB)": counting_bytes(profile) / GIBIBYTE})
    rows.append(
        {
            "what": f"search, {profile.search.max_rows} particles at once",
            "memory (GiB)": search_bytes(profile) / GIBIBYTE,
        }
    )
    return rows


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes alive at once of all that `call` makes."""
    with _Alive() as alive:
        call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Bytes of the storages made within the context that are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage(x) for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and _storage(x) not in given:
                storage = x.untyped_storage()
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, nbytes: int) -> None:
        self.bytes -= nbytes


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
    return ModelBudget(
        parameters,
        flops,
        rate,
        4 * (parameters + buffers),
        4 * parameters,
        4 * moments,
        round(HALF_PRECISION_COPIES * kept.bytes),
    )


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
