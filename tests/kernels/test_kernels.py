"""Both bodies of every kernel against dense definitions in float64, and what they promise besides.

Without a GPU the Triton bodies run through Triton's interpreter, which has to be chosen before Triton is first imported.
"""

import inspect
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import kernel_references as references
from kernel_references import (
    DEVICE,
    certain_priors,
    chi_square,
    chosen_body,
    counted_rows,
    dense_scores,
    dense_sum_scores,
    draw_counted,
    draw_summed,
    log_priors,
    outside_interval,
    rand,
    randint,
    randn,
    sum_tables,
)
from tiny import count_likelihood, sum_likelihood

import hybridsep
from hybridsep.inference.counts import CountLikelihood, UnigramLikelihood, likelihood_from_tensors
from hybridsep.kernels import cache, counts, inversion, nearest, sums
from hybridsep.kernels.bodies import runs_triton
from hybridsep.kernels.cache import as_wide_numbers, move_rows
from hybridsep.kernels.counting import count_triples
from hybridsep.kernels.nearest import nearest_code
from hybridsep.kernels.resampling import stay_in_place, systematic_resampling
from hybridsep.kernels.sums import draw_pairs, log_marginal

# The interpreter's logarithm of zero, which is −inf as it should be.
pytestmark = [pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")]
if DEVICE.type == "cuda":
    pytestmark.append(pytest.mark.gpu)
DRAWS = 100_000
BODIES = (
    nearest.assign, counts.draw_entries, sums.log_marginal, sums.draw_pairs, cache.move_rows,
)  # fmt: skip
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(params=["torch", pytest.param("triton", marks=[needs_triton, pytest.mark.slow])], autouse=True)
def body(request):
    """Runs every test with both bodies, and with outputs that hold rubbish until they are written."""
    with chosen_body(request.param):
        yield request.param


def on_gpu(*values):
    """Sizes of a real run, which only a GPU gets through."""
    return pytest.param(*values, marks=pytest.mark.gpu)


def only(name):
    """Tests of what belongs to one body, or to none, run once."""
    return pytest.mark.parametrize(
        "body", [pytest.param(name, marks=needs_triton if name == "triton" else ())], indirect=True
    )


def assert_close(found, expected, tolerance=1e-4):
    """Equal up to rounding, infinities in the same places, and no NaN."""
    torch.testing.assert_close(found.double().cpu(), expected.double().cpu(), rtol=tolerance, atol=tolerance)


def assert_draws_follow(codes, weights):
    """Pairs [2, draws] come as often as weights [K, K] say, which are not normalised."""
    statistic, freedom = chi_square(codes, weights)
    assert freedom > 20 and statistic < freedom + 5 * (2 * freedom) ** 0.5


# --- bodies ----------------------------------------------------------------------------------------------------------------


@only("triton")
def test_both_bodies_have_one_signature():
    for torch_body in BODIES:
        triton_body = getattr(import_module(torch_body.__module__ + "_triton"), torch_body.__name__)
        assert inspect.signature(triton_body) == inspect.signature(torch_body)


@only("torch")
def test_installations_without_triton_never_import_it():
    for path in Path(hybridsep.__file__).parent.rglob("*.py"):
        if not path.stem.endswith("_triton") and path.stem != "tiles":
            text = path.read_text()
            assert "import triton" not in text and "_triton import" not in text and "kernels.tiles" not in text, path


@only("torch")
def test_tensors_on_the_cpu_get_the_torch_body():
    assert not runs_triton(torch.zeros(1))
    assert runs_triton(torch.zeros(1, device=DEVICE)) == (DEVICE.type == "cuda")


@pytest.mark.slow
@only("triton")
@pytest.mark.parametrize("capability", [75, 90])
def test_every_triton_body_compiles_and_fits_into_shared_memory(capability, tmp_path):
    """Of a T4 (64 KiB) and of an H100, by Triton's own compiler, which needs no GPU."""
    script = Path(__file__).parents[1] / "helpers" / "kernel_cases.py"
    settings = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, script, str(capability)], env=settings, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    shared = dict(line.split() for line in run.stdout.splitlines())
    assert len(shared) == len(BODIES) and all(int(size) <= 64 * 1024 for size in shared.values()), shared


# --- nearest code ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 130, on_gpu(65_537)])
@pytest.mark.parametrize(("codes", "width"), [(1, 4), (37, 1), (130, 6), (130, 100), (512, 128), on_gpu(2048, 64)])
def test_nearest_code_is_nearest_in_float64(rows, codes, width):
    vectors, codebook = randn(rows, width), randn(codes, width, seed=1)
    found = nearest_code(vectors, codebook)
    distances = torch.cdist(vectors.double(), codebook.double())
    assert found.shape == (rows,) and found.dtype == torch.int64
    assert_close(distances.gather(1, found[:, None])[:, 0], distances.amin(1))


def test_nearest_code_is_the_lowest_among_equals_in_different_tiles():
    codebook = randint(3, 37, 3).float().repeat(4, 1)
    vectors = randint(5, 90, 3, seed=1).float() / 2
    distances = (vectors[:, None] - codebook).square().sum(-1)
    lowest = (distances == distances.amin(1, keepdim=True)).int().argmax(1)
    assert torch.equal(nearest_code(vectors, codebook), lowest) and int(lowest.max()) < 37


def test_nearest_code_of_wide_vectors_is_found_too():
    codebook = randn(20, 200)
    assert torch.equal(nearest_code(codebook + 0.01, codebook), torch.arange(20, device=DEVICE))


@pytest.mark.parametrize(("width", "codes"), [(3, 5), (4, 0)])
def test_nearest_code_refuses_a_codebook_that_does_not_fit(width, codes):
    with pytest.raises(ValueError, match=rf"\[2, 4\].*\[{codes}, {width}\]"):
        nearest_code(randn(2, 4), randn(codes, width))


# --- counted pairs ---------------------------------------------------------------------------------------------------------


def little_scratch(monkeypatch, particles, entries):
    """So that the torch body has to go through several chunks as well."""
    monkeypatch.setattr(counts, "SCRATCH", particles * entries)


@pytest.mark.parametrize("impossible", [0.0, 0.7])
@pytest.mark.parametrize(
    ("codes", "particles", "longest"), [(37, 5, 1100), (130, 1, 1100), (512, 2, 1100), on_gpu(2048, 5, 100_000)]
)
def test_counted_evidence_and_draws_agree_with_the_dense_posterior(monkeypatch, codes, particles, longest, impossible):
    little_scratch(monkeypatch, particles, 150)
    mixture = torch.arange(5, 10, device=DEVICE)
    log_p, rows = log_priors(5, particles, codes, impossible=impossible), counted_rows(codes, [0, 1, 3, 520, longest])
    scores = dense_scores(log_p, mixture, rows)
    drawn, log_evidence = draw_counted(log_p, mixture, rows, 3)
    assert_close(log_evidence, scores.flatten(2).logsumexp(-1))
    assert (log_evidence[0] == -torch.inf).all() and drawn.dtype == torch.int64
    chosen = scores.flatten(2).gather(2, (drawn[0] * codes + drawn[1])[..., None])[..., 0]
    assert (chosen > -torch.inf).equal(log_evidence > -torch.inf)
    assert (drawn[:, log_evidence == -torch.inf] == 0).all()


@pytest.mark.parametrize("impossible", [0.0, 0.3])
def test_counted_draws_follow_the_dense_posterior(monkeypatch, impossible):
    """Over several chunks of entries in both bodies, with two mixtures in one call."""
    draws = DRAWS // 2
    little_scratch(monkeypatch, draws, 70)
    mixture, codes = torch.tensor([2, 2], device=DEVICE), 21
    log_p, rows = log_priors(2, 1, codes, sharpness=0.5, impossible=impossible), counted_rows(codes, [0, 5, 300])
    drawn, _ = draw_counted(log_p.expand(-1, -1, draws, -1), mixture, rows, 5)
    weights = dense_scores(log_p, mixture, rows).exp()
    for b in range(2):
        assert_draws_follow(drawn[:, b], weights[b, 0])
    assert not torch.equal(drawn[:, 0], drawn[:, 1])


@pytest.mark.parametrize("seed", [0, 1, 2**33 + 1])
def test_counted_draws_are_those_of_their_seed(seed):
    arguments = log_priors(2, 40, 37, sharpness=0.1), torch.tensor([3, 4], device=DEVICE), counted_rows(37, [300])
    again, other = draw_counted(*arguments, seed)[0], draw_counted(*arguments, seed + 2)[0]
    assert torch.equal(draw_counted(*arguments, seed)[0], again)
    assert (again == other).float().mean() < 0.5


def test_counted_draws_come_from_the_ancestors_posterior():
    codes, mixture = 37, torch.tensor([3, 8], device=DEVICE)
    rows = counted_rows(codes, [codes * codes])
    first, second, ancestors = randint(codes, 2, 9), randint(codes, 2, 9, seed=1), randint(9, 2, 9, seed=2)
    log_p = certain_priors(first, second, codes)
    drawn, log_evidence = draw_counted(log_p, mixture, rows, 3, ancestors)
    assert torch.equal(drawn, torch.stack([first.gather(1, ancestors), second.gather(1, ancestors)]))
    assert_close(log_evidence, draw_counted(log_p, mixture, rows, 4)[1].gather(1, ancestors))


def test_counted_evidence_is_safe_far_below_what_a_float_holds():
    codes, mixture = 37, torch.tensor([3], device=DEVICE)
    row_starts, pairs, log_values = counted_rows(codes, [600])
    log_p = log_priors(1, 3, codes) - 69.0
    rows = row_starts, pairs, log_values - 200.0
    drawn, log_evidence = draw_counted(log_p, mixture, rows, 1)
    assert_close(log_evidence, dense_scores(log_p, mixture, rows).flatten(2).logsumexp(-1))


# --- the sum likelihood ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impossible", [0.0, 0.7])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("codes", "particles", "small"),
    [(37, 5, torch.int16), (130, 70, torch.int32), (512, 1, torch.int16), on_gpu(2048, 33, torch.int32)],
)
def test_marginal_equals_the_dense_posteriors(codes, particles, small, shared, impossible):
    mixture, log_p = torch.tensor([0, codes - 1], device=DEVICE), log_priors(2, particles, codes, impossible=impossible)
    sum_rows, table, share = sum_tables(codes, small=small)
    share = share if shared else None
    found = log_marginal(log_p, mixture, (sum_rows, table, share))
    assert_close(found, references.log_marginal(log_p, mixture, sum_rows, table, share))


@pytest.mark.parametrize("impossible", [0.0, 0.3])
@pytest.mark.parametrize("shared", [False, True])
def test_sum_draws_follow_the_dense_posterior(shared, impossible):
    codes, mixture = 13, torch.tensor([7], device=DEVICE)
    log_p, (sum_rows, table, share) = (
        log_priors(1, 1, codes, seed=3, sharpness=0.7, impossible=impossible),
        sum_tables(codes),
    )
    share = share if shared else None
    drawn, log_evidence = draw_summed(log_p.expand(-1, -1, DRAWS, -1), mixture, (sum_rows, table, share), 11)
    scores = dense_sum_scores(log_p, mixture, sum_rows, table, share)[0, 0]
    assert_draws_follow(drawn[:, 0], scores.exp())
    assert_close(log_evidence, scores.flatten().logsumexp(0).expand(1, DRAWS))


@pytest.mark.parametrize(("codes", "particles"), [(37, 40), (130, 20), (512, 3), on_gpu(2048, 5)])
def test_pairs_of_given_uniform_numbers_are_those_of_exact_inversion(codes, particles):
    """Both bodies and float64 find the same place, up to rounding of the summed weights: so they agree with each other."""
    mixture, ancestors = torch.tensor([0, codes - 1], device=DEVICE), randint(particles, 2, particles)
    log_p, (sum_rows, table, share) = log_priors(2, particles, codes, impossible=0.3), sum_tables(codes)
    uniforms = rand(2, 2, particles)
    marginal = log_marginal(log_p, mixture, (sum_rows, table, share)).exp()
    drawn = draw_pairs(marginal, log_p, mixture, (sum_rows, table, share), uniforms, ancestors)
    weights = dense_sum_scores(log_p, mixture, sum_rows, table, share).exp()
    weights = weights.gather(1, ancestors[..., None, None].expand_as(weights))
    of_second = weights.gather(2, drawn[0][..., None, None].expand(-1, -1, 1, codes))[:, :, 0]
    for mass, uniform, code in zip((weights.sum(-1), of_second), uniforms, drawn, strict=True):
        assert outside_interval(mass, uniform, code) <= 1e-5


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_extreme_uniform_numbers_draw_no_impossible_pair(uniform):
    codes, particles, mixture = 37, 50, torch.tensor([4], device=DEVICE)
    log_p, (sum_rows, table, share) = log_priors(1, particles, codes, impossible=0.8), sum_tables(codes)
    log_p[..., 0], log_p[..., -1] = -torch.inf, -torch.inf
    uniforms = torch.full((2, 1, particles), uniform, device=DEVICE)
    marginal = log_marginal(log_p, mixture, (sum_rows, table, share)).exp()
    first, second = draw_pairs(marginal, log_p, mixture, (sum_rows, table, share), uniforms, None)
    assert (log_p[0].gather(2, first[..., None]) > -torch.inf).all()
    assert (log_p[1].gather(2, second[..., None]) > -torch.inf).all()


@pytest.mark.parametrize("rows, codes", [(1, 1), (50, 37), (20, 1024)])
def test_both_inversions_draw_the_same_on_a_cpu(rows, codes):
    generator = torch.Generator().manual_seed(codes)
    weights = torch.rand(rows, codes, generator=generator) ** 8 * (torch.rand(rows, codes, generator=generator) < 0.5)
    weights[0] = 0.0
    for uniforms in (torch.rand(rows, generator=generator), torch.zeros(rows)):
        assert torch.equal(inversion.invert_sequential(weights, uniforms), inversion.invert(weights, uniforms))
    # The last possible number may round up to the total: still nothing of weight zero is drawn.
    drawn = inversion.invert_sequential(weights, torch.full((rows,), 1 - 2**-24))
    possible = weights.sum(1) > 0
    assert (weights[possible].gather(1, drawn[possible, None]) > 0).all() and (drawn[~possible] == 0).all()


@only("torch")
def test_inversion_takes_no_weight_of_zero_where_a_parallel_sum_rises_by_rounding(monkeypatch):
    weights = torch.tensor([[0.0, 2.0, 0.0, 0.0, 2.0, 0.0]])
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, axis: torch.tensor([[0.0, 1.9, 2.1, 2.1, 4.0, 4.1]]))
    assert inversion.invert(weights, torch.tensor([0.5])).tolist() == [4]
    assert inversion.invert(weights, torch.tensor([0.99])).tolist() == [4]
    assert inversion.invert(0 * weights, torch.tensor([0.99])).tolist() == [0]


def test_the_only_possible_pair_is_drawn_though_both_codes_have_probability_1e_minus_30():
    codes, mixture = 37, torch.tensor([4], device=DEVICE)
    probabilities = torch.full((2, 1, 3, codes), 1 / codes, device=DEVICE)
    probabilities[0, ..., 20] = probabilities[1, ..., 30] = 1e-30
    sum_rows, table, _ = sum_tables(codes)
    share = torch.zeros(codes, codes, device=DEVICE)
    share[20, 30] = 0.5
    drawn, log_evidence = draw_summed(probabilities.log(), mixture, (sum_rows, table, share), 1)
    assert (drawn[0] == 20).all() and (drawn[1] == 30).all()
    expected = 2 * torch.tensor(1e-30).double().log() + (0.5 * table[4, sum_rows[20, 30].long()]).double().log().cpu()
    assert_close(log_evidence, expected.expand(1, 3))


def test_no_possible_pair_gives_no_evidence_and_codes_of_zero():
    codes, mixture = 37, torch.tensor([4], device=DEVICE)
    log_p, (sum_rows, table, share) = log_priors(1, 2, codes), sum_tables(codes)
    log_p[0, 0, 1] = -torch.inf
    drawn, log_evidence = draw_summed(log_p, mixture, (sum_rows, table, share), 1)
    assert log_evidence[0, 1] == -torch.inf and log_evidence[0, 0] > -torch.inf
    assert (drawn[:, 0, 1] == 0).all()


def test_sum_draws_come_from_the_ancestors_posterior_and_are_those_of_their_seed():
    codes, mixture = 37, torch.tensor([3, 8], device=DEVICE)
    first, second, ancestors = randint(codes, 2, 9), randint(codes, 2, 9, seed=1), randint(9, 2, 9, seed=2)
    certain, tables = certain_priors(first, second, codes), sum_tables(codes)
    drawn, log_evidence = draw_summed(certain, mixture, tables, 3, ancestors)
    assert torch.equal(drawn, torch.stack([first.gather(1, ancestors), second.gather(1, ancestors)]))
    assert_close(log_evidence, draw_summed(certain, mixture, tables, 4)[1].gather(1, ancestors))
    log_p = log_priors(2, 60, codes, sharpness=0.1)
    again, other = (draw_summed(log_p, mixture, tables, seed)[0] for seed in (5, 6))
    assert torch.equal(draw_summed(log_p, mixture, tables, 5)[0], again)
    assert (again == other).float().mean() < 0.5


@pytest.mark.parametrize("kind", ["sum", "counts"])
def test_draws_of_a_whole_likelihood_follow_its_matrix(kind):
    """On CUDA a draw with counts is one from the sum or one from the counted pairs, by their shares of the evidence."""
    tensors = (sum_likelihood if kind == "sum" else count_likelihood)(16).to_tensors()
    likelihood = likelihood_from_tensors({name: tensor.to(DEVICE) for name, tensor in tensors.items()})
    log_p, mixture = log_priors(1, 1, 16, sharpness=0.5), torch.tensor([3], device=DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(1)
    drawn = likelihood.draw_pairs(mixture, log_p.expand(2, 1, 20_000, 16), generator).codes
    first, second = log_p[:, 0, 0].double().exp()
    assert_draws_follow(drawn[:, 0], first[:, None] * second * likelihood.matrix(3).double())


# --- counting --------------------------------------------------------------------------------------------------------------


@only("torch")
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(("codes", "triples"), [(37, 0), (37, 1), (4, 3000), (512, 3000), on_gpu(2048, 1_000_003)])
def test_counted_triples_equal_a_dense_count(codes, triples, dtype):
    first, second, mixture = randint(codes, 3, triples).to(dtype)
    keys, times = count_triples(first, second, mixture, codes)
    every = (mixture.long() * codes + first) * codes + second
    assert (keys.diff() > 0).all() and keys.dtype == times.dtype == torch.int64
    assert torch.equal(torch.repeat_interleave(keys, times), every.sort().values)


@only("torch")
def test_rows_of_counted_triples_hold_the_pairs_of_each_mixture_code():
    codes = 11
    first, second, mixture = randint(codes, 3, 40, 10)
    mixture = mixture // 2 * 2
    keys, times = count_triples(first, second, mixture, codes)
    likelihood = CountLikelihood(keys, times, UnigramLikelihood(keys, times, codes), 1.0)
    row_starts, pairs = likelihood.row_starts, likelihood.pairs
    assert row_starts.dtype == torch.int64 and row_starts.shape == (codes + 1,)
    dense = torch.zeros(codes, codes * codes, device=DEVICE)
    dense.view(-1).index_add_(0, ((mixture * codes + first) * codes + second).flatten(), torch.ones(400, device=DEVICE))
    for m in range(codes):
        inside = slice(int(row_starts[m]), int(row_starts[m + 1]))
        assert torch.equal(dense[m].nonzero()[:, 0], pairs[inside])
        assert torch.equal(dense[m][pairs[inside]].long(), times[inside])


@only("torch")
def test_counting_refuses_codes_that_do_not_exist():
    fine, bad = torch.tensor([0, 3], device=DEVICE), torch.tensor([0, 4], device=DEVICE)
    for name, triple in (("first", (bad, fine, fine)), ("second", (fine, -bad, fine)), ("mixture", (fine, fine, bad))):
        with pytest.raises(ValueError, match=f"{name} code -?4 "):
            count_triples(*triple, 4)
    with pytest.raises(ValueError, match=r"\[2\].*\[1\]"):
        count_triples(fine, fine[:1], fine, 4)


# --- keys and values under resampling --------------------------------------------------------------------------------------


def resampled(rows, seed):
    """Ancestors as the particle filter picks them, [R]."""
    weights = (2 * randn(1, rows, seed=seed)).softmax(-1)
    return stay_in_place(systematic_resampling(weights, rand(1, seed=seed + 1)))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (13, 3), (13, 1300), on_gpu(1000, 2048)])
def test_reordered_cache_is_that_of_the_ancestors_in_place(rows, width, dtype):
    kept = randn(6, rows, width).to(dtype)
    before, place = kept.clone(), kept.data_ptr()
    ancestors = resampled(rows, seed=rows)
    move_rows(as_wide_numbers(kept), ancestors)
    assert kept.data_ptr() == place
    assert torch.equal(kept, before[:, ancestors])
    assert rows == 1 or (ancestors != torch.arange(rows, device=DEVICE)).any()
