"""Both likelihoods against the dense [K, K, K] tables and posteriors that the library never forms."""

import itertools
import math

import pytest
import torch
from tiny import count_likelihood, random_counts, seeded, sum_likelihood

from hybridsep.inference import likelihood as likelihood_module
from hybridsep.inference.counts import (
    CountLikelihood,
    UnigramLikelihood,
    count_batches,
    likelihood_from_tensors,
    symmetrised,
)
from hybridsep.inference.sums import SumLikelihood, sum_table

K = 12


def over_unigram(power=1.0):
    keys, counts = random_counts(K, K**2)
    return CountLikelihood(keys, counts, UnigramLikelihood(keys, counts, K), 1.0, power)


LIKELIHOODS = {
    "sum": lambda: sum_likelihood(K),
    "counts": lambda: count_likelihood(K),
    "counts, lambda 3": lambda: count_likelihood(K, power=3.0),
    "counts, lambda 0.5": lambda: count_likelihood(K, power=0.5),
    "counts over unigram": lambda: over_unigram(),
    "counts over unigram, lambda 3": lambda: over_unigram(power=3.0),
    "unigram": lambda: over_unigram().base,
    "nothing counted": lambda: CountLikelihood(*[torch.empty(0, dtype=torch.long)] * 2, sum_likelihood(K), 1.0),
}
every_likelihood = pytest.mark.parametrize(
    "likelihood", [pytest.param(make(), id=name) for name, make in LIKELIHOODS.items()]
)


def dense(likelihood):
    """l(m|i,j) for every triple, [K, K, K] indexed m, i, j, from the definition."""
    if isinstance(likelihood, SumLikelihood):
        return dense_sum(likelihood)
    if isinstance(likelihood, UnigramLikelihood):
        return dense_unigram(*random_counts(K, K**2))
    counts = dense_counts(likelihood.keys, likelihood.counts)
    unigram = isinstance(likelihood.base, UnigramLikelihood)
    base = dense_unigram(likelihood.keys, likelihood.counts) if unigram else dense_sum(likelihood.base)
    smoothed = counts + likelihood.smoothing * base
    return (smoothed / (counts.sum(0) + likelihood.smoothing)) ** likelihood.power


def dense_counts(keys, counts):
    table = torch.zeros(K**3)
    table[keys] = counts.float()
    return table.view(K, K, K)


def dense_unigram(keys, counts):
    """Every mixture code by how often it was counted with any pair, and once more."""
    seen = dense_counts(keys, counts).sum((1, 2)) + 1
    return (seen / seen.sum())[:, None, None].expand(K, K, K)


def dense_sum(likelihood):
    e = likelihood.codebook
    table = torch.empty(K, K, K)
    for i, j in itertools.product(range(K), repeat=2):
        # From the table: a mean is as far from e_i as from e_j, so where no third code is nearer, rounding decides.
        quantised = e[likelihood.sums[i, j].long()]
        similar = torch.exp(-(e - quantised).square().sum(1) / (2 * likelihood.sigma_squared))
        table[:, i, j] = (1 - likelihood.floor) * similar / similar.sum() + likelihood.floor / K
    return table


def random_log_priors(batch, particles, seed=0, sharpness=2.0):
    return (sharpness * torch.randn(2, batch, particles, K, generator=seeded(seed))).log_softmax(-1)


def dense_posterior(likelihood, mixture, log_p):
    """p(i, j) of every particle, not normalised: [B, N, K, K]."""
    first, second = log_p.exp()
    return first[..., :, None] * second[..., None, :] * dense(likelihood)[mixture][:, None]


def all_triples():
    return torch.tensor(list(itertools.product(range(K), repeat=3))).T


@every_likelihood
def test_factored_posterior_equals_the_dense_one(likelihood):
    mixture, log_p = torch.tensor([0, 5, K - 1]), random_log_priors(3, 4)
    exact = dense_posterior(likelihood, mixture, log_p)
    posterior = likelihood.posterior(mixture, log_p)
    total = exact.sum((-1, -2))
    assert torch.allclose(posterior.log_evidence, total.log(), atol=1e-5)
    normalised = exact / total[..., None, None]
    assert torch.allclose(posterior.marginal / posterior.marginal.sum(-1, keepdim=True), normalised.sum(-1), atol=1e-5)
    for b, n, i in itertools.product(range(3), range(4), range(K)):
        weights = posterior.second[b, n] * posterior.matrices[b][i]
        assert torch.allclose(weights / weights.sum(), normalised[b, n, i] / normalised[b, n, i].sum(), atol=1e-5)


@every_likelihood
def test_draws_follow_the_dense_posterior(likelihood):
    draws, mixture = 100_000, torch.tensor([7])
    log_p = random_log_priors(1, 1, seed=3, sharpness=1.0)
    exact = dense_posterior(likelihood, mixture, log_p)[0, 0].flatten()
    exact = exact / exact.sum()
    found = likelihood.draw_pairs(mixture, log_p.expand(-1, -1, draws, -1), seeded(1))
    observed = torch.bincount(found.codes[0, 0] * K + found.codes[1, 0], minlength=K * K).float()
    expected = exact * draws
    frequent = expected >= 5
    observed = torch.cat([observed[frequent], observed[~frequent].sum()[None]])
    expected = torch.cat([expected[frequent], expected[~frequent].sum().clamp_min(1e-9)[None]])
    chi_square = float(((observed - expected).square() / expected.clamp_min(1.0)).sum())
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


@every_likelihood
def test_kernels_give_the_posterior_of_the_matrices(likelihood):
    """On a GPU: evidence and draws with no [K, K] matrix, here by the kernels' plain bodies."""
    mixture, log_p = torch.tensor([0, 7, K - 1]), random_log_priors(3, 4)
    ancestors = torch.tensor([[0, 0, 2, 3], [1, 1, 1, 0], [3, 2, 1, 0]])
    factored, fused = likelihood.posterior(mixture, log_p), likelihood.fused(mixture, log_p)
    assert torch.allclose(factored.log_evidence, fused.log_evidence, atol=1e-4)
    draws = 40_000
    exact = dense_posterior(likelihood, mixture[1:2], log_p[:, 1:2, :1])[0, 0].flatten()
    many = likelihood.fused(mixture[1:2], log_p[:, 1:2, :1].expand(-1, -1, draws, -1))
    codes = many.draw(torch.rand(2, 1, draws, generator=seeded()))
    observed = torch.bincount(codes[0, 0] * K + codes[1, 0], minlength=K * K) / draws
    assert 0.5 * float((observed - exact / exact.sum()).abs().sum()) < 0.03
    moved = log_p.gather(2, ancestors[None, :, :, None].expand_as(log_p))
    uniforms = torch.rand(2, 3, 4, generator=seeded())
    assert torch.equal(fused.draw(uniforms, ancestors), likelihood.fused(mixture, moved).draw(uniforms))


@every_likelihood
def test_draws_with_ancestors_come_from_the_ancestors_posterior(likelihood):
    mixture, log_p = torch.tensor([2, 9]), random_log_priors(2, 5)
    uniforms = torch.rand(2, 2, 5, generator=seeded())
    ancestors = torch.tensor([[0, 0, 3, 3, 4], [1, 2, 2, 2, 0]])
    moved = log_p.gather(2, ancestors[None, :, :, None].expand_as(log_p))
    drawn = likelihood.posterior(mixture, log_p).draw(uniforms, ancestors)
    assert torch.equal(drawn, likelihood.posterior(mixture, moved).draw(uniforms))


@every_likelihood
def test_the_three_answers_agree_with_the_definition(likelihood):
    exact = dense(likelihood)
    m, i, j = all_triples()
    assert torch.allclose(likelihood.log_likelihood(m, i, j).exp(), exact[m, i, j], rtol=1e-4, atol=1e-8)
    assert torch.allclose(torch.stack([likelihood.matrix(code) for code in range(K)]), exact, rtol=1e-4, atol=1e-8)


@every_likelihood
def test_asking_twice_gives_the_same_answer(likelihood):
    """The tables are changed in place inside: no answer may change the next one."""
    mixture, log_p = torch.tensor([3, 5]), random_log_priors(2, 4)
    first = likelihood.matrix(3).clone(), likelihood.posterior(mixture, log_p).marginal
    assert torch.equal(first[0], likelihood.matrix(3)) and torch.equal(
        first[1], likelihood.posterior(mixture, log_p).marginal
    )


@every_likelihood
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("room", [0, 2, 5])
def test_little_room_for_kept_matrices_changes_no_answer(likelihood, precision, room):
    """With room for fewer matrices than a step needs, none may be overwritten while it is in use."""
    log_p, likelihood = random_log_priors(6, 2), likelihood.with_precision(precision)
    likelihood.cache_bytes = room * K * K * precision.itemsize
    for step in range(12):
        mixture = torch.randint(K, (6,), generator=seeded(step))
        posterior = likelihood.posterior(mixture, log_p)
        for code, matrix in zip(mixture.tolist(), posterior.matrices, strict=True):
            assert torch.equal(matrix, likelihood.matrix(code).to(precision))


@every_likelihood
def test_bfloat16_products_stay_near(likelihood):
    mixture, log_p = torch.tensor([0, 5, K - 1]), random_log_priors(3, 4)
    exact = likelihood.posterior(mixture, log_p).log_evidence
    low = likelihood.with_precision(torch.bfloat16).posterior(mixture, log_p).log_evidence
    assert torch.allclose(exact, low, atol=0.01) and not torch.equal(exact, low)
    assert torch.equal(likelihood.posterior(mixture, log_p).log_evidence, exact), "the likelihood itself is as it was"


@pytest.mark.parametrize("name", ["sum", "counts", "nothing counted"])
def test_likelihood_at_power_one_sums_to_one_over_mixture_codes(name):
    likelihood = LIKELIHOODS[name]()
    total = sum(likelihood.matrix(code) for code in range(K))
    assert torch.allclose(total, torch.ones(K, K), atol=1e-5)


def test_sum_table_is_the_nearest_code_of_every_mean():
    codebook = torch.randn(30, 4, generator=seeded())
    middles = (0.5 * codebook[:, None] + 0.5 * codebook).double()
    distances = (middles[:, :, None] - codebook.double()).square().sum(-1)
    chosen = distances.gather(2, sum_table(codebook).long()[..., None])[..., 0]
    assert float((chosen - distances.amin(2)).max()) < 1e-6
    assert torch.equal(sum_table(codebook).diagonal(), torch.arange(30).int())


def test_sum_table_does_not_depend_on_the_order_of_the_sources():
    for seed in range(20):
        table = sum_table(torch.randn(40, 4, generator=seeded(seed)))
        assert torch.equal(table, table.T)


def test_sum_table_takes_the_lower_code_where_two_are_equally_near():
    """Every mean is as far from e_i as from e_j: what is nearest may not hang on the last bit of a product."""
    for seed in range(20):
        codebook = torch.randn(40, 4, generator=seeded(seed))
        table = sum_table(codebook).long()
        index = torch.arange(40)
        own = (table == index[:, None]) | (table == index)
        assert torch.equal(table[own], torch.minimum(index[:, None], index).expand(40, 40)[own])


# --- top pairs -------------------------------------------------------------------------------------------------------------


class TableLikelihood(SumLikelihood):
    """Any table [K, K, K] behind the interface."""

    def __init__(self, table):
        self.codes, self.full = table.shape[0], table

    def matrix(self, mixture):
        return self.full[mixture]

    def rows(self, mixture, first):
        return self.full[mixture, first]

    def log_likelihood(self, mixture, first, second):
        return self.full[mixture, first, second].log()


def worlds():
    """Tables on which pruning is easy, useless, or misleading: bounds of a row far above its best pair."""
    yield "random", torch.rand(K, K, K, generator=seeded(1))
    yield "flat", torch.full((K, K, K), 0.25)
    yield "peaked", torch.rand(K, K, K, generator=seeded(2)).pow(20)
    misleading = torch.full((K, K, K), 0.9)
    misleading[:, -1] = 1e-4
    misleading[:, -1, 5] = 1.0
    yield "the best pair in the row of lowest bound", misleading
    sparse = torch.full((K, K, K), 1e-12)
    sparse[:, 3, 4] = 1.0
    yield "one pair", sparse


@pytest.mark.parametrize("table", [pytest.param(t, id=n) for n, t in worlds()])
@pytest.mark.parametrize("flat_priors", [False, True])
@pytest.mark.parametrize("k", [1, 5, 40, K * K])
@pytest.mark.parametrize("together", [False, True])
def test_top_pairs_equal_brute_force(table, flat_priors, k, together):
    likelihood = TableLikelihood(table)
    mixture, particles = torch.tensor([1, 8]), 6
    log_p = random_log_priors(2, particles, seed=5, sharpness=0.0 if flat_priors else 3.0)
    log_weights = torch.tensor(
        [[0.0, -3.0, -50.0, -1.0, -0.5, -2.0], [-900.0, -901.0, -902.0, -float("inf"), -905.0, -903.0]]
    )
    scores = log_p[0][..., None] + log_p[1][..., None, :] + table[mixture].log()[:, None]
    if together:
        scores = (scores + log_weights[..., None, None]).flatten(1)[:, None]
    else:
        scores = scores.flatten(2)
    found = likelihood.top_pairs(mixture, log_p, k, log_weights if together else None)
    expected = scores.sort(-1, descending=True).values[..., :k]
    lowest = expected[..., :1] - 60.0
    visible = expected > lowest
    assert torch.allclose(found.scores[visible], expected[visible], atol=1e-3)
    parents = found.parents if together else torch.zeros_like(found.parents)
    index = parents * K * K + found.codes[0] * K + found.codes[1]
    assert torch.allclose(scores.gather(-1, index)[visible], found.scores[visible], atol=1e-3)
    if not together:
        assert (found.parents == 0).all()
    for group in index.flatten(0, 1):
        assert len(group.unique()) == k


def test_top_pairs_are_exact_where_most_rows_are_never_scored():
    size = 100
    likelihood = count_likelihood(size)
    log_p = (3 * torch.randn(2, 1, 3, size, generator=seeded())).log_softmax(-1)
    found = likelihood.top_pairs(torch.tensor([4]), log_p, 10)
    scores = (log_p[0, 0][:, :, None] + log_p[1, 0][:, None] + likelihood.matrix(4).log()).flatten(1)
    assert torch.allclose(found.scores[0], scores.topk(10).values, atol=1e-4)


@pytest.mark.parametrize("allowed", [1, 16, 60])
@pytest.mark.parametrize("together", [False, True])
def test_top_pairs_score_no_more_rows_than_allowed(monkeypatch, allowed, together):
    """Also where all rows are equal, and where there are more groups than rows allowed."""
    monkeypatch.setattr(likelihood_module, "ROWS_SCORED", allowed)
    likelihood, particles, k = TableLikelihood(torch.full((K, K, K), 1 / K)), 20, 3
    scored = []
    real = torch.Tensor.index_select
    monkeypatch.setattr(
        torch.Tensor, "index_select", lambda self, dim, index: scored.append(len(index)) or real(self, dim, index)
    )
    found = likelihood.top_pairs(
        torch.tensor([1]),
        torch.full((2, 1, particles, K), -math.log(K)),
        k,
        torch.zeros(1, particles) if together else None,
    )
    groups = 1 if together else particles
    assert max(scored) <= max(8 * groups, groups * max(1, allowed // groups))
    assert torch.allclose(found.scores, torch.full_like(found.scores, -3 * math.log(K)), atol=1e-4)


# --- what was never counted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_unseen_mixture_code_and_unseen_pair_are_unlikely_and_no_error(power):
    keys = torch.tensor([(0 * K + 1) * K + 2])
    likelihood = CountLikelihood(keys, torch.tensor([10_000]), sum_likelihood(K, floor=1e-4), 0.1, power)
    certain = torch.full((2, 1, 4, K), -80.0)
    certain[0, ..., 1] = certain[1, ..., 2] = 0.0
    for mixture in range(K):
        found = likelihood.draw_pairs(torch.tensor([mixture]), certain.log_softmax(-1), seeded())
        assert (found.codes[0] == 1).all() and (found.codes[1] == 2).all()
        assert torch.isfinite(found.log_evidence).all()
        best = likelihood.top_pairs(torch.tensor([mixture]), certain.log_softmax(-1), 3)
        assert (best.codes[:, 0, :, 0] == torch.tensor([[1], [2]])).all()
    unseen = likelihood.log_likelihood(torch.tensor(5), torch.tensor(7), torch.tensor(7))
    assert float(unseen) == pytest.approx(
        power * float(likelihood.base.log_likelihood(torch.tensor(5), torch.tensor(7), torch.tensor(7))), rel=1e-4
    )
    assert likelihood.seen(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([2, 2])).tolist() == [True, False]


def test_pair_counted_often_follows_the_counts():
    keys = torch.tensor([(3 * K + 1) * K + 2, (4 * K + 1) * K + 2])
    likelihood = CountLikelihood(keys, torch.tensor([30_000, 10_000]), sum_likelihood(K), 1.0)
    found = likelihood.log_likelihood(torch.tensor([3, 4]), torch.tensor([1, 1]), torch.tensor([2, 2])).exp()
    assert found.tolist() == pytest.approx([0.75, 0.25], abs=1e-3)


# --- fitting, counting, keeping --------------------------------------------------------------------------------------------


def drawn_triples(likelihood, count, seed):
    """Triples whose mixture code is drawn from l(m|i,j)."""
    table = dense(likelihood)
    pair = torch.randint(K, (2, count), generator=seeded(seed))
    mixture = torch.multinomial(table[:, pair[0], pair[1]].T, 1, generator=seeded(seed + 1))[:, 0]
    return torch.stack([*pair, mixture])


def mean_log(likelihood, triples):
    return float(likelihood.log_likelihood(triples[2], triples[0], triples[1]).mean())


def test_fitted_sum_explains_held_out_triples_nearly_as_well_as_the_truth():
    truth = sum_likelihood(K, floor=0.02)
    fitted = SumLikelihood.fit(truth.codebook, drawn_triples(truth, 5000, 1))
    held_out = drawn_triples(truth, 5000, 7)
    assert mean_log(fitted, held_out) > mean_log(truth, held_out) - 0.03
    for factor in (0.1, 10.0):
        assert mean_log(fitted, held_out) > mean_log(
            SumLikelihood(truth.codebook, factor * fitted.sigma_squared, fitted.floor), held_out
        )


@pytest.mark.parametrize("base", ["sum", "unigram"])
@pytest.mark.parametrize("informative", [False, True])
def test_fitted_smoothing_trusts_counts_only_where_they_predict(informative, base):
    truth = sum_likelihood(K, floor=0.02)
    seen = drawn_triples(truth, 400 if not informative else 60_000, 3)
    if informative:  # a world the sum knows nothing of
        seen[2] = (3 * seen[0] + seen[1]) % K
    counted = count_batches([seen], K)
    held_out = drawn_triples(truth, 3000, 11)
    if informative:
        held_out[2] = (3 * held_out[0] + held_out[1]) % K
    bases = {"sum": SumLikelihood.fit(truth.codebook, held_out), "unigram": UnigramLikelihood(*counted, K)}
    fitted = CountLikelihood.fit(*counted, bases[base], held_out)
    ends = [CountLikelihood(*counted, fitted.base, smoothing) for smoothing in (0.1, 100.0)]
    assert mean_log(fitted, held_out) >= max(mean_log(e, held_out) for e in ends) - 1e-6
    if informative:
        assert fitted.smoothing == 0.1
    elif base == "sum":  # nothing is known of a pair without the sum
        assert fitted.smoothing >= 10


def test_symmetrised_counts_are_those_of_both_orders():
    keys, counts = random_counts(K, 300)
    table = dense_counts(keys, counts)
    again, both = symmetrised(keys, counts, K)
    assert torch.equal(again, again.sort().values) and torch.equal(
        dense_counts(again, both), table + table.transpose(1, 2)
    )
    assert torch.equal(UnigramLikelihood(again, both, K).table > 0, torch.ones(K, K, dtype=torch.bool))
    matrix = CountLikelihood(again, both, sum_likelihood(K), 1.0).matrix(3)
    assert torch.allclose(matrix, matrix.T)


@every_likelihood
def test_a_power_is_that_of_every_value(likelihood):
    fitted = dense(likelihood) ** (1 / getattr(likelihood, "power", 1.0))
    raised = likelihood.with_power(2.0)
    assert torch.allclose(torch.stack([raised.matrix(m) for m in range(K)]), fitted**2, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [1, 33, 700])
def test_every_triple_is_counted_whatever_its_batch(size):
    triples = torch.randint(4, (3, 700), generator=seeded())
    keys, counts = count_batches(triples.split(size, dim=1), 4)
    expected = torch.bincount((triples[2] * 4 + triples[0]) * 4 + triples[1], minlength=64)
    assert torch.equal(keys, expected.nonzero()[:, 0]) and torch.equal(counts, expected[expected > 0])


def test_counts_of_nothing_give_a_likelihood():
    keys, counts = count_batches([], K)
    assert len(keys) == len(counts) == 0
    assert torch.isfinite(CountLikelihood(keys, counts, sum_likelihood(K), 1.0).matrix(0)).all()


@pytest.mark.parametrize(
    "likelihood", [pytest.param(make(), id=n) for n, make in LIKELIHOODS.items() if n != "unigram"]
)
def test_likelihood_survives_the_round_trip_through_tensors(likelihood):
    again = likelihood_from_tensors({name: value.clone() for name, value in likelihood.to_tensors().items()})
    m, i, j = all_triples()
    assert type(again) is type(likelihood)
    assert torch.equal(again.log_likelihood(m, i, j), likelihood.log_likelihood(m, i, j))
    assert torch.equal(again.matrix(2), likelihood.matrix(2))


@pytest.mark.parametrize("floor", [1e-4, 1e-3, 1e-2, 3e-2, 0.1])
@pytest.mark.parametrize("size", [12, 64])
def test_round_trip_keeps_every_bit_of_fitted_numbers(floor, size):
    likelihood = SumLikelihood(torch.randn(size, 3, generator=seeded()), 0.3, floor)
    assert torch.equal(likelihood_from_tensors(likelihood.to_tensors()).table, likelihood.table)


# --- refusals --------------------------------------------------------------------------------------------------------------


@every_likelihood
def test_bad_arguments_are_refused_with_their_value(likelihood):
    log_p = random_log_priors(1, 2)
    for code in (-1, K, 99):
        with pytest.raises(ValueError, match=str(code)):
            likelihood.posterior(torch.tensor([code]), log_p)
    with pytest.raises(ValueError, match=f"{K - 1} codes.*{K}"):
        likelihood.posterior(torch.tensor([0]), log_p[..., :-1])
    with pytest.raises(ValueError, match="NaN"):
        likelihood.draw_pairs(torch.tensor([0]), log_p * float("nan"), seeded())
    with pytest.raises(ValueError, match="99"):
        likelihood.top_pairs(torch.tensor([99]), log_p, 3)


def test_keys_of_random_counts_are_what_the_likelihood_expects():
    keys, counts = random_counts(K, 100)
    assert torch.equal(keys, keys.sort().values) and len(keys) == len(counts)
