"""Audio in, stems out."""

import pytest
import torch
from tiny import count_likelihood, decibels, noise, seeded, tiny_separator

from hybridsep.core.device import seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.inference.search import SEARCHES, beam, particle_filter
from hybridsep.inference.selection import SELECTIONS
from hybridsep.inference.separator import BANDS, SearchOptions
from hybridsep.inference.wiener import wiener


@pytest.fixture(scope="module")
def separator():
    return tiny_separator()


@pytest.fixture(scope="module")
def counting():
    return tiny_separator(count_likelihood())


@pytest.mark.parametrize("search", SEARCHES)
def test_same_seed_gives_the_same_stems_to_the_bit(counting, search):
    first, again = (counting.candidates(noise(), SearchOptions(search, 6, seed=3)) for _ in range(2))
    assert torch.equal(first.waveforms, again.waveforms) and torch.equal(
        first.search.log_weights, again.search.log_weights
    )
    assert torch.equal(*(counting.estimate(noise(), SearchOptions(search, 6, seed=3)).stems for _ in range(2)))


def test_a_separator_leaves_the_likelihood_it_is_given_as_it_was():
    """Precision is that of the separator's own products: a posterior before or after has another."""
    likelihood = count_likelihood()
    before = likelihood.posterior(torch.tensor([3]), torch.zeros(2, 1, 2, 12).log_softmax(-1)).matrices[0]
    for _ in range(2):
        low = tiny_separator(likelihood, precision="bf16")
        low.estimate(noise(1), SearchOptions(particles=2))
        assert low.likelihood.precision == torch.bfloat16
    again = likelihood.posterior(torch.tensor([3]), torch.zeros(2, 1, 2, 12).log_softmax(-1)).matrices[0]
    assert likelihood.precision == torch.float32 and torch.equal(before, again)


@pytest.mark.parametrize("search", ["particle", "ancestral", "topk"])
def test_another_seed_gives_other_stems(counting, search):
    assert not torch.equal(*(counting.estimate(noise(), SearchOptions(search, 6, seed=s)).stems for s in (0, 1)))


@pytest.mark.parametrize("search", SEARCHES)
def test_stems_have_the_shapes_and_scale_promised(counting, search):
    found, kept = counting.candidates(noise(3, 2048 + 31), SearchOptions(search, 5)), 1 if search == "lass-beam" else 5
    assert found.mixture.shape == (3, 2048) and found.waveforms.shape == (2, 3, kept, 2048)
    assert found.search.codes.shape == (2, 3, kept, 64) and found.search.log_weights.shape == (3, kept)
    assert found.search.log_evidence.shape == (3,) and torch.isfinite(found.search.log_evidence).all()
    assert found.search.ess.shape == found.search.resampled.shape == (3, 64)
    stems = wiener(counting.estimate(noise(3, 2048 + 31), SearchOptions(search, 5)).stems, found.mixture)
    assert torch.allclose(stems.mean(0), noise(3, 2048 + 31)[:, :2048], atol=1e-4)


def test_long_batches_are_searched_in_slices():
    small = tiny_separator(search={"particles": 4, "max_rows": 8})
    found = small.candidates(noise(5), SearchOptions(particles=4))
    assert found.search.codes.shape == (2, 5, 4, 64) and found.search.ess.shape == (5, 64)
    first = small.candidates(noise(5)[:2], SearchOptions(particles=4))
    assert torch.equal(found.search.codes[:, :2], first.search.codes)
    assert torch.equal(
        small.candidates(noise(1), SearchOptions(particles=99)).search.codes,
        small.candidates(noise(1), SearchOptions(particles=99)).search.codes,
    )


def several_filters(size, **search):
    return tiny_separator(search={"particles": 12, "max_rows": 24, "filter_particles": size, **search})


@pytest.mark.parametrize("particles, filters", [(12, 3), (4, 1), (3, 1), (8, 2), (10, 2), (11, 1)])
def test_more_particles_than_a_filter_holds_are_several_filters_of_equal_share(particles, filters):
    """Each is a filter by itself: same draws, estimate the mean of theirs, evidence the mean of theirs."""
    separator = several_filters(4)
    codes = torch.randint(12, (2, 20), generator=seeded(1))
    found = separator.search_codes(codes, SearchOptions(particles=particles, seed=5))
    alone = particle_filter(
        separator.stack,
        separator.likelihood,
        codes.repeat_interleave(filters, 0),
        particles // filters,
        seeded_generator(5, 0),
    )
    assert torch.equal(found.codes.reshape(2, 2, filters, -1, 20), alone.codes.view(2, 2, filters, -1, 20))
    expected = alone.log_weights.softmax(1).view(2, filters, -1) / filters
    assert torch.allclose(found.log_weights.softmax(1).view_as(expected), expected, atol=1e-6)
    assert torch.allclose(found.log_evidence, alone.log_evidence.exp().view(2, filters).mean(1).log(), atol=1e-4)
    assert torch.equal(found.running_evidence[:, -1], found.log_evidence)
    assert (found.ess <= particles + 1e-3).all() and (found.ess >= filters - 1e-3).all()
    # Ancestors stay within their filter.
    size = particles // filters
    assert (found.ancestors // size == torch.arange(particles) // size).all()


def test_a_search_as_published_has_priors_at_temperature_one_and_its_own_width():
    hot, plain = (tiny_separator(count_likelihood(), search={"temperature": t, "particles": 4}) for t in (2.0, 1.0))
    codes = torch.randint(12, (2, 20), generator=seeded(1))
    found = hot.search_codes(codes, SearchOptions("lass-beam"))
    expected = beam(plain.stack, count_likelihood(power=3.0), codes, 10, seeded())
    assert torch.equal(found.codes, expected.codes[:, :, :1])
    samples = hot.search_codes(codes, SearchOptions("lass-topk"))
    assert samples.codes.shape == (2, 2, 4, 20)
    assert torch.equal(samples.codes, plain.search_codes(codes, SearchOptions("lass-topk")).codes)


def test_filters_that_are_none_change_nothing():
    codes = torch.randint(12, (2, 20), generator=seeded(1))
    options = SearchOptions(particles=12, seed=5)
    assert torch.equal(
        several_filters(0).search_codes(codes, options).codes, several_filters(12).search_codes(codes, options).codes
    )
    for search in ("ancestral", "beam", "topk"):
        options = SearchOptions(search, 12, 5)
        assert torch.equal(
            several_filters(0).search_codes(codes, options).codes, several_filters(4).search_codes(codes, options).codes
        )


def test_decoding_each_distinct_sequence_once_changes_nothing(separator):
    codes = torch.randint(12, (3, 16), generator=seeded())
    repeated = codes[torch.tensor([[0, 1, 0], [2, 2, 0]])]
    assert torch.allclose(
        separator.decode(repeated), separator.vqvae.decode(repeated.flatten(0, 1)).view(2, 3, -1), atol=1e-6
    )


@pytest.mark.parametrize("length, shared", [(1, 0), (128, 0), (140, 100), (389, 380), (389, 130), (389, 389)])
def test_decoding_a_shared_past_once_changes_nothing(separator, length, shared):
    """As after a particle filter: every sequence of a mixture begins with the same codes."""
    codes = torch.randint(12, (2, 3, 4, length), generator=seeded(length))
    codes[..., :shared] = codes[:, :, :1, :shared]
    whole = separator.vqvae.decode(codes.flatten(0, 2)).view(2, 3, 4, -1)
    assert torch.allclose(separator.decode(codes), whole, atol=1e-6)


def test_decoding_a_shared_past_decodes_less(separator, monkeypatch):
    codes = torch.randint(12, (2, 1, 8, 640), generator=seeded())
    codes[..., :560] = codes[:, :, :1, :560]
    decoded, decode = [], separator.vqvae.decode
    monkeypatch.setattr(separator.vqvae, "decode", lambda c: decoded.append(c.numel()) or decode(c))
    separator.decode(codes)
    assert sum(decoded) < 0.6 * codes.numel()


@pytest.mark.parametrize("search", list(SEARCHES))
def test_the_estimate_is_the_posterior_mean_of_the_candidates(counting, search):
    found, whole = (
        counting.estimate(noise(3), SearchOptions(search, 5, seed=4)),
        counting.candidates(noise(3), SearchOptions(search, 5, seed=4)),
    )
    assert torch.equal(found.search.codes, whole.search.codes) and torch.equal(found.mixture, whole.mixture)
    assert torch.allclose(found.stems, SELECTIONS["mean"](whole), atol=1e-5)


def test_bad_requests_are_refused_with_their_value(separator):
    with pytest.raises(HybridsepError, match="unknown search 'best'.*particle"):
        separator.estimate(noise(), SearchOptions("best"))
    with pytest.raises(HybridsepError, match="31 samples.*32"):
        separator.estimate(noise(1, 31))
    for particles in (0, -1):
        with pytest.raises(ValueError, match=f"{particles} particles"):
            separator.estimate(noise(), SearchOptions(particles=particles))


@pytest.mark.slow
def test_every_form_of_a_recording_is_separated_alike(counting):
    heard = noise(1, 8000)
    expected = counting.separate(heard, 8000, particles=3).stems
    assert expected.shape == (2, 1, 8000)
    forms = [
        heard[0],
        heard[0].double(),
        heard[0].numpy(),
        heard[0].numpy().astype(">f8"),
        heard[0].flip(0).numpy()[::-1],
        heard[0].tolist(),
    ]
    for form in forms:
        assert torch.equal(counting.separate(form, 8000, particles=3).stems, expected[:, 0])
    assert torch.equal(counting.separate(heard.numpy(), 8000, particles=3).stems, expected)


def test_integers_are_on_a_scale_of_their_own(counting):
    heard = (20_000 * noise(1, 8000)).short()
    stems = counting.separate(heard.numpy(), 8000, particles=3).stems
    assert decibels(stems.sum(0) - heard, heard.float()) < -60
    assert torch.allclose(stems, 32768 * counting.separate(heard / 32768, 8000, particles=3).stems, rtol=1e-4, atol=0.1)


@pytest.mark.parametrize("shape", [(), (1, 2, 8000)])
def test_what_is_no_waveform_is_refused_with_its_shape(counting, shape):
    with pytest.raises(HybridsepError, match="is \\[samples\\] or \\[channels, samples\\]"):
        counting.separate(torch.zeros(shape), 8000)


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-20, 1e20, 3e38])
@pytest.mark.parametrize("refine", [True, False])
def test_level_of_a_recording_does_not_matter(counting, scale, refine):
    heard = noise(2, 8000)
    heard = heard / heard.abs().max() * scale
    stems = counting.separate(heard, 8000, particles=2, refine=refine).stems
    assert torch.isfinite(stems).all()
    if refine:
        assert decibels((stems.double().sum(0) - heard) / scale, heard.double() / scale) < (
            -60 if scale > 1e-40 else -30
        )


@pytest.mark.slow
def test_long_mixtures_are_separated_together_as_alone(counting):
    heard = noise(3, 60_000)
    together = counting.estimate_windows(heard, SearchOptions(particles=2))
    assert together[0].shape == (2, 3, 60_000) and together[1].shape == (3,)
    alone = counting.estimate_windows(heard[:1], SearchOptions(particles=2))
    assert torch.allclose(together[0][:, :1], alone[0], atol=1e-4)
    assert together[1][0] == pytest.approx(float(alone[1]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("max_rows, windows", [(8, [2, 2, 2, 2, 1]), (4 * 9, [9])])
def test_as_many_windows_are_searched_at_once_as_there_is_room_for(monkeypatch, max_rows, windows):
    """Three recordings of three windows by four particles: few at once however long they are, all where there is room."""
    small, counts = tiny_separator(search={"particles": 4, "max_rows": max_rows}), []
    estimate = small.estimate
    monkeypatch.setattr(small, "estimate", lambda heard, *a, **k: counts.append(len(heard)) or estimate(heard, *a, **k))
    small.estimate_windows(noise(3, 60_000))
    assert counts == windows


def variance_of_powers(separator, found):
    """Decode every particle, and take the weighted mean of powers and the power of the weighted mean."""
    weights, mean, powers = found.log_weights.softmax(-1), 0, 0
    for n in range(weights.shape[1]):
        waveform = separator.vqvae.decode(found.codes[:, :, n].flatten(0, 1)).unflatten(0, found.codes.shape[:2])
        mean = mean + weights[:, n, None] * waveform
        powers = powers + weights[:, n, None] * waveform.square()
    return mean.square(), powers - mean.square()


@torch.no_grad()
@pytest.mark.parametrize("search", ["ancestral", "topk"])
def test_spread_is_the_variance_of_the_decoded_particles(counting, search):
    found = counting.estimate(noise(2, 4096), SearchOptions(search, 6)).search
    power, variance = variance_of_powers(counting, found)
    spread = counting.spread(found, counting.posterior_mean(found))
    length = found.codes.shape[-1]
    assert spread.shape == (2, 2, 2, length, len(BANDS))
    # Bands share no frequency, so that over a whole mixture their powers add up.
    assert torch.allclose(spread[:, :, 0].sum((-2, -1)), power.mean(-1) * length, rtol=1e-4)
    assert torch.allclose(spread[:, :, 1].sum((-2, -1)), variance.mean(-1) * length, rtol=1e-3, atol=1e-7)


@torch.no_grad()
def test_particles_that_agree_have_no_spread(counting):
    found = counting.estimate(noise(1, 4096), SearchOptions("particle", 1)).search
    spread = counting.spread(found, counting.posterior_mean(found))
    assert (spread[:, :, 0].sum() > 0) and spread[:, :, 1].max() < 1e-6 * spread[:, :, 0].max()


def test_spread_is_measured_where_it_is_asked_for_and_changes_no_stem(counting):
    heard = noise(1, 20_000)
    without, with_it = (counting.estimate_windows(heard, SearchOptions(particles=4, spread=s)) for s in (False, True))
    assert without[2] is None and torch.equal(without[0], with_it[0]) and torch.equal(without[1], with_it[1])
    codes = -(-heard.shape[1] // counting.hop)
    assert (
        with_it[2].shape == (2, 1, 2, codes, len(BANDS)) and (with_it[2] >= 0).all() and with_it[2][:, :, 1].sum() > 0
    )


def test_a_tone_has_its_power_in_its_own_band(counting):
    seconds = torch.arange(counting.sample_rate) / counting.sample_rate
    for band, hertz in enumerate((100, 500, 2000)):
        powers = counting.band_powers((2 * torch.pi * hertz * seconds).sin()[: 16 * counting.hop]).unflatten(
            -1, (-1, len(BANDS))
        )
        assert powers.argmax(-1).eq(band).all()
