"""Which pieces of which songs are separated and scored."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridsep.core.device import seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.data.stems import StemSet, mix

AUDIBLE = 10 ** (-50 / 20)  # RMS of a second in which a source sounds
PLACES_TRIED = 20


@dataclass(frozen=True)
class Chunks:
    """Pieces of B different songs: names of the songs, first sample of each piece, sources float32 [P, B, T], names of the P sources, Hz."""

    tracks: tuple[str, ...]
    starts: tuple[int, ...]
    sources: Tensor
    names: tuple[str, ...]
    sample_rate: int

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def mixture(self) -> Tensor:
        """Return the mixtures, float32 [B, T]."""
        return mix(self.sources)

    @property
    def start_seconds(self) -> list[float]:
        """Return where each piece starts in its song, seconds."""
        return [round(start / self.sample_rate, 3) for start in self.starts]

    @property
    def digest(self) -> str:
        """Return a hash of the samples and of where they come from."""
        samples = hashlib.sha256(self.sources.contiguous().numpy().tobytes()).hexdigest()
        return f"{self.tracks} {self.starts} {self.names} {self.sample_rate} {samples}"


def choose_chunks(
    stems: StemSet, names: tuple[str, ...], count: int, seconds: float, hop: int, seed: int, split: str = "test"
) -> Chunks:
    """Choose one chunk from each of `count` songs, at a random place where every source is audible in every second.

    Its length is rounded up to a multiple of `hop` samples. HybridsepError, which names the split: fewer songs have such a place.
    """
    length = -(-round(seconds * stems.sample_rate) // hop) * hop
    order = torch.randperm(len(stems), generator=seeded_generator(seed)).tolist()
    places = {track: start for track in order if (start := _audible_start(stems, track, length, seed)) is not None}
    if len(places) < count:
        found = f"only {len(places)} of {len(stems)} {split} songs have {seconds:g} s in which every source sounds"
        raise HybridsepError(f"{found}; {count} chunks were asked for")
    chosen = list(places.items())[:count]
    pieces = [torch.stack([stems.crop(p, t, start, length) for p in range(len(names))]) for t, start in chosen]
    sources = pair_sources(torch.stack(pieces, 1), stems.pairing)
    tracks, starts = tuple(stems.names[t] for t, _ in chosen), tuple(start for _, start in chosen)
    return Chunks(tracks, starts, sources, names, stems.sample_rate)


def pair_sources(sources: Tensor, pairing: str) -> Tensor:
    """Pair sources [P, B, T] of B places as training does; `pairing` as in StemSet."""
    if pairing != "random":
        return sources
    # No two sources of a mixture are of one song. Each further one comes from the next chunk's place.
    return torch.stack([source.roll(-p, 0) for p, source in enumerate(sources)])


def _audible_start(stems: StemSet, track: int, length: int, seed: int) -> int | None:
    generator, room = seeded_generator(seed, track), stems.lengths[track] - length
    whole = length // stems.sample_rate * stems.sample_rate or length
    for _ in range(PLACES_TRIED if room >= 0 else 0):
        start = int(torch.randint(room + 1, (1,), generator=generator))
        sources = torch.stack([stems.crop(p, track, start, whole) for p in range(len(stems.audio))])
        level = sources.view(len(sources), -1, min(whole, stems.sample_rate)).square().mean(-1).sqrt()
        if (level > AUDIBLE).all():
            return start
    return None
