"""How linear a codebook is, measured on codebooks whose linearity is known; and what trust in estimates buys."""

import pytest
import torch
from tiny import seeded

from hybridsep.evaluation.linearity import measure_linearity
from hybridsep.inference.wiener import wiener


def test_an_equally_spaced_line_is_linear():
    codebook = torch.arange(9.0)[:, None]
    first, second = torch.cartesian_prod(torch.arange(0, 9, 2), torch.arange(0, 9, 2)).T
    found = measure_linearity(codebook, torch.stack([first, second, (first + second) // 2]))
    assert found.hit_rate == 1 and found.distance == 0 and 0 < found.by_chance < 0.6


def test_mixtures_that_have_nothing_to_do_with_the_sources_are_hit_by_chance():
    codebook, triples = torch.randn(20, 6, generator=seeded()), torch.randint(20, (3, 20_000), generator=seeded(1))
    found = measure_linearity(codebook, triples)
    assert found.hit_rate == pytest.approx(found.by_chance, abs=0.01) and found.distance > 1


def test_hits_without_the_most_frequent_code_are_those_of_the_others():
    """Silence owns code 0, and all its mixtures are hit; of the others none is."""
    codebook = torch.tensor([[0.0], [1.0], [10.0]])
    found = measure_linearity(codebook, torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 2]]))
    assert found.hit_rate == 0.75 and found.hit_rate_without_top == 0


def test_trust_in_true_sources_finds_them_where_masks_cannot():
    """Two sources in the same cells, of different phase: the mask keeps the mixture's phase, trust the estimates' own."""
    sources = torch.randn(2, 1, 20_000, generator=seeded())
    errors = [
        float((wiener(sources, sources.mean(0), 512, trust) - sources).square().mean()) for trust in (0.0, 0.5, 1.0)
    ]
    assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2]
