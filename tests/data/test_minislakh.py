"""MiniSlakh's promises: the same songs for a seed, varied music, sound stems, Slakh's layout, safe resuming."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from hybridsep.data.minislakh.composer import (
    COMPOSER_VERSION,
    HIGHEST,
    LOWEST,
    PIANO_HIGHEST,
    PIANO_LOWEST,
    Note,
    Part,
    compose_song,
)
from hybridsep.data.minislakh.render import make_minislakh, render_song, track_folder
from hybridsep.data.minislakh.styles import BASS_RHYTHMS, BASSES, KEYS, KITS, PIANOS, PROGRESSIONS, STYLES
from hybridsep.data.slakh import read_tracks
from hybridsep.data.soundfont import Strike, hold, load_soundfont

SECONDS, RATE = 6.0, 22050


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of every file under a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def make(out: Path, tracks: int, workers: int = 1, **settings) -> Path:
    return make_minislakh(out, tracks, **{"seconds": SECONDS, "seed": 3, **settings}, workers=workers, progress=False)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Ten songs of 6 s, made by one process."""
    return make(tmp_path_factory.mktemp("mini") / "a", 10)


@pytest.fixture(scope="module")
def songs():
    return [compose_song(0, index, 30.0) for index in range(300)]


def test_files_are_byte_identical_whatever_the_number_of_tracks_and_workers(collection, tmp_path):
    other = make(tmp_path / "b", 8, workers=2)
    assert len(digests(other)) == 8 * 7 + 1
    assert digests(other).items() <= digests(collection).items()


def test_a_second_run_writes_nothing_new(collection):
    before = {file: file.stat().st_mtime_ns for file in collection.rglob("*")}
    make(collection, 10)
    assert before == {file: file.stat().st_mtime_ns for file in collection.rglob("*")}


def test_a_lost_track_is_made_again_byte_for_byte_and_no_other_is_touched(collection, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(collection, folder)
    before, kept = digests(folder), (track_folder(folder, 4) / "mix.flac").stat().st_mtime_ns
    shutil.rmtree(track_folder(folder, 1))
    (track_folder(folder, 2) / "stems" / "S01.flac").unlink()
    make(folder, 10)
    assert digests(folder) == before
    assert (track_folder(folder, 4) / "mix.flac").stat().st_mtime_ns == kept


def test_another_seed_gives_other_music():
    assert compose_song(0, 0, 10.0).parts["bass"].notes != compose_song(1, 0, 10.0).parts["bass"].notes


def test_songs_are_split_disjointly_and_by_index_alone(collection):
    tracks = read_tracks(collection)
    assert Counter(track.split for track in tracks) == {"train": 7, "validation": 1, "test": 2}
    assert len({track.name for track in tracks}) == 10
    assert len({track.metadata["UUID"] for track in tracks}) == 10
    assert track_folder(Path("x"), 17).parts == ("x", "validation", "Track00018")


@pytest.mark.parametrize("changed", [{"seed": 4}, {"seconds": 7.0}, {"sample_rate": 16000}])
def test_other_settings_in_the_same_folder_are_refused(collection, changed):
    with pytest.raises(ValueError, match="made with") as error:
        make(collection, 10, **changed)
    assert "\n" not in str(error.value)


def test_a_folder_of_real_songs_is_refused(tmp_path):
    (tmp_path / "train" / "Track00001").mkdir(parents=True)
    with pytest.raises(ValueError, match="another command made"):
        make(tmp_path, 1)


@pytest.mark.parametrize("wrong", [{"tracks": 0}, {"seconds": 0.1}, {"seed": -1}, {"sample_rate": 0}])
def test_senseless_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="MiniSlakh takes"):
        make_minislakh(tmp_path / "x", **{"tracks": 1, **wrong})
    assert not (tmp_path / "x").exists()


def test_stems_add_up_to_the_mix(collection):
    for track in read_tracks(collection):
        stems = [soundfile.read(stem.path)[0] for stem in track.stems]
        mix, rate = soundfile.read(track.path / "mix.flac")
        gain = track.metadata["minislakh"]["mix_gain"]
        assert rate == RATE and all(len(x) == len(mix) == round(SECONDS * RATE) for x in stems)
        assert np.abs(sum(stems) * gain - mix).max() < 2.5 / 32768
        assert track.metadata["overall_gain"] == gain


def test_files_are_mono_16_bit_flac_in_slakhs_layout(collection):
    settings = json.loads((collection / "minislakh.json").read_text())
    assert settings == {"composer": COMPOSER_VERSION, "seed": 3, "seconds": SECONDS, "sample_rate": RATE}
    for track in read_tracks(collection):
        names = sorted(str(file.relative_to(track.path)) for file in track.path.rglob("*") if file.is_file())
        assert names == sorted(
            "metadata.yaml mix.flac all_src.mid MIDI/S00.mid MIDI/S01.mid stems/S00.flac stems/S01.flac".split()
        )
        info = soundfile.info(track.path / "mix.flac")
        assert (info.channels, info.subtype, info.format) == (1, "PCM_16", "FLAC")
        assert [stem.inst_class for stem in track.stems] == ["Bass", "Drums"]
        block = yaml.safe_load((track.path / "metadata.yaml").read_text())["minislakh"]
        assert {"style", "tempo_bpm", "key", "meter", "gain_db", "kit"} <= block.keys()


def test_no_stem_is_silent_for_long_or_clipped():
    shares = {"bass": [], "drums": []}
    for index in range(100, 112):
        for name, samples in render_song(compose_song(0, index, 20.0), RATE).items():
            assert samples.dtype == np.float32 and np.isfinite(samples).all()
            assert np.abs(samples).max() <= 0.951
            level = 20 * np.log10(np.sqrt(np.mean(samples**2)))
            assert -40 < level < -15.5, (index, name, level)
            windows = samples[: 20 * RATE].reshape(20, RATE)
            shares[name].append(np.mean(np.sqrt(np.mean(windows**2, axis=1)) > 1e-3))
    for name, share in shares.items():
        assert np.mean(share) > 0.9 and min(share) >= 0.7, (name, share)


def test_midi_files_hold_the_composed_notes(collection):
    import symusic

    song = compose_song(3, 0, SECONDS)
    score = symusic.Score(str(track_folder(collection, 0) / "all_src.mid"))
    notes = {track.is_drum: len(track.notes) for track in score.tracks}
    assert notes == {False: len(song.parts["bass"].notes), True: len(song.parts["drums"].notes)}
    assert {track.is_drum: track.program for track in score.tracks} == {
        False: song.parts["bass"].program,
        True: song.parts["drums"].program,
    }


def test_a_collection_is_varied(songs):
    assert {song.parts["bass"].program for song in songs} == set(BASSES) == set(range(32, 40))
    assert {song.parts["drums"].program for song in songs} == set(KITS)
    assert {song.style for song in songs} == set(STYLES) and len(STYLES) >= 20
    assert {song.key.split()[0] for song in songs} == set(KEYS)
    assert {song.key.split()[1] for song in songs} == set(PROGRESSIONS)
    assert {song.meter for song in songs} == {"4/4", "3/4", "6/8"}
    tempos = [song.tempo_bpm for song in songs]
    assert min(tempos) >= 70 and max(tempos) <= 180 and min(tempos) < 75 and max(tempos) > 174 and np.std(tempos) > 20
    assert len({note.pitch for song in songs for note in song.parts["drums"].notes}) > 35


def test_no_two_songs_share_a_bar_of_drums_and_bass(songs):
    openings = Counter(
        tuple(
            (round(n.start * song.tempo_bpm / 15), n.pitch)
            for n in song.parts["drums"].notes + song.parts["bass"].notes
            if n.start < 4
        )
        for song in songs
    )
    assert max(openings.values()) == 1


def test_bass_lines_are_monophonic_in_range_and_follow_the_key(songs):
    for song in songs:
        for note, after in zip(song.parts["bass"].notes, song.parts["bass"].notes[1:], strict=False):
            assert note.start + note.duration <= after.start + 1e-3
        assert all(LOWEST <= note.pitch <= HIGHEST for note in song.parts["bass"].notes)
        assert all(
            0 <= n.start < song.duration and n.duration > 0 and 1 <= n.velocity <= 127
            for n in song.parts["drums"].notes
        )
    in_key = [
        (note.pitch - KEYS.index(song.key.split()[0])) % 12 in (0, 2, 4, 5, 7, 9, 11)
        for song in songs
        for note in song.parts["bass"].notes
        if song.key.endswith("major")
    ]
    assert 0.75 < np.mean(in_key) < 1.0  # the rest are passing notes and borrowed chords


def test_players_rest_for_a_few_bars_only(songs):
    for song in songs:
        for notes in (song.parts["bass"].notes, song.parts["drums"].notes):
            starts = [0.0, *(note.start for note in notes), song.duration]
            assert np.diff(starts).max() < 7.5, (song.index, song.style)


def test_kits_and_basses_sound_different():
    def spectrum(bank, program, key):
        samples = hold(Strike(bank, program, key, 112, RATE)).samples[:8000]
        return np.abs(np.fft.rfft(samples, 16000))

    basses = [spectrum(0, program, 36) for program in BASSES]
    kits = [np.concatenate([spectrum(128, kit, key) for key in (36, 38, 40, 42, 45)]) for kit in KITS if kit != 32]
    for sounds in (basses, kits):
        for i, one in enumerate(sounds):
            for other in sounds[:i]:
                assert np.linalg.norm(one - other) > 0.02 * np.linalg.norm(one)
    assert {program for bank, program in load_soundfont().presets if bank == 128} == set(KITS)


def test_the_sampler_hears_velocity_pitch_and_slides():
    def peak_hertz(samples):
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        return np.argmax(spectrum) * RATE / len(samples)

    held = hold(Strike(0, 33, 45, 112, RATE)).samples
    slid = hold(Strike(0, 33, 45, 112, RATE, slide=-5.0, slide_seconds=0.5)).samples
    assert peak_hertz(held[RATE : 2 * RATE]) == pytest.approx(110, abs=3)
    assert peak_hertz(slid[RATE : 2 * RATE]) == pytest.approx(110, abs=3)
    # a fourth below, rising: the second harmonic, which is the strongest, lies between 165 and 190 Hz
    assert 155 < peak_hertz(slid[: RATE // 8]) < 195
    soft, loud = (np.abs(np.fft.rfft(hold(Strike(0, 33, 45, v, RATE)).samples)) for v in (16, 112))
    assert (soft[20000:].sum() / soft.sum()) < (loud[20000:].sum() / loud.sum())


def test_a_closing_hat_damps_the_open_one():
    song = compose_song(0, 0, 2.0)

    def drums(*notes):
        sound = replace(song.parts["drums"].sound, room_wet=0.0, drive=0.0, damping=0.0)
        return render_song(replace(song, parts={"drums": Part(notes, 0, sound)}), RATE, ("drums",))["drums"]

    opened, closed = Note(0.1, 0.2, 46, 100), Note(0.5, 0.1, 42, 10)
    rings, damped = drums(opened), drums(opened, closed)
    after, before = slice(round(0.6 * RATE), RATE), slice(0, RATE // 2)
    share = [np.sum(x[after] ** 2) / np.sum(x[before] ** 2) for x in (rings, damped)]
    assert share[1] < 0.02 * share[0]


def test_every_grid_fits_its_bar():
    for name, style in STYLES.items():
        steps = 16 if (style.meter, style.steps_per_quarter) == ("4/4", 4) else 12
        grids = [*style.kick, *style.snare, *(g for _, g in style.time + style.extra), style.ghost, style.open]
        assert all(len(grid.replace(" ", "")) == steps for grid in grids if grid), name
        family = BASS_RHYTHMS[16 if steps == 16 else "triplet" if style.steps_per_quarter == 3 else "three"]
        for line in style.lines:
            assert line.split("/")[0] in {*family, "kick", "antikick", "riff"}, (name, line)


def test_bass_and_drums_are_those_of_before_there_was_a_piano():
    """Models are trained on these songs: for the same seed they must never change unnoticed."""
    songs = [compose_song(1, index, 20.0) for index in range(30)]
    played = []
    for s in songs:
        bass, drums = s.parts["bass"], s.parts["drums"]
        programs, notes, sounds = zip(*((p.program, p.notes, p.sound) for p in (bass, drums)), strict=True)
        played.append((s.style, s.tempo_bpm, s.meter, s.key, *programs, *notes, *sounds))
    digest = hashlib.sha256("".join(map(repr, played)).encode()).hexdigest()
    assert digest[:16] == "cf539d5d3e6b643d" and COMPOSER_VERSION == 4


def test_a_piano_beside_them_leaves_bass_and_drums_byte_for_byte(collection, tmp_path):
    folder = make(tmp_path / "trio", 3, parts=("bass", "drums", "piano"))
    for index in range(3):
        old, new = digests(track_folder(collection, index)), digests(track_folder(folder, index))
        for name in ("stems/S00.flac", "stems/S01.flac", "MIDI/S00.mid", "MIDI/S01.mid"):
            assert old[name] == new[name], name
        assert set(new) - set(old) == {"stems/S02.flac", "MIDI/S02.mid"}
    track = read_tracks(folder)[0]
    assert [stem.inst_class for stem in track.stems] == ["Bass", "Drums", "Piano"]
    stems, mix = [soundfile.read(stem.path)[0] for stem in track.stems], soundfile.read(track.path / "mix.flac")[0]
    assert np.abs(sum(stems) * track.metadata["minislakh"]["mix_gain"] - mix).max() < 3 / 32768
    with pytest.raises(ValueError, match="made with"):
        make(folder, 3)


def test_pianists_play_the_chords_of_their_songs_between_bass_and_cymbals(songs):
    assert {song.parts["piano"].program for song in songs} == set(PIANOS)
    for song in songs[:100]:
        assert all(
            PIANO_LOWEST <= note.pitch < PIANO_HIGHEST and 0 <= note.start < song.duration
            for note in song.parts["piano"].notes
        )
        starts = [0.0, *(note.start for note in song.parts["piano"].notes), song.duration]
        assert np.diff(starts).max() < 13, (song.index, song.style)
    together = [
        len(song.parts["piano"].notes) / len({note.start for note in song.parts["piano"].notes}) for song in songs
    ]
    in_key = [
        (n.pitch - KEYS.index(s.key.split()[0])) % 12 in (0, 2, 4, 5, 7, 9, 11)
        for s in songs
        for n in s.parts["piano"].notes
        if s.key.endswith("major")
    ]
    assert np.mean(in_key) > 0.85 and np.mean(together) > 1.0
    with pytest.raises(ValueError, match="no part 'oboe'"):
        render_song(songs[0], RATE, ("oboe",))


def test_pianos_can_be_heard():
    for index in range(4):
        samples = render_song(compose_song(0, index, 12.0), RATE, ("piano",))["piano"]
        level = np.sqrt(np.mean(samples.reshape(12, RATE) ** 2, axis=1))
        assert np.isfinite(samples).all() and np.abs(samples).max() <= 0.951 and np.mean(level > 1e-3) > 0.7


@pytest.mark.parametrize("arguments", [(-1, 0, 5.0), (0, -1, 5.0), (0, 0, 0.5), (0, 0, float("nan"))])
def test_compose_song_refuses_senseless_arguments(arguments):
    with pytest.raises(ValueError):
        compose_song(*arguments)
