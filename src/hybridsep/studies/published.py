"""Scores that others published for these methods, to stand beside ours: never in one column with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedScore:
    """SDR of one method as its authors report it.

    Attributes:
        who: whose experiment.
        method: as in METHODS.
        search: how codes were found; empty where it is not said.
        sdr: dB by source.
        seconds: of one chunk of three seconds; None where it is not said.
    """

    who: str
    method: str
    search: str
    sdr: dict[str, float]
    seconds: float | None = None


SEED_PROJECT = "seed project"
SECOND_PROJECT = "second student project"

# Both student projects separated bass and drums of Slakh2100. The seed project: 300 tracks at 22 050 Hz, 210 for training, 30 test chunks
# of 3 s, on a Colab T4; best of the samples of each source by the ground truth, in museval's default window.
PUBLISHED = (
    PublishedScore(SEED_PROJECT, "lqvae", "ancestral", {"bass": 3.41, "drums": 5.41}, 254.77),
    PublishedScore(SEED_PROJECT, "lass", "ancestral", {"bass": 3.22, "drums": 4.78}, 148.57),
    PublishedScore(SEED_PROJECT, "hybrid", "ancestral", {"bass": 4.72, "drums": 5.15}, 148.4),
    PublishedScore(SECOND_PROJECT, "lass", "beam", {"bass": 0.12, "drums": 0.66}),
    PublishedScore(SECOND_PROJECT, "hybrid", "beam", {"bass": 1.16, "drums": 1.79}),
    PublishedScore(SECOND_PROJECT, "lass", "topk", {"bass": 1.69, "drums": 1.75}),
    PublishedScore(SECOND_PROJECT, "hybrid", "topk", {"bass": 2.87, "drums": 3.23}),
    PublishedScore(SECOND_PROJECT, "lqvae", "", {"bass": 2.80, "drums": 2.90}),
)

NOT_THE_SAME = (
    "These are not one experiment: the published models were trained on real Slakh2100 songs, with hours of a Colab T4 and larger codebooks and "
    "priors, ours on composed MiniSlakh songs with the wall-clock budget of their profile on the hardware named below; songs, chunks, "
    "sizes and numbers of samples differ. Only the protocol is the same: the best sample of each source by the ground truth, in museval's default window."
)
