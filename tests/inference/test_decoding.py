"""Decoding step by step: static shapes must change nothing but time, and a finished search must leave nothing behind."""

import gc
import weakref

import pytest
import torch
from tiny import seeded, tiny_prior

from hybridsep.inference.decoder import GraphedState, PriorStack, PriorState
from hybridsep.kernels.resampling import stay_in_place, systematic_resampling

K = 12


def stack(window, heads=2, kv_heads=1):
    return PriorStack(
        [tiny_prior(seed=s, heads=heads, kv_heads=kv_heads, window=window, crop_codes=window) for s in range(2)]
    )


def resampled(mixtures, particles, generator, sharpness=2.0):
    """Ancestors as a particle filter picks them."""
    weights = (sharpness * torch.randn(mixtures, particles, generator=generator)).softmax(1)
    return stay_in_place(systematic_resampling(weights, torch.rand(mixtures, generator=generator)))


@pytest.mark.parametrize("heads, kv_heads", [(2, 1), (4, 2)])
def test_a_step_of_static_shapes_predicts_what_the_others_do(heads, kv_heads):
    priors, generator = stack(16, heads, kv_heads), seeded()
    private, static = PriorState(priors, 2, 3), GraphedState(priors, 2, 3)
    for t in range(50):
        assert torch.allclose(static.log_probs, private.log_probs, atol=1e-5)
        ancestors = resampled(2, 3, generator) if t % 3 == 2 else None
        codes = torch.randint(K, (2, 2, 3), generator=generator)
        private.append(codes, ancestors), static.append(codes, ancestors)


def test_a_finished_search_gives_its_memory_back_at_once():
    """On a GPU the next one needs it, and Python looks for cycles only now and then."""
    priors = stack(16)
    gc.disable()
    try:
        state = GraphedState(priors, 1, 2)
        state.append(torch.zeros(2, 1, 2, dtype=torch.long))
        kept = weakref.ref(state.cache)
        del state
        assert kept() is None
    finally:
        gc.enable()
