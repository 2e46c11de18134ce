"""Sound effects do what their names say, as loud and as long as before, and change training stems only where a share of them is asked for."""

import numpy as np
import pytest
from micro import micro_profile
from scipy.signal import welch

from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import load_profile
from hybridsep.data.effects import (
    EFFECTS,
    apply_effect,
    as_loud_as,
    detune,
    draws,
    reverberate,
    saturate,
    tilt,
    two_poles,
    vary,
)
from hybridsep.data.minislakh.render import make_minislakh
from hybridsep.data.stems import build_stems, open_stems
from hybridsep.pipeline.pipeline import Pipeline

RATE = 22050
SMALL_RATE = 8000
SOURCES = {"bass": "Bass", "drums": "Drums"}


def noise(seconds=3.0, rate=RATE, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate)).astype(np.float32)


def rms(waveform):
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def power_db(waveform, low, high):
    frequencies, density = welch(waveform, RATE, nperseg=2048)
    return 10 * np.log10(density[(frequencies >= low) & (frequencies < high)].mean())


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("rate", [SMALL_RATE, RATE])
def test_every_effect_keeps_level_and_length_and_depends_on_its_draws_alone(name, rate):
    before = noise(rate=rate)
    kept = before.copy()
    after, again, other = (apply_effect(name, before, rate, draws(*of)) for of in ((0, "a"), (0, "a"), (0, "b")))
    assert after.shape == before.shape and after.dtype == np.float32 and np.array_equal(before, kept)
    assert rms(after) == pytest.approx(rms(before), rel=1e-4)
    assert (
        np.array_equal(after, again)
        and not np.allclose(after, other, atol=1e-4)
        and not np.allclose(after, before, atol=1e-3)
    )


@pytest.mark.parametrize("name", EFFECTS)
def test_silence_and_next_to_nothing_stay_what_they_are(name):
    for quiet in (np.zeros(4000, np.float32), np.zeros(0, np.float32), np.ones(1, np.float32)):
        assert np.array_equal(apply_effect(name, quiet, RATE, draws(0)), quiet)
    assert not as_loud_as(np.zeros(9), np.ones(9)).any() and np.isfinite(as_loud_as(np.ones(9), np.zeros(9))).all()
    assert np.isfinite(apply_effect(name, noise(0.02), RATE, draws(0))).all()


def test_an_unknown_effect_is_refused_by_name():
    with pytest.raises(HybridsepError, match="unknown effect 'phaser': choose one of detuned"):
        apply_effect("phaser", noise(), RATE, draws(0))


@pytest.mark.parametrize("cents", [-50.0, -20.0, 20.0, 50.0])
def test_detuning_moves_a_tone_by_the_stated_cents_and_keeps_its_middle_in_place(cents):
    times = np.arange(4 * RATE) / RATE
    tone = np.sin(2 * np.pi * 440 * times).astype(np.float32)
    tone[2 * RATE] += 5
    moved = detune(tone, RATE, cents)
    assert moved.shape == tone.shape and abs(int(np.argmax(moved)) - 2 * RATE) <= 2
    spectrum = np.abs(np.fft.rfft((moved * np.hanning(len(moved))), 16 * len(moved)))
    hertz = np.argmax(spectrum) * RATE / (16 * len(moved))
    assert 1200 * np.log2(hertz / 440) == pytest.approx(cents, abs=0.5)


@pytest.mark.parametrize("seed", range(20))
def test_a_detuned_stem_is_off_by_20_to_50_cents(seed):
    tone = np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE).astype(np.float32)
    moved = apply_effect("detuned", tone, RATE, draws(seed))
    hertz = np.argmax(np.abs(np.fft.rfft(moved * np.hanning(len(moved)), 16 * len(moved)))) * RATE / (16 * len(moved))
    assert 19.5 <= abs(1200 * np.log2(hertz / 440)) <= 50.5


def test_filters_take_away_what_they_name():
    white = noise(10)
    for hertz in (500, 2000):
        low, high = two_poles(white, RATE, hertz), two_poles(white, RATE, hertz, "highpass")
        # Two poles: 24 dB two octaves beyond.
        assert power_db(low, 3.8 * hertz, 4.2 * hertz) - power_db(white, 3.8 * hertz, 4.2 * hertz) < -23
        assert power_db(high, hertz / 4.4, hertz / 3.6) - power_db(white, hertz / 4.4, hertz / 3.6) < -21
        assert abs(power_db(low, 0.3 * hertz, 0.5 * hertz) - power_db(white, 0.3 * hertz, 0.5 * hertz)) < 1
        assert abs(power_db(high, 2.5 * hertz, 4 * hertz) - power_db(white, 2.5 * hertz, 4 * hertz)) < 1
    bright = tilt(white, RATE, 12.0)
    gain = [power_db(bright, *band) - power_db(white, *band) for band in ((20, 100), (8000, 10_000))]
    assert gain[1] - gain[0] == pytest.approx(12, abs=1.5)


@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_a_room_decays_by_60_db_in_the_stated_time(seconds):
    """Schroeder's backward integration of the answer to a click, from -5 to -35 dB."""
    click = np.zeros(2 * RATE)
    click[0] = 1
    energy = np.cumsum(reverberate(click, RATE, seconds, 1.0, draws(1))[::-1] ** 2)[::-1]
    decay = 10 * np.log10(energy[: round(seconds * RATE)] / energy[0])
    first, last = (int(np.argmax(decay < level)) for level in (-5, -35))
    assert 2 * (last - first) / RATE == pytest.approx(seconds, rel=0.1)


def test_a_dry_room_is_no_room_and_saturation_flattens_peaks():
    before = noise()
    assert np.allclose(reverberate(before, RATE, 0.5, 0.0, draws(0)), before, atol=1e-7)
    tone = np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)
    crest = [np.abs(x).max() / rms(x) for x in (tone, *(saturate(tone, strength) for strength in (6, 20)))]
    assert crest[0] == pytest.approx(2**0.5, rel=1e-3) and crest[0] > crest[1] > crest[2] > 1


def test_the_share_of_varied_stems_is_what_was_asked_for():
    before = noise(0.1)
    varied = [not np.array_equal(vary(before, RATE, 0.3, draws(0, i)), before) for i in range(500)]
    assert np.mean(varied) == pytest.approx(0.3, abs=0.06)
    assert vary(before, RATE, 0.0, draws(0)) is before


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    return make_minislakh(
        tmp_path_factory.mktemp("songs") / "MiniSlakh", 10, 6.0, 0, SMALL_RATE, workers=1, progress=False
    )


def built(songs, folder, *options):
    for split in ("train", "validation", "test"):
        build_stems([songs], split, SOURCES, SMALL_RATE, folder, *options)
    return {split: open_stems(folder, split) for split in ("train", "validation", "test")}


def test_every_training_stem_changes_and_no_other_one(songs, tmp_path):
    plain, none, every, again, other = (
        built(songs, tmp_path / f"{i}", *o) for i, o in enumerate(((), (0.0, 5), (1.0, 5), (1.0, 5), (1.0, 6)))
    )
    for split in plain:
        assert np.array_equal(plain[split].audio, none[split].audio) and np.array_equal(
            every[split].audio, again[split].audio
        )
        assert plain[split].lengths == every[split].lengths
    for split in ("validation", "test"):
        assert np.array_equal(plain[split].audio, every[split].audio)
    for track in range(len(plain["train"])):
        songs_of = [stems["train"].song(track).numpy() for stems in (plain, every, other)]
        for p in range(len(SOURCES)):
            # The level of a song's mixture is common to its stems: what an effect does to the shape counts.
            before, now, then = (song[p] / rms(song[p]) for song in songs_of)
            assert np.abs(before - now).max() > 0.05 and np.abs(now - then).max() > 0.05


def test_effects_are_part_of_what_a_model_is_and_not_of_the_songs(songs, tmp_path):
    profiles = [
        load_profile(micro_profile(tmp_path, {"data": {"effects": share}}, name))
        for share, name in ((0.0, "none"), (0.5, "some"))
    ]
    for data in (None, songs):
        none, some = (Pipeline(profile, tmp_path / "runs", data).vqvae_step("plain").key for profile in profiles)
        assert none != some
    made = [Pipeline(profile.model_copy(update={"name": "one"}), tmp_path / "runs").songs() for profile in profiles]
    assert made[0] == made[1]
