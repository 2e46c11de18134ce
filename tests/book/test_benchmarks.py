"""Benchmarks: the originals they compare with give what the library gives, and what they write is what was measured."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import timing
import torch
from originals import DensePosterior, GrowingPrior, SparsePosterior, beam, sample
from scipy.stats import chi2_contingency, chisquare
from separators import random_likelihood, random_log_probs
from timing import Options, Row, Timing, largest_tensor, time_calls
from tiny import count_likelihood, long_hop_separator, random_counts, seeded, sum_likelihood, tiny_prior, tiny_separator

from hybridsep.core.errors import HybridsepError
from hybridsep.inference import search
from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.decoder import PriorStack
from hybridsep.report import repository_root

K = 12
CPU = torch.device("cpu")
COLUMNS = {
    "name", "ours_seconds", "ours_min", "ours_max", "ours_repeats", "ours_processor_seconds", "ours_peak_bytes",
    "reference_seconds", "reference_min", "reference_max", "reference_repeats", "reference_processor_seconds", "reference_peak_bytes", "ratio", "device", "threads",
}  # fmt: skip
caches = pytest.mark.parametrize(("every_head", "cut"), [(True, True), (True, False), (False, True), (False, False)])


def priors():
    return [tiny_prior(seed=1), tiny_prior(seed=2)]


def unsmoothed():
    """Counts with next to no smoothing, which LASS has none of; every mixture code is counted with many pairs."""
    return CountLikelihood(*random_counts(K, 600), sum_likelihood(K), 1e-7)


@caches
def test_a_cache_as_published_says_within_its_window_what_a_full_forward_says(every_head, cut):
    prior, window = tiny_prior(), tiny_prior().settings.window
    codes = torch.randint(K, (3, 5 * window - 3), generator=seeded())
    growing = GrowingPrior(prior, every_head, cut)
    steps = [growing.log_probs(None, 3), *(growing.log_probs(code) for code in codes[:, :-1].T)]
    assert torch.allclose(torch.stack(steps, 1), prior(codes).log_softmax(-1), atol=1e-4)
    heads = prior.settings.heads if every_head else prior.settings.kv_heads
    assert all(part.shape[1:3] == (heads, window if cut else len(steps)) for layer in growing.cache for part in layer)


@caches
def test_reordered_caches_follow_their_new_histories(every_head, cut):
    prior, order = tiny_prior(), torch.tensor([2, 2, 0])
    codes = torch.randint(K, (3, 20), generator=seeded())
    growing = GrowingPrior(prior, every_head, cut)
    for code in [None, *codes[:, :-1].T]:
        growing.log_probs(code, 3)
    growing.reorder(order)
    histories = torch.cat([codes[order, :-1], codes[:, -1:], codes[:, :1]], 1)
    assert torch.allclose(growing.log_probs(codes[:, -1]), prior(histories)[:, -1].log_softmax(-1), atol=1e-4)


@pytest.mark.parametrize(
    "likelihood", [pytest.param(sum_likelihood(K), id="sum"), pytest.param(unsmoothed(), id="counts")]
)
def test_one_step_of_the_originals_and_ours_draw_from_the_exact_posterior(likelihood):
    count, mixture = 40_000, 3
    log_p = random_log_probs(K, 1, CPU)
    exact = (log_p[0, 0, 0].exp()[:, None] * log_p[1, 0, 0].exp() * likelihood.matrix(mixture)).flatten()
    expected = (exact / exact.sum() * count).double()
    many = log_p.expand(2, 1, count, K)
    originals = [DensePosterior(likelihood)] + (
        [SparsePosterior(likelihood)] if isinstance(likelihood, CountLikelihood) else []
    )
    drawn = [original.draw(mixture, many[0, 0], many[1, 0], seeded()) for original in originals]
    drawn.append(likelihood.draw_pairs(torch.tensor([mixture]), many, seeded()).codes[:, 0])
    often = expected > 5
    for first, second in drawn:
        counts = torch.bincount(first * K + second, minlength=K * K).double()
        observed, wanted = (torch.cat([x[often], x[~often].sum(0, keepdim=True)]) for x in (counts, expected))
        assert (
            chisquare(
                observed[wanted > 0.5], wanted[wanted > 0.5] * observed[wanted > 0.5].sum() / wanted[wanted > 0.5].sum()
            ).pvalue
            > 1e-4
        )


@pytest.mark.parametrize("sparse", [False, True])
def test_sampling_as_published_has_the_distribution_of_ancestral_search(sparse):
    count, mixture = 6_000, torch.tensor([1, 4, 7])
    likelihood = unsmoothed()
    published = sample(
        [GrowingPrior(p) for p in priors()],
        (SparsePosterior if sparse else DensePosterior)(likelihood),
        mixture,
        count,
        seeded(),
    )
    ours = search.ancestral(PriorStack(priors()), likelihood, mixture[None], count, seeded(1)).codes[:, 0]
    cells = torch.stack(
        [torch.bincount(codes[0, :, -1] * K + codes[1, :, -1], minlength=K * K) for codes in (published, ours)]
    )
    assert chi2_contingency(cells[:, cells.sum(0) > 10]).pvalue > 1e-4


def test_beam_search_as_published_finds_what_ours_finds():
    likelihood, mixture = unsmoothed(), torch.tensor([1, 4, 7, 0, 2, 9, 9, 3, 1, 0, 5])
    codes, scores = beam([GrowingPrior(p) for p in priors()], SparsePosterior(likelihood), mixture, 5)
    ours = search.beam(PriorStack(priors()), likelihood, mixture[None], 5, seeded())
    assert torch.equal(codes, ours.codes[:, 0])
    assert torch.allclose(scores, ours.log_weights[0], atol=1e-3)


def test_a_mixture_code_never_counted_stops_no_timing():
    likelihood = CountLikelihood(*[torch.empty(0, dtype=torch.long)] * 2, sum_likelihood(K), 1.0)
    first, second = SparsePosterior(likelihood).draw(2, *random_log_probs(K, 7, CPU)[:, 0], seeded())
    assert torch.equal(first, second) and not SparsePosterior(likelihood).counted(2)


def test_largest_tensors_are_those_of_the_analysis():
    size, particles = 32, 8
    likelihood, log_p = random_likelihood(size, 4, "sum", CPU), random_log_probs(size, particles, CPU)
    dense = largest_tensor(lambda: DensePosterior(likelihood).draw(0, log_p[0, 0], log_p[1, 0], seeded()))
    likelihood.draw_pairs(torch.tensor([0]), log_p, seeded())  # takes the memory that later steps share
    factored = largest_tensor(lambda: likelihood.draw_pairs(torch.tensor([1]), log_p, seeded()))
    assert dense == 4 * particles * size**2
    assert factored == 4 * size**2


def test_calls_take_turns_until_their_budget_is_used_up():
    called = []
    times = time_calls({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3, 60.0, CPU)
    assert "".join(called) == "abababab" and len(times["a"].seconds) == 3
    once = time_calls({"a": lambda: called.append("c")}, 3, 0.0, CPU)["a"]
    assert called.count("c") == 1 and len(once.seconds) == 1


def test_peak_memory_is_that_of_the_call():
    peak = time_calls({"ones": lambda: torch.ones(2**24)}, 0, 1.0, CPU)["ones"].peak_bytes
    if peak is None:
        pytest.skip("this system does not tell")
    assert peak == pytest.approx(2**26, rel=0.1)


def test_a_row_holds_medians_extremes_and_their_ratio():
    row = Row("a", Timing((3.0, 1.0, 2.0), (4.0, 1.0, 3.0), 5), Timing((8.0,)), {"codes": 4}).as_dict()
    assert [row[f"ours_{name}"] for name in ("seconds", "min", "max", "repeats", "peak_bytes")] == [2.0, 1.0, 3.0, 3, 5]
    assert (row["ours_processor_seconds"], row["reference_processor_seconds"]) == (3.0, None)
    assert (row["ratio"], row["codes"]) == (4.0, 4)


def test_an_unknown_benchmark_is_named_and_a_model_that_does_not_fit_too(tmp_path, monkeypatch):
    with pytest.raises(HybridsepError, match="unknown benchmark 'nothing': choose one of a"):
        timing.run({"a": lambda options: []}, Options(only="nothing"))
    tiny_separator().save(tmp_path / "sum")
    with pytest.raises(SystemExit, match="decode.py: LASS needs a method of counts"):
        script(monkeypatch, "decode", "--only", "lass", "--model", tmp_path / "sum")


def script(monkeypatch, name, *options):
    """Run a benchmark as a command of this process."""
    path = repository_root() / "book" / "benchmarks" / f"{name}.py"
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # without it the script starts again, in place of the tests
    monkeypatch.setattr(sys, "argv", [str(path), "--quick", "--repeats", "1", *map(str, options)])
    runpy.run_path(str(path), run_name="__main__")


CASES = {
    "posterior": {"sum-16/float32-made", "counts-16/float32-kept"},
    "decode": {"lass/particle-float32-shared-heads", "lass/particle-float32-every-head-uncut", "lass-beam/beam-float32-shared-heads",
               "lqvae/float32", "particles/2", "length/0.2", "batch/2", "precision/bfloat16"},
    "kernels": {"nearest_code/torch", "count_triples/torch", "reorder_cache/torch"},
    "training": {"codec-step", "prior-step"},
    "recording": {"recording/song"},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_quick_run_of_each_script_measures_every_case(name, tmp_path, monkeypatch):
    options = []
    if name == "decode":
        tiny_separator(count_likelihood(K)).save(tmp_path / "model")
        options = ["--seconds", 0.2, "--codes", 16, "--model", tmp_path / "model"]
    if name == "recording":
        if not Path("/proc/self/status").exists():
            pytest.skip("reads the peak from Linux's /proc")
        long_hop_separator().save(tmp_path / "model")
        options = ["--only", "song", "--minutes", 0.06, "--particles", 1, "--model", tmp_path / "model"]
    script(monkeypatch, name, *options, "--json", tmp_path / "rows.json")
    result = json.loads((tmp_path / "rows.json").read_text())
    assert {"hardware", "threads", "commit", "options", "began", "wall_seconds"} <= result["provenance"].keys()
    rows = {row["name"]: row for row in result["rows"]}
    assert CASES[name] <= rows.keys() and len(rows) == len(result["rows"])
    for row in rows.values():
        assert COLUMNS <= row.keys() and row["ours_min"] <= row["ours_seconds"] <= row["ours_max"]
        assert row["ratio"] is None or row["ratio"] == row["reference_seconds"] / row["ours_seconds"]
    if name == "decode":
        alike = [row for row in rows.values() if row.get("differs") == ""]
        assert all(row["dtype"] == row["reference_dtype"] for row in alike)
        assert {"shared heads once"} == {row["reference_cache"] for row in alike if "reference_cache" in row}
    if name == "recording":
        song = rows["recording/song"]
        # Python and torch alone take more than 50 MB; the two stems of four seconds less than 500.
        assert 50e6 < song["start_bytes"] < song["ours_peak_bytes"] < song["start_bytes"] + 500e6
