"""Studies at the smallest size: complete tables with provenance, and nothing done twice."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from micro import micro_profile
from torchaudio.models import ConvTasNet

from hybridsep import evaluation, separation
from hybridsep.errors import HybridsepError
from hybridsep.metrics import sdr
from hybridsep.pipeline import Pipeline
from hybridsep.profiles import METHODS, load_profile
from hybridsep.studies import baselines, comparison, run_study


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "bss_eval", lambda estimates, *_: {name: estimates.std(-1) for name in ("isr", "sir", "sar")})
        for name, value in {"CHUNKS": 2, "PARTICLE_COUNTS": (1, 3), "PARTICLE_CHUNKS": 2, "CONTRIBUTION_CHUNKS": 2, "PRECISION_SEEDS": 1}.items():
            patch.setattr(comparison, name, value)
        yield


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return Pipeline(load_profile(micro_profile(folder)), folder)


def tables(folder):
    return {path.stem: pd.read_csv(path, keep_default_na=False, na_values=["nan"]) for path in folder.glob("*.csv")}


def test_two_by_two_holds_every_cell_and_search(pipeline, tmp_path):
    found = tables(run_study("two-by-two", pipeline, tmp_path))["evaluation"]
    rows = found[(found.metric == "sdr") & (found.selection == "blind") & (found.refine == "none")]
    cells = rows.groupby(["method", "search"]).size()
    assert len(cells) == 4 * len(METHODS) and (cells == 2 * 2).all()
    assert {"mixture", "codec-plain", "codec-linear", "irm"} <= set(found.method)


def test_particle_counts_share_their_songs_and_are_run_once(pipeline, tmp_path, monkeypatch):
    found = tables(run_study("particles", pipeline, tmp_path))
    assert list(found["search"].particles) == [1, 3]
    assert set(found["scores"].particles) == {1, 3}
    assert found["scores"].groupby("particles").track.agg(lambda t: tuple(sorted(set(t)))).nunique() == 1
    provenance = json.loads((tmp_path / "particles" / "provenance.json").read_text())
    assert provenance["study"] == "particles" and provenance["profile"]["name"] == "micro"

    def refuse(*args, **kwargs):
        raise AssertionError("searched again")

    monkeypatch.setattr(separation.Separator, "search_codes", refuse)
    assert tables(run_study("particles", pipeline, tmp_path))["scores"].equals(found["scores"])


def test_contributions_compare_priors_on_the_same_chunks(pipeline, tmp_path):
    found = tables(run_study("contributions", pipeline, tmp_path))
    scores = found["scores"][found["scores"].metric == "sdr"]
    assert set(scores.priors) == {"uniform", "unigram", "bigram", "transformer", "random codes"}
    assert scores.groupby(["method", "priors"]).size().nunique() == 1
    nats = found["nats"].set_index(["method", "priors", "source"]).nats_per_code
    assert nats["hybrid", "uniform", "bass"] == pytest.approx(2.7726, abs=1e-3)


def test_precisions_are_compared_on_the_same_chunks(pipeline, tmp_path):
    scores = tables(run_study("precision", pipeline, tmp_path))["scores"]
    assert scores.groupby("precision").size().to_dict() == dict.fromkeys(("float32", "bfloat16"), len(scores) // 2)
    pair = [group.value.to_numpy() for _, group in scores[scores.metric == "log_evidence"].groupby("precision")]
    assert abs(pair[0] - pair[1]).max() < 0.1 and (pair[0] != pair[1]).any()


def test_a_study_of_an_unknown_name_is_refused(pipeline, tmp_path):
    with pytest.raises(HybridsepError, match="unknown study 'all'.*two-by-two"):
        run_study("all", pipeline, tmp_path)


def test_baselines_are_scored_like_everything_else(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "CHUNKS", 2)
    monkeypatch.setattr(baselines, "NMF_SECONDS", 12.0)
    monkeypatch.setattr(baselines, "training_seconds", lambda *_: 2.0)
    monkeypatch.setattr(baselines, "make_tasnet", lambda: ConvTasNet(2, 32, 8, msk_num_feats=8, msk_num_hidden_feats=8, msk_num_layers=2, msk_num_stacks=1))
    found = tables(run_study("baselines", pipeline, tmp_path))
    scores = found["scores"][(found["scores"].metric == "sdr") & (found["scores"].refine == "none")]
    assert scores.groupby("method").size().to_dict() == {"hpss": 4, "nmf": 4, "convtasnet": 4}
    assert np.isfinite(scores.value).all() and (found["times"].seconds_per_chunk > 0).all()


@pytest.fixture(scope="module")
def tones():
    """Low tones as one source and noise bursts as the other, at 8000 Hz: what every baseline must tell apart."""
    rate, length = 8000, 24_000
    t = torch.arange(length) / rate
    low = torch.stack([torch.sin(2 * torch.pi * f * t) for f in (60.0, 90.0)])
    bursts = torch.randn(2, length, generator=torch.Generator().manual_seed(0)) * (t % 0.25 < 0.02)
    return torch.stack([0.3 * low, bursts])


def test_harmonic_percussive_masks_put_tones_and_bursts_in_their_places(tones):
    estimates = baselines.hpss(tones.mean(0))
    assert estimates.shape == tones.shape
    assert (sdr(estimates.numpy(), tones.numpy(), 8000) > 3).all()


def test_learnt_spectra_separate_what_they_were_learnt_from(tones, monkeypatch):
    class Solo:
        sample_rate = 8000

        def random_pairs(self, count, length, generator):
            return tones

    monkeypatch.setattr(baselines, "NMF_COMPONENTS", 4)
    estimates = baselines.SpectralBases.fit(Solo(), 0).separate(tones.mean(0))
    assert torch.allclose(estimates.mean(0)[:, 2048:-2048], tones.mean(0)[:, 2048:-2048], atol=1e-3)
    assert (sdr(estimates.numpy(), tones.numpy(), 8000) > 5).all()
