"""Several processes: the same training, the same codebook, the same counts and the same table as one, or a line that says why not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import ranks as worker
import torch
from micro import micro_profile
from safetensors.torch import load_file

from hybridsep.core.distributed import ALONE, WHOLE, Part, Ranks, mean_over_ranks, ranks_here
from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import load_profile
from hybridsep.evaluation import protocols
from hybridsep.evaluation.rows import read_rows
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline, merge_counts

SHARED = ("likelihood-", "separated-", "references-")


def start(launcher: list[str], *arguments: object) -> None:
    """Run ranks.py under a launcher, on the CPU."""
    command = [sys.executable, "-m", *launcher, worker.__file__, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A whole run by one process."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "bss_eval", worker.quick_bss_eval)
        Evaluation(
            Pipeline(load_profile(micro_profile(folder, {"evaluation": {"searches": ["particle"]}})), folder)
        ).table()
    return folder


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """What two processes make: tiny models of their own, and likelihoods, separations and scores of the other run's models."""
    folder = shutil.copytree(one, tmp_path_factory.mktemp("two") / "runs")
    for step in (folder / "micro").iterdir():
        if step.name.startswith(SHARED):
            shutil.rmtree(step)
        elif step.suffix == ".csv":
            step.unlink()
    start(["torch.distributed.run", "--standalone", "--nproc-per-node", "2"], folder)
    return folder


def ended(folder: Path, name: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / f"{name}.{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("name", worker.RUNS)
def test_two_processes_follow_the_loss_curve_of_one_with_the_whole_batch(two, tmp_path, name):
    run, figure = worker.RUNS[name]
    module, history = run(tmp_path)
    curve = torch.tensor([row[figure] for row in history], dtype=torch.float64)
    assert len(curve) == worker.TRAINING["steps"] and curve[-1] != curve[0]
    for there in ended(two, name):
        torch.testing.assert_close(there["curve"], curve, rtol=0, atol=1e-4)
        for key, value in module.state_dict().items():
            # Muon's products are bfloat16: what is rounding elsewhere shows in the weights there.
            torch.testing.assert_close(there[key], value, rtol=1e-3, atol=1e-4 if name == "codec" else 1e-2)


def test_accelerate_launches_processes_that_train_as_one(tmp_path):
    """Processes of `--multi_gpu`, where no GPU is; its `--cpu` knows MPI only, and else starts one."""
    start(
        [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--main_process_port",
            "0",
        ],
        tmp_path,
        "prior",
    )
    first, second = ended(tmp_path, "prior")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    _, history = worker.prior_run(tmp_path / "one")
    curve = torch.tensor([row["nats_per_code"] for row in history], dtype=torch.float64)
    torch.testing.assert_close(first["curve"], curve, rtol=0, atol=1e-4)
    assert not torch.equal(first["curve"], curve)


@pytest.mark.parametrize("name", ["codec", "prior"])
def test_processes_end_with_the_same_weights_and_codebook_to_the_bit(two, name):
    first, second = ended(two, name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_codes_died_and_were_drawn_anew_in_that_comparison(tmp_path, monkeypatch):
    """Or the codebooks' equality would say nothing about re-seeding."""
    drawn = []
    real = torch.multinomial
    monkeypatch.setattr(
        torch,
        "multinomial",
        lambda *args, **kwargs: drawn.append(kwargs.get("replacement", False)) or real(*args, **kwargs),
    )
    worker.codec_run(tmp_path)
    assert sum(drawn) >= 2


def test_counts_and_likelihoods_of_two_processes_are_those_of_one_to_the_bit(one, two):
    files = sorted(p.relative_to(one) for p in one.glob("micro/likelihood-*/likelihood.safetensors"))
    assert len(files) == 4
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert any("counts" in load_file(one / file) for file in files)


def test_table_of_two_processes_is_that_of_one(one, two):
    for name in ("evaluation.csv", "selections.csv"):
        tables = [read_rows(folder / "micro" / name) for folder in (one, two)]
        here, there = (table[table.metric != "seconds"].reset_index(drop=True) for table in tables)
        pd.testing.assert_frame_equal(here, there, check_exact=True)
        assert len(tables[0]) == len(tables[1]) > 0


def test_nothing_is_left_of_two_processes_at_work(two):
    assert not list((two / "micro").rglob("*.tmp*")) and not list((two / "micro").rglob("checkpoint*"))
    assert all((step / "done.json").is_file() for step in (two / "micro").iterdir() if step.name.startswith(SHARED))


def test_gradients_reach_every_process_through_a_mean_over_them(two):
    first, second = ended(two, "talk")
    # d/dw of the losses' sum (1 + 2) · mean² at a mean of 2.5, of which w is one half.
    assert first["gradient"].item() == second["gradient"].item() == pytest.approx(3 * 2 * 2.5 / 2)
    assert first["joined"].tolist() == second["joined"].tolist() == [0, 1, 2, 10, 11, 12, 13, 14]
    assert first["mean"].tolist() == [1.0, 0.5]


def test_one_process_is_left_as_it_is(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    value = torch.randn(3)
    assert ranks_here() is ALONE and ALONE.first and mean_over_ranks(value) is value and ALONE.join(value) is value
    assert ALONE.mean([1.5]) == [1.5] and ALONE.any(True) and not ALONE.any(False) and WHOLE.of(value) is value


def test_parts_cut_a_batch_without_rest_in_the_order_of_the_processes():
    batch = torch.arange(12)
    parts = [part.of(batch) for index in range(2) for part in Ranks(index, 2).parts(12, 3)]
    assert torch.equal(torch.cat(parts), batch) and all(len(part) == 2 for part in parts)
    assert torch.equal(Part(1, 2).of(batch.view(3, 4), 1), batch.view(3, 4)[:, 2:])
    with pytest.raises(HybridsepError, match="batch of 10 cannot be cut into 4 equal parts, 2 for each of 2 processes"):
        Ranks(0, 2).parts(10, 2)


def test_counts_of_parts_merge_to_the_counts_of_the_whole():
    keys = torch.randint(50, (400,), generator=torch.Generator().manual_seed(0))
    whole = torch.unique(keys, return_counts=True)
    parts = [torch.unique(part, return_counts=True) for part in keys.split(150)]
    merged = merge_counts(*(torch.cat(column) for column in zip(*parts, strict=True)))
    assert all(torch.equal(a, b) for a, b in zip(merged, whole, strict=True))
