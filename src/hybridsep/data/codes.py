"""Code sequences of the songs of one split, and the random crops drawn from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridsep.core.errors import HybridsepError


@dataclass(frozen=True)
class CodeSet:
    """Codes of every source of every song.

    Attributes:
        songs: one int16 tensor [P, S] per song.
    """

    songs: tuple[Tensor, ...]

    def random_crops(self, source: int, count: int, length: int, generator: torch.Generator) -> Tensor:
        """int64 [count, length]: crops at random places of random songs.

        Raises:
            HybridsepError: no song has `length` codes.
        """
        fitting = [s for s in self.songs if s.shape[1] >= length]
        if not fitting:
            raise HybridsepError(f"no song has {length} codes; the longest has {max(s.shape[1] for s in self.songs)}")
        picks = torch.randint(len(fitting), (count,), generator=generator).tolist()
        shares = torch.rand(count, generator=generator).tolist()
        crops = []
        for pick, share in zip(picks, shares, strict=True):
            song = fitting[pick][source]
            start = int(share * (len(song) - length + 1))
            crops.append(song[start : start + length])
        return torch.stack(crops).long()

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file."""
        return {f"{i:05d}": song for i, song in enumerate(self.songs)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> CodeSet:
        """The inverse of `to_tensors`."""
        return cls(tuple(tensors[name] for name in sorted(tensors)))
