"""The script for a GPU, at sizes that run anywhere: every stage, in several calls, and each check fails where a kernel is wrong."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from hybridsep.bench.gpu import __main__ as command
from hybridsep.bench.gpu import decode, evaluate, gpu_tables, session, train, verify, weights
from hybridsep.bench.gpu.session import Part, Session
from hybridsep.budget import cache_bytes
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import load_weights
from hybridsep.core.profiles import METHODS, load_profile
from hybridsep.evaluation.chunks import COLUMNS, read_rows
from hybridsep.kernels import cache, counting, counts, nearest, sums
from hybridsep.pipeline.pipeline import Pipeline

# The interpreter's logarithm of zero, which is −inf as it should be.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
STAGES = ("verify", "kernels", "decode", "train", "evaluate")


def call(folder, *arguments):
    """One call of the command at quick sizes: its exit status and what it said."""
    found = CliRunner().invoke(
        command.app, [*arguments, "--quick", "--out", str(folder / "out"), "--runs", str(folder / "runs")]
    )
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What all stages leave after some calls without time and one with enough; .folder, .calls."""
    folder = tmp_path_factory.mktemp("gpu")
    calls = [call(folder, "train", "--minutes", "0") for _ in range(4)]
    calls.append(call(folder, "all", "--minutes", "60"))
    return SimpleNamespace(folder=folder, out=folder / "out", runs=folder / "runs", calls=calls)


def rows(results, stage):
    return json.loads((results.out / f"{stage}.json").read_text())["rows"]


def test_calls_without_time_each_do_a_little_and_say_what_is_left(results):
    assert [status for status, _ in results.calls] == [0] * 5, results.calls
    resume, songs, first, second = (said for _, said in results.calls[:4])
    assert "not finished, songs and what follows" in resume and "not finished, vqvae-plain" in songs
    assert "stopped after step 1 of 6" in first and "stopped after step 2 of 6" in second
    assert "not finished" not in results.calls[4][1]


def test_every_stage_ends_with_all_its_parts_and_names_the_device(results):
    state = json.loads((results.out / "state.json").read_text())
    for stage in STAGES:
        found = rows(results, stage)
        assert {row["part"] for row in found} == set(state["done"][stage]) and all(
            row["hardware"] == state["hardware"] for row in found
        )
        assert all(isinstance(row["commit"], str) for row in found)
        assert not any("error" in row or row.get("passed") is False for row in found)
    status, said = call(results.folder, "all")
    assert status == 0 and "rows" not in said  # nothing is left to be measured


def test_both_bodies_are_checked_on_ragged_sizes(results):
    found = [row for row in rows(results, "verify") if "seed" in row]
    assert {row["body"] for row in found} == set(verify.references.bodies_here())
    assert {row["kernel"] for row in found} >= {*verify.CHECKS, *(f"{name}, chi-square" for name in verify.DRAWS)}
    assert all(row["compared"] > 0 and row["largest_error"] <= row["tolerance"] for row in found)


def test_training_goes_on_from_call_to_call_and_exactly(results):
    models = {row["model"]: row for row in rows(results, "train")}
    assert models["vqvae-plain"]["steps"] == 6 and models["prior-linear-drums"]["steps"] == 4
    assert all(
        models[name][figure] > 0
        for figure in ("memory_peak_gib", "minutes", "loss")
        for name in ("vqvae-plain", "prior-plain-bass")
    )
    resumed = [row for name, row in models.items() if name.startswith("resume of")]
    assert len(resumed) == 2 and all(row["stops"] > 2 for row in resumed)
    assert all(row["bit_equal"] for row in resumed) or verify.DEVICE.type == "cuda"


def test_decoding_is_timed_for_a_step_and_from_audio_to_audio(results):
    found = {row["name"]: row for row in rows(results, "decode")}
    assert set(found) == {f"{what}/smoke/{windows}" for what in ("step", "audio") for windows in decode.QUICK_WINDOWS}
    for row in found.values():
        assert row["ours_seconds"] > 0 and row["memory_peak_gib"] > 0 and row["windows_at_once"] == row["windows"]
    step = found["step/smoke/3"]
    assert step["share_of_floor"] == pytest.approx(
        step["weight_bytes"] / step["copy_bytes_per_second"] / step["ours_seconds"]
    )


def test_kernel_times_stand_beside_floor_torch_body_and_original(results):
    for row in rows(results, "kernels"):
        assert row["times_floor"] > 0 and row["ratio"] > 0 and row["ratio_to_torch"] > 0


def test_scores_of_every_method_and_search_are_kept_in_little_room(results):
    table = read_rows(results.out / "evaluation.csv")
    assert tuple(table.columns) == COLUMNS and set(table.metric) == set(evaluate.METRICS)
    assert set(zip(table.method, table.search)) >= {(method, "particle") for method in METHODS} | {
        ("mixture", ""),
        ("codec-plain", ""),
    }
    assert not table.duplicated([c for c in COLUMNS if c != "value"]).any()


def test_exported_weights_are_found_as_trained_models_of_another_run(results, tmp_path):
    profile = train.trained_profile(SimpleNamespace(quick=True))
    here, there = (Pipeline(profile, runs) for runs in (results.runs, tmp_path))
    assert len(weights.restore_weights(there, results.out / "weights")) == 6 and not weights.restore_weights(
        there, results.out / "weights"
    )
    for old, new in zip(weights.model_steps(here), weights.model_steps(there), strict=True):
        trained, restored = (load_weights(step.folder / "model.safetensors") for step in (old, new))
        prior = old.label.startswith("prior")
        assert new.record == old.record
        assert all(
            torch.equal(restored[name], tensor.half().float() if prior else tensor) for name, tensor in trained.items()
        )
    assert isinstance(there.prior("plain", "bass"), torch.nn.Module) and not (tmp_path / "gpu-small" / "songs").exists()


def test_weights_are_split_into_files_of_a_size_and_come_back_whole(results, tmp_path):
    pipeline = Pipeline(train.trained_profile(SimpleNamespace(quick=True)), results.runs)
    step = pipeline.prior_step("plain", "bass")
    paths = weights.export_weights(step, tmp_path, largest=2000)
    parts = [load_weights(path) for path in paths]
    assert len(paths) > 2 and all(len(part) == 1 or sum(x.nbytes for x in part.values()) <= 2000 for part in parts)
    assert {name for part in parts for name in part} == set(load_weights(step.folder / "model.safetensors"))
    huge = torch.tensor([1e30])
    assert weights.halved(huge) is huge and weights.halved(torch.tensor([7])).dtype == torch.int64
    assert weights.LARGEST_FILE < 16 * 2**20


def test_tables_name_the_device_and_what_is_not_to_be_believed(results, tmp_path):
    tables = gpu_tables(results.out)
    assert len(tables) == 7 and all(len(table.frame) and "sizes that say nothing" in table.measured for table in tables)
    assert all(table.provenance["hardware"] in table.measured for table in tables)
    assert gpu_tables(tmp_path) == []


BROKEN = {
    "nearest_code": (nearest, "assign", lambda found: (found + 1) % 16),
    "draw_pairs_counts, top_pairs_counts": (counts, "draw_entries", lambda found: (found[0], found[1] + 1e-3)),
    "top_pairs_counts": (counts, "top_entries", lambda found: (found[0], found[1] + 1e-3)),
    "log_marginal_sum": (sums, "log_marginal", lambda found: found + 1e-3),
    "draw_pairs_sum": (sums, "draw_pairs", lambda found: (found + 1) % 16),
    "count_triples": (counting, "count_keys", lambda found: (found[0], found[1] + 1)),
    "reorder_cache": (cache, "move_rows", lambda found: found),
    "attend_by_ancestry": (cache, "attend_rows", lambda found: 1.001 * found),
    "attend_by_ancestry, float16": (cache, "attend_rows", lambda found: 1.05 * found),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_kernel_is_found(name, monkeypatch):
    module, body, spoil = BROKEN[name]
    right = getattr(module, body)
    wrong = (lambda *arguments: None) if body == "move_rows" else (lambda *arguments: spoil(right(*arguments)))
    label = next(known for known in verify.CHECKS if name in known)
    check, tolerance = verify.CHECKS[name if name in verify.CHECKS else label]
    checked = (name, check, tolerance, 16, verify.QUICK, "torch", 5)
    assert verify._checked(*checked)[0]["passed"]
    monkeypatch.setattr(module, body, wrong)
    assert not verify._checked(*checked)[0]["passed"]


def test_draws_from_another_distribution_are_found(monkeypatch):
    drawn = sums.draw_pairs
    monkeypatch.setattr(sums, "draw_pairs", lambda *arguments: drawn(*arguments).flip(0))
    assert not verify._draws("swapped", verify.draw_summed, verify.QUICK, "torch", 5)[0]["passed"]


def test_errors_are_rows_that_stop_no_other_part_and_are_tried_again(tmp_path):
    said, fine = [], []

    def broken():
        raise RuntimeError("no such kernel")

    def parts(measure):
        return [Part("broken", measure), Part("fine", lambda: fine.append(1) or [{"x": 1}])]

    first = Session(tmp_path, tmp_path, 60, True, said.append)
    assert not first.run("verify", parts(broken)) and len(fine) == 1
    assert [row.get("error") for row in first.kept("verify")] == ["RuntimeError: no such kernel", None]
    assert "no such kernel" in " ".join(said) and "Traceback" in (tmp_path / "log.txt").read_text()
    second = Session(tmp_path, tmp_path, 60, True)
    assert second.run("verify", parts(lambda: [{"x": 2}])) and len(fine) == 1
    assert sorted(row["x"] for row in second.kept("verify")) == [1, 2]
    second.forget("verify")
    assert second.run("verify", parts(lambda: [{"passed": True}])) and len(fine) == 2


def test_what_cannot_be_measured_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "default_device", lambda: torch.device("cpu"))
    for arguments, message in ((["all"], "no CUDA device"), (["everything", "--quick"], "unknown stage 'everything'")):
        monkeypatch.setattr("sys.argv", ["gpu", *arguments, "--out", str(tmp_path / "none")])
        with pytest.raises(SystemExit) as stop:
            command.main()
        said = capsys.readouterr().err
        assert stop.value.code == 1 and message in said and said.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_results_of_another_device_are_not_mixed_with_those_of_this_one(results, tmp_path):
    shutil.copy(results.out / "state.json", tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"hardware": "another GPU"}))
    with pytest.raises(HybridsepError, match="holds results of another GPU"):
        Session(tmp_path, tmp_path, 1, True)


@pytest.mark.parametrize(("free", "expected"), [(100 * 2**30, 5120), (2**30, None)])
def test_as_many_windows_are_searched_at_once_as_the_memory_holds(free, expected, monkeypatch):
    profile = load_profile("t4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    rows = decode.with_room(SimpleNamespace(profile=profile, device=torch.device("cuda")), 5120).profile.search.max_rows
    assert rows == expected or expected is None and 1 <= rows < 5120 and cache_bytes(profile.prior, rows) < free
    assert profile.search.max_rows == 512
