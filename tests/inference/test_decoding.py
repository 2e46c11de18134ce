"""Decoding: a past that particles share must change nothing but memory and time."""

import gc
import weakref

import pytest
import torch
from tiny import seeded, tiny_prior

from hybridsep.inference.caches import PrivateCache, SharedPast, StaticCache
from hybridsep.inference.decoder import GraphedState, PriorStack, PriorState
from hybridsep.inference.search import stay_in_place, systematic_resampling

K = 12


def stack(window, heads=2, kv_heads=1):
    return PriorStack(
        [tiny_prior(seed=s, heads=heads, kv_heads=kv_heads, window=window, crop_codes=window) for s in range(2)]
    )


def resampled(mixtures, particles, generator, sharpness=2.0):
    """Ancestors as a particle filter picks them."""
    weights = (sharpness * torch.randn(mixtures, particles, generator=generator)).softmax(1)
    return stay_in_place(systematic_resampling(weights, torch.rand(mixtures, generator=generator)))


@pytest.mark.parametrize("heads, kv_heads", [(2, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize(
    "window, every, steps", [(300, 3, 260), (64, 2, 300), (24, 1, 150), (40, 1000, 200), (300, 40, 420)]
)
def test_a_shared_past_predicts_what_private_pasts_do(heads, kv_heads, window, every, steps):
    priors, generator = stack(window, heads, kv_heads), seeded(steps)
    private, shared = (PriorState(priors, cache(priors, 2, 5), 2, 5) for cache in (PrivateCache, SharedPast))
    for t in range(steps):
        ancestors = resampled(2, 5, generator) if t % every == every - 1 else None
        codes = torch.randint(K, (2, 2, 5), generator=generator)
        private.append(codes, ancestors), shared.append(codes, ancestors)
        assert torch.allclose(shared.log_probs, private.log_probs, atol=1e-5)
    if every < 10:
        assert shared.cache.border > steps - window


@pytest.mark.parametrize("heads, kv_heads", [(2, 1), (4, 2)])
def test_a_step_of_static_shapes_predicts_what_the_others_do(heads, kv_heads):
    priors, generator = stack(16, heads, kv_heads), seeded()
    private = PriorState(priors, PrivateCache(priors, 2, 3), 2, 3)
    static = GraphedState(priors, StaticCache(priors, 2, 3), 2, 3)
    for t in range(50):
        assert torch.allclose(static.log_probs, private.log_probs, atol=1e-5)
        ancestors = resampled(2, 3, generator) if t % 3 == 2 else None
        codes = torch.randint(K, (2, 2, 3), generator=generator)
        private.append(codes, ancestors), static.append(codes, ancestors)


@pytest.mark.parametrize("particles", [4, 32])
def test_a_shared_past_keeps_little_for_each_particle(particles):
    priors, generator = stack(1024), seeded()
    private, shared = (
        PriorState(priors, cache(priors, 1, particles), 1, particles) for cache in (PrivateCache, SharedPast)
    )
    for _ in range(600):
        shared.append(torch.randint(K, (2, 1, particles), generator=generator), resampled(1, particles, generator))
    assert shared.cache.suffix < 150
    assert shared.cache.nbytes < private.cache.cache.nbytes / 2


def test_no_common_ancestor_means_no_shared_past():
    priors = stack(64)
    state = PriorState(priors, SharedPast(priors, 1, 3), 1, 3)
    for t in range(50):
        state.append(torch.randint(K, (2, 1, 3), generator=seeded(t)))
    assert state.cache.border == 1 and state.cache.suffix == 50
    state.append(torch.zeros(2, 1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long))
    for t in range(16):
        state.append(torch.randint(K, (2, 1, 3), generator=seeded(t)))
    assert state.cache.border == 51


def test_only_search_that_resamples_shares_and_only_long_windows():
    assert isinstance(stack(512).start(1, 4, resampled=True).cache, SharedPast)
    for window, particles, again in ((512, 4, False), (512, 1, True), (64, 4, True)):
        assert isinstance(stack(window).start(1, particles, resampled=again).cache, PrivateCache)


def test_a_finished_search_gives_its_memory_back_at_once():
    """On a GPU the next one needs it, and Python looks for cycles only now and then."""
    priors = stack(16)
    gc.disable()
    try:
        state = GraphedState(priors, StaticCache(priors, 1, 2), 1, 2)
        state.append(torch.zeros(2, 1, 2, dtype=torch.long))
        kept = weakref.ref(state.cache)
        del state
        assert kept() is None
    finally:
        gc.enable()
