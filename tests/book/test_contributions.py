"""Markov chains in the place of the priors."""

import math

import contributions
import pytest
import torch
from tiny import seeded, sum_likelihood

from hybridsep.data.codes import CodeSet
from hybridsep.inference.search import particle_filter

K = 12


def songs(seed, count=3, length=400):
    """Sources that step forward by one or stay: a chain that a bigram can learn and a unigram can't."""
    steps = torch.randint(2, (count, 2, length), generator=seeded(seed))
    return CodeSet(tuple((s.cumsum(1) % K).to(torch.int16) for s in steps))


def test_each_order_predicts_better_than_the_one_below():
    known = contributions.chains(songs(0), songs(1), K)
    codes = torch.stack([song[0] for song in songs(1).songs]).long()
    nats = [priors.nats_per_code(codes, 0) for priors in known.values()]
    assert list(known) == ["uniform", "unigram", "bigram"] and nats[0] == pytest.approx(math.log(K), rel=1e-5)
    assert nats[1] < nats[0] + 0.05
    assert math.log(2) - 0.02 < nats[2] < 0.8


@pytest.mark.parametrize("name", ["uniform", "unigram", "bigram"])
def test_chains_are_distributions_without_zeros_and_drive_a_search(name):
    priors = contributions.chains(songs(0), songs(1), K)[name]
    for table in (priors.first, priors.transition):
        assert torch.allclose(table.sum(-1), torch.ones(table.shape[:-1]), atol=1e-5) and (table > 0).all()
    mixture = torch.randint(K, (2, 20), generator=seeded())
    found = particle_filter(priors, sum_likelihood(), mixture, 8, seeded())
    assert found.codes.shape == (2, 2, 8, 20) and torch.isfinite(found.log_evidence).all()
