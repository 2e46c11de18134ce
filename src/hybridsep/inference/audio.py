"""Recordings as a stream of blocks, so that their length does not decide how much memory they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import soxr
import torch
from torch import Tensor

from hybridsep.core.errors import HybridsepError

SHORTEST_SECONDS = 0.2
LONGEST_SECONDS = 12 * 3600.0
BLOCK_VALUES = 1 << 20


@dataclass(frozen=True)
class Audio:
    """A recording that can be read from its beginning as often as needed."""

    blocks: Callable[[], Iterable[Tensor]]  # starts from the beginning; yields consecutive float32 [channels, n]
    sample_rate: int  # Hz
    channels: int
    samples: int
    peak: float  # largest magnitude

    @classmethod
    def scan(cls, name: str, sample_rate: int, channels: int, blocks: Callable[[], Iterable[Tensor]]) -> Audio:
        """Read a recording once; HybridsepError: no channels, no rate, shorter than 0.2 s, longer than 12 hours, or not finite throughout."""
        if not channels:
            raise HybridsepError(f"{name} has no channels")
        if sample_rate < 1:
            raise HybridsepError(f"{name} has a rate of {sample_rate} Hz; at least 1 is needed")
        samples, peak = 0, 0.0
        for block in blocks():
            samples += block.shape[1]
            if samples > LONGEST_SECONDS * sample_rate:
                raise HybridsepError(f"{name} lasts longer than {LONGEST_SECONDS / 3600:g} hours: cut it into parts")
            if not torch.isfinite(block).all():
                raise HybridsepError(f"{name} holds samples that are no finite numbers")
            peak = max(peak, float(block.abs().max())) if block.numel() else peak
        if samples < max(1, int(SHORTEST_SECONDS * sample_rate)):
            raise HybridsepError(f"{name} lasts {samples / sample_rate:.3f} s; at least {SHORTEST_SECONDS} s is needed")
        return cls(blocks, sample_rate, channels, samples, peak)

    @classmethod
    def of(cls, waveform: Tensor, sample_rate: int) -> Audio:
        """Take a waveform [channels, samples] in memory at a rate in Hz; errors as in `scan`."""
        block = max(1, BLOCK_VALUES // max(1, len(waveform)))
        return cls.scan("the recording", sample_rate, len(waveform), lambda: waveform.split(block, -1))

    def levelled(self) -> Iterator[Tensor]:
        """Yield its blocks with the highest peak at 1: no sum of channels or squares leaves the range of float32."""
        return (block / self.peak for block in self.blocks())

    def mono(self, sample_rate: int) -> Tensor:
        """Return the levelled mean of the channels at another rate in Hz, float32 [samples]."""
        mean = resampled((block.mean(0, keepdim=True) for block in self.levelled()), self.sample_rate, sample_rate)
        samples = -(-self.samples * sample_rate // self.sample_rate)
        return filled(torch.empty(1, samples), of_length(mean, samples))[0]


def resampled(blocks: Iterable[Tensor], old_rate: int, new_rate: int) -> Iterator[Tensor]:
    """Yield blocks float32 [R, n] of a signal at another rate, in Hz."""
    if old_rate == new_rate:
        yield from blocks
        return
    stream = None
    for block in blocks:
        stream = stream or soxr.ResampleStream(old_rate, new_rate, len(block), dtype="float32")
        yield torch.from_numpy(stream.resample_chunk(block.T.contiguous().numpy()).T)
    if stream:
        yield torch.from_numpy(stream.resample_chunk(block[:, :0].T.contiguous().numpy(), last=True).T)


def of_length(blocks: Iterable[Tensor], samples: int) -> Iterator[Tensor]:
    """Yield blocks [..., n] of a signal cut off, or filled up with zeros, at so many samples."""
    for block in blocks:
        yield block[..., :samples]
        samples -= min(samples, block.shape[-1])
    yield block.new_zeros(*block.shape[:-1], samples)


def filled(whole: Tensor, blocks: Iterable[Tensor]) -> Tensor:
    """Write blocks [..., n] one after the other into `whole` [..., samples], and return it."""
    place = 0
    for block in blocks:
        whole[..., place : place + block.shape[-1]] = block
        place += block.shape[-1]
    return whole


def overlapping(blocks: Iterable[Tensor], step: int, reach: int) -> Iterator[tuple[Tensor, slice]]:
    """Cut a signal anew into pieces of `step` samples: yields each with up to `reach` samples of its neighbours, and where it lies in them."""
    blocks = iter(blocks)
    held, before, ended = next(blocks, torch.zeros(1, 0)), 0, False
    while True:
        while not ended and held.shape[-1] < before + step + reach:
            block = next(blocks, None)
            ended = block is None
            held = held if block is None else torch.cat([held, block], -1)
        last = min(before + step, held.shape[-1])
        if last <= before:
            return
        yield held[..., : last + reach], slice(before, last)
        first = max(0, last - reach)
        held, before = held[..., first:], last - first
