"""Studies at the smallest size: complete tables with provenance, and nothing done twice."""

import json

import pandas as pd
import pytest
from micro import micro_profile

from hybridsep import evaluation, separation
from hybridsep.errors import HybridsepError
from hybridsep.pipeline import Pipeline
from hybridsep.profiles import METHODS, load_profile
from hybridsep.studies import comparison, run_study


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "bss_eval", lambda estimates, *_: {name: estimates.std(-1) for name in ("isr", "sir", "sar")})
        for name, value in {"CHUNKS": 2, "PARTICLE_COUNTS": (1, 3), "PARTICLE_CHUNKS": 2, "CONTRIBUTION_CHUNKS": 2}.items():
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


def test_a_study_of_an_unknown_name_is_refused(pipeline, tmp_path):
    with pytest.raises(HybridsepError, match="unknown study 'all'.*two-by-two"):
        run_study("all", pipeline, tmp_path)
