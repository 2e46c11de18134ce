"""The prior: one code at a time from the cache must say what the full forward pass says."""

import math

import pytest
import torch
from tiny import prior_settings, seeded, tiny_prior

from hybridsep.core.profiles import TrainingSettings
from hybridsep.data.codes import CodeSet
from hybridsep.inference.decoder import PriorStack
from hybridsep.models.prior import Prior, nats_per_code, windowed_attention
from hybridsep.training.loop import train
from hybridsep.training.prior import PriorTask

K = 12
HEADS = pytest.mark.parametrize("heads, kv_heads", [(2, 1), (4, 1), (4, 2), (4, 4), (1, 1)])


def stepwise(stack, codes):
    """Log-probabilities of codes int64 [P, B, N, S] one step at a time: [P, B, N, S, K]."""
    state = stack.start(*codes.shape[1:3])
    found = [state.log_probs]
    for t in range(codes.shape[-1] - 1):
        state.append(codes[..., t])
        found.append(state.log_probs)
    return torch.stack(found, 3)


def full(priors, codes):
    logits = [p(c.flatten(0, 1)).detach() for p, c in zip(priors, codes, strict=True)]
    return torch.stack([x.float().log_softmax(-1).view(*codes.shape[1:], -1) for x in logits])


@HEADS
@pytest.mark.parametrize("length", [1, 5, 8, 9, 16, 29])
def test_cached_steps_equal_the_full_forward_pass_beyond_the_window(heads, kv_heads, length):
    priors = [tiny_prior(seed=s, heads=heads, kv_heads=kv_heads) for s in range(2)]
    codes = torch.randint(K, (2, 2, 3, length), generator=seeded())
    found = stepwise(PriorStack(priors), codes)
    assert found.dtype == torch.float32
    assert torch.allclose(found, full(priors, codes), atol=1e-4)
    assert torch.allclose(found.exp().sum(-1), torch.ones(2, 2, 3, length), atol=1e-5)


def test_window_hides_what_is_older_and_only_that():
    prior = tiny_prior(layers=1)
    codes = torch.randint(K, (1, 24), generator=seeded())
    # Logits at t read tokens t - 7 ... t, and token t is code t - 1.
    for changed, reader, seen in [(3, 11, True), (3, 12, False), (0, 8, True), (0, 9, False)]:
        other = codes.clone()
        other[0, changed] = (codes[0, changed] + 1) % K
        difference = (prior(codes) - prior(other)).detach()[0, reader].abs().max()
        assert (difference > 1e-6) == seen


def test_stacked_priors_equal_the_priors_one_by_one():
    priors = [tiny_prior(seed=s) for s in range(3)]
    codes = torch.randint(K, (3, 1, 4, 19), generator=seeded())
    together = stepwise(PriorStack(priors), codes)
    for p, prior in enumerate(priors):
        assert torch.allclose(together[p], stepwise(PriorStack([prior]), codes[p : p + 1])[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize("length", [0, 4, 13])
def test_reordered_particles_continue_their_ancestors_histories(length):
    stack = PriorStack([tiny_prior(seed=s) for s in range(2)])
    codes = torch.randint(K, (2, 2, 4, length + 9), generator=seeded())
    ancestors = torch.tensor([[3, 3, 0, 1], [0, 2, 2, 2]])
    state = stack.start(2, 4)
    for t in range(length):
        state.append(codes[..., t])
    past = codes[..., :length].gather(2, ancestors[None, :, :, None].expand(2, 2, 4, length))
    expected = stepwise(stack, torch.cat([past, codes[..., length:]], -1))
    for t in range(length, length + 8):
        state.append(codes[..., t], ancestors if t == length else None)
        assert torch.allclose(state.log_probs, expected[..., t + 1, :], atol=1e-5)


@pytest.mark.parametrize("length", [7, 8, 30])
def test_changing_a_later_code_changes_no_earlier_prediction(length):
    prior, codes = tiny_prior(), torch.randint(K, (2, length), generator=seeded())
    for changed in range(length):
        other = codes.clone()
        other[:, changed] = (codes[:, changed] + 1) % K
        difference = (prior(codes) - prior(other)).abs().amax((0, 2))
        assert difference[: changed + 1].max() < 1e-6
        if changed + 1 < length:
            assert difference[changed + 1] > 1e-6


@pytest.mark.parametrize("length, window", [(8, 8), (16, 8), (40, 8), (12, 4), (6, 1)])
def test_windowed_attention_equals_dense_masked_attention(length, window):
    query, key, value = torch.randn(3, 2, 3, length, 4, generator=seeded())
    distance = torch.arange(length)[:, None] - torch.arange(length)
    scores = query @ key.transpose(2, 3) / math.sqrt(4)
    scores = scores.masked_fill((distance < 0) | (distance >= window), -math.inf)
    assert torch.allclose(windowed_attention(query, key, value, window), scores.softmax(-1) @ value, atol=1e-5)


def test_prediction_does_not_depend_on_the_length_it_is_asked_for():
    prior, codes = tiny_prior(), torch.randint(K, (2, 29), generator=seeded())
    for length in (1, 7, 8, 9, 17):
        assert torch.allclose(prior(codes[:, :length]), prior(codes)[:, :length], atol=1e-5)


def test_lowered_precision_stays_near_and_returns_float32():
    priors = [tiny_prior(seed=s) for s in range(2)]
    codes = torch.randint(K, (2, 1, 3, 12), generator=seeded())
    found = stepwise(PriorStack(priors, torch.bfloat16), codes)
    assert found.dtype == torch.float32
    assert torch.allclose(found.exp(), full(priors, codes).exp(), atol=0.1)


def test_fresh_prior_is_uniform():
    prior = Prior(prior_settings(), K)
    assert nats_per_code(prior, torch.randint(K, (3, 20), generator=seeded())) == pytest.approx(math.log(K), rel=1e-5)


def test_nats_per_code_is_the_mean_over_all_codes_whatever_the_batches():
    prior, codes = tiny_prior(), torch.randint(K, (5, 20), generator=seeded())
    log_p = prior(codes).detach().log_softmax(-1).gather(2, codes[..., None])
    for batch in (1, 2, 8):
        assert nats_per_code(prior, codes, batch) == pytest.approx(-float(log_p.mean()), rel=1e-5)


def test_training_learns_a_trivially_predictable_sequence(tmp_path):
    songs = tuple(torch.stack([torch.arange(200) % 5, torch.arange(200) % 7]).to(torch.int16) for _ in range(2))
    settings = prior_settings(training=TrainingSettings(steps=60, batch=8, learning_rate=1e-2, warmup=5))
    module = Prior(settings, K)
    history = train(PriorTask(module, CodeSet(songs), 1, torch.float32), settings.training, tmp_path, "prior", 0)
    assert history[0]["nats_per_code"] > 2.3
    assert history[-1]["nats_per_code"] < 0.3
    assert (
        nats_per_code(module, (torch.arange(28) % 7)[None]) < 0.5 < nats_per_code(module, (torch.arange(28) % 5)[None])
    )


def test_embeddings_start_as_near_as_their_codebook_vectors():
    prior = Prior(prior_settings(width=64), K)
    codebook = torch.randn(K, 3, generator=seeded())
    codebook[1] = codebook[0] + 1e-3
    start_token = prior.embedding.weight[K].clone()
    prior.start_from_codebook(codebook, seeded())
    distances = torch.cdist(prior.embedding.weight[:K], prior.embedding.weight[:K]).detach()
    assert float(distances[0, 1]) < 0.05 * float(distances.mean())
    assert torch.equal(prior.embedding.weight[K], start_token)
    assert float(prior.embedding.weight[:K].detach().square().mean()) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_temperature_is_that_of_every_prediction(temperature):
    priors, codes = [tiny_prior(seed=s) for s in range(2)], torch.randint(12, (2, 1, 3, 20), generator=seeded())
    plain, tempered = (stepwise(PriorStack(priors, temperature=t), codes) for t in (1.0, temperature))
    assert torch.allclose(tempered, (plain / temperature).log_softmax(-1), atol=1e-5)
    assert torch.equal(tempered, plain) == (temperature == 1)


def test_a_temperature_must_be_positive():
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            PriorStack([tiny_prior()], temperature=temperature)


def test_priors_of_different_shapes_are_not_stacked():
    with pytest.raises(ValueError, match="equal shapes"):
        PriorStack([tiny_prior(), tiny_prior(width=32)])
    with pytest.raises(ValueError, match="codebook sizes"):
        PriorStack([tiny_prior(), tiny_prior(codes=13)])


def test_crops_of_codes_are_contiguous_and_of_the_asked_source():
    songs = (
        torch.stack([torch.arange(50), 100 + torch.arange(50)]).to(torch.int16),
        torch.zeros(2, 5, dtype=torch.int16),
    )
    crops = CodeSet(songs).random_crops(1, 40, 30, seeded())
    assert crops.shape == (40, 30) and crops.dtype == torch.int64
    assert (crops.diff(dim=1) == 1).all() and crops.min() >= 100
    assert {100, 120} <= set(crops[:, 0].tolist())
    with pytest.raises(ValueError, match="51 codes.*50"):
        CodeSet(songs).random_crops(0, 1, 51, seeded())
    again = CodeSet.from_tensors(CodeSet(songs).to_tensors())
    assert all(torch.equal(a, b) for a, b in zip(again.songs, songs, strict=True))
