"""Fixed-lag estimates: exact where there are particles enough, nearer than the ends of the paths where there are few."""

from dataclasses import replace

import pytest
import torch
from tiny import count_likelihood, noise, seeded, tiny_separator
from toy import K, additive_world, enumerate_posterior, smoothed_marginals

from hybridsep.inference.search import particle_filter
from hybridsep.inference.selection import SELECTIONS
from hybridsep.inference.separator import LAGGED_ROWS, SearchOptions
from hybridsep.inference.smoothing import FADE_CODES, OWN_CODES, lagged_mean, paths_when

MIXTURE = 5 * [0, 2, 1, 2, 0, 0, 1, 1, 2, 0, 1, 2, 0, 2, 1, 2, 0, 1, 1, 0]


def shares(codes, weights):
    """Sound of a world in which code k is a one in sample k: means are marginals. [2, B, N, L], [B, N] -> [2, B, L·K]."""
    return torch.einsum("bn,pbnlk->pblk", weights, torch.nn.functional.one_hot(codes, K).float()).flatten(2)


def marginals(found, lag=0, stretch=4, reach=3):
    """What an estimate says of each code, [2, B, S, K]; with no lag by the ends of the paths."""
    weights = found.log_weights.softmax(-1)
    mean = lagged_mean(found, shares, lag, stretch, reach, hop=K) if lag else shares(found.codes, weights)
    return mean.unflatten(2, (-1, K))


def filtered(length, particles, mixtures=1, seed=0, world=None):
    """A world, the mixture's codes and what a particle filter finds."""
    priors, likelihood = world or additive_world(floor=0.3)
    codes = torch.tensor([MIXTURE[:length]]).expand(mixtures, -1)
    return priors, likelihood, particle_filter(priors, likelihood, codes, particles, seeded(seed))


def test_smoothed_marginals_are_those_of_the_enumerated_posterior():
    world = additive_world()
    exact, _ = enumerate_posterior(*world, MIXTURE[:4])
    expected = torch.zeros(2, 4, K, dtype=torch.float64)
    for pair, probability in exact.items():
        for p, sequence in enumerate(pair):
            expected[p, torch.arange(4), torch.tensor(sequence)] += probability
    torch.testing.assert_close(smoothed_marginals(*world, MIXTURE[:4]), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("heard", [2, 3, 6, 8, 9])
def test_paths_at_a_moment_have_the_posterior_given_what_is_heard_by_then(heard):
    *world, found = filtered(8, 20_000, world=additive_world())
    paths, log_weights = paths_when(found, heard, 0, heard - 1)
    estimated = shares(paths, log_weights.softmax(-1)).view(2, -1, K)

    def distance(known):
        return (estimated - smoothed_marginals(*world, MIXTURE[:known])[:, : heard - 1]).abs().max()

    assert distance(min(heard, 8)) < 0.02
    # Those of the step before or after would be another posterior.
    assert heard not in (3, 6) or min(distance(heard - 1 or 1), distance(heard + 1)) > 0.04


@pytest.mark.parametrize("lag", [0, 5, 8, 40])
def test_marginals_of_every_estimate_are_the_enumerated_ones(lag):
    *world, found = filtered(20, 20_000)
    expected = smoothed_marginals(*world, MIXTURE[:20])
    assert (marginals(found, lag)[:, 0] - expected).abs().max() < 0.02


@pytest.mark.parametrize("lag", [1, 3, 8])
def test_few_particles_say_more_before_they_have_one_past(lag):
    *world, found = filtered(100, 8, mixtures=60, world=additive_world())
    expected = smoothed_marginals(*world, MIXTURE)[:, None]
    ends, lagged = ((marginals(found, each, stretch=2) - expected).square().mean() for each in (0, lag))
    assert lagged < 0.6 * ends


@pytest.mark.parametrize("length, stretch", [(20, 4), (20, 7), (20, 1), (20, 19), (20, 50), (5, 4), (3, 2), (1, 4)])
def test_stretches_cover_every_code_once(length, stretch):
    """They are cross-faded: what all of them say alike is said alike by their mean."""
    *_, found = filtered(length, 6, mixtures=3)
    for lag in (1, 2, 30):
        mean = lagged_mean(found, lambda codes, _: torch.ones(2, 3, codes.shape[-1] * K), lag, stretch, reach=3, hop=K)
        assert torch.allclose(mean, torch.ones(2, 3, length * K), atol=1e-5)
    assert torch.allclose(marginals(found, 30, stretch), marginals(found), atol=1e-6)


@pytest.mark.parametrize("lag", [1, 3, 8])
def test_far_from_a_stretch_all_particles_get_the_heaviest_path(lag):
    *_, found = filtered(100, 6, mixtures=3, world=additive_world())
    decoded, length = [], 11 + 4 + FADE_CODES + 11
    lagged_mean(found, lambda codes, weights: decoded.append(codes) or shares(codes, weights), lag, 4, reach=11, hop=K)
    heaviest = found.codes[:, torch.arange(3), found.log_weights.argmax(1)]
    codes = decoded[10]  # of the stretch from 40 to 48
    assert codes.shape == (2, 3, 6, length)
    right = min(OWN_CODES, lag - 1)
    assert (codes[..., :9] == heaviest[:, :, None, 29:38]).all()
    assert torch.equal(codes[..., 9 : 19 + right], paths_when(found, 48 + lag, 38, 48 + right)[0])
    assert (codes[..., 19 + right :] == heaviest[:, :, None, 48 + right : 59]).all()


# --- of a separator --------------------------------------------------------------------------------------------------------


def lagging(lag, stretch=4, **search):
    return tiny_separator(count_likelihood(), search={"particles": 6, "lag": lag, "stretch": stretch, **search})


def estimates(lag, particles=6, **search):
    return lagging(lag, **search).estimate(noise(3), SearchOptions(particles=particles, seed=3))


def test_same_seed_gives_the_same_lagged_stems_to_the_bit_and_a_rule_of_their_own():
    options = SearchOptions(seed=3)
    first, again = (lagging(4).estimate(noise(3), options).stems for _ in range(2))
    assert torch.equal(first, again) and first.shape == (2, 3, 2048)
    found = lagging(4).candidates(noise(3), options)
    assert torch.equal(SELECTIONS["lagged mean"](found), first)
    assert torch.equal(SELECTIONS["mean"](found), SELECTIONS["mean"](lagging(0).candidates(noise(3), options)))
    assert (first - SELECTIONS["mean"](found)).abs().max() > 0.01


def test_a_lag_as_long_as_the_mixture_is_the_ends_of_the_paths():
    expected = estimates(0)
    assert expected.search.drawn is None and expected.search.heard_weights is None
    assert torch.equal(estimates(64).stems, expected.stems)
    nearly = estimates(63)
    assert torch.equal(nearly.search.codes, expected.search.codes) and nearly.search.drawn is not None
    found = lagging(0).candidates(noise(3), SearchOptions(seed=3))
    assert torch.equal(SELECTIONS["lagged mean"](found), SELECTIONS["mean"](found))


def test_one_particle_has_one_past_at_any_lag():
    assert torch.allclose(estimates(4, particles=1).stems, estimates(0, particles=1).stems, atol=1e-5)


@pytest.mark.parametrize("search", ["ancestral", "topk", "beam", "lass-beam", "lass-topk"])
def test_other_searches_know_no_lag(search):
    found, expected = (lagging(lag).estimate(noise(), SearchOptions(search, 3)) for lag in (4, 0))
    assert torch.equal(found.stems, expected.stems)


def test_several_filters_are_estimated_each_by_itself_and_averaged():
    separator = lagging(4, filter_particles=3, max_rows=12)
    codes = torch.randint(12, (3, 30), generator=seeded(1))
    together = separator.search_codes(codes, SearchOptions(particles=6, seed=5))
    assert together.drawn.shape == (2, 3, 30, 6) and together.heard_weights.shape == (3, 30, 6)
    assert torch.allclose(together.heard_weights.unflatten(2, (2, 3)).exp().sum(-1), torch.tensor(0.5), atol=1e-5)
    for heard in (9, 30, 31):
        paths, log_weights = paths_when(together, heard, 2, 8)
        for half in (slice(0, 3), slice(3, 6)):
            alone = type(together)(
                **{
                    name: getattr(together, name)[..., half] - (half.start if name == "ancestors" else 0)
                    for name in ("ancestors", "drawn", "heard_weights", "log_weights")
                },
                codes=together.codes[:, :, half],
                **dict.fromkeys(("log_evidence", "ess", "resampled", "running_evidence")),
            )
            assert torch.equal(paths[:, :, half], paths_when(alone, heard, 2, 8)[0])
            assert torch.equal(log_weights[:, half], paths_when(alone, heard, 2, 8)[1])
    assert torch.equal(paths, together.codes[..., 2:8])


def test_a_stretch_is_decoded_in_the_memory_of_its_own_and_its_surroundings(monkeypatch):
    """However long the mixture, and in one shape; what is equal is decoded once."""
    separator, decoded = lagging(4), []
    decode = separator.vqvae.decode
    monkeypatch.setattr(separator.vqvae, "decode", lambda codes: decoded.append(codes) or decode(codes))
    found = separator.search_codes(torch.randint(12, (3, 200), generator=seeded(1)), SearchOptions(seed=5))
    separator.posterior_mean(found)
    assert {len(codes) for codes in decoded} == {LAGGED_ROWS} and len({codes.shape[1] for codes in decoded}) < 12
    assert max(codes.shape[1] for codes in decoded) <= 4 + FADE_CODES + 2 * separator.vqvae.decoder.reach
    decoded.clear()
    separator.posterior_mean(replace(found, drawn=found.drawn[..., :1].expand_as(found.drawn)))
    in_the_end = 4  # last stretches, whose particles differ
    assert len(decoded) <= 50 + 3 * in_the_end
