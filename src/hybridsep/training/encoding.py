"""Songs and random pairs of places in them as codes of a trained VQ-VAE."""

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from hybridsep.core.distributed import ALONE, Ranks
from hybridsep.data.codes import CodeSet
from hybridsep.data.stems import StemSet, mix
from hybridsep.models.vqvae import VQVAE

PAIR_BATCH = 16
PAIR_SECONDS = 3.0


def encode_songs(vqvae: VQVAE, stems: StemSet, silent: bool = False) -> CodeSet:
    """Encode every source of every song."""
    songs = []
    for track in tqdm(range(len(stems)), desc="encoding", unit="song", disable=silent):
        waveform = stems.song(track).to(vqvae.codebook.device)
        length = waveform.shape[1] // vqvae.hop * vqvae.hop
        songs.append(vqvae.encode(waveform[:, :length]).to(torch.int16).cpu())
    return CodeSet(tuple(songs))


def random_triples(
    vqvae: VQVAE, stems: StemSet, seconds: float, generator: torch.Generator, label: str = "", ranks: Ranks = ALONE
) -> Iterator[Tensor]:
    """Yield codes (first, second, mixture), int64 [3, n], of random pairs of so many seconds together: all ranks draw, each encodes its share."""
    samples = int(PAIR_SECONDS * stems.sample_rate) // vqvae.hop * vqvae.hop
    batches = max(1, round(seconds / (PAIR_BATCH * PAIR_SECONDS)))
    for number in tqdm(range(batches), desc=label, unit="batch", disable=not (label and ranks.first)):
        sources = stems.random_pairs(PAIR_BATCH, samples, generator)
        if number % ranks.count == ranks.index:
            waveform = torch.cat([*sources, mix(sources)]).to(vqvae.codebook.device)
            yield vqvae.encode(waveform).view(3, -1)
