"""Solo stems of one split, resampled once and memory-mapped, and the random crops and pairs drawn from them."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hybridsep.core.errors import HybridsepError
from hybridsep.core.level import MIXTURE_RMS
from hybridsep.data.codes import draw_places
from hybridsep.data.effects import draws, vary
from hybridsep.data.slakh import load_source, read_tracks, track_sources

# Twice full scale fits: levelling raises the peaks of some drums above 1, and cutting them off would be heard.
FULL_SCALE = 16383.0
LARGEST = 2.0
SAMPLE = "<i2"
# Share of random pairs that come from one place of one song.
SAME_SONG_SHARES = {"same-song": 0.5, "random": 0.0}
GAIN_DB = 6.0


@dataclass(frozen=True)
class StemSet:
    """Stems of the songs of one split, one after the other, memory-mapped: `audio` is int16 [P, samples] of P sources.

    `pairing` says what a mixture is of. "same-song": sources that sound together in a song; training sees as many pairs of independent
    places besides. "random": sources of independent places only, as if no song were known to have both.
    """

    audio: np.ndarray
    names: tuple[str, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    sample_rate: int
    pairing: str = "same-song"

    def __len__(self) -> int:
        return len(self.names)

    def crop(self, source: int, track: int, start: int, length: int) -> Tensor:
        """Read samples [start, start + length) of one track's source, float32 [length]."""
        first = self.starts[track] + start
        return torch.from_numpy(self.audio[source, first : first + length].astype(np.float32) / FULL_SCALE)

    def song(self, track: int) -> Tensor:
        """Read every source of one track, float32 [P, samples]."""
        return torch.stack([self.crop(p, track, 0, self.lengths[track]) for p in range(len(self.audio))])

    def random_crops(self, source: int, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw crops at random places of random songs, float32 [count, length]."""
        return torch.stack([self.crop(source, *place, length) for place in self._places(count, length, generator)])

    def random_pairs(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw one crop per source, each at a random gain within ± GAIN_DB / 2, float32 [P, count, length].

        The first of the pairs, as many as `pairing` says, come from one place of one song each, the rest from independent places.
        """
        same = round(count * SAME_SONG_SHARES[self.pairing])
        drawn = [self._places(count, length, generator) for _ in self.audio]
        pairs = [drawn[0][:same] + places[same:] for places in drawn]
        crops = [torch.stack([self.crop(p, *place, length) for place in places]) for p, places in enumerate(pairs)]
        gains = (torch.rand(len(crops), count, 1, generator=generator) - 0.5) * GAIN_DB
        return torch.stack(crops) * 10 ** (gains / 20)

    def _places(self, count: int, length: int, generator: torch.Generator) -> list[tuple[int, int]]:
        return draw_places(self.lengths, count, length, generator, self.sample_rate, "seconds")


def mix(sources: Tensor) -> Tensor:
    """Return the mixture y = mean of the sources: [P, ...] -> [...]."""
    return sources.mean(0)


def build_stems(
    roots: Sequence[Path],
    split: str,
    sources: dict[str, str],
    rate: int,
    out: Path,
    effects: float = 0.0,
    seed: int = 0,
) -> None:
    """Read every track of `split` that has all `sources`, and write them to `out` as one memory-mappable array at `rate` Hz.

    A track's sources are scaled together so that their mixture has the RMS level MIXTURE_RMS, as any mixture to separate will be.
    On a share `effects` of the stems of split "train" a random sound effect is laid, each by itself (see `vary`), drawn from `seed` and
    the track's name. HybridsepError if no track of the split has all sources.
    """
    found = [track for root in roots for track in read_tracks(root, split)]
    tracks = [track for track in found if all(track_sources(track, sources).values())]
    share = effects if split == "train" else 0.0
    names, lengths = [], []
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Song after song: those of Slakh2100 would fill the memory. A source is of one piece, so each has a file first.
        parts = [stack.enter_context(tempfile.TemporaryFile(dir=out)) for _ in sources]
        for track in tqdm(tracks, desc=f"stems of {split}", unit="song"):
            stems = [
                vary(load_source(track, inst_class, rate), rate, share, draws(seed, track.name, source))
                for source, inst_class in sources.items()
            ]
            length = min(map(len, stems))
            song = np.stack([s[:length] for s in stems])
            level = float(np.sqrt(np.square(song.mean(0)).mean())) if length else 0.0
            if level > 0:
                levelled = np.clip(song * (MIXTURE_RMS / level), -LARGEST, LARGEST)
                for part, stem in zip(parts, np.round(levelled * FULL_SCALE).astype(SAMPLE), strict=True):
                    part.write(stem.tobytes())
                names.append(track.name)
                lengths.append(length)
        if not names:
            where, wanted = " and ".join(map(str, roots)), ", ".join(sources.values())
            raise HybridsepError(f"no track of split '{split}' in {where} has all of {wanted}, and any sound in them")
        with (out / f"{split}.tmp.npy").open("wb") as file:
            header = {"descr": SAMPLE, "fortran_order": False, "shape": (len(parts), sum(lengths))}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                part.seek(0)
                shutil.copyfileobj(part, file)
        (out / f"{split}.tmp.npy").replace(out / f"{split}.npy")
    index = {"names": names, "lengths": lengths, "sample_rate": rate, "sources": sources}
    (out / f"{split}.json").write_text(json.dumps(index))


def open_stems(folder: Path, split: str, pairing: str = "same-song") -> StemSet:
    """Open what `build_stems` wrote, without reading it into memory; `pairing` as in StemSet."""
    index = json.loads((folder / f"{split}.json").read_text())
    starts = [0, *np.cumsum(index["lengths"])[:-1].tolist()]
    audio = np.load(folder / f"{split}.npy", mmap_mode="r")
    return StemSet(audio, tuple(index["names"]), tuple(starts), tuple(index["lengths"]), index["sample_rate"], pairing)
