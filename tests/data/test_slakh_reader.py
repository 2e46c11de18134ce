"""The reader of Slakh's layout: MiniSlakh, Slakh2100-redux, BabySlakh, and what is malformed."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from slakh_archives import entry

from hybridsep.data.slakh import load_source, read_tracks, track_sources

RATE = 22050
CLASSES = {"bass": "Bass", "drums": "Drums"}


def write_track(
    path: Path, stems: dict[str, dict], audio: dict[str, np.ndarray], rate: int, ending: str = "flac"
) -> None:
    (path / "stems").mkdir(parents=True)
    metadata = {"UUID": "1a81ae092884234f3264e2f45927f00a", "audio_dir": "stems", "normalized": True, "stems": stems}
    (path / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    for name, samples in audio.items():
        soundfile.write(path / "stems" / f"{name}.{ending}", samples, rate)


def sine(hertz: float, rate: int, seconds: float = 1.0, level: float = 0.2) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def redux(tmp_path) -> Path:
    """A real-Slakh-like collection: 44.1 kHz, two basses (one stereo), one stem unrendered, one file missing."""
    stems = {
        "S00": entry("Bass", 33), "S01": entry("Drums", 128), "S02": entry("Bass", 38, plugin="None"),
        "S03": entry("Bass", 39, rendered=False), "S04": entry("Guitar", 27), "S05": entry("Bass (contrabass)", 43),
    }  # fmt: skip
    high = sine(220, 44100, 0.5)
    audio = {
        "S00": sine(110, 44100), "S01": sine(500, 44100), "S02": np.stack([high, 0 * high], axis=1),
        "S03": sine(3000, 44100), "S05": sine(700, 44100),
    }  # fmt: skip
    write_track(tmp_path / "train" / "Track00002", stems, audio, 44100)
    write_track(tmp_path / "train" / "Track00001", {"S00": entry("Piano", 0)}, {"S00": sine(440, 44100)}, 44100)
    write_track(tmp_path / "test" / "Track01876", stems, audio, 44100)
    return tmp_path


def test_tracks_are_sorted_and_split(redux):
    assert [(t.name, t.split) for t in read_tracks(redux)] == [
        ("Track00001", "train"), ("Track00002", "train"), ("Track01876", "test"),
    ]  # fmt: skip
    assert [t.name for t in read_tracks(redux, "test")] == ["Track01876"]
    assert read_tracks(redux, "validation") == []
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        read_tracks(redux, "dev")


def test_unrendered_and_missing_stems_are_left_out(redux):
    track = read_tracks(redux, "test")[0]
    assert [stem.name for stem in track.stems] == ["S00", "S01", "S02", "S05"]


def test_sources_match_the_class_exactly(redux):
    sources = track_sources(read_tracks(redux, "test")[0], CLASSES)
    assert {name: [stem.name for stem in stems] for name, stems in sources.items()} == {
        "bass": ["S00", "S02"],
        "drums": ["S01"],
    }
    assert track_sources(read_tracks(redux)[0], CLASSES) == {"bass": [], "drums": []}


def test_stems_are_averaged_over_channels_resampled_and_summed(redux):
    track = read_tracks(redux, "test")[0]
    bass = load_source(track, "Bass", RATE)
    assert bass.dtype == np.float32 and bass.shape == (RATE,)
    expected = sine(110, RATE)
    expected[: RATE // 2] += 0.5 * sine(220, RATE, 0.5)
    inner = np.r_[500 : RATE // 2 - 500, RATE // 2 + 500 : RATE - 500]  # away from the resampler's edges
    assert np.abs(bass - expected)[inner].max() < 2e-3
    with pytest.raises(ValueError, match="no stem of class 'Violin'"):
        load_source(track, "Violin", RATE)


def test_babyslakh_keeps_tracks_at_the_root_as_wav(tmp_path):
    write_track(tmp_path / "Track00001", {"S00": entry("Bass", 33)}, {"S00": sine(110, RATE)}, RATE, "wav")
    track = read_tracks(tmp_path)[0]
    assert track.split == "train" and track.stems[0].path.name == "S00.wav"
    assert len(read_tracks(tmp_path, "train")) == 1 and read_tracks(tmp_path, "test") == []
    assert load_source(track, "Bass", RATE) == pytest.approx(sine(110, RATE), abs=1e-3)


# The keys of a genuine metadata.yaml in their order; redux and BabySlakh differ where the braces are.
GENUINE = """
UUID: 0d3f1b8a55c24c1f9d20a4b7c6e81f35
audio_dir: {folder}stems
lmd_midi_dir: lmd_matched/A/B/C/TRABCDE128F0000000/0d3f1b8a55c24c1f9d20a4b7c6e81f35.mid
midi_dir: {folder}MIDI
normalization_factor: -13.0
normalized: true
overall_gain: 0.25
stems:
  S01: {{audio_rendered: {rendered}, inst_class: Drums, integrated_loudness: -27.5, is_drum: true,
         midi_program_name: Drums, midi_saved: {rendered}, plugin_name: session_kit.nkm, program_num: 128}}
  S02: {{audio_rendered: {rendered}, inst_class: Strings (continued), integrated_loudness: -17.5, is_drum: false,
         midi_program_name: Choir Aahs, midi_saved: {rendered}, plugin_name: choir.nkm, program_num: 52}}
  S05: {{audio_rendered: {rendered}, inst_class: Bass, integrated_loudness: -21.5, is_drum: false,
         midi_program_name: Electric Bass (finger), midi_saved: {rendered}, plugin_name: bass.nkm, program_num: 33}}
  S06: {{audio_rendered: false, inst_class: Sound Effects, is_drum: false,
         midi_program_name: FX 8 (sci-fi), midi_saved: false, plugin_name: None, program_num: 103}}
target_peak: -1.0
"""


@pytest.mark.parametrize(("folder", "rendered", "ending"), [("Track00001/", "true", "flac"), ("", "false", "wav")])
def test_genuine_metadata_is_read_with_all_its_quirks(tmp_path, folder, rendered, ending):
    """A path with the track's name, program 128, numbers left out, and a stem without loudness that was not rendered."""
    track = tmp_path / ("train" if folder else "") / "Track00001"
    write_track(track, {}, {name: sine(110, RATE) for name in ("S01", "S02", "S05")}, RATE, ending)
    (track / "metadata.yaml").write_text(GENUINE.format(folder=folder, rendered=rendered))
    found = read_tracks(tmp_path)[0]
    assert [(s.name, s.inst_class) for s in found.stems] == [
        ("S01", "Drums"), ("S02", "Strings (continued)"), ("S05", "Bass"),
    ]  # fmt: skip
    assert found.metadata["stems"]["S06"]["plugin_name"] == "None" and found.metadata["overall_gain"] == 0.25
    assert {name: len(stems) for name, stems in track_sources(found, CLASSES).items()} == {"bass": 1, "drums": 1}
    assert load_source(found, "Bass", RATE) == pytest.approx(sine(110, RATE), abs=1e-3)


def test_babyslakh_calls_no_stem_rendered_and_those_that_are_there_are_read(tmp_path):
    stems = {
        name: entry(kind, 33, rendered=False) for name, kind in (("S00", "Bass"), ("S01", "Drums"), ("S02", "Bass"))
    }
    write_track(tmp_path / "Track00001", stems, {"S00": sine(110, RATE), "S01": sine(500, RATE)}, RATE, "wav")
    assert [stem.name for stem in read_tracks(tmp_path)[0].stems] == ["S00", "S01"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stems: !!python/object/apply:os.system ['touch hacked']", "not plain YAML"),
        ("stems: [", "not plain YAML"),
        ("just a line", "lists no stems"),
        ("stems: {S00: 3}", "lists no stems"),
        ("stems: {S00: {is_drum: true}}", "no inst_class"),
        ("stems: {../../S00: {inst_class: Bass}}", "no file name"),
    ],
)
def test_malformed_metadata_is_refused_in_one_line(tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    track = tmp_path / "train" / "Track00001"
    track.mkdir(parents=True)
    (track / "metadata.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        read_tracks(tmp_path)
    assert "\n" not in str(error.value) and "metadata.yaml" in str(error.value)
    assert not (tmp_path / "hacked").exists()


def test_missing_folders_and_metadata_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_tracks(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no tracks in"):
        read_tracks(tmp_path)
    (tmp_path / "train" / "Track00001").mkdir(parents=True)
    with pytest.raises(ValueError, match="no metadata.yaml"):
        read_tracks(tmp_path)


@pytest.mark.parametrize(("samples", "reason"), [(None, "not audio"), (np.array([0.0, np.nan, 0.1]), "not finite")])
def test_broken_audio_is_named(tmp_path, samples, reason):
    track = tmp_path / "Track00001"
    write_track(track, {"S00": entry("Bass", 33)}, {}, RATE)
    file = track / "stems" / "S00.wav"
    if samples is None:
        file.write_bytes(b"no sound")
    else:
        soundfile.write(file, samples, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=reason) as error:
        load_source(read_tracks(tmp_path)[0], "Bass", RATE)
    assert "S00.wav" in str(error.value)
