"""Code sequences of the songs of one split, and the random crops drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridsep.core.errors import HybridsepError


def draw_places(
    lengths: Sequence[int], count: int, length: int, generator: torch.Generator, rate: float, unit: str
) -> list[tuple[int, int]]:
    """Draw `count` random places (song, first element) of `length` elements; songs have `lengths` elements, `rate` per unit."""
    fitting = [song for song, there in enumerate(lengths) if there >= length]
    if not fitting:
        raise HybridsepError(f"no song has {length / rate:g} {unit}; the longest has {max(lengths) / rate:.4g}")
    songs = [fitting[pick] for pick in torch.randint(len(fitting), (count,), generator=generator)]
    shares = torch.rand(count, generator=generator).tolist()
    return [(song, int(share * (lengths[song] - length + 1))) for song, share in zip(songs, shares, strict=True)]


@dataclass(frozen=True)
class CodeSet:
    """Codes of every source of every song: one int16 tensor [P, S] per song."""

    songs: tuple[Tensor, ...]

    def random_crops(self, source: int, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw crops at random places of random songs, int64 [count, length]; HybridsepError if no song is that long."""
        places = draw_places([song.shape[1] for song in self.songs], count, length, generator, 1, "codes")
        return torch.stack([self.songs[song][source, start : start + length] for song, start in places]).long()

    def to_tensors(self) -> dict[str, Tensor]:
        """Name the tensors for a safetensors file."""
        return {f"{i:05d}": song for i, song in enumerate(self.songs)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> CodeSet:
        """Invert `to_tensors`."""
        return cls(tuple(tensors[name] for name in sorted(tensors)))
