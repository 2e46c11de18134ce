"""Scores against museval's own, against hand-computed cases, and where they are not defined."""

import sys
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from hybridsep.core.errors import HybridsepError
from hybridsep.evaluation import metrics
from hybridsep.evaluation.metrics import (
    bss_eval,
    museval_metrics,
    nan_windows,
    sdr,
    si_sdr,
    stft_distance,
)

RATE = 4000


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """museval's small products wait for each other on more, above all where other work holds the cores."""
    with threadpool_limits(1):
        yield


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def music_like(seed, samples):
    """Decaying harmonics at random onsets, over a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    out = 0.001 * generator.standard_normal(samples)
    for onset in np.sort(generator.uniform(0, samples / RATE, 12)):
        pitch = 55 * 2 ** generator.uniform(0, 3)
        local = np.clip(time - onset, 0, None)
        tone = sum(np.sin(2 * np.pi * k * pitch * local) / k for k in range(1, 6))
        out += 0.2 * tone * np.exp(-5 * local) * (time >= onset)
    return out


def museval_sdr(estimates, references, window):
    """museval's figure for float [P, T], median over windows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = museval_metrics().bss_eval(references[..., None], estimates[..., None], window=window, hop=window)
        return np.nanmedian(values[0], axis=1)


@pytest.mark.parametrize("window", [RATE, 3 * RATE - 1])
@pytest.mark.parametrize("make", [noise, music_like], ids=["random", "music-like"])
def test_sdr_equals_musevals(make, window):
    references = np.stack([make(s, 3 * RATE) for s in (1, 2)])
    estimates = np.stack(
        [references[0] + 0.3 * references[1], 0.7 * references[1] + 0.1 * references[0] + 0.05 * noise(4, 3 * RATE)]
    )
    assert sdr(estimates, references, window) == pytest.approx(museval_sdr(estimates, references, window), abs=1e-6)
    scores = bss_eval(estimates, references, window)
    assert set(scores) == {"sdr", "isr", "sir", "sar"}
    assert scores["sdr"] == pytest.approx(sdr(estimates, references, window), abs=1e-6)


def test_window_silent_in_a_reference_is_left_out_as_museval_does():
    references = np.stack([music_like(1, 4 * RATE), music_like(2, 4 * RATE)])
    references[:, RATE : 2 * RATE] = 0.0
    estimates = references + 0.1 * noise(3, 2, 4 * RATE) * np.array([[0.1], [0.5]])
    assert np.isfinite(sdr(estimates, references, RATE)).all()
    assert sdr(estimates, references, RATE) == pytest.approx(museval_sdr(estimates, references, RATE), abs=1e-6)


def test_sdr_of_hand_computed_cases():
    reference = np.ones(100)
    assert sdr(0.9 * reference, reference, 100) == pytest.approx(20.0)
    assert sdr(np.zeros(100), reference, 100) == pytest.approx(0.0)
    assert sdr(-reference, reference, 100) == pytest.approx(-20 * np.log10(2))
    assert sdr(reference, reference, 100) == np.inf
    # Errors of 10, 20 and 40 dB in three windows: the median is 20, and what follows the last whole window does not count.
    steps = np.concatenate([np.full(30, 1 - 10 ** (-d / 20)) for d in (10, 40, 20)] + [np.full(29, -5.0)])
    assert sdr(steps, np.ones(119), 30) == pytest.approx(20.0)


def test_leading_axes_are_scored_one_by_one():
    references = noise(0, 2, 3, 400)
    estimates = references + noise(1, 2, 3, 400)
    together = sdr(estimates, references, 100)
    assert together.shape == si_sdr(estimates, references).shape == (2, 3)
    assert together[1, 2] == pytest.approx(sdr(estimates[1, 2], references[1, 2], 100))
    many = sdr(np.stack([estimates, references * 0.5]), np.stack([references] * 2), 100)
    assert many[1] == pytest.approx(np.full((2, 3), 20 * np.log10(2)))


def test_float32_and_float64_agree():
    reference, estimate = noise(0, 4000), noise(0, 4000) + 0.01 * noise(1, 4000)
    low = [x.astype(np.float32) for x in (estimate, reference)]
    assert sdr(*low, 1000) == pytest.approx(sdr(estimate, reference, 1000), abs=1e-3)
    assert si_sdr(*low) == pytest.approx(si_sdr(estimate, reference), abs=1e-3)


def test_sdr_of_a_silent_reference_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sdr(noise(0, 2, 300), np.stack([np.zeros(300), noise(1, 300)]), 100)
    assert np.isnan(found[0]) and np.isfinite(found[1])


@pytest.mark.parametrize("scale", [1e-2, 0.5, 3.0, 100.0, -1.0])
def test_si_sdr_does_not_hear_the_scale(scale):
    reference = music_like(0, 8000)
    estimate = reference + 0.1 * noise(1, 8000)
    assert si_sdr(scale * estimate, reference) == pytest.approx(si_sdr(estimate, reference), abs=1e-6)
    assert si_sdr(estimate, abs(scale) * reference) == pytest.approx(si_sdr(estimate, reference), abs=1e-6)


def test_si_sdr_of_hand_computed_cases():
    reference, orthogonal = np.array([1.0, 0, 1, 0]), np.array([0.0, 1, 0, -1])
    assert si_sdr(2 * reference + 0.2 * orthogonal, reference) == pytest.approx(20.0)
    assert si_sdr(reference, reference) > 100


def test_si_sdr_of_a_silent_reference_is_nan_as_the_sdr_is():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(si_sdr(noise(0, 100), np.zeros(100)))


def test_bss_eval_refuses_a_silent_reference():
    with pytest.raises(HybridsepError, match="silent reference"):
        bss_eval(noise(0, 2, 2000), np.stack([np.zeros(2000), noise(1, 2000)]), 1000)


def test_bss_eval_of_a_silent_estimate_is_a_score_or_a_plain_refusal():
    references = noise(0, 2, 2000)
    estimates = np.stack([np.zeros(2000), references[1] + 0.1 * noise(1, 2000)])
    try:
        assert set(bss_eval(estimates, references, 1000)) == {"sdr", "isr", "sir", "sar"}
    except HybridsepError as error:
        assert "silent estimate" in str(error)


@pytest.mark.slow
def test_bss_eval_of_many_mixtures_is_that_of_each_whatever_the_number_of_processes(monkeypatch):
    references = np.stack([[music_like(10 * s + b, 2 * RATE) for b in range(3)] for s in (1, 2)])
    estimates = references + 0.1 * noise(5, *references.shape)
    together = bss_eval(estimates, references, RATE)
    each = [bss_eval(estimates[:, b], references[:, b], RATE) for b in range(3)]
    monkeypatch.setattr(metrics, "FEWEST_IN_PARALLEL", 1)
    parallel = bss_eval(estimates, references, RATE, "mixtures")
    for name, values in together.items():
        assert values.shape == (2, 3) and np.isfinite(values).all()
        assert np.array_equal(values, parallel[name])
        assert np.array_equal(values, np.stack([e[name] for e in each], 1))


def test_windows_that_bss_eval_leaves_out_are_those_that_museval_does():
    references = np.stack([music_like(1, 5 * RATE), music_like(2, 5 * RATE)])
    estimates = references + 0.1 * noise(3, *references.shape)
    references[0, RATE : 2 * RATE] = 0.0
    estimates[1, 3 * RATE : 4 * RATE] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = museval_metrics().bss_eval(references[..., None], estimates[..., None], window=RATE, hop=RATE)
    assert np.isnan(values[0]).sum(1).tolist() == [2, 2] and nan_windows(estimates, references, RATE) == 2
    assert nan_windows(estimates, references, 2 * RATE) == 0
    batch = nan_windows(np.stack([estimates, references + 1.0], 1), np.stack([references, references + 1.0], 1), RATE)
    assert batch.tolist() == [2, 0]


def test_si_sdr_improvement_counts_from_the_mixture():
    first, second = np.array([1.0, 0, 1, 0]), np.array([0.0, 1, 0, -1])
    mixture = 0.5 * (first + second)
    # The mixture holds both sources equally loud: 0 dB.
    assert si_sdr(mixture, first) == pytest.approx(0.0, abs=1e-9)
    assert si_sdr(first + 0.1 * second, first) - si_sdr(mixture, first) == pytest.approx(20.0)


def test_stft_distance_of_hand_computed_cases():
    reference = noise(0, 2, 4000)
    assert stft_distance(reference, reference) == pytest.approx(np.zeros(2))
    assert stft_distance(0 * reference, reference) == pytest.approx(np.ones(2))
    assert stft_distance(1.5 * reference, reference) == pytest.approx(np.full(2, 0.5))
    # Magnitudes alone count: a delay by a few samples of a steady tone moves phases and next to nothing else.
    tone = np.sin(2 * np.pi * 0.1 * np.arange(40_000))
    assert stft_distance(np.roll(tone, 3), tone) < 0.1 and stft_distance(-tone, tone) == pytest.approx(0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(stft_distance(tone, 0 * tone))


def test_stft_distance_is_that_of_the_codecs_loss():
    import torch

    from hybridsep.models.losses import SpectralLoss

    reference, estimate = 10 * noise(0, 8192), 10 * noise(1, 8192)
    loss = SpectralLoss()(torch.tensor(estimate)[None].float(), torch.tensor(reference)[None].float())
    assert stft_distance(estimate, reference) == pytest.approx(float(loss), rel=2e-3)


def test_museval_needs_no_ffmpeg_and_leaves_no_module_behind():
    assert museval_metrics().bss_eval and not {"musdb", "museval"} & sys.modules.keys()
