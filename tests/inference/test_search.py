"""Toy worlds in which the exact posterior is enumerated, and every search is held to it."""

import math

import pytest
import torch
from toy import K, TabularLikelihood, additive_world, enumerate_posterior

from hybridsep.core.errors import HybridsepError
from hybridsep.inference.markov import MarkovPriors
from hybridsep.inference.search import (
    LASS_BEAMS,
    ancestral,
    beam,
    enough_particles,
    lass_beam,
    lass_top_k,
    particle_filter,
    top_k,
)
from hybridsep.kernels.resampling import stay_in_place, systematic_resampling


def total_variation(result, exact):
    """Half the L1 distance between a weighted particle set of one mixture and the exact posterior."""
    weights = result.log_weights[0].softmax(0)
    first, second = result.codes[0, 0].tolist(), result.codes[1, 0].tolist()
    estimate = dict.fromkeys(exact, 0.0)
    for z1, z2, w in zip(first, second, weights.tolist(), strict=True):
        estimate[tuple(z1), tuple(z2)] += w
    return 0.5 * sum(abs(estimate[pair] - exact[pair]) for pair in exact)


MIXTURE = torch.tensor([[0, 2, 1, 2]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_what_was_found_can_be_followed_over_time():
    priors, likelihood = additive_world()
    mixture = MIXTURE.repeat(2, 5)
    for search in (ancestral, top_k, beam, particle_filter):
        result = search(priors, likelihood, mixture, 6, generator())
        assert result.running_evidence.shape == (2, 20) and torch.equal(
            result.running_evidence[:, -1], result.log_evidence
        )
        short = search(priors, likelihood, mixture[:, :7], 6, generator())
        if search is beam:
            assert torch.allclose(result.running_evidence[:, :7], short.running_evidence)
        assert result.ancestors.shape == (2, 20, 6)


@pytest.mark.parametrize("particles", [1, 2, 7, 64])
def test_survivors_keep_their_place_and_the_children_stay_the_same(particles):
    weights = torch.rand(5, particles, generator=generator(particles)).pow(4)
    ancestors = systematic_resampling(weights / weights.sum(1, keepdim=True), torch.rand(5, generator=generator(1)))
    moved = stay_in_place(ancestors)
    assert torch.equal(moved.sort(1).values, ancestors)
    for before, after in zip(ancestors.tolist(), moved.tolist(), strict=True):
        assert all(after[n] == n for n in set(before))


def test_particle_filter_matches_enumerated_posterior():
    priors, likelihood = additive_world()
    exact, evidence = enumerate_posterior(priors, likelihood, MIXTURE[0].tolist())
    result = particle_filter(priors, likelihood, MIXTURE, 100_000, generator())
    assert total_variation(result, exact) < 0.02
    assert float(result.log_evidence[0]) == pytest.approx(math.log(evidence), abs=0.01)


def test_ancestral_sampling_misses_the_posterior_and_its_weights_mend_it():
    priors, likelihood = additive_world()
    exact, _ = enumerate_posterior(priors, likelihood, MIXTURE[0].tolist())
    result = ancestral(priors, likelihood, MIXTURE, 100_000, generator())
    weighted = total_variation(result, exact)
    unweighted = type(result)(result.codes, torch.zeros_like(result.log_weights), *[None] * 5)
    assert total_variation(unweighted, exact) > 0.1
    assert weighted < 0.03


@pytest.mark.parametrize("particles", [2, 8])
def test_evidence_of_the_particle_filter_is_unbiased(particles):
    priors, likelihood = additive_world(seed=3)
    _, evidence = enumerate_posterior(priors, likelihood, MIXTURE[0].tolist())
    result = particle_filter(priors, likelihood, MIXTURE.expand(4000, -1), particles, generator(), ess_threshold=0.9)
    ratios = result.log_evidence.exp() / evidence
    assert result.resampled.any()
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / math.sqrt(len(ratios))


def test_particles_are_resampled_where_their_weights_say_so():
    """Of two particles half can never be effective: a pair is resampled when one of them has most of the weight."""
    assert [enough_particles(n, 0.5) for n in (1, 2, 3, 8)] == [0.5, 1.5, 1.5, 4.0]
    assert all(enough_particles(n, 0.0) == 0.0 for n in (1, 2, 8))
    priors, likelihood = additive_world(seed=3)
    found = particle_filter(priors, likelihood, MIXTURE.repeat(50, 5), 2, generator())
    assert torch.equal(found.resampled, found.ess < 1.5) and 0.05 < float(found.resampled.float().mean()) < 0.95
    moved = (found.ancestors != torch.arange(2)).any(2)
    assert moved.any() and not (moved & ~found.resampled).any()


def garden_path():
    """A world whose best first step leads nowhere: one beam follows it, two keep the way out."""
    start = torch.tensor([[0.6, 0.4, 1e-6], [1.0, 1e-6, 1e-6]])
    start = start / start.sum(-1, keepdim=True)
    transition = torch.full((2, K, K), 1e-6)
    transition[0, 0, 0] = transition[0, 1, 1] = 1.0
    transition[1, 0, 0] = transition[1, 1, 1] = 1.0
    transition[:, 2, 2] = 1.0
    transition = transition / transition.sum(-1, keepdim=True)
    table = torch.full((K, K, K), 0.01)
    table[0] = 0.4
    table[1, 1, :] = 0.9
    return MarkovPriors(start, transition), TabularLikelihood(table)


def test_one_beam_fails_where_two_succeed():
    priors, likelihood = garden_path()
    mixture = torch.tensor([[0, 1, 1, 1]])
    exact, _ = enumerate_posterior(priors, likelihood, mixture[0].tolist())
    best = max(exact, key=exact.get)
    one = beam(priors, likelihood, mixture, 1, generator())
    two = beam(priors, likelihood, mixture, 2, generator())
    assert (tuple(one.codes[0, 0, 0].tolist()), tuple(one.codes[1, 0, 0].tolist())) != best
    assert (tuple(two.codes[0, 0, 0].tolist()), tuple(two.codes[1, 0, 0].tolist())) == best


def test_beam_wide_enough_lists_the_best_sequences_in_order():
    priors, likelihood = additive_world(seed=1)
    exact, evidence = enumerate_posterior(priors, likelihood, MIXTURE[0].tolist())
    result = beam(priors, likelihood, MIXTURE, 9**4, generator())
    found = [
        (tuple(a), tuple(b)) for a, b in zip(result.codes[0, 0].tolist(), result.codes[1, 0].tolist(), strict=True)
    ]
    expected = sorted(exact.values(), reverse=True)[:50]
    assert [exact[pair] for pair in found[:50]] == pytest.approx(expected, rel=1e-3)
    assert float(result.log_evidence[0]) == pytest.approx(math.log(evidence), abs=1e-3)


def test_top_k_with_every_pair_is_ancestral_sampling():
    priors, likelihood = additive_world()
    exact, _ = enumerate_posterior(priors, likelihood, MIXTURE[0].tolist())
    result = top_k(priors, likelihood, MIXTURE, 20_000, generator(), k=K * K)
    assert total_variation(result, exact) < 0.06
    narrow = top_k(priors, likelihood, MIXTURE, 2_000, generator(), k=1)
    assert len(narrow.codes[0, 0].unique(dim=0)) == 1


def cubed(likelihood):
    return TabularLikelihood(likelihood.table.pow(3))


def test_lass_beam_finds_the_best_sequences_under_the_cubed_likelihood():
    """In a noisy world, where that is another pair than the likelihood itself has."""
    priors, likelihood = additive_world(seed=2, noise=0.6)
    exact, _ = enumerate_posterior(priors, cubed(likelihood), MIXTURE[0].tolist())
    plain, _ = enumerate_posterior(priors, likelihood, MIXTURE[0].tolist())
    found = lass_beam(priors, likelihood, MIXTURE, LASS_BEAMS, generator())
    assert found.codes.shape == (2, 1, 1, 4) and found.ancestors.shape == (1, 4, 1)
    best = max(exact, key=exact.get)
    assert tuple(map(tuple, found.codes[:, 0, 0].tolist())) == best != max(plain, key=plain.get)


def test_lass_top_k_draws_under_the_cubed_likelihood():
    priors, likelihood = additive_world(noise=0.3)
    exact, evidence = enumerate_posterior(priors, cubed(likelihood), MIXTURE[0].tolist())
    every = lass_top_k(priors, likelihood, MIXTURE, 20_000, generator(), k=K * K)
    assert total_variation(every, exact) < 0.06
    assert float(every.log_evidence[0]) == pytest.approx(math.log(evidence), abs=0.05)
    ours = top_k(priors, cubed(likelihood), MIXTURE, 50, generator(), k=4)
    assert torch.equal(lass_top_k(priors, likelihood, MIXTURE, 50, generator(), k=4).codes, ours.codes)


@pytest.mark.parametrize("search", [ancestral, particle_filter, top_k, beam])
def test_search_is_reproducible_and_independent_of_the_batch(search):
    priors, likelihood = additive_world()
    mixtures = torch.tensor([[0, 2, 1, 2, 0, 0], [1, 1, 0, 2, 2, 1], [2, 0, 0, 1, 1, 2]])
    together = search(priors, likelihood, mixtures, 16, generator(7))
    again = search(priors, likelihood, mixtures, 16, generator(7))
    first_two = search(priors, likelihood, mixtures[:2], 16, generator(7))
    assert torch.equal(together.codes, again.codes) and torch.equal(together.log_weights, again.log_weights)
    assert torch.equal(together.codes[:, :2], first_two.codes)


@pytest.mark.parametrize("search", [ancestral, particle_filter, top_k, beam])
def test_bad_input_is_refused_with_its_value(search):
    priors, likelihood = additive_world()
    with pytest.raises(ValueError, match="0 particles"):
        search(priors, likelihood, MIXTURE, 0, generator())
    with pytest.raises(ValueError, match="empty"):
        search(priors, likelihood, MIXTURE[:, :0], 4, generator())
    with pytest.raises(ValueError, match="7"):
        search(priors, likelihood, torch.tensor([[0, 7]]), 4, generator())
    broken = MarkovPriors(priors.first * float("nan"), priors.transition)
    with pytest.raises(ValueError, match="NaN"):
        search(broken, likelihood, MIXTURE, 4, generator())


@pytest.mark.parametrize("search", [ancestral, particle_filter, top_k, beam])
def test_a_likelihood_of_zeros_is_refused_by_name(search):
    priors, likelihood = additive_world()
    likelihood.table[2] = 0.0
    with pytest.raises(HybridsepError, match="mixture code 2: its likelihood is 0 for every pair"):
        search(priors, likelihood, MIXTURE, 4, generator())


def test_systematic_resampling_gives_floor_or_ceil_of_the_expected_children():
    weights = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.97, 0.01, 0.01, 0.01]])
    for u in torch.linspace(0, 0.999, 23):
        ancestors = systematic_resampling(weights, u.expand(2))
        children = torch.stack([torch.bincount(row, minlength=4) for row in ancestors])
        assert ((children - weights * 4).abs() < 1 + 1e-5).all()
        assert (children.sum(1) == 4).all()
