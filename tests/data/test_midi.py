"""Songs from MIDI files: Slakh's layout, variants that their metadata brings back, splits without a common song, absurd files listed."""

import csv
import struct
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import symusic
from command import run
from midi_files import song_bytes

from hybridsep.data.midi import Recipe, Variant, make_songs, read_song, render_variant, split_of
from hybridsep.data.slakh import load_source, read_tracks
from hybridsep.data.soundfont import own_soundfont

RATE = 8000


def raw_midi(events, division=480):
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, division) + b"MTrk" + struct.pack(">I", len(events)) + events


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four songs, one of them twice, and files that are none."""
    root = tmp_path_factory.mktemp("midi")
    (root / "deep").mkdir()
    for i in range(4):
        (root / f"deep/song {i}.mid").write_bytes(song_bytes(30 + i, tempo=100 + 10 * i))
    (root / "equal.MID").write_bytes(song_bytes(30, tempo=100))
    hit = b"\x00\x99\x24\x64\x10\x99\x24\x00"
    (root / "million.mid").write_bytes(raw_midi(hit * 1_000_000))
    (root / "many.mid").write_bytes(raw_midi(b"\x00\xc0\x21\x00\x90\x21\x64\x10\x80\x21\x00" + hit * 200_000))
    (root / "cut.mid").write_bytes(song_bytes()[:200])
    (root / "empty.mid").write_bytes(b"")
    (root / "text.mid").write_text("no song")
    (root / "no-ticks.mid").write_bytes(raw_midi(b"\x00\xc0\x21\x00\x90\x21\x64\x10\x80\x21\x00" + hit, 0))
    (root / "no-drums.mid").write_bytes(song_bytes(drums=False))
    (root / "no-bass.mid").write_bytes(song_bytes(bass=0))
    (root / "short.mid").write_bytes(song_bytes(bars=1))
    return root


@pytest.fixture(scope="module")
def recipe():
    return Recipe((own_soundfont(),), seconds=6.0, variants=3, seed=5, sample_rate=RATE)


@pytest.fixture(scope="module")
def made(folder, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("songs")
    return out, make_songs(out, folder, recipe, workers=1)


def reasons(out):
    with (out / "skipped.csv").open() as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def contents(out):
    return {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_the_reader_of_slakh_reads_the_songs(made):
    out, summary = made
    tracks = read_tracks(out)
    assert len(tracks) == 12 == sum(summary.tracks.values()) and summary.songs == 4
    for track in tracks:
        bass, drums = (load_source(track, c, RATE) for c in ("Bass", "Drums"))
        mix, _ = soundfile.read(track.path / "mix.flac")
        assert len(bass) == len(drums) == 6 * RATE == len(mix)
        gain = track.metadata["overall_gain"]
        assert np.abs(mix - gain * (bass + drums)).max() < 1e-3
        for stem in (bass, drums):
            assert 0.02 < np.sqrt(np.mean(stem**2)) and np.abs(stem).max() <= 0.951


def test_a_variant_is_played_again_from_its_metadata(made, folder, recipe):
    out, _ = made
    for track in read_tracks(out)[:6]:
        said = {k: v for k, v in track.metadata["variant"].items() if k not in ("notes", "recipe")}
        variant = Variant(**said)
        song = read_song(variant.song, (folder / f"{variant.song}.mid").read_bytes())
        assert song.fingerprint == track.metadata["variant"]["notes"]
        stems = render_variant(song, variant, recipe.soundfonts, RATE)
        for name, inst_class in (("bass", "Bass"), ("drums", "Drums")):
            assert np.abs(stems[name] - load_source(track, inst_class, RATE)).max() < 1e-4


def test_variant_0_is_the_song_as_written_and_the_others_differ(made):
    variants = [track.metadata["variant"] for track in read_tracks(made[0])]
    written = [v for v in variants if v["number"] == 0]
    assert all((v["tempo"], v["transposition"], v["programs"]["bass"]) == (1.0, 0, 33) for v in written)
    others = [v for v in variants if v["number"] > 0]
    assert len({(v["tempo"], v["transposition"]) for v in others}) == len(others)
    assert all(0.85 <= v["tempo"] <= 1.15 and -4 <= v["transposition"] <= 4 for v in others)


def test_splits_share_no_song(made, folder, recipe, tmp_path):
    splits = {}
    for track in read_tracks(made[0]):
        splits.setdefault(track.metadata["variant"]["song"], set()).add(track.split)
    assert all(len(found) == 1 for found in splits.values())
    only = make_songs(tmp_path, folder, recipe, split="test")
    assert set(only.tracks) <= {"test"} and only.tracks.get("test", 0) == made[1].tracks.get("test", 0)
    shares = [split_of(f"song {i}") for i in range(2000)]
    assert abs(shares.count("train") - 1200) < 100 and abs(shares.count("validation") - 300) < 60


def test_effects_and_timbres_are_for_training_only_and_come_back(recipe, tmp_path):
    varied = replace(recipe, variety=1.0)
    for i in range(12):
        (tmp_path / f"{i}.mid").write_bytes(song_bytes(28 + i))
    make_songs(tmp_path / "out", tmp_path, varied)
    drawn = {True: set(), False: set()}
    for track in read_tracks(tmp_path / "out"):
        said = track.metadata["variant"]
        drawn[track.split == "train"] |= {*said["effects"].values(), *said["timbres"].values()}
        if said["timbres"]["bass"]:
            variant = Variant(**{k: v for k, v in said.items() if k not in ("notes", "recipe")})
            song = read_song(variant.song, (tmp_path / f"{variant.song}.mid").read_bytes())
            stems = render_variant(song, variant, recipe.soundfonts, RATE)
            assert np.abs(stems["bass"] - load_source(track, "Bass", RATE)).max() < 1e-4
    assert drawn[False] == {""} and drawn[True] > {"synthesised", "plucked", "oscillators"}


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("equal", "the same notes as deep/song 0"), ("million", "bytes"), ("many", "200000 notes of drums"), ("cut", "broken MIDI"),
        ("empty", "not a MIDI file"), ("text", "not a MIDI file"), ("no-ticks", "not numbers"), ("no-drums", "no drums"),
        ("no-bass", "no bass"), ("short", "together"),
    ],
)  # fmt: skip
def test_files_that_are_no_songs_are_listed(made, file, reason):
    found = reasons(made[0])
    # of equal songs the first by name is kept
    assert reason in found[file] if file != "equal" else "the same notes" in str(found)
    assert len(found) == 10


def test_times_that_are_negative_or_endless_are_refused():
    endless = raw_midi(
        b"\x00\xff\x51\x03\xff\xff\xff\x00\xc0\x21\x00\x90\x21\x64\xff\xff\xff\x7f\x80\x21\x00\x00\x99\x24\x64\x10\x99\x24\x00"
    )
    with pytest.raises(ValueError, match="above 3600 s"):
        read_song("endless", endless)

    score = symusic.Score.from_midi(song_bytes())
    score.tracks[0].notes[0].time = -960  # in a file, a huge step forward
    with pytest.raises(ValueError, match="negative"):
        read_song("negative", score.dumps_midi())


def test_run_again_it_goes_on_and_makes_the_same(made, folder, recipe, tmp_path):
    out, _ = made
    before = contents(out)
    victim = read_tracks(out)[4].path
    (victim / "metadata.yaml").unlink()
    make_songs(out, folder, recipe, workers=2)
    assert contents(out) == before
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "deep").mkdir()
    (alone / "deep/song 2.mid").write_bytes((folder / "deep/song 2.mid").read_bytes())
    make_songs(tmp_path / "out", alone, recipe, workers=1)
    for path, content in contents(tmp_path / "out").items():
        if path.parts[0] in ("train", "validation", "test"):
            assert before[path] == content


def test_bad_arguments_end_in_one_line(folder, made, tmp_path):
    font = own_soundfont()
    broken, halved = tmp_path / "broken.sf2", tmp_path / "halved.sf2"
    broken.write_bytes(b"RIFF, but no SoundFont" * 10)
    halved.write_bytes(font.read_bytes()[:3_000_000])
    (tmp_path / "void").mkdir()
    cases = [
        (("--midi", folder, "--soundfont", broken), "no SoundFont"),
        (("--midi", folder, "--soundfont", halved), "no whole SoundFont"),
        (("--midi", folder, "--soundfont", tmp_path / "missing.sf2"), "no SoundFont at"),
        (("--midi", folder, "--soundfont", font, "--soundfont", font), "a file name of its own"),
        (("--midi", tmp_path / "void", "--soundfont", font), "no MIDI files in"),
        (("--midi", tmp_path / "nowhere", "--soundfont", font), "no folder"),
        (("--midi", folder, "--soundfont", font, "--variety", "2"), "from 0 to 1"),
        (("--midi", folder, "--soundfont", font, "--split", "omitted"), "unknown split"),
    ]
    for args, said in cases:
        status, _, err = run("data", "midi", tmp_path / "out", *args)
        assert status == 1 and said in err and len(err.strip().splitlines()) == 1
    status, _, err = run("data", "midi", made[0], "--midi", folder, "--soundfont", font)
    assert status == 1 and "choose another folder" in err and len(err.strip().splitlines()) == 1


def test_pitch_wheel_and_volume_are_heard():
    score = symusic.Score.from_midi(song_bytes())
    score.tracks[0].pitch_bends.append(symusic.PitchBend(480 * 4 + 100, 8191))
    score.tracks[0].controls.append(symusic.ControlChange(480 * 8, 7, 50))
    notes = read_song("bent", score.dumps_midi()).notes["bass"]
    assert not notes[0].bends and notes[4].bends[-1][1] == pytest.approx(2.0, abs=0.01)
    assert notes[9].gain == pytest.approx(notes[0].gain / 4)
