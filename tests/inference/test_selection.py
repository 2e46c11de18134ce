"""Selection without ground truth."""

import pytest
import torch
from tiny import noise, seeded, tiny_separator

from hybridsep.inference.search import SearchResult
from hybridsep.inference.selection import (
    SELECTIONS,
    cross_pair,
    highest_weight,
    posterior_mean,
    sample_mean,
    smallest_residual,
    take_particle,
)
from hybridsep.inference.separator import Candidates, SearchOptions


@pytest.fixture(scope="module")
def separator():
    return tiny_separator()


def candidates(waveforms, log_weights, target):
    """Candidates of given waveforms [2, B, N, T]."""
    nothing = torch.zeros(1)
    return Candidates(target, waveforms, SearchResult(nothing, log_weights, *[nothing] * 5), 0.0)


def test_cross_pair_equals_brute_force_over_all_pairs():
    waveforms, target = torch.randn(2, 3, 9, 50, generator=seeded()), noise(3, 50)
    found = cross_pair(candidates(waveforms, torch.zeros(3, 9), target))
    for b in range(3):
        residuals = (target[b] - 0.5 * (waveforms[0, b][:, None] + waveforms[1, b])).square().sum(-1)
        i, j = divmod(int(residuals.argmin()), 9)
        assert torch.equal(found[:, b], torch.stack([waveforms[0, b, i], waveforms[1, b, j]]))


def test_cross_pair_finds_parts_that_no_single_particle_holds():
    sources = torch.randn(2, 1, 1, 50, generator=seeded())
    waveforms = torch.randn(2, 1, 4, 50, generator=seeded(1))
    waveforms[0, 0, 1], waveforms[1, 0, 3] = sources[0, 0, 0], sources[1, 0, 0]
    target = sources.mean(0)[:, 0]
    assert torch.equal(cross_pair(candidates(waveforms, torch.zeros(1, 4), target)), sources[:, :, 0])


def test_posterior_mean_weighs_the_particles():
    waveforms = torch.tensor([[[[1.0, 2.0], [5.0, 6.0]]], [[[0.0, 0.0], [4.0, 8.0]]]])
    log_weights = torch.tensor([[0.25, 0.75]]).log() + 100.0
    found = posterior_mean(candidates(waveforms, log_weights, torch.zeros(1, 2)))
    assert torch.allclose(found, torch.tensor([[[4.0, 5.0]], [[3.0, 6.0]]]))


def test_mean_of_samples_leaves_their_weights_out():
    waveforms = torch.randn(2, 3, 5, 20, generator=seeded())
    found = sample_mean(candidates(waveforms, 50 * torch.randn(3, 5, generator=seeded()), torch.zeros(3, 20)))
    assert torch.allclose(found, waveforms.sum(2) / 5, atol=1e-6)


def test_posterior_mean_ignores_particles_of_no_weight():
    waveforms = torch.randn(2, 1, 3, 10)
    found = posterior_mean(
        candidates(waveforms, torch.tensor([[-float("inf"), 0.0, -float("inf")]]), torch.zeros(1, 10))
    )
    assert torch.equal(found, waveforms[:, :, 1])


def test_highest_weight_and_smallest_residual_pick_whole_particles():
    waveforms, target = torch.randn(2, 2, 3, 40, generator=seeded()), torch.zeros(2, 40)
    waveforms[:, 0, 2] *= 0.01
    waveforms[1, 1, 0] = -waveforms[0, 1, 0]
    found = candidates(waveforms, torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 2.0]]), target)
    assert torch.equal(highest_weight(found), torch.stack([waveforms[:, 0, 1], waveforms[:, 1, 0]], 1))
    assert torch.equal(smallest_residual(found), torch.stack([waveforms[:, 0, 2], waveforms[:, 1, 0]], 1))
    assert torch.equal(
        take_particle(waveforms, torch.tensor([1, 2])), torch.stack([waveforms[:, 0, 1], waveforms[:, 1, 2]], 1)
    )


@pytest.mark.parametrize("rule", SELECTIONS)
def test_every_rule_gives_one_stem_per_source_and_mixture(separator, rule):
    found = separator.candidates(noise(3), SearchOptions(particles=5))
    assert SELECTIONS[rule](found).shape == (2, 3, 2048)
