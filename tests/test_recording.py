"""A person's own recording: read what they have, give back stems of its length and rate, refuse what is no audio."""

import warnings

import numpy as np
import pytest
import soundfile
import torch
from tiny import RATE, seeded, tiny_profile, tiny_separator

from hybridsep import recording
from hybridsep.errors import HybridsepError
from hybridsep.recording import Separation, cut_windows, join_windows, read_audio, separate_recording, write_stems
from hybridsep.search import SearchResult
from hybridsep.separation import Estimate


@pytest.fixture(scope="module")
def separator():
    return tiny_separator()


def sound(seconds, rate=RATE, channels=1, seed=0):
    return 0.2 * torch.randn(channels, round(seconds * rate), generator=seeded(seed))


class Echo:
    """Stands in for a Separator of 22 050 Hz and hop 64: both stems are what it hears, cut to whole codes."""

    profile = tiny_profile()

    def __init__(self, rate=22050, hop=64):
        self.sample_rate, self.hop = rate, hop

    def estimate(self, mixture, search="particle", particles=None, seed=0, label=None):
        codes = mixture.shape[1] // self.hop
        heard = mixture[:, : codes * self.hop]
        batch = len(heard)
        found = SearchResult(torch.zeros(2, batch, 1, codes, dtype=torch.long), torch.zeros(batch, 1), torch.zeros(batch), *[None] * 4)
        return Estimate(heard, heard.expand(2, -1, -1), found)


@pytest.mark.parametrize("seconds", [0.2, 1.0, 2.999, 3.0, 3.001, 5.5, 5.501, 8.0, 17.3])
def test_cross_faded_windows_give_back_every_sample(seconds):
    waveform = sound(seconds, 22050)
    found = separate_recording(Echo(), waveform, 22050, refine=False)
    assert found.stems.shape == (2, *waveform.shape)
    assert torch.allclose(found.stems.sum(0), waveform, atol=1e-5)


def test_cross_faded_windows_give_back_every_sample_for_a_long_hop():
    waveform = sound(3.0, 22050)
    found = separate_recording(Echo(hop=2048), waveform, 22050, refine=False)
    assert torch.allclose(found.stems.sum(0), waveform, atol=1e-5)


def test_cross_fade_goes_smoothly_from_one_window_to_the_next():
    step, size = 70, 100
    windows = torch.arange(3.0)[None, :, None].expand(1, 3, size)
    joined = join_windows(windows, step, 240)[0]
    assert (joined.diff() >= -1e-6).all() and joined.diff().max() < 0.05
    assert joined[0] == 0 and joined[-1] == 2 and float(joined[step + 15]) == pytest.approx(0.5, abs=0.02)


def test_windows_overlap_and_cover_the_recording():
    mono = sound(10.0)[0]
    windows, step = cut_windows(mono, RATE)[:2]
    assert windows.shape[0] == 4 and windows.shape[1] >= 3 * RATE and step < windows.shape[1]
    assert torch.equal(windows[1, :100], mono[step : step + 100])
    assert (len(windows) - 1) * step + windows.shape[1] >= len(mono)


@pytest.mark.parametrize("rate, channels, seconds", [
    (8000, 1, 1.0), (8000, 2, 3.2), (44100, 2, 0.2), (44100, 1, 3.1), (22050, 2, 1.7), (48000, 3, 0.5), (11025, 1, 2.0), (96000, 1, 0.3),
])  # fmt: skip
@pytest.mark.parametrize("refine", [True, False])
def test_stems_have_the_recordings_length_channels_and_rate(separator, rate, channels, seconds, refine):
    waveform = sound(seconds, rate, channels)[:, :-1] if seconds > 0.2 else sound(seconds, rate, channels)
    found = separate_recording(separator, waveform, rate, particles=2, refine=refine)
    assert found.stems.shape == (2, *waveform.shape) and found.sample_rate == rate
    assert torch.isfinite(found.stems).all() and np.isfinite(found.log_evidence)
    if refine:
        error = (found.stems.sum(0) - waveform).square().sum() / waveform.square().sum()
        assert 10 * torch.log10(error) < -60


def test_channels_stay_where_they_are(separator):
    waveform = sound(1.0, channels=2)
    waveform[1] = 0.0
    found = separate_recording(separator, waveform, RATE, particles=2)
    assert found.stems[:, 1].abs().max() < 1e-6 < found.stems[:, 0].abs().max()


def test_same_seed_same_stems(separator):
    first, again, other = (separate_recording(separator, sound(4.0), RATE, particles=3, seed=s).stems for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("refine", [True, False])
def test_silence_gives_silent_stems_and_says_so(separator, refine):
    with pytest.warns(UserWarning, match="silent"):
        found = separate_recording(separator, torch.zeros(2, 5000), RATE, refine=refine)
    assert found.stems.shape == (2, 2, 5000) and (found.stems == 0).all()


def test_channels_that_cancel_out_are_separated_without_complaint(separator):
    one = sound(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = separate_recording(separator, torch.cat([one, -one]), RATE, particles=2)
    assert torch.allclose(found.stems.sum(0), torch.cat([one, -one]), atol=1e-4)


def test_recording_that_is_too_short_or_not_finite_is_refused(separator):
    with pytest.raises(HybridsepError, match=r"0\.199 s; at least 0\.2"):
        separate_recording(separator, sound(0.199), RATE)
    broken = sound(1.0)
    broken[0, 77] = float("inf")
    with pytest.raises(HybridsepError, match="finite"):
        separate_recording(separator, broken, RATE)
    with pytest.raises(HybridsepError):
        separate_recording(separator, torch.zeros(0, 5000), RATE)


# --- reading ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix, tolerance", [("wav", 1e-4), ("flac", 1e-4), ("ogg", None), ("mp3", None)])
def test_common_formats_are_read(tmp_path, suffix, tolerance):
    samples = 0.3 * np.sin(np.arange(22050) / 20)[:, None] * [1.0, 0.5]
    soundfile.write(tmp_path / f"a.{suffix}", samples, 22050)
    waveform, rate = read_audio(tmp_path / f"a.{suffix}")
    assert rate == 22050 and waveform.dtype == torch.float32 and waveform.shape[0] == 2 and abs(waveform.shape[1] - 22050) < 2500
    if tolerance:
        assert np.abs(waveform.numpy().T - samples).max() < tolerance


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
    soundfile.write(folder / "short.wav", np.zeros(8000), 44100)
    yield folder / "short.wav", r"short.wav lasts 0\.181 s"
    broken = np.zeros(44100, dtype=np.float32)
    broken[5] = np.nan
    soundfile.write(folder / "nan.wav", broken, 44100, subtype="FLOAT")
    yield folder / "nan.wav", "nan.wav holds samples that are no finite"
    content = (folder / "nan.wav").read_bytes()
    (folder / "noise.flac").write_bytes(b"fLaC" + content[::-1])
    yield folder / "noise.flac", "noise.flac"


def test_what_cannot_be_read_is_refused_in_one_line_with_its_name(tmp_path):
    for path, message in bad_files(tmp_path):
        with pytest.raises(HybridsepError, match=message) as error:
            read_audio(path)
        assert "\n" not in str(error.value)


# --- writing ---------------------------------------------------------------------------------------------------------------


def separation(rate=22050):
    return Separation(0.3 * torch.rand(2, 2, 4410, generator=seeded()) - 0.15, rate, 0.0)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_written_stems_read_back(tmp_path, suffix):
    paths = write_stems(separation(), ("bass", "drums"), tmp_path / "new" / "folder", suffix)
    assert [p.name for p in paths] == [f"bass.{suffix}", f"drums.{suffix}"]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [f"bass.{suffix}", f"drums.{suffix}"]
    for path, stem in zip(paths, separation().stems, strict=True):
        samples, rate = soundfile.read(path)
        assert rate == 22050 and np.abs(samples.T - stem.numpy()).max() < 1e-6


def test_mp3_stems_are_written(tmp_path):
    assert all(soundfile.info(p).format == "MP3" for p in write_stems(separation(), ("bass", "drums"), tmp_path, "mp3"))


def test_existing_stems_are_not_replaced_unless_asked(tmp_path):
    (tmp_path / "drums.wav").write_text("mine")
    with pytest.raises(HybridsepError, match="drums.wav exists already.*--overwrite"):
        write_stems(separation(), ("bass", "drums"), tmp_path)
    assert (tmp_path / "drums.wav").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    write_stems(separation(), ("bass", "drums"), tmp_path, overwrite=True)
    assert soundfile.info(tmp_path / "drums.wav").frames == 4410


def test_failure_while_writing_leaves_no_stem_behind(tmp_path, monkeypatch):
    real, calls = soundfile.write, []

    def fails_second(path, *args, **kwargs):
        real(path, *args, **kwargs)
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(recording.soundfile, "write", fails_second)
    with pytest.raises(HybridsepError, match="No space left on device"):
        write_stems(separation(), ("bass", "drums"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["xyz", "txt"])
def test_unknown_format_is_refused_by_name(tmp_path, suffix):
    with pytest.raises(HybridsepError, match=suffix):
        write_stems(separation(), ("bass", "drums"), tmp_path, suffix)
    assert list(tmp_path.iterdir()) == []


def test_rate_that_the_format_does_not_know_is_refused(tmp_path):
    with pytest.raises(HybridsepError, match="mp3"):
        write_stems(separation(192000), ("bass", "drums"), tmp_path, "mp3")
    assert list(tmp_path.iterdir()) == []


def test_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(HybridsepError, match="out"):
        write_stems(separation(), ("bass", "drums"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
