"""Solo stems of a split: what is in the array is what is in the files, and random crops are where they say."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from tiny import seeded

from hybridsep.core.errors import HybridsepError
from hybridsep.core.level import MIXTURE_RMS
from hybridsep.data import stems as stems_module
from hybridsep.data.minislakh.render import make_minislakh
from hybridsep.data.slakh import load_source, read_tracks
from hybridsep.data.stems import FULL_SCALE, LARGEST, StemSet, build_stems, mix, open_stems
from hybridsep.evaluation.chunks import choose_chunks

RATE = 8000
SOURCES = {"bass": "Bass", "drums": "Drums"}


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    return make_minislakh(tmp_path_factory.mktemp("songs") / "MiniSlakh", 10, 6.0, 0, RATE, workers=1, progress=False)


@pytest.fixture(scope="module")
def stems(songs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stems")
    build_stems([songs], "train", SOURCES, RATE, folder)
    return open_stems(folder, "train")


def ramp(lengths=(100, 300, 200)):
    """A set whose samples say where they are: source p, time t holds 1000 p + t."""
    audio = np.stack([np.arange(sum(lengths)), 1000 + np.arange(sum(lengths))]).astype(np.int16)
    starts = tuple(int(s) for s in np.cumsum((0, *lengths[:-1])))
    return StemSet(audio, tuple("abc"), starts, lengths, RATE)


def test_every_song_of_the_split_is_there_and_memory_mapped(songs, stems):
    assert stems.names == tuple(t.name for t in read_tracks(songs, "train")) and len(stems) == 7
    assert isinstance(stems.audio, np.memmap) and stems.audio.dtype == np.int16
    assert sum(stems.lengths) == pytest.approx(42.0 * RATE, abs=0.1 * RATE) and stems.sample_rate == RATE


def test_crops_are_what_the_files_hold_at_the_songs_common_level(songs, stems):
    for index, track in enumerate(read_tracks(songs, "train")):
        files = np.stack([load_source(track, inst_class, RATE) for inst_class in SOURCES.values()])[
            :, : stems.lengths[index]
        ]
        expected = np.clip(files * MIXTURE_RMS / np.sqrt(np.square(files.mean(0)).mean()), -LARGEST, LARGEST)
        assert np.abs(stems.song(index).numpy() - expected).max() < 2 / FULL_SCALE
        for p in range(2):
            found = stems.crop(p, index, 1000, 20000).numpy()
            assert found.dtype == np.float32 and np.abs(found - expected[p, 1000:21000]).max() < 2 / FULL_SCALE


def test_levelling_cuts_off_next_to_nothing(stems):
    """A clipped stem is no longer the stem: peaks must fit under full scale."""
    assert np.mean(np.abs(stems.audio.astype(np.int32)) >= LARGEST * FULL_SCALE) < 1e-5


def test_built_twice_byte_for_byte(songs, tmp_path):
    for name in ("a", "b"):
        build_stems([songs], "validation", SOURCES, RATE, tmp_path / name)
    for file in ("validation.npy", "validation.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["validation.json", "validation.npy"]
    assert json.loads((tmp_path / "a" / "validation.json").read_text())["sources"] == SOURCES


def test_the_array_is_written_as_numpy_writes_it(stems, songs, tmp_path):
    build_stems([songs], "train", SOURCES, RATE, tmp_path)
    np.save(tmp_path / "again.npy", np.asarray(stems.audio))
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "train.npy").read_bytes()


def test_memory_of_building_does_not_grow_with_the_number_of_songs(songs, tmp_path):
    """Seven songs may take what one takes, and not a third of what their array would."""

    def peak(split: str) -> int:
        tracemalloc.start()
        build_stems([songs], split, SOURCES, RATE, tmp_path)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    peak("validation")  # whatever is imported with the first one
    one, seven = peak("validation"), peak("train")
    assert seven - one < (tmp_path / "train.npy").stat().st_size / 3, f"{one} bytes for one song, {seven} for seven"


def test_stems_are_resampled_to_the_asked_rate(songs, tmp_path):
    build_stems([songs], "validation", SOURCES, 16000, tmp_path)
    found = open_stems(tmp_path, "validation")
    assert open_stems(tmp_path, "validation", "random").pairing == "random" and found.pairing == "same-song"
    assert found.sample_rate == 16000 and sum(found.lengths) == pytest.approx(6.0 * 16000, abs=0.05 * 16000)


def test_split_without_the_sources_is_refused(songs, tmp_path):
    with pytest.raises(HybridsepError, match="no track of split 'test'.*Bass, Theremin"):
        build_stems([songs], "test", {"bass": "Bass", "theremin": "Theremin"}, RATE, tmp_path)


def test_split_whose_stems_are_all_empty_is_refused(songs, tmp_path):
    track = tmp_path / "songs" / "train" / "Track00001"
    (track / "stems").mkdir(parents=True)
    (track / "metadata.yaml").write_text("stems: {S00: {inst_class: Bass}, S01: {inst_class: Drums}}")
    for name in ("S00", "S01"):
        soundfile.write(track / "stems" / f"{name}.wav", np.zeros(0), RATE)
    with pytest.raises(HybridsepError, match="train"):
        build_stems([tmp_path / "songs"], "train", SOURCES, RATE, tmp_path / "out")


def test_random_crops_lie_inside_one_song():
    found = (ramp().random_crops(1, 500, 150, seeded()) * FULL_SCALE).round().int()
    assert found.shape == (500, 150) and (found.diff(dim=1) == 1).all()
    starts = found[:, 0] - 1000
    inside = ((starts >= 100) & (starts <= 250)) | ((starts >= 400) & (starts <= 450))
    assert inside.all() and {100, 250, 400, 450} <= set(starts.tolist())


def test_random_pairs_are_deterministic_and_change_with_the_seed(stems):
    first, again, other = (stems.random_pairs(6, 4000, seeded(s)) for s in (1, 1, 2))
    assert first.shape == (2, 6, 4000) and torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(("pairing", "same_songs"), [("same-song", 20), ("random", 0)])
def test_pairing_says_whether_sources_come_from_one_song(monkeypatch, pairing, same_songs):
    """The first ones, as many as are asked for; the default is same-song."""
    monkeypatch.setattr(stems_module, "GAIN_DB", 0.0)
    assert ramp().pairing == "same-song"
    stems = replace(ramp((3000,) * 3), pairing=pairing)
    found = (stems.random_pairs(40, 50, seeded()) * FULL_SCALE).round().int()
    same = (found[1, :, 0] - found[0, :, 0]) == 1000
    assert same[:same_songs].all() and not same[same_songs:].any()


def test_gains_stay_within_half_the_range_and_differ_between_sources(stems, monkeypatch):
    louder = stems.random_pairs(40, 500, seeded(3))
    monkeypatch.setattr(stems_module, "GAIN_DB", 0.0)
    plain = stems.random_pairs(40, 500, seeded(3))
    heard = plain.square().sum(-1) > 1e-6
    gain = 10 * torch.log10((louder.square().sum(-1) / plain.square().sum(-1))[heard])
    assert gain.abs().max() <= 3.0 + 1e-3 and gain.min() < -1.5 and gain.max() > 1.5


def test_mixture_is_the_mean_of_the_sources():
    sources = torch.randn(2, 3, 10)
    assert torch.allclose(mix(sources), 0.5 * sources[0] + 0.5 * sources[1])


def test_crop_longer_than_every_song_is_refused_with_both_lengths():
    with pytest.raises(HybridsepError, match=r"no song has 1 seconds; the longest has 0"):
        ramp().random_crops(0, 1, RATE, seeded())


@pytest.mark.parametrize("pairing", ["same-song", "random"])
def test_the_evaluations_chunks_pair_sources_as_training_does(pairing):
    """Every song is a level of its own, by which its samples are known."""
    levels = np.repeat(np.arange(1, 7) * 500, 3000).astype(np.int16)
    stems = StemSet(
        np.stack([levels, levels]), tuple("abcdef"), tuple(range(0, 18_000, 3000)), (3000,) * 6, 1000, pairing
    )
    chunks = choose_chunks(stems, ("bass", "drums"), 5, 2.0, 8, 0)
    songs = (chunks.sources[..., 0] * FULL_SCALE / 500).round().long() - 1
    assert [stems.names[i] for i in songs[0]] == list(chunks.tracks) and len(set(songs[1].tolist())) == 5
    assert (songs[0] == songs[1]).all() if pairing == "same-song" else (songs[0] != songs[1]).all()
