"""Drawn timbres: each sounds, is itself again for the same draw, and plays in tune."""

import numpy as np
import pytest

from hybridsep.data.soundfont import own_soundfont
from hybridsep.data.voices import TIMBRES, colour, random_voice

RATE = 22050


def voice(stem, kind, seed):
    return random_voice(stem, kind, (own_soundfont(),), RATE, np.random.default_rng(seed))


@pytest.mark.parametrize(("stem", "kind"), [(stem, kind) for stem, kinds in TIMBRES.items() for kind in kinds])
def test_every_timbre_sounds_and_is_the_same_for_the_same_draw(stem, kind):
    for seed in range(3):
        first, again, other = voice(stem, kind, seed), voice(stem, kind, seed), voice(stem, kind, seed + 100)
        for key in (36, 38, 42, 49) if stem == "drums" else (28, 40, 52):
            again(45, 100, 1.2, ())  # what was played before does not matter
            heard = first(key, 100, 1.2, ()).samples
            assert np.isfinite(heard).all() and 0.003 < np.abs(heard).max() < 8
            assert np.array_equal(heard, again(key, 100, 1.2, ()).samples)
            assert not np.array_equal(heard, other(key, 100, 1.2, ()).samples)


@pytest.mark.parametrize("kind", ["oscillators", "plucked"])
@pytest.mark.parametrize("bend", [0.0, 2.0])
def test_synthesised_basses_are_in_tune(kind, bend):
    for seed in range(4):
        for key in (28, 36, 43):
            samples = voice("bass", kind, seed)(key, 100, 2.4, ((0.0, bend),) if bend else ()).samples[2000:24000]
            spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 2**18))
            cents = np.arange(-300, 301, 10)
            harmonics = 440 * 2 ** ((key - 69) / 12 + cents / 1200)[:, None] * np.arange(1, 9)
            strength = np.log(1e-9 + spectrum[np.round(harmonics * 2**18 / RATE).astype(int)]).sum(1)
            assert abs(cents[strength.argmax()] - 100 * bend) <= 20


def test_colour_keeps_level_and_length():
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    heard = colour(noise, RATE, np.random.default_rng(1))
    assert heard.shape == noise.shape and heard.std() == pytest.approx(noise.std(), rel=0.01)
    assert not np.allclose(heard, noise, atol=0.1)
