"""Baselines on signals that each of them must tell apart, and how they are compared with the Hybrid."""

from itertools import product
from types import SimpleNamespace

import baselines
import numpy as np
import pytest
import torch
from scores import by_columns

from hybridsep.evaluation.metrics import sdr


@pytest.fixture(scope="module")
def tones():
    """Low tones as one source and noise bursts as the other, at 8000 Hz: what every baseline must tell apart."""
    t = torch.arange(24_000) / 8000
    low = torch.stack([torch.sin(2 * torch.pi * f * t) for f in (60.0, 90.0)])
    bursts = torch.randn(2, len(t), generator=torch.Generator().manual_seed(0)) * (t % 0.25 < 0.02)
    return torch.stack([0.3 * low, bursts])


def test_harmonic_percussive_masks_put_tones_and_bursts_in_their_places(tones):
    assert (sdr(baselines.hpss(tones.mean(0)).numpy(), tones.numpy(), 8000) > 3).all()


def test_learnt_spectra_separate_what_they_were_learnt_from(tones, monkeypatch):
    monkeypatch.setattr(baselines, "NMF_COMPONENTS", 4)
    solo = SimpleNamespace(sample_rate=8000, random_pairs=lambda *_: tones)
    estimates = baselines.SpectralBases.fit(solo, 0).separate(tones.mean(0))
    assert torch.allclose(estimates.mean(0)[:, 2048:-2048], tones.mean(0)[:, 2048:-2048], atol=1e-3)
    assert (sdr(estimates.numpy(), tones.numpy(), 8000) > 5).all()


def test_networks_learn_the_ratio_of_noise_in_db_down_to_a_limit():
    target = torch.ones(2, 3, 100)
    for estimate, ratio in ((0.0, 0.0), (0.9, 10 * np.log10(0.01 + 0.001)), (1.0, -30.0)):
        assert float(baselines.noise_ratio(estimate * target, target)) == pytest.approx(ratio, abs=0.01)
    silent = torch.zeros(2, 3, 100, requires_grad=True)
    baselines.noise_ratio(silent, torch.zeros_like(silent)).backward()
    assert torch.isfinite(silent.grad).all()


def test_cells_are_paired_with_each_baseline_all_refined():
    gains, rows = np.linspace(-1, 3, 8), []
    levels = {"hybrid": 4.0, "lass": 3.0, "hpss": 1.0, "nmf": 2.0, "convtasnet": 9.0, "mixture": 0.0}
    for (method, level), song, source, refine in product(
        levels.items(), range(8), ("bass", "drums"), ("none", "wiener")
    ):
        value = level + song % 3 + (source == "drums") + (gains[song] if method == "hybrid" else 0)
        # What the wrong refinement or metric would give is far off.
        value += 50 * ((refine == "wiener") != (method != "mixture"))
        rows += [
            (f"song{song}", method, refine, source, "sdr", value),
            (f"song{song}", method, refine, source, "sir", 90.0),
        ]
    table = by_columns(rows).assign(rung="minislakh", search="particle")
    found = baselines.baseline_differences(table).set_index(["method", "other", "source"])
    assert len(found) == 7 * 3 and (found.n == 8).all()
    for (method, other, _), row in found.iterrows():
        paired = gains if method == "hybrid" else np.zeros(8)
        assert row["mean"] == pytest.approx(levels[method] - levels[other] + paired.mean())
        assert row["std"] == pytest.approx(paired.std(ddof=1)) and row.low <= row["mean"] <= row.high
