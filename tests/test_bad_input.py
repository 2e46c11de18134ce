"""Bad input, by name and by the hundred: one line, a status, nothing half-written, never a traceback."""

import hashlib
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command import lines_of, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import RATE, long_hop_separator

from hybridsep.inference.separator import Separator

GENERATED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
FILES = [
    "likelihood.safetensors",
    "prior-bass.safetensors",
    "prior-drums.safetensors",
    "profile.json",
    "SHA256SUMS",
    "vqvae.safetensors",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    long_hop_separator().save(folder)
    return folder


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """The same, with 9 codes."""
    folder = tmp_path_factory.mktemp("models") / "other"
    long_hop_separator(9).save(folder)
    return folder


def separate(*args):
    """Exit status of `hybridsep separate ARGS`, and the lines it says."""
    status, _, err = run("separate", *args)
    return status, lines_of(err)


def contents(folder):
    return {p.name: p.read_bytes() if p.is_file() else None for p in folder.iterdir()} if folder.is_dir() else None


def refused(recording, out, model, *args):
    """The one line that says why; nothing in `out` has changed."""
    before = contents(out)
    status, said = separate(recording, out, "--model", model, *args)
    assert status == 1 and len(said) == 1 and said[0].startswith("hybridsep: ") and len(said[0]) < 1000
    assert contents(out) == before
    return said[0]


def separated_or_refused(recording, out, model, *args):
    """Whether there are stems: of the recording's size and finite, that sum to it. If not, one line says why and nothing has changed."""
    before = contents(out)
    status, said = separate(recording, out, "--model", model, *args)
    if status == 0:
        assert all(line.startswith("warning: ") for line in said), said
        mixture, rate = soundfile.read(recording, always_2d=True, dtype="float32")
        stems = [soundfile.read(out / f"{name}.wav", always_2d=True, dtype="float32") for name in ("bass", "drums")]
        assert all(r == rate and s.shape == mixture.shape and np.isfinite(s).all() for s, r in stems)
        peak = float(np.abs(mixture).max())
        if peak > 1e-37:
            error = (
                np.square((sum(s.astype(float) for s, _ in stems) - mixture) / peak).sum()
                / np.square(mixture.astype(float) / peak).sum()
            )
            assert error < 1e-6
        assert sorted(p.name for p in out.iterdir()) == ["bass.wav", "drums.wav"]
        return True
    assert status == 1 and len(said) == 1 and said[0].startswith("hybridsep: ") and len(said[0]) < 1000, said
    assert contents(out) == before
    return False


def noise(frames, channels=1, seed=0):
    return 0.2 * np.random.default_rng(seed).standard_normal((frames, channels))


@pytest.fixture
def song(tmp_path):
    soundfile.write(tmp_path / "song.wav", noise(4000), RATE)
    return tmp_path / "song.wav"


# --- by name ---------------------------------------------------------------------------------------------------------------


def write_bad(path, kind):
    if kind == "directory":
        path.mkdir()
    elif kind == "empty file":
        path.touch()
    elif kind == "text renamed to .wav":
        path.write_text("this is no music\n" * 100)
    elif kind in ("NaN", "Inf"):
        samples = noise(4000)
        samples[3999] = float(kind)
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    elif kind == "0 samples":
        soundfile.write(path, noise(0), RATE)
    elif kind == "10 ms":
        soundfile.write(path, noise(80), RATE)
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x8c\x04exit\x93)R.")


WORDS = {
    "missing file": "no file", "directory": "is a folder", "empty file": "is no audio", "text renamed to .wav": "is no audio", "NaN": "no finite numbers",
    "Inf": "no finite numbers", "0 samples": "lasts 0.000 s", "10 ms": "lasts 0.010 s", "pickle": "is no audio",
}  # fmt: skip


@pytest.mark.parametrize("kind", WORDS)
def test_recording_that_is_none_is_refused_by_name(model, tmp_path, kind):
    path = tmp_path / "song.wav"
    write_bad(path, kind)
    said = refused(path, tmp_path / "out", model)
    assert str(path) in said and WORDS[kind] in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("rate, channels", [(384_000, 1), (44_100, 7), (384_000, 7), (1_000_003, 1)])
def test_unusual_rates_and_channels_are_separated(model, tmp_path, rate, channels):
    soundfile.write(tmp_path / "song.wav", noise(rate // 4, channels), rate)
    assert separated_or_refused(tmp_path / "song.wav", tmp_path / "out", model)


def test_silence_becomes_silence_with_a_warning(model, tmp_path):
    soundfile.write(tmp_path / "song.wav", np.zeros((4000, 2)), RATE)
    status, said = separate(tmp_path / "song.wav", tmp_path / "out", "--model", model)
    assert status == 0 and said == ["warning: the recording is silent throughout; so are its stems"]
    assert all((soundfile.read(p)[0] == np.zeros((4000, 2))).all() for p in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", FILES)
def test_model_that_misses_a_file_is_refused_by_name(model, song, tmp_path, name):
    broken = shutil.copytree(model, tmp_path / "model")
    (broken / name).unlink()
    assert f"{name} is missing" in refused(song, tmp_path / "out", broken)


def test_model_of_a_wrong_hash_is_refused_by_name(model, song, tmp_path):
    broken = shutil.copytree(model, tmp_path / "model")
    content = bytearray((broken / "vqvae.safetensors").read_bytes())
    content[-1] ^= 1
    (broken / "vqvae.safetensors").write_bytes(content)
    said = refused(song, tmp_path / "out", broken)
    assert "vqvae.safetensors is damaged or of another model: its SHA-256" in said


@pytest.mark.parametrize("name", ["vqvae.safetensors", "prior-bass.safetensors", "likelihood.safetensors"])
def test_model_of_another_codebook_size_is_refused_by_name(model, other_model, song, tmp_path, name):
    broken = shutil.copytree(model, tmp_path / "model")
    shutil.copy(other_model / name, broken / name)
    sign(broken)
    said = refused(song, tmp_path / "out", broken)
    assert f"{name} does not fit" in said or "likelihood of 9 codes, VQ-VAE of 12" in said


def test_output_that_cannot_be_written_is_refused_before_the_work(model, song, tmp_path, monkeypatch):
    monkeypatch.setattr(Separator, "separate_blocks", None)  # what would be called if it were not
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken" / "deeper", "/proc/nowhere", "/dev/null/out"):
        assert "cannot write wav stems" in refused(song, Path(out), model)
    assert (tmp_path / "taken").read_text() == "mine"


def test_output_that_exists_is_kept_without_overwrite(model, song, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "drums.wav").write_text("mine")
    assert "drums.wav exists already; give --overwrite" in refused(song, out, model)
    assert "is no model" in refused(song, out, tmp_path / "nowhere", "--overwrite")
    assert separated_or_refused(song, out, model, "--overwrite")


# --- by the hundred --------------------------------------------------------------------------------------------------------


def encoded(suffix, frames=3000, channels=1):
    """A sound file of that format."""
    file = io.BytesIO()
    soundfile.write(file, noise(frames, channels), RATE, format=suffix.upper())
    return file.getvalue()


VALID = {suffix: encoded(suffix) for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64")}
edits = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4)


def edited(content, changes, keep=1.0):
    """Overwritten in places, which lie as shares of its length, and cut off."""
    content = bytearray(content)
    for place, new in changes:
        start = int(place * (len(content) - 1))
        content[start : start + len(new)] = new
    return bytes(content[: int(keep * len(content))])


near_the_beginning = st.lists(
    st.tuples(st.floats(0, 1).map(lambda place: place**3), st.binary(min_size=1, max_size=8)), max_size=4
)
cuts = st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.01])


def test_no_file_ends_in_a_traceback(model):
    seen = []

    @settings(max_examples=120, **GENERATED)
    @given(
        st.sampled_from(sorted(VALID)),
        st.sampled_from(sorted(VALID)),
        near_the_beginning,
        cuts,
        st.binary(max_size=300),
    )
    def holds(suffix, form, changes, keep, anything):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"song.{suffix}")
            path.write_bytes(anything if len(anything) > 200 else edited(VALID[form], changes, keep))
            seen.append(separated_or_refused(path, Path(folder, "out"), model, "--particles", 1))

    holds()
    assert len(seen) >= 120 and 10 < sum(seen) < len(seen) - 10


special = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-39, 3.4e38, -3.4e38, 1e308, 1.0])


@st.composite
def waveforms(draw):
    """A rate and samples: noise of any level from denormal numbers to the largest, of up to 8 channels and 4 s, some of them replaced."""
    rate = draw(st.one_of(st.sampled_from([8000, 11025, 22050, 44100, 48000, 96000, 384_000]), st.integers(1, 400_000)))
    channels = draw(st.integers(1, 8))
    frames = draw(st.integers(0, max(1, min(4 * rate, 100_000 // channels))))
    samples = noise(frames, channels, draw(st.integers(0, 99))) * 10.0 ** draw(st.integers(-46, 37))
    for place, value in draw(st.lists(st.tuples(st.floats(0, 1), special), max_size=3)):
        samples[int(place * (frames - 1)) if frames else slice(0)] = value
    return rate, samples, draw(st.sampled_from(["FLOAT", "DOUBLE", "PCM_16"]))


def test_no_waveform_ends_in_a_traceback(model):
    seen = []

    @settings(max_examples=120, **GENERATED)
    @given(waveforms(), st.sampled_from([(), ("--search", "beam"), ("--search", "topk")]))
    def holds(waveform, args):
        rate, samples, subtype = waveform
        with tempfile.TemporaryDirectory() as folder, np.errstate(over="ignore", invalid="ignore"):
            soundfile.write(Path(folder, "song.wav"), samples, rate, subtype=subtype)
            seen.append(separated_or_refused(Path(folder, "song.wav"), Path(folder, "out"), model, *args))

    holds()
    assert len(seen) >= 120 and 10 < sum(seen) < len(seen) - 10


def sign(model):
    """Say that the files of a model are as they were saved."""
    names = sorted(p.name for p in model.iterdir() if p.name != "SHA256SUMS")
    (model / "SHA256SUMS").write_text(
        "".join(f"{hashlib.sha256((model / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    )


damages = st.one_of(
    st.just(("missing",)),
    st.just(("of another model",)),
    st.tuples(st.just("cut off"), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("overwritten"), edits.filter(len)),
    st.tuples(
        st.just("setting"),
        st.sampled_from(["seed", "sources", "vqvae", "prior", "search"]),
        st.sampled_from([None, -1, 1e308, "x", [], {}]),
    ),
)


def damage(model, name, how, other):
    """Do it to one file of a model."""
    path = model / name
    if how[0] == "missing":
        path.unlink()
    elif how[0] == "of another model":
        shutil.copy(other / name, path)
    elif how[0] == "cut off":
        path.write_bytes(path.read_bytes()[: int(how[1] * path.stat().st_size)])
    elif how[0] == "setting":
        settings_of = json.loads((model / "profile.json").read_text())
        (model / "profile.json").write_text(json.dumps({**settings_of, how[1]: how[2]}))
    else:
        path.write_bytes(edited(path.read_bytes(), how[1]))


def test_no_damaged_model_ends_in_a_traceback(model, other_model, tmp_path_factory):
    song = tmp_path_factory.mktemp("song") / "song.wav"
    soundfile.write(song, noise(2000), RATE)
    seen = []

    @settings(max_examples=120, **GENERATED)
    @given(st.sampled_from(FILES), damages, st.booleans())
    def holds(name, how, signed):
        with tempfile.TemporaryDirectory() as folder:
            broken = shutil.copytree(model, Path(folder, "model"))
            damage(broken, name, how, other_model)
            changed = contents(broken) != contents(model)
            if signed and name != "SHA256SUMS":
                sign(broken)
            worked = separated_or_refused(song, Path(folder, "out"), broken)
            assert not (worked and changed and not signed and name != "SHA256SUMS"), "damage was not noticed"
            seen.append(worked)

    holds()
    assert len(seen) >= 120 and sum(seen) < len(seen) / 2
