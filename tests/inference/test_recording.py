"""A person's own recording: read what they have, give back stems of its length and rate, refuse what is no audio."""

import os
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from tiny import RATE, long_hop_separator, seeded, tiny_separator

from hybridsep.core.errors import HybridsepError
from hybridsep.inference.audio import Audio
from hybridsep.inference.recording import read_audio, separate_file, stem_paths, stem_writer, uncertainty_table
from hybridsep.inference.separator import BANDS, SearchOptions

pytestmark = pytest.mark.slow
NAMES = ("bass", "drums")


@pytest.fixture(scope="module")
def separator():
    return tiny_separator(search={"particles": 2})


@pytest.fixture(scope="module")
def model(separator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    separator.save(folder)
    return folder


def sound(seconds, rate=RATE, channels=1, seed=0):
    return 0.2 * torch.randn(channels, round(seconds * rate), generator=seeded(seed))


def decibels(error, reference):
    return 10 * np.log10(np.square(error).sum() / np.square(reference).sum() + 1e-20)


# --- stems of a waveform ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate, channels, seconds", [
    (8000, 1, 1.0), (8000, 2, 3.2), (44100, 2, 0.2), (44100, 1, 3.1), (22050, 2, 1.7), (48000, 3, 0.5), (11025, 1, 2.0), (96000, 1, 0.3),
    (384_000, 7, 0.2), (44_101, 1, 0.5), (100, 1, 9.0), (1, 1, 5),
])  # fmt: skip
@pytest.mark.parametrize("refine", [True, False])
def test_stems_have_the_recordings_length_channels_and_rate(separator, rate, channels, seconds, refine):
    waveform = sound(seconds, rate, channels)[:, :-1] if seconds > 0.2 else sound(seconds, rate, channels)
    found = separator.separate(waveform, rate, refine=refine)
    assert found.stems.shape == (2, *waveform.shape) and found.sample_rate == rate
    assert torch.isfinite(found.stems).all() and np.isfinite(found.log_evidence)
    if refine:
        assert decibels(found.stems.sum(0).numpy() - waveform.numpy(), waveform.numpy()) < -60
    else:
        assert torch.equal(found.stems[:, 0], found.stems[:, -1])


def test_unrefined_stems_are_in_time_with_the_recording():
    """What a model of 8 000 Hz makes of a recording at 44 100 Hz comes back neither late nor shortened."""
    from test_windows import Echo

    time = torch.arange(5 * 44100) / 44100
    tone = 0.3 * torch.sin(2 * torch.pi * (200 + 100 * time) * time)[None]
    found = Echo(8000, 32).separate(tone, 44100, refine=False)
    assert decibels((found.stems.sum(0) - tone)[:, 4410:-4410].numpy(), tone.numpy()) < -60


def test_channels_stay_where_they_are(separator):
    waveform = sound(1.0, channels=2)
    waveform[1] = 0.0
    found = separator.separate(waveform, RATE)
    assert found.stems[:, 1].abs().max() < 1e-6 < found.stems[:, 0].abs().max()


def test_same_seed_same_stems(separator):
    first, again, other = (separator.separate(sound(4.0), RATE, particles=3, seed=s).stems for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("refine", [True, False])
def test_silence_gives_silent_stems_and_says_so(separator, refine):
    with pytest.warns(UserWarning, match="silent"):
        found = separator.separate(torch.zeros(2, 5000), RATE, refine=refine)
    assert found.stems.shape == (2, 2, 5000) and (found.stems == 0).all()


def test_channels_that_cancel_out_are_separated_without_complaint(separator):
    one = sound(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = separator.separate(torch.cat([one, -one]), RATE)
    assert torch.allclose(found.stems.sum(0), torch.cat([one, -one]), atol=1e-4)


def test_recording_that_is_too_short_or_not_finite_is_refused(separator):
    with pytest.raises(HybridsepError, match=r"0\.199 s; at least 0\.2"):
        separator.separate(sound(0.199), RATE)
    for value in (np.inf, -np.inf, np.nan):
        broken = sound(1.0)
        broken[0, 77] = value
        with pytest.raises(HybridsepError, match="finite"):
            separator.separate(broken, RATE)
    with pytest.raises(HybridsepError, match="no channels"):
        separator.separate(torch.zeros(0, 5000), RATE)
    for rate in (0, -8000):
        with pytest.raises(HybridsepError, match=f"rate of {rate} Hz"):
            separator.separate(sound(1.0), rate)
    with pytest.raises(HybridsepError, match="longer than 12 hours"):
        separator.separate(torch.zeros(50_000), 1)


PEAK_MEMORY = """
import sys
from pathlib import Path
import torch
from hybridsep.inference.recording import separate_file
from hybridsep.inference.separator import BANDS, SearchOptions

torch.set_num_threads(1)

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

before = peak()
for name in sys.argv[1:]:
    separate_file(Path(name), Path(name).parent / "out", {model!r}, SearchOptions(particles=16), overwrite=True)
    print(round(peak() - before, 1))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_memory_does_not_grow_with_length_times_particles(tmp_path):
    """A recording ten times as long may take the memory of a few mono waveforms at the model's rate, 9 MB each, and what the allocator rounds up.

    Its stems in stereo at 44.1 kHz would be 210 MB, the decoded particles 310 MB.
    """
    long_hop_separator(search={"particles": 16, "max_rows": 64, "lag": 4, "stretch": 8}).save(tmp_path / "model")
    short, long = 30, 300
    for name, seconds in (("short", short), ("long", long)):
        soundfile.write(tmp_path / f"{name}.wav", sound(seconds, 44100, 2).T.numpy(), 44100)
    code = PEAK_MEMORY.format(model=str(tmp_path / "model"))
    files = [str(tmp_path / f"{name}.wav") for name in ("short", "short", "long")]
    # One arena: each further one that a thread opens would be 64 MB of the allocator's, not of the recording's.
    alone = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=600, check=True, env=alone
    )
    _, base, peak = (float(line) for line in done.stdout.splitlines())
    mono = long * RATE * 4 / 2**20
    assert peak - base < 6 * mono + 40, f"{base} MB for {short} s, {peak} MB for {long} s"


# --- reading ---------------------------------------------------------------------------------------------------------------


def samples_of(audio):
    return torch.cat(list(audio.blocks()), -1)


@pytest.mark.parametrize("suffix, tolerance", [("wav", 1e-4), ("flac", 1e-4), ("ogg", None), ("mp3", None)])
def test_common_formats_are_read(tmp_path, suffix, tolerance):
    samples = 0.3 * np.sin(np.arange(22050) / 20)[:, None] * [1.0, 0.5]
    soundfile.write(tmp_path / f"a.{suffix}", samples, 22050)
    audio = read_audio(tmp_path / f"a.{suffix}")
    heard = samples_of(audio)
    assert (
        audio.sample_rate == 22050
        and heard.dtype == torch.float32
        and audio.channels == 2
        and abs(audio.samples - 22050) < 2500
    )
    assert (
        heard.shape == (2, audio.samples) and audio.peak == heard.abs().max() and torch.equal(heard, samples_of(audio))
    )
    if tolerance:
        assert np.abs(heard.numpy().T - samples).max() < tolerance


def test_a_file_is_read_in_blocks(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", sound(2.0, channels=2).T.numpy(), RATE)
    monkeypatch.setattr("hybridsep.inference.recording.BLOCK_VALUES", 2 * 1000)
    audio = read_audio(tmp_path / "a.wav")
    assert [b.shape for b in audio.blocks()] == [(2, 1000)] * 16 and audio.samples == 16_000


def bad_files(folder):
    yield folder / "missing.wav", "no file .*missing.wav"
    (folder / "folder.wav").mkdir()
    yield folder / "folder.wav", "folder.wav is a folder"
    (folder / "text.wav").write_text("this is no music\n" * 50)
    yield folder / "text.wav", "text.wav is no audio"
    (folder / "empty.wav").touch()
    yield folder / "empty.wav", "empty.wav"
    soundfile.write(folder / "headeronly.wav", np.zeros((0, 2)), 44100)
    yield folder / "headeronly.wav", "headeronly.wav lasts 0.000 s"
    soundfile.write(folder / "tenms.wav", np.zeros(441), 44100)
    yield folder / "tenms.wav", r"tenms.wav lasts 0\.010 s; at least 0\.2 s is needed"
    for value in ("nan", "inf"):
        broken = np.zeros(44100, dtype=np.float32)
        broken[-5] = float(value)
        soundfile.write(folder / f"{value}.wav", broken, 44100, subtype="FLOAT")
        yield folder / f"{value}.wav", f"{value}.wav holds samples that are no finite"
    content = (folder / "nan.wav").read_bytes()
    (folder / "noise.flac").write_bytes(b"fLaC" + content[::-1])
    yield folder / "noise.flac", "noise.flac"
    (folder / "headerless.raw").write_bytes(content)
    yield folder / "headerless.raw", "headerless.raw is no audio"
    (folder / "text.au").write_text("this is no music\n" * 500)
    yield folder / "text.au", "text.au is no audio that can be read: it has no header"
    os.mkfifo(folder / "pipe.wav")
    yield folder / "pipe.wav", "pipe.wav is a device or a pipe"


def test_what_cannot_be_read_is_refused_in_one_line_with_its_name(tmp_path):
    for path, message in bad_files(tmp_path):
        with pytest.raises(HybridsepError, match=message) as error:
            read_audio(path)
        assert "\n" not in str(error.value)


def test_a_file_that_may_not_be_read_is_refused():
    """Asked of the system as another user would be: root may read everything."""
    code = "from hybridsep import cli; cli.main()"
    if os.geteuid() == 0:
        # As nobody, who may not enter the folder that the library is in.
        code = f"import os, hybridsep.inference.recording; os.setgid(65534); os.setuid(65534); {code}"
    # Not in pytest's own folder: every session that starts takes others' rights to it away.
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "secret.wav"), Path(folder, "out")
        soundfile.write(path, np.zeros(8000), 8000)
        Path(folder).chmod(0o755)
        path.chmod(0)
        done = subprocess.run(
            [sys.executable, "-c", code, "separate", path, out, "--model", folder],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 1 and done.stdout == "" and not out.exists()
        assert done.stderr.splitlines() == [f"hybridsep: {path} may not be read: permission denied"]


# --- writing ---------------------------------------------------------------------------------------------------------------


def stems():
    return 0.3 * torch.rand(2, 2, 4410, generator=seeded()) - 0.15


def write(folder, suffix="wav", overwrite=False, rate=22050, samples=None):
    """Write stems in two blocks."""
    samples = stems() if samples is None else samples
    paths = stem_paths(NAMES, folder, suffix, overwrite)
    with stem_writer(paths, Audio.of(samples[0], rate)) as append:
        for block in samples.split(3000, -1):
            append(block)
    return paths


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_written_stems_read_back(tmp_path, suffix):
    paths = write(tmp_path / "new" / "folder", suffix)
    assert [p.name for p in paths] == [f"bass.{suffix}", f"drums.{suffix}"]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [f"bass.{suffix}", f"drums.{suffix}"]
    for path, stem in zip(paths, stems(), strict=True):
        samples, rate = soundfile.read(path)
        assert rate == 22050 and np.abs(samples.T - stem.numpy()).max() < 1e-6


@pytest.mark.parametrize("suffix, name", [("mp3", "MP3"), ("ogg", "OGG")])
def test_compressed_stems_are_written(tmp_path, suffix, name):
    assert all(soundfile.info(p).format == name for p in write(tmp_path, suffix))


def test_stems_louder_than_full_scale_still_sum_to_the_recording(tmp_path):
    loud = stems() * 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = write(tmp_path, samples=loud)
    assert np.abs(sum(soundfile.read(p)[0].T for p in paths) - loud.sum(0).numpy()).max() < 1e-4
    with pytest.warns(UserWarning, match="louder than flac can hold"):
        write(tmp_path, "flac", samples=loud)


def test_a_wav_of_more_than_four_gigabytes_gets_a_header_that_can_count_them(tmp_path):
    audio = Audio(lambda: iter(()), 384_000, 7, 500_000_000, 1.0)
    with pytest.raises(HybridsepError), stem_writer(stem_paths(NAMES, tmp_path, "wav", False), audio) as append:
        assert [soundfile.info(p).format for p in tmp_path.glob("*/*.wav")] == ["RF64"] * 2
        append(torch.zeros(2, 7, 100))
    assert not list(tmp_path.iterdir())


def test_existing_stems_are_not_replaced_unless_asked(tmp_path):
    (tmp_path / "drums.wav").write_text("mine")
    with pytest.raises(HybridsepError, match="drums.wav exists already.*--overwrite"):
        write(tmp_path)
    assert (tmp_path / "drums.wav").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    write(tmp_path, overwrite=True)
    assert soundfile.info(tmp_path / "drums.wav").frames == 4410


def test_a_folder_in_a_stems_place_is_refused_before_anything_is_replaced(tmp_path):
    (tmp_path / "drums.wav").mkdir()
    (tmp_path / "bass.wav").write_text("mine")
    with pytest.raises(HybridsepError, match="drums.wav exists already"):
        write(tmp_path, overwrite=True)
    assert (tmp_path / "bass.wav").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_goes_wrong_meanwhile_nothing_half_written_is_left(tmp_path, error):
    (tmp_path / "bass.wav").write_text("mine")
    audio = Audio.of(stems()[0], 22050)
    with pytest.raises(error), stem_writer(stem_paths(NAMES, tmp_path, "wav", True), audio) as append:
        append(stems()[..., :100])
        raise error
    with pytest.raises(error), stem_writer(stem_paths(NAMES, tmp_path / "new" / "folder", "wav", False), audio):
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["bass.wav"] and (tmp_path / "bass.wav").read_text() == "mine"


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("room", [0, 5000, 30_000])
def test_a_full_disk_ends_in_one_line_and_leaves_what_was_there(tmp_path, suffix, room):
    """The system refuses to let a file grow, as it does on a full disk."""
    (tmp_path / f"bass.{suffix}").write_text("mine")
    noise = torch.rand(2, 2, 100_000, generator=seeded()) - 0.5
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(HybridsepError, match=f"cannot write {suffix} stems to {tmp_path}: ") as error:
            write(tmp_path, suffix, overwrite=True, samples=noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == [f"bass.{suffix}"] and (
        tmp_path / f"bass.{suffix}"
    ).read_text() == "mine"


@pytest.mark.parametrize("suffix", ["xyz", "txt", "raw"])
def test_unknown_format_is_refused_by_name(tmp_path, suffix):
    with pytest.raises(HybridsepError, match=suffix):
        write(tmp_path, suffix)
    assert list(tmp_path.iterdir()) == []


def test_rate_and_channels_that_the_format_does_not_know_are_refused_before_the_work(tmp_path):
    for channels, rate, suffix in ((2, 192_000, "mp3"), (7, 22050, "mp3"), (9, 22050, "flac")):
        audio = Audio.of(torch.rand(channels, rate), rate)
        with (
            pytest.raises(HybridsepError, match=f"cannot write {suffix} stems"),
            stem_writer(stem_paths(NAMES, tmp_path, suffix, False), audio),
        ):
            raise AssertionError("went on to the work")
    assert list(tmp_path.iterdir()) == []


def test_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(HybridsepError, match="out"):
            write(folder)
    assert (tmp_path / "out").read_text() == "mine"


# --- from file to files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source, rate, channels, suffix", [
    ("wav", 44100, 2, "wav"), ("flac", 22050, 1, "flac"), ("ogg", 48000, 2, "mp3"), ("mp3", 44100, 2, "wav"), ("wav", 384_000, 7, "flac"),
])  # fmt: skip
def test_a_file_becomes_stems_of_its_rate_length_and_channels(model, tmp_path, source, rate, channels, suffix):
    soundfile.write(tmp_path / f"song.{source}", sound(0.7, rate, channels).T.numpy(), rate)
    found = separate_file(tmp_path / f"song.{source}", tmp_path / "out", model, suffix=suffix)
    mixture = soundfile.read(tmp_path / f"song.{source}", always_2d=True)[0]
    written = [soundfile.read(p, always_2d=True) for p in found.paths]
    assert found.seconds == len(mixture) / rate and np.isfinite(found.log_evidence)
    assert all(r == rate and s.shape[1] == channels for s, r in written)
    if suffix != "mp3":
        assert decibels(sum(s for s, _ in written) - mixture, mixture) < -60
    else:
        # The codec fills its last frame.
        assert all(0 <= len(s) - len(mixture) < 3000 for s, _ in written)


def test_stems_of_a_file_are_those_of_its_waveform(separator, model, tmp_path):
    waveform = sound(4.0, 11025, 2)
    soundfile.write(tmp_path / "song.wav", waveform.T.numpy(), 11025, subtype="FLOAT")
    for refine in (True, False):
        found = separate_file(
            tmp_path / "song.wav", tmp_path / "out", model, SearchOptions(seed=3), refine, overwrite=True
        )
        expected = separator.separate(waveform, 11025, seed=3, refine=refine)
        assert found.log_evidence == expected.log_evidence
        for path, stem in zip(found.paths, expected.stems, strict=True):
            assert np.array_equal(soundfile.read(path, dtype="float32")[0].T, stem.numpy())


def test_a_progress_bar_is_shown(model, tmp_path, capsys):
    soundfile.write(tmp_path / "song.wav", sound(9.0)[0].numpy(), RATE)
    separate_file(tmp_path / "song.wav", tmp_path / "out", model, SearchOptions(label="separating"))
    said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line]
    assert said[0].startswith("separating:   0%") and said[-1].startswith("separating: 100%")


def test_uncertainty_is_a_table_of_every_second_source_and_band(separator, model, tmp_path):
    waveform = sound(2.5, 22050, 2)
    soundfile.write(tmp_path / "song.wav", waveform.T.numpy(), 22050, subtype="FLOAT")
    plain = separate_file(tmp_path / "song.wav", tmp_path / "plain", model)
    found = separate_file(tmp_path / "song.wav", tmp_path / "out", model, uncertainty=True)
    assert plain.uncertainty is None and found.uncertainty == tmp_path / "out" / "uncertainty.csv"
    table = pd.read_csv(found.uncertainty)
    per_second = round(separator.sample_rate / separator.hop)
    codes = -(-int(2.5 * separator.sample_rate) // separator.hop)
    assert len(table) == -(-codes // per_second) * 2 * len(BANDS)
    assert set(table.source) == {"bass", "drums"} and set(table.from_hz) == set(BANDS)
    assert table.level_db.between(-100, 20).all() and table.spread_db.between(-100, 20).all()
    assert [p.read_bytes() for p in plain.paths] == [p.read_bytes() for p in found.paths]


def test_uncertainty_that_exists_is_kept_and_silence_has_none(model, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(22050), 22050)
    with pytest.warns(UserWarning, match="silent throughout"):
        found = separate_file(tmp_path / "silent.wav", tmp_path / "out", model, uncertainty=True)
    assert found.uncertainty.read_text() == "start_s,source,from_hz,level_db,spread_db\n"
    for path in found.paths:
        path.unlink()
    with pytest.raises(HybridsepError, match="uncertainty.csv exists already; give --overwrite"):
        separate_file(tmp_path / "silent.wav", tmp_path / "out", model, uncertainty=True)
    assert not found.paths[0].exists()


def test_a_line_of_uncertainty_is_the_mean_of_its_second_in_decibels():
    powers = torch.tensor([1e-2, 1e-4, 0.0]).repeat_interleave(4)[:, None].expand(-1, len(BANDS))
    spread = torch.stack([powers, powers / 10]).expand(2, 2, 12, len(BANDS))
    rows = [line.split(",") for line in uncertainty_table(spread, ("bass", "drums"), 4.0)][1:]
    levels = {(row[0], row[1]): (float(row[3]), float(row[4])) for row in rows}
    assert levels[("0.00", "bass")] == (-20, -30) and levels[("1.00", "drums")] == (-40, -50)
    assert levels[("2.00", "bass")] == (-100, -100)
