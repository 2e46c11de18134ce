"""Benchmarks: the originals they compare with give what the library gives, and what they write is what was measured."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from scipy.stats import chi2_contingency, chisquare
from tiny import count_likelihood, long_hop_separator, random_counts, seeded, sum_likelihood, tiny_prior, tiny_separator

from hybridsep.bench import decode, kernels, posterior, recording
from hybridsep.bench.measure import Rates, Timing, largest_tensor, time_calls
from hybridsep.bench.models import random_likelihood, random_log_probs
from hybridsep.bench.originals import DensePosterior, GrowingPrior, SparsePosterior, beam, sample
from hybridsep.bench.profile import PARTS, weight_products
from hybridsep.bench.report import (
    Goal,
    Options,
    Row,
    plot_scaling,
    read_json,
    results_frame,
    run_benchmarks,
    write_json,
)
from hybridsep.core.errors import HybridsepError
from hybridsep.inference import search
from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.decoder import PriorStack

K = 12
CPU = torch.device("cpu")
COLUMNS = {
    "name", "ours_seconds", "ours_min", "ours_max", "ours_repeats", "ours_processor_seconds", "ours_peak_bytes",
    "reference_seconds", "reference_min", "reference_max", "reference_repeats", "reference_processor_seconds", "reference_peak_bytes", "ratio", "device", "threads",
}  # fmt: skip
both_caches = pytest.mark.parametrize("every_head", [True, False])


def priors():
    return [tiny_prior(seed=1), tiny_prior(seed=2)]


def unsmoothed():
    """Counts with next to no smoothing, which LASS has none of; every mixture code is counted with many pairs."""
    return CountLikelihood(*random_counts(K, 600), sum_likelihood(K), 1e-7)


@both_caches
def test_priors_decoded_as_published_say_what_the_prior_says(every_head):
    prior = tiny_prior()
    codes = torch.randint(K, (3, 5 * prior.settings.window - 3), generator=seeded())
    growing = GrowingPrior(prior, every_head)
    steps = [growing.log_probs(None, 3), *(growing.log_probs(code) for code in codes[:, :-1].T)]
    assert torch.allclose(torch.stack(steps, 1), prior(codes).log_softmax(-1), atol=1e-4)


@both_caches
def test_reordered_caches_follow_their_new_histories(every_head):
    prior, order = tiny_prior(), torch.tensor([2, 2, 0])
    codes = torch.randint(K, (3, 6), generator=seeded())
    growing = GrowingPrior(prior, every_head)
    for code in [None, *codes[:, :-1].T]:
        growing.log_probs(code, 3)
    growing.reorder(order)
    histories = torch.cat([codes[order, :5], codes[:, 5:], codes[:, :1]], 1)
    assert torch.allclose(growing.log_probs(codes[:, 5]), prior(histories)[:, -1].log_softmax(-1), atol=1e-4)


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


def test_a_row_holds_medians_their_ratio_and_whether_the_goal_is_met():
    row = Row(
        "a", Timing((3.0, 1.0, 2.0), (4.0, 1.0, 3.0), 5), Timing((8.0,)), {"codes": 4}, Goal("ratio", 5)
    ).as_dict()
    assert (row["ours_seconds"], row["ours_min"], row["ours_max"], row["ours_repeats"], row["ours_peak_bytes"]) == (
        2.0,
        1.0,
        3.0,
        3,
        5,
    )
    assert (row["ours_processor_seconds"], row["reference_processor_seconds"]) == (3.0, None)
    assert (row["ratio"], row["goal"], row["goal_met"], row["codes"]) == (4.0, "ratio ≥ 5", False, 4)
    assert Goal("ours_seconds", 2, at_most=True).met(row)


def test_the_floor_is_the_longer_of_computing_and_moving():
    rates = Rates(operations=100.0, bytes=10.0)
    assert rates.floor(200, 10) == 2.0 and rates.floor(200, 50) == 5.0


def test_weight_products_are_all_weights_of_the_priors():
    prior = tiny_prior()
    operations = sum(p.operations for p in weight_products(PriorStack([prior, prior]), 3))
    weights = sum(p.numel() for p in prior.parameters()) - prior.embedding.weight.numel()
    assert operations == 2 * 3 * 2 * weights


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_separator(count_likelihood(K)).save(folder)
    return folder


@pytest.fixture(scope="module")
def decoded(model):
    return run_benchmarks(decode.BENCHMARKS, Options(quick=True, seconds=0.2, repeats=1, codes=16, model=model))


@pytest.mark.parametrize("module", [posterior, kernels])
def test_quick_runs_measure_every_benchmark(module):
    check(run_benchmarks(module.BENCHMARKS, Options(quick=True, repeats=2)), module)


def test_a_quick_decode_run_measures_every_benchmark(decoded):
    check(decoded, decode)


def check(result, module):
    """The documented fields, and numbers that hang together."""
    assert {"hardware", "threads", "commit", "options", "wall_seconds"} <= result["provenance"].keys()
    for row in result["rows"]:
        assert COLUMNS <= row.keys()
        assert row["ours_min"] <= row["ours_seconds"] <= row["ours_max"]
        assert row["ratio"] is None or row["ratio"] == row["reference_seconds"] / row["ours_seconds"]
    assert len({row["name"] for row in result["rows"]}) == len(result["rows"]) >= len(module.BENCHMARKS)
    json.dumps(result, allow_nan=False)


def test_the_parts_of_a_step_are_the_whole_step(decoded):
    rows = {row["name"].split("/")[1]: row for row in decoded["rows"] if row["name"].startswith("profile-")}
    assert sum(rows[part]["share"] for part in PARTS) == pytest.approx(1)
    assert sum(rows[part]["ours_seconds"] for part in PARTS) == pytest.approx(rows["step"]["ours_seconds"])
    assert rows["weight products"]["share"] > 0 and rows["attention"]["share"] > 0
    assert rows["products"]["floor_seconds"] > 0


def test_results_survive_their_file_and_become_a_table_and_a_figure(decoded, tmp_path):
    path = tmp_path / "folder" / "bench.json"
    write_json(decoded, path)
    assert read_json(path) == json.loads(json.dumps(decoded))
    frame = results_frame(read_json(path))
    assert list(frame["benchmark"]) == [row["name"] for row in decoded["rows"]]
    assert [axis.get_xlabel() for axis in plot_scaling(read_json(path)).axes] == [
        "particles",
        "length of the audio (s)",
    ]


def test_what_cannot_be_run_read_or_drawn_is_said_in_one_line(tmp_path, decoded):
    with pytest.raises(HybridsepError, match="unknown benchmark 'nothing'"):
        run_benchmarks(posterior.BENCHMARKS, Options(only="nothing"))
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(HybridsepError, match="holds no benchmark results"):
        read_json(tmp_path / "other.json")
    with pytest.raises(HybridsepError, match="no rows"):
        plot_scaling({"provenance": {}, "rows": []})
    tiny_separator().save(tmp_path / "sum")
    with pytest.raises(HybridsepError, match="need a method of counts"):
        run_benchmarks(decode.BENCHMARKS, Options(quick=True, only="lass", model=tmp_path / "sum"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_a_long_recording_is_separated_in_a_process_of_its_own_whose_peak_is_recorded(tmp_path, monkeypatch):
    long_hop_separator().save(tmp_path / "model")
    written = []
    real = recording.write_recording

    def write(path, *arguments):
        real(path, *arguments)
        written.append(soundfile.info(path))

    monkeypatch.setattr(recording, "write_recording", write)
    result = run_benchmarks(
        recording.BENCHMARKS, Options(model=tmp_path / "model", particles=1, quick=True, minutes=0.06, only="hour")
    )
    (row,) = result["rows"]
    assert row["name"] == "recording/hour" and set(recording.BENCHMARKS) == {"song", "hour"}
    assert COLUMNS <= row.keys() and (row["minutes"], row["particles"], row["model"]) == (
        0.06,
        1,
        str(tmp_path / "model"),
    )
    assert [(info.samplerate, info.channels, info.frames) for info in written] == [
        (44_100, 2, round(0.06 * 60 * 44_100))
    ]
    # Python and torch alone take more than 50 MB; the two stems of four seconds less than 500.
    assert (
        50e6 < row["start_bytes"] < row["ours_peak_bytes"] < row["start_bytes"] + 500e6
        and 0 < row["ours_seconds"] < result["provenance"]["wall_seconds"]
    )
