"""What L_lin buys, and how the refinement was chosen: the measure on codebooks whose linearity is known, the studies at the smallest size."""

import pandas as pd
import pytest
import torch
from micro import micro_profile
from tiny import seeded

from hybridsep.core.profiles import load_profile
from hybridsep.evaluation.linearity import measure_linearity
from hybridsep.inference.wiener import wiener
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.studies import linearity, refinement, run_study


def test_an_equally_spaced_line_is_linear():
    codebook = torch.arange(9.0)[:, None]
    first, second = torch.cartesian_prod(torch.arange(0, 9, 2), torch.arange(0, 9, 2)).T
    found = measure_linearity(codebook, torch.stack([first, second, (first + second) // 2]))
    assert found.hit_rate == 1 and found.distance == 0 and 0 < found.by_chance < 0.6


def test_mixtures_that_have_nothing_to_do_with_the_sources_are_hit_by_chance():
    codebook, triples = torch.randn(20, 6, generator=seeded()), torch.randint(20, (3, 20_000), generator=seeded(1))
    found = measure_linearity(codebook, triples)
    assert found.hit_rate == pytest.approx(found.by_chance, abs=0.01) and found.distance > 1


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return Pipeline(load_profile(micro_profile(folder)), folder)


def read(folder, name):
    return pd.read_csv(folder / f"{name}.csv", na_values=["nan"])


def test_every_weight_is_trained_and_scored_on_validation_songs(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(linearity, "WEIGHTS", (0.0, 4.0))
    monkeypatch.setattr(linearity, "CHUNKS", 1)
    folder = run_study("linearity", pipeline, tmp_path)
    figures, scores = read(folder, "figures").set_index("weight"), read(folder, "scores")
    assert (
        list(figures.index) == [0, 4]
        and figures.hit_rate.between(0, 1).all()
        and (figures[["nats_bass", "nats_drums"]] > 0).all().all()
    )
    assert len(list(pipeline.root.glob("vqvae-linear-*"))) == 2
    assert set(scores.method) == {"codec-linear", "lqvae", "hybrid"} and set(scores.weight) == {0, 4}
    songs = set(pipeline.stems("validation").names)
    assert set(scores.track) <= songs and not songs & set(pipeline.stems("test").names)
    shortened = next(pipeline.root.glob("vqvae-linear-*/history.csv"))
    assert int(pd.read_csv(shortened).step.max()) <= pipeline.profile.vqvae.training.steps // 4


def test_every_window_and_trust_refines_the_same_separations(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "CHUNKS", 1)
    scores = read(run_study("refinement", pipeline, tmp_path), "scores")
    counts = scores.groupby(["method", "size"]).size()
    assert len(counts) == 4 * (1 + len(refinement.SIZES)) and set(counts) == {2, 2 * len(refinement.TRUSTS)}


def test_trust_in_true_sources_finds_them_where_masks_cannot():
    """Two sources in the same cells, of different phase: the mask keeps the mixture's phase, trust the estimates' own."""
    sources = torch.randn(2, 1, 20_000, generator=seeded())
    errors = [
        float((wiener(sources, sources.mean(0), 512, trust) - sources).square().mean()) for trust in (0.0, 0.5, 1.0)
    ]
    assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2]
