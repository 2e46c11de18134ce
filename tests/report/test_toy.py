"""The worlds of the chapter on search are what they claim to be."""

import pytest
import torch
from notebooks import definitions

from hybridsep.inference.search import ancestral

toy = definitions("05_search")


@pytest.fixture(scope="module")
def world():
    return toy.sticky_world([0, 1, 1], codes=2, seed=8)


def test_posterior_is_prior_times_likelihood_over_the_evidence(world):
    assert world.prior.sum() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(world.posterior * world.evidence, world.prior * world.observed)
    assert world.posterior.sum() == pytest.approx(1.0)


def test_exact_ancestral_probabilities_are_what_ancestral_sampling_draws(world):
    exact = toy.ancestral_probabilities(world)
    assert exact.sum() == pytest.approx(1.0, abs=1e-6)
    drawn = ancestral(world.priors, world.likelihood, world.mixture, 100_000, torch.Generator().manual_seed(0))
    assert toy.total_variation(toy.frequencies(world, drawn, weighted=False), exact) < 0.01
    assert toy.total_variation(exact, world.posterior) > 0.02


def test_listing_has_every_pair_once_and_the_best_first(world):
    table = toy.listing(world)
    assert len(table) == len(world.pairs) == len(set(zip(table["first source"], table["second source"], strict=True)))
    assert table["posterior (%)"].is_monotonic_decreasing and table["posterior (%)"].sum() == pytest.approx(100.0)
