"""Studies at the smallest size: complete tables with provenance, and nothing done twice."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from micro import micro_profile
from torchaudio.models import ConvTasNet

from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import METHODS, load_profile
from hybridsep.data.effects import EFFECTS
from hybridsep.data.soundfont import own_soundfont
from hybridsep.evaluation import comparisons as effects
from hybridsep.evaluation import protocols as scoring
from hybridsep.evaluation import rows as scored
from hybridsep.evaluation.comparisons import effects_table
from hybridsep.evaluation.metrics import sdr
from hybridsep.inference import separator as separation
from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.sums import SumLikelihood
from hybridsep.pipeline import pipeline as pipeline_module
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.studies import (
    Study,
    baselines,
    comparison,
    counting,
    half_precision,
    improvements,
    out_of_domain,
    protocols,
    repeatability,
    run_study,
    settings,
    third_instrument,
)
from hybridsep.studies.protocols import CHOICES


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            scoring, "bss_eval", lambda estimates, *_: {name: estimates.std(-1) for name in ("isr", "sir", "sar")}
        )
        sizes = {"PARTICLE_COUNTS": (1, 3, 6), "AVERAGED_COUNTS": (3, 6), "FILTER_PARTICLES": 3, "PARTICLE_CHUNKS": 2}
        for name, value in {"CHUNKS": 2, "CONTRIBUTION_CHUNKS": 2, "PRECISION_SEEDS": 2, **sizes}.items():
            patch.setattr(comparison, name, value)
        for study, chunks in (
            (protocols, 2),
            (settings, 1),
            (counting, 1),
            (repeatability, 2),
            (half_precision, 2),
            (improvements, 2),
        ):
            patch.setattr(study, "CHUNKS", chunks)
        patch.setattr(repeatability, "TRAINING_CHUNKS", 2)
        patch.setattr(half_precision, "SEEDS", 3)
        patch.setattr(effects, "PERMUTATIONS", 5000)
        patch.setattr(out_of_domain, "SOUNDFONTS", Path("nowhere"))
        yield


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return Pipeline(load_profile(micro_profile(folder)), folder)


def tables(folder):
    return {path.stem: scored.read_rows(path) for path in folder.glob("*.csv")}


def test_two_by_two_holds_every_cell_and_search(pipeline, tmp_path):
    found = tables(run_study("two-by-two", pipeline, tmp_path))["evaluation"]
    rows = found[(found.metric == "sdr") & (found.selection == "blind") & (found.refine == "none")]
    cells = rows.groupby(["method", "search"]).size()
    assert len(cells) == 4 * len(METHODS) and (cells == 2 * 2).all()
    assert {"mixture", "codec-plain", "codec-linear", "irm"} <= set(found.method)


def test_effects_are_paired_differences_of_the_cells(pipeline, tmp_path):
    found = tables(run_study("two-by-two", pipeline, tmp_path))
    worth = found["effects"].set_index(["search", "refine", "source", "effect"]).sort_index()
    assert len(worth) == 4 * 2 * 3 * 6 and (worth.n == 2).all()
    rows = found["evaluation"][
        (found["evaluation"].metric == "sdr")
        & (found["evaluation"].selection == "blind")
        & (found["evaluation"].refine == "wiener")
    ]
    means = rows[(rows.search == "beam") & (rows.source == "bass")].groupby("method").value.mean()
    shown = worth.loc["beam", "wiener", "bass"]["mean"]
    assert shown["linear"] == pytest.approx(
        (means["hybrid"] + means["lqvae"] - means["lass"] - means["plain-sum"]) / 2, abs=1e-3
    )
    assert shown["interaction"] == pytest.approx(
        means["hybrid"] - means["lqvae"] - means["lass"] + means["plain-sum"], abs=1e-3
    )
    assert shown["over lass"] == pytest.approx(means["hybrid"] - means["lass"], abs=1e-3)
    assert (worth.low <= worth["mean"]).all() and (worth["mean"] <= worth.high).all()
    assert (worth.p_holm >= worth.p).all() and (worth.p_holm <= 1).all()


def planted(gain, songs=30, noise=0.3, searches=("particle",), **only):
    """A table in which the linear codebook is worth `gain` dB with counts and nothing with sums; `only` where its rows are `only`."""
    rng = np.random.default_rng(0)
    rows = []
    for song in range(songs):
        for source in ("bass", "drums"):
            level = rng.normal(5, 3)
            for method in METHODS:
                for refine in ("none", "wiener"):
                    for search in searches:
                        value = level + rng.normal(0, noise)
                        rows.append((f"song{song}", 0.0, method, search, "blind", refine, source, "real", "sdr", value))
    table = pd.DataFrame(rows, columns=scored.COLUMNS)
    table.loc[(table[["method", *only]] == pd.Series({"method": "hybrid", **only})).all(axis=1), "value"] += gain
    return table


def test_planted_effects_are_found_and_noise_is_not():
    found = (
        effects_table(planted(1.0))
        .set_index(["search", "refine", "source", "effect"])
        .sort_index()
        .loc["particle", "wiener", "mean"]
    )
    assert found["mean"]["linear"] == pytest.approx(0.5, abs=0.2) and found["mean"]["interaction"] == pytest.approx(
        1.0, abs=0.3
    )
    assert (found.p_holm < 0.01).all() and (found.low > 0).all()
    nothing = effects_table(planted(0.0))
    assert (nothing.p_holm > 0.05).all() and nothing.p.min() < nothing.p_holm.min()


def test_protocol_choices_are_measured_on_the_same_separations(pipeline, tmp_path, monkeypatch):
    run_study("two-by-two", pipeline, tmp_path)
    monkeypatch.setattr(separation.Separator, "search_codes", lambda *_, **__: pytest.fail("searched again"))
    found = tables(run_study("protocols", pipeline, tmp_path))
    choices = found["choices"].set_index(["choice", "search", "method", "source"])["mean"]
    assert len(choices) == len(CHOICES) * 4 * 5 * 3 and np.isfinite(choices).all()
    # Each source by itself is never worse than both together, but for the window it is chosen in.
    assert (choices["each source by itself", :, :, "mean"] >= -0.05).all()
    total, parts = (
        choices["seed protocol"],
        [choices[c] for c in ("oracle", "each source by itself", "default window, seed")],
    )
    assert np.allclose(total, sum(parts), atol=2e-3)
    assert np.allclose(
        choices[:, :, "all"],
        choices.drop("all", level="method")
        .groupby(["choice", "search", "source"])
        .mean()
        .reindex(choices[:, :, "all"].index),
        atol=1e-3,
    )
    published = found["published"]
    ours = published[
        (published.method == "lass") & (published.search == "beam") & (published.source == "drums")
    ].ours.item()
    rows = Evaluation(pipeline).run("lass", "beam").rows
    seed = rows[
        (rows.metric == "sdr")
        & (rows.selection == "seed")
        & (rows.refine == "none")
        & (rows.reference == "real")
        & (rows.source == "drums")
    ]
    assert ours == pytest.approx(seed.value.mean(), abs=1e-3)


def test_particle_counts_share_their_songs_and_are_run_once(pipeline, tmp_path, monkeypatch):
    found = tables(run_study("particles", pipeline, tmp_path))
    kind = ["filter_particles", "particles"]
    runs = [(0, 1), (0, 3), (0, 6), (3, 3), (3, 6)]
    assert list(found["search"][kind].itertuples(index=False, name=None)) == runs
    assert (
        found["course"].groupby(kind).size().tolist() == [4] * 5
        and (found["course"].ess <= found["course"].particles + 1e-4).all()
    )
    assert found["scores"].groupby(kind).track.agg(lambda t: tuple(sorted(set(t)))).nunique() == 1
    refined = found["scores"][(found["scores"].metric == "sdr") & (found["scores"].refine == "wiener")]
    means = refined.groupby([*kind, "track"], sort=False).value.mean()
    # A filter of as many particles as one is to have is that one filter.
    assert means[3, 3].equals(means[0, 3]) and not means[3, 6].equals(means[0, 6])
    gain = found["differences"]
    assert gain.particles.tolist() == [6] and gain.n.tolist() == [2]
    assert gain["mean"].item() == pytest.approx((means[3, 6] - means[0, 6]).mean(), abs=1e-3)
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
    found = tables(run_study("precision", pipeline, tmp_path))
    scores = found["scores"]
    assert scores.groupby("precision").size().to_dict() == dict.fromkeys(("float32", "bfloat16"), len(scores) // 2)
    pair = [group.value.to_numpy() for _, group in scores[scores.metric == "log_evidence"].groupby("precision")]
    assert abs(pair[0] - pair[1]).max() < 0.1 and (pair[0] != pair[1]).any()
    changes = found["differences"].set_index(["metric", "source"])
    assert changes.loc[("log_evidence", ""), "mean"] == pytest.approx((pair[0] - pair[1]).mean(), abs=1e-5)
    assert (changes.n == 2).all() and changes.low.isna().sum() == 1


def test_precisions_differ_by_what_was_planted():
    """bfloat16 costs the drums 1 dB in each of two seeds, and takes 0.5 and 0.7 times as long."""
    rows = []
    for seed in range(2):
        for precision, cost, seconds in (("float32", 0.0, 2.0), ("bfloat16", 1.0, 1.0 + 0.4 * seed)):
            for song in range(5):
                common = (f"song{song}", 0.0, "hybrid", "particle")
                scores = {"bass": float(song), "drums": song + seed - cost}
                rows += [
                    (*common, "blind", "wiener", s, "real", "sdr", value, precision, seed)
                    for s, value in scores.items()
                ]
                rows += [
                    (*common, "", "", "", "", metric, value, precision, seed)
                    for metric, value in {"log_evidence": -3.0, "seconds": seconds}.items()
                ]
    table = pd.DataFrame(rows, columns=[*scored.COLUMNS, "precision", "seed"])
    found = comparison.precision_differences(table).set_index(["metric", "source"])
    assert found["mean"].loc["sdr"].to_dict() == pytest.approx({"mean": -0.5, "bass": 0.0, "drums": -1.0})
    assert found["mean"]["log_evidence", ""] == 0 and found.loc[
        ("sdr", "drums"), ["low", "high", "n"]
    ].tolist() == pytest.approx([-1, -1, 5])
    assert found.loc[("seconds_ratio", ""), ["mean", "n"]].tolist() == pytest.approx([0.6, 2])


def test_settings_are_tried_on_validation_songs_only(pipeline, tmp_path):
    found = tables(run_study("settings", pipeline, tmp_path))
    scores = found["scores"]
    assert set(scores.track) <= set(pipeline.stems("validation").names)
    runs = scores[scores.metric == "log_evidence"].groupby(["method", "setting", "tried"]).value.mean()
    for sweep in settings.SWEEPS:
        tried = runs[sweep.method, sweep.setting]
        assert set(sweep.values) <= set(tried.index), sweep.setting
        # Models this small leave all particles alike, and none is ever resampled.
        assert tried.nunique() > 1 or sweep.setting == "ess_threshold", sweep.setting
    assert scores[~scores.comparable].setting.unique().tolist() == ["power"]
    own = scores[scores.own].groupby(["method", "setting"]).tried.unique()
    assert (
        own["hybrid", "particles"].tolist() == [3]
        and own["hybrid", "filters"].tolist() == [1]
        and own["lass", "temperature"].tolist() == [1.4]
    )
    changes = found["differences"]
    assert len(changes) == len(runs) - len(own) and (changes.tried != changes.own).all() and (changes.n == 1).all()
    correlation = found["correlation"].set_index(["method", "refine", "settings"]).sort_index()
    assert set(found["correlation"].method) == {sweep.method for sweep in settings.SWEEPS} and correlation.n.min() == 3
    counts = correlation.loc["hybrid", "wiener"].n
    numbers, powers = (
        sum(len(sweep.values) for sweep in settings.SWEEPS if sweep.setting in chosen)
        for chosen in (settings.NUMBERS, ("power",))
    )
    assert counts["without N"] == counts["comparable"] - numbers == counts["all"] - powers - numbers


def test_what_a_setting_changes_is_paired_with_the_profiles_own_value():
    rng = np.random.default_rng(0)
    level = rng.normal(5, 3, 12)
    rows = []
    for tried, gain in ((0.5, -2.0), (1.0, 0.0), (2.0, 0.0)):
        for song in range(12):
            where = (f"song{song}", 0.0, "hybrid", "particle", "blind", "wiener", "bass", "real", "sdr")
            rows.append((*where, level[song] + gain + rng.normal(0, 0.3), "power", tried, tried == 1.0))
    found = settings.differences_table(
        pd.DataFrame(rows, columns=[*scored.COLUMNS, "setting", "tried", "own"])
    ).set_index("tried")
    assert found.index.tolist() == [0.5, 2.0] and (found.own == 1.0).all() and (found.n == 12).all()
    assert found["mean"][0.5] == pytest.approx(-2, abs=0.3) and found.p_holm[0.5] < 0.01 < 0.05 < found.p_holm[2.0]
    assert (found.p_holm >= found.p).all() and found.low[0.5] < found["mean"][0.5] < found.high[0.5] < 0


def test_numbers_of_particles_and_of_filters_are_changed_apart(pipeline):
    own = pipeline.separator("hybrid")
    several = settings.with_search(own, particles=12, filter_particles=4)
    assert settings.filters_and_particles(own) == (1, 3) and settings.filters_and_particles(several) == (3, 4)
    assert settings.filters_and_particles(settings.with_particles(own, 64)) == (1, 64)
    assert settings.filters_and_particles(settings.with_filters(own, 4)) == (4, 3)
    assert settings.filters_and_particles(settings.with_particles(several, 2)) == (3, 2)
    assert settings.filters_and_particles(settings.with_filters(several, 2)) == (2, 4)


def test_evidence_that_follows_the_score_has_rank_correlation_one():
    rows = []
    for tried in range(5):
        for song in range(3):
            common = (f"song{song}", 0.0, "hybrid", "particle")
            rows.append((*common, "", "", "", "", "log_evidence", tried**3 + song, "power", tried, tried != 4))
            rows += [
                (
                    *common,
                    "blind",
                    refine,
                    "bass",
                    "real",
                    "sdr",
                    -1.0 if tried == 4 else tried + 2 * song,
                    "power",
                    tried,
                    tried != 4,
                )
                for refine in ("none", "wiener")
            ]
    table = pd.DataFrame(rows, columns=[*scored.COLUMNS, "setting", "tried", "comparable"])
    found = settings.correlation_table(table).set_index(["settings", "refine"])
    assert found.loc[("comparable", "none"), ["rho", "rho_song", "n"]].tolist() == pytest.approx([1, 1, 4])
    assert found.loc[("all", "wiener"), "rho"] == pytest.approx(0.0, abs=1e-9)


def test_changed_settings_do_what_they_say(pipeline):
    hybrid, lqvae = pipeline.separator("hybrid"), pipeline.separator("lqvae")
    first, second, mixed = torch.randint(16, (3, 50), generator=torch.Generator().manual_seed(0))
    own = hybrid.likelihood.log_likelihood(mixed, first, second)
    assert torch.allclose(
        settings.with_power(hybrid, 2.0).likelihood.log_likelihood(mixed, first, second), 2 * own, atol=1e-4
    )
    assert torch.equal(
        settings.with_smoothing(hybrid, hybrid.likelihood.smoothing).likelihood.log_likelihood(mixed, first, second),
        own,
    )
    assert settings.with_sigma(lqvae, 2.0).likelihood.sigma_squared == pytest.approx(4 * lqvae.likelihood.sigma_squared)
    assert (
        settings.with_ess_threshold(hybrid, 0.9).profile.search.ess_threshold
        == 0.9
        != hybrid.profile.search.ess_threshold
    )
    tempered = settings.with_temperature(hybrid, 2 * hybrid.stack.temperature).stack
    expected = hybrid.stack.start(1, 2).log_probs.exp().sqrt()
    assert torch.allclose(tempered.start(1, 2).log_probs.exp(), expected / expected.sum(-1, keepdim=True), atol=1e-2)
    assert tempered.temperature == 2 * hybrid.stack.temperature and tempered.dtype == hybrid.stack.dtype


def test_more_counted_pairs_leave_fewer_unseen(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "PAIRS", (100, 20_000))
    version = (pipeline.root / "hybrid" / "version.txt").read_text()
    found = tables(run_study("counting", pipeline, tmp_path))
    unseen = found["unseen"].pivot(index="pairs", columns="split", values=["unseen_pairs", "unseen_triples"])
    assert len(unseen) == 2 and unseen.index[0] < unseen.index[1]
    assert (unseen.iloc[1] <= unseen.iloc[0]).all() and (unseen["unseen_triples"] >= unseen["unseen_pairs"]).all().all()
    assert set(found["scores"].pairs) == set(unseen.index)
    assert (pipeline.root / "hybrid" / "version.txt").read_text() == version, "the model that users load was replaced"


def test_share_of_unseen_pairs_of_a_hand_made_count(pipeline):
    vqvae, chunks = pipeline.vqvae("linear"), Evaluation(pipeline).chunks
    size = len(vqvae.codebook)
    backoff = SumLikelihood(vqvae.codebook, 1.0, 0.1)
    everything = torch.arange(size**3)
    shares = [
        counting.unseen_shares(CountLikelihood(keys, torch.ones_like(keys), backoff, 1.0), vqvae, chunks)
        for keys in (everything, everything[:0])
    ]
    assert shares == [{"unseen_pairs": 0.0, "unseen_triples": 0.0}, {"unseen_pairs": 1.0, "unseen_triples": 1.0}]


def test_repeatability_varies_training_and_search_apart(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(repeatability, "SEEDS", 2)
    monkeypatch.setattr(repeatability, "load_profile", lambda _: pipeline.profile)
    found = tables(run_study("repeatability", pipeline, tmp_path))
    spread = found["spread"].set_index(["varied", "refine", "source", "what"]).sort_index()
    assert (spread.seeds == 2).all() and len(spread) == 2 * 2 * 3 * (len(METHODS) + 3)
    for varied in ("training", "search"):
        assert (spread.loc[varied, "none", "mean"].loc[list(METHODS), "std"] > 0).all()
    scores = found["scores"]
    rows = scores[
        (scores.varied == "search") & (scores.metric == "sdr") & (scores.refine == "none") & (scores.method == "lass")
    ]
    means = rows.groupby("seed").value.mean()
    assert spread.loc[("search", "none", "mean", "lass"), "std"] == pytest.approx(means.std(), abs=1e-3)
    assert (pipeline.root.parent / "repeatability").is_dir()


def test_a_study_of_an_unknown_name_is_refused(pipeline, tmp_path):
    with pytest.raises(HybridsepError, match="unknown study 'all'.*two-by-two"):
        run_study("all", pipeline, tmp_path)


@pytest.fixture
def small_tasnet(monkeypatch):
    for study in (baselines, third_instrument):
        monkeypatch.setattr(study, "training_seconds", lambda *_: 2.0)
        monkeypatch.setattr(study, "CHUNKS", 2)
    monkeypatch.setattr(
        baselines,
        "make_tasnet",
        lambda: ConvTasNet(2, 32, 8, msk_num_feats=8, msk_num_hidden_feats=8, msk_num_layers=2, msk_num_stacks=1),
    )


def test_a_third_instrument_takes_a_prior_and_counts_and_no_other_training(
    pipeline, tmp_path, monkeypatch, small_tasnet
):
    pipeline.separator("hybrid")
    version = (pipeline.root / "hybrid" / "version.txt").read_text()
    trained = []
    real = pipeline_module.train

    def remember(task, settings, folder, label, *rest):
        trained.append(label)
        return real(task, settings, folder, label, *rest)

    monkeypatch.setattr(pipeline_module, "train", remember)
    found = tables(run_study("third-instrument", pipeline, tmp_path))
    assert trained == ["prior piano (linear)"]
    assert (pipeline.root / "hybrid" / "version.txt").read_text() == version, "the model that users load was replaced"
    scores = found["scores"][
        (found["scores"].metric == "sdr") & (found["scores"].selection == "blind") & (found["scores"].refine == "none")
    ]
    assert set(scores.pair) == {"bass + piano", "drums + piano", "bass + drums"}
    assert scores.groupby(["pair", "method"]).size().to_dict() == {
        (pair, m): 4 for pair in set(scores.pair) for m in ("hybrid", "convtasnet")
    }
    assert set(scores[scores.pair == "drums + piano"].source) == {"drums", "piano"} and np.isfinite(scores.value).all()
    assert list(found["priors"].source) == ["bass", "drums", "piano"]
    loaded = separation.Separator.load(pipeline.root / "drums-piano" / "hybrid")
    assert loaded.profile.source_names == ("drums", "piano")
    own = pipeline.separator("hybrid")
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.priors[0].parameters(), own.priors[1].parameters(), strict=True)
    )


def test_rounded_weights_are_compared_seed_by_seed_beside_other_seeds(pipeline, tmp_path):
    found = tables(run_study("half-precision", pipeline, tmp_path))
    scores = found["scores"][(found["scores"].metric == "sdr") & (found["scores"].refine == "none")]
    pairs = scores[(scores.method == "hybrid") & (scores.source == "bass")].pivot(
        index=["seed", "track"], columns="weights", values="value"
    )
    changes = found["differences"].set_index(["method", "refine", "source", "metric", "compared"]).sort_index()
    shown = changes.loc["hybrid", "none", "bass", "sdr"]
    assert len(pairs) == 2 * 3 * 2 and (shown.seeds == 3).all() and (shown.n == 2).all()
    assert shown["mean"]["rounding"] == pytest.approx((pairs.float16 - pairs.float32).mean(), abs=1e-3)
    seeds = pairs.float32.groupby("seed").mean()
    assert shown["mean"]["another seed"] == pytest.approx(seeds.loc[3:].mean() - seeds.loc[:2].mean(), abs=1e-3)
    # Weights change by a two-thousandth at most, and what follows from them by little.
    figures = found["figures"]
    assert set(figures.method) == {"hybrid", "lass"} and not np.array_equal(figures.trained, figures.rounded)
    nats = figures[figures.unit == "nats per code"]
    assert len(nats) == 2 * 3 and np.allclose(nats.trained, nats.rounded, atol=0.01)
    same = found["same_particles"].set_index(["method", "refine", "source", "metric"])
    assert (same.n == 2).all() and (same.largest > 0).any() and same.largest.max() < 0.1
    # What the trained models make of their particles is what the run of the same seed scores.
    own = scores[
        (scores.method == "hybrid")
        & (scores.source == "bass")
        & (scores.weights == "float32")
        & (scores.seed == pipeline.profile.evaluation.seed)
    ]
    assert len(own) == 2 and same.trained["hybrid", "none", "bass", "sdr"] == pytest.approx(own.value.mean(), abs=1e-3)


def test_noise_beside_rounding_spreads_as_far_as_the_noise_in_it():
    """Scores that are nothing but chance: both kinds of difference vary alike, over songs and over seeds."""
    rng = np.random.default_rng(0)
    rows = [
        ("hybrid", "none", "bass", "sdr", f"song{song}", weights, seed, rng.normal())
        for song in range(2000)
        for weights, seeds in (("float32", 8), ("float16", 4))
        for seed in range(seeds)
    ]
    found = half_precision.differences(
        pd.DataFrame(rows, columns=[*half_precision.KEYS, "track", "weights", "seed", "value"])
    ).set_index("compared")
    assert (found.seeds == 4).all() and found["std"].to_numpy() == pytest.approx(np.sqrt(2 / 4), rel=0.06)


def test_half_precision_is_not_measured_on_weights_that_have_it_already(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_module.Step, "recorded", True)
    with pytest.raises(HybridsepError, match="in half precision already"):
        run_study("half-precision", pipeline, tmp_path)


def test_networks_learn_the_ratio_of_noise_in_db_down_to_a_limit():
    target = torch.ones(2, 3, 100)
    assert float(baselines.noise_ratio(torch.zeros_like(target), target)) == pytest.approx(0.0, abs=0.01)
    assert float(baselines.noise_ratio(0.9 * target, target)) == pytest.approx(10 * np.log10(0.01 + 0.001), abs=0.01)
    assert float(baselines.noise_ratio(target, target)) == pytest.approx(-30.0)
    silent = torch.zeros(2, 3, 100, requires_grad=True)
    baselines.noise_ratio(silent, torch.zeros_like(silent)).backward()
    assert torch.isfinite(silent.grad).all()


def test_baselines_are_scored_like_everything_else(pipeline, tmp_path, monkeypatch, small_tasnet):
    monkeypatch.setattr(baselines, "NMF_SECONDS", 12.0)
    found = tables(run_study("baselines", pipeline, tmp_path))
    scores, references = (
        found["scores"][(found["scores"].metric == "sdr") & (found["scores"].refine == "none")],
        ("mixture", "irm", "codec-plain", "codec-linear"),
    )
    assert scores.groupby("method").size().to_dict() == dict.fromkeys(
        ("hpss", "nmf", "convtasnet", "hybrid", *references), 4
    )
    assert np.isfinite(scores.value).all()
    times = found["times"].set_index("method")
    assert (times.seconds_per_chunk > 0).all() and times.index[times.training_seconds.isna()].tolist() == ["hpss"]
    assert (
        (times.training_seconds.drop("hpss") > 0).all()
        and times.training_seconds.hybrid == 2
        and 2 <= times.training_seconds.convtasnet < 60
    )
    assert times.index[times.steps.notna()].tolist() == ["convtasnet"] and times.steps.convtasnet > 0
    assert times.weights.convtasnet == sum(p.numel() for p in baselines.make_tasnet().parameters())
    parts = [pipeline.vqvae("linear"), *(pipeline.prior("linear", source) for source in pipeline.profile.source_names)]
    assert times.weights.hybrid == sum(p.numel() for part in parts for p in part.parameters())


def test_baselines_are_trained_once_and_keep_the_times_of_then(pipeline, tmp_path, monkeypatch, small_tasnet):
    monkeypatch.setattr(baselines, "NMF_SECONDS", 12.0)
    first = tables(run_study("baselines", pipeline, tmp_path))
    for owner, name in ((baselines, "train_tasnet"), (baselines.SpectralBases, "fit")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("trained again"))
    second = tables(run_study("baselines", pipeline, tmp_path / "again"))
    assert second["times"].drop(columns="seconds_per_chunk").equals(first["times"].drop(columns="seconds_per_chunk"))
    assert second["scores"].equals(first["scores"]) and second["differences"].equals(first["differences"])


def test_the_hybrid_refined_is_paired_with_each_baseline_as_it_is():
    gains = np.linspace(-1, 3, 8)
    levels = {"hybrid": 4.0, "hpss": 1.0, "nmf": 2.0, "convtasnet": 9.0, "codec-linear": 7.0, "mixture": 0.0}
    # What the wrong refinement or metric would give is far off.
    rows = [
        {"method": m, "track": f"song {t}", "start_s": 0.0, "source": source, "refine": refine, "reference": "real", "metric": metric,
         "value": level + (t % 3) + (source == "drums") + (gains[t] if m == "hybrid" else 0) + 50 * ((refine == "wiener") != (m == "hybrid")) + 90 * (metric != "sdr")}
        for m, level in levels.items() for t in range(8) for source in ("bass", "drums") for refine in ("none", "wiener") for metric in ("sdr", "sir")
        if refine == "none" or m not in ("codec-linear", "mixture")
    ]  # fmt: skip
    found = baselines.baseline_differences(pd.DataFrame(rows)).set_index(["method", "other", "source"])
    assert (
        len(found) == 6 * 3
        and (found.n == 8).all()
        and (found.low <= found["mean"]).all()
        and (found["mean"] <= found.high).all()
    )
    for (method, other, _), row in found.iterrows():
        paired = gains if method == "hybrid" else np.zeros(8)
        assert row["mean"] == pytest.approx(levels[method] - levels[other] + paired.mean()) and row[
            "std"
        ] == pytest.approx(paired.std(ddof=1))


def test_other_sounds_are_scored_on_the_same_songs_and_places(pipeline, tmp_path, monkeypatch):
    found = tables(run_study("out-of-domain", pipeline, tmp_path))
    scores, falls, nats = (
        found["scores"],
        found["falls"].set_index(["condition", "method", "refine", "source"]),
        found["nats"],
    )
    rows = scores[(scores.metric == "sdr") & (scores.refine == "none") & (scores.reference == "real")]
    assert (rows.groupby(["condition", "method"]).size() == 4).all() and set(rows.method) >= {
        "hybrid",
        "lass",
        "mixture",
        "codec-plain",
        "codec-linear",
    }
    assert (
        scores.groupby("condition")[["track", "start_s"]].agg(lambda values: tuple(sorted(set(values)))).nunique() == 1
    ).all()
    conditions = set(scores.condition)
    assert {out_of_domain.AS_RENDERED, *EFFECTS} == conditions == set(nats.condition)
    assert (falls.loc[out_of_domain.AS_RENDERED]["mean"] == 0).all() and (
        falls.loc["filtered"].loc["codec-linear"]["mean"] != 0
    ).all()
    means = rows[rows.method == "hybrid"].groupby(["condition", "source"]).value.mean()
    for source in ("bass", "drums"):
        row = falls.loc[("detuned", "hybrid", "none", source)]
        assert row.score == pytest.approx(means["detuned", source], abs=1e-3)
        assert (
            row["mean"] == pytest.approx(means["detuned", source] - means["as rendered", source], abs=1e-3)
            and row.low <= row["mean"] <= row.high
        )
    own = rows[(rows.condition == "as rendered") & (rows.method == "mixture")].value.to_numpy()
    main = Evaluation(pipeline).references()
    assert own == pytest.approx(main[(main.metric == "sdr") & (main.method == "mixture")].value.to_numpy(), rel=1e-3)
    assert (
        np.isfinite(nats.value).all()
        and (nats[nats.part == "prior"].value > 0).all()
        and set(zip(nats.part, nats.source, strict=True)) == {("prior", "bass"), ("prior", "drums"), ("likelihood", "")}
    )
    monkeypatch.setattr(separation.Separator, "search_codes", lambda *_, **__: pytest.fail("searched again"))
    assert tables(run_study("out-of-domain", pipeline, tmp_path))["scores"].equals(scores)


def test_stems_are_changed_in_place_each_by_itself(pipeline):
    plain = Evaluation(pipeline).chunks
    turned = out_of_domain.ChangedSound(
        pipeline, lambda source, track, place, samples: -samples if source == "bass" else samples
    ).chunks
    assert torch.equal(turned.sources, torch.stack([-plain.sources[0], plain.sources[1]])) and (
        turned.tracks,
        turned.starts,
    ) == (plain.tracks, plain.starts)
    assert torch.allclose(turned.mixture, (plain.sources[1] - plain.sources[0]) / 2)


def test_the_same_notes_are_played_with_the_other_soundfont(pipeline, tmp_path, monkeypatch):
    """A copy of MiniSlakh's own font is no other one; played with it all the same, every chunk is what it was."""
    copy = tmp_path / "copy.sf2"
    copy.write_bytes(own_soundfont().read_bytes())
    (tmp_path / "default.sf2").symlink_to(copy)
    monkeypatch.setattr(out_of_domain, "SOUNDFONTS", tmp_path)
    assert out_of_domain.find_soundfont() is None
    study = Study("out-of-domain", pipeline, tmp_path)
    assert (
        out_of_domain.OTHER_SOUNDFONT not in out_of_domain._changes(study, pipeline)
        and study.notes["soundfont"] == f"none found in {tmp_path}"
    )
    plain = Evaluation(pipeline).chunks.sources
    played = out_of_domain.ChangedSound(pipeline, out_of_domain._rendered_with(copy, pipeline)).chunks.sources
    assert (played - plain).abs().max() < 2e-3
    other = tmp_path / "other.sf2"
    other.write_bytes(copy.read_bytes() + bytes(2))
    study = Study("out-of-domain", pipeline, tmp_path)
    assert out_of_domain.OTHER_SOUNDFONT in out_of_domain._changes(study, pipeline)
    assert study.notes["soundfont"] == f"other.sf2, SHA-256 {hashlib.sha256(other.read_bytes()).hexdigest()}"


def test_every_step_to_the_present_settings_is_paired_with_the_one_before_it(tmp_path, monkeypatch):
    changes = {
        "data": {"effects": 0.5},
        "search": {"temperature": 1.4, "filter_particles": 3},
        "evaluation": {"many_particles": 6},
    }
    pipeline = Pipeline(load_profile(micro_profile(tmp_path, changes)), tmp_path)
    found = tables(run_study("improvements", pipeline, tmp_path / "book" / "results"))
    scores, gains = found["scores"], found["gains"].set_index(["step", "refine", "source"])
    assert scores.groupby("step").track.agg(lambda t: tuple(sorted(set(t)))).nunique() == 1 and (gains.n == 2).all()
    assert len(gains) == 3 * (2 * len(improvements.STEPS) - 3 + 1 + len(improvements.ASIDE))
    # The seven steps are six searches, every one by other models, settings or numbers.
    hybrid = scores[scores.method == "hybrid"]
    means = hybrid.groupby(["step", "refine"]).value.mean()
    assert (
        means.loc[["start", *improvements.STEPS[2:]], "none"].nunique() == 6
        and ("start", "wiener") not in means
        and ("refinement", "none") not in means
    )
    for step, refine, then in (("refinement", "wiener", ("start", "none")), ("longer", "none", ("start", "none")), ("longer", "wiener", ("refinement", "wiener")),
                               ("filters", "wiener", ("particles", "wiener")), ("masks", "wiener", ("effects", "wiener")), ("together", "wiener", ("start", "none"))):  # fmt: skip
        now = means[("filters" if step == "together" else step), refine]
        assert gains.loc[(step, refine, "mean"), "mean"] == pytest.approx(now - means[then], abs=1e-3)
        assert gains.loc[(step, refine, "mean"), ["score", "remaining"]].tolist() == pytest.approx(
            [now, gains.loc[(step, refine, "mean"), "ceiling"] - now], abs=1e-3
        )
    # The chain ends at the profile's own settings, and its model is the one that users load.
    own = Evaluation(pipeline).blind_run("hybrid", particles=6).rows
    assert own[(own.metric == "sdr") & (own.refine == "wiener")].value.mean() == pytest.approx(
        means["filters", "wiener"], abs=1e-3
    )
    version = (pipeline.root / "hybrid" / "version.txt").read_text()
    pipeline.separator("hybrid")
    assert (pipeline.root / "hybrid" / "version.txt").read_text() == version
    # Codecs trained with and without effects have ceilings of their own.
    assert (
        gains.loc[("temperature", "wiener", "mean"), "ceiling"]
        != gains.loc[("effects", "wiener", "mean"), "ceiling"]
        == gains.loc[("filters", "wiener", "mean"), "ceiling"]
    )


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
