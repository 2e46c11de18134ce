"""The training benchmark compares steps that compute the same."""

import pytest
import torch

from hybridsep.bench.groups import run_group
from hybridsep.bench.report import Options
from hybridsep.bench.training import PublishedCodecTask, _Bench
from hybridsep.codec_training import VQVAETask
from hybridsep.device import fast_dtype, seeded_generator


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return _Bench(Options(quick=True), tmp_path_factory.mktemp("bench"))


def test_a_step_as_published_computes_what_ours_does(bench):
    ours, published = bench.codec(VQVAETask), bench.codec(PublishedCodecTask)
    for number in (100, 101):
        losses = [task.step(number, seeded_generator(number)).loss for task in (ours, published)]
        assert torch.allclose(*losses, rtol=1e-4)
        for task in (ours, published):
            task.after_step(number, seeded_generator(number))
    assert torch.allclose(ours.module.codebook, published.module.codebook, atol=1e-4)


def test_crops_from_files_are_those_of_the_memory_map(bench):
    pairs = [stems.random_pairs(3, 2048, seeded_generator(1)) for stems in (bench.stems, bench.files)]
    assert torch.equal(*pairs) and pairs[0].abs().max() > 0


def test_every_part_is_measured_with_its_reference():
    rows = {row["name"]: row for row in run_group("training", Options(quick=True))["rows"]}
    compared = {"codec-step", *(f"codec-step/{part}" for part in ("loading", "spectral loss", "nearest codes", "codebook update"))}
    assert compared <= set(rows) and all(rows[name]["ratio"] > 0 for name in compared)
    for name in ("codec-step", "prior-step"):
        assert 0 < rows[name]["products_share"] < 1 and rows[name]["flop"] > 1e6 and rows[name]["products_flop_per_second"] > 0
    if fast_dtype(torch.device("cpu")) != torch.float32:
        for name in ("codec-precision", "prior-precision"):
            assert rows[name]["ours_loss"] == pytest.approx(rows[name]["reference_loss"], rel=0.1) and rows[name]["ours_loss"] != rows[name]["reference_loss"]
