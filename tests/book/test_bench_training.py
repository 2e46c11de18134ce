"""The training benchmark compares steps that compute the same."""

import pytest
import torch

from hybridsep.bench.groups import run_group
from hybridsep.bench.products import Products
from hybridsep.bench.report import Options
from hybridsep.bench.training import PublishedCodecTask, _Bench
from hybridsep.core.device import fast_dtype, seeded_generator
from hybridsep.training.codec import VQVAETask


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


def test_a_prior_as_published_attends_as_ours_does(bench):
    ours, published = bench.prior(torch.float32), bench.published_prior()
    batch = published.load(seeded_generator(3))
    assert (
        batch.shape == (ours.module.settings.training.batch, ours.module.settings.crop_codes)
        and len(batch.unique()) > 3
    )
    losses = []
    for task in (ours, published):
        # A fresh head is zero and would hide what is under it.
        torch.nn.init.normal_(task.module.head.weight, std=0.5, generator=seeded_generator(4))
        losses.append(task.loss(batch))
        losses[-1].backward()
    assert torch.allclose(*losses, rtol=1e-5)
    for (name, mine), (_, theirs) in zip(
        ours.module.named_parameters(), published.module.named_parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_products_of_a_computation_are_noted_there_and_back():
    weight, x = torch.randn(5, 7, requires_grad=True), torch.randn(3, 7)
    kernel, wave = torch.randn(4, 2, 3, requires_grad=True), torch.randn(1, 2, 10)
    with Products() as products:
        (x @ weight.T).square().sum().backward()
        torch.nn.functional.conv1d(wave, kernel).sum().backward()
    # Neither x nor wave asks for a gradient: one product there, one back.
    assert products.operations == 2 * 2 * 3 * 5 * 7 + 2 * 2 * 4 * 2 * 3 * 8
    assert products.seconds_alone(torch.device("cpu")) > 0


@pytest.fixture(scope="module")
def result():
    return run_group("training", Options(quick=True))


def test_every_part_is_measured_with_its_reference(result):
    rows = {row["name"]: row for row in result["rows"]}
    compared = {
        "codec-step",
        *(f"codec-step/{part}" for part in ("loading", "spectral loss", "nearest codes", "codebook update")),
    }
    compared |= {"prior-step", "prior-step/loading", "prior-step/attention"}
    assert compared <= set(rows) and all(rows[name]["ratio"] > 0 for name in compared)
    for name in ("codec", "prior"):
        step = rows[f"{name}-step"]
        assert step["flop"] > 1e6 and step["products_flop_per_second"] > 0 and step["alone_flop_per_second"] > 0
        shares = {
            row["name"].split("/")[1]: row["share"]
            for row in rows.values()
            if row["name"].startswith(f"{name}-profile/")
        }
        assert (
            sum(shares.values()) == pytest.approx(1)
            and min(shares.values()) > 0
            and shares["products"] == step["products_share"]
        )
        assert {"products", "elementwise", "optimiser", "loading", "interpreter"} <= set(shares)
        assert ("Fourier transforms" in shares) == ("codebook" in shares) == (name == "codec")
    if fast_dtype(torch.device("cpu")) != torch.float32:
        for name in ("codec-precision", "prior-precision"):
            assert (
                rows[name]["ours_loss"] == pytest.approx(rows[name]["reference_loss"], rel=0.1)
                and rows[name]["ours_loss"] != rows[name]["reference_loss"]
            )
