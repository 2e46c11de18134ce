"""Studies at the smallest size: every script writes its tables, does nothing twice, and measures what it says."""

import json
import math
import sys

import baselines
import contributions
import counting
import exactness
import linearity
import numpy as np
import pandas as pd
import particles
import protocols
import pytest
import rungs
import settings
import study
import third_instrument
import torch
import two_by_two
import uncertainty
from micro import micro_profile, quick_bss_eval  # noqa: F401
from torchaudio.models import ConvTasNet
from toy import additive_world, enumerate_posterior

from hybridsep.core.profiles import METHODS, load_profile
from hybridsep.evaluation import statistics
from hybridsep.evaluation.rows import read_rows
from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.search import particle_filter
from hybridsep.inference.separator import SearchOptions, Separator
from hybridsep.inference.sums import SumLikelihood
from hybridsep.pipeline import pipeline as pipeline_module
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline

GRIDS = settings.GRIDS
PAIR = settings.Grid((0.5, 0.7), (0.5, 0.7))
SMALL = {
    two_by_two: {"CHUNKS": 2, "TRAININGS": 2, "PARTICLES": 2, "RESAMPLES": 100, "RUNGS": ("minislakh",)},
    protocols: {"CHUNKS": 2, "SEARCHES": ("particle", "ancestral")},
    particles: {
        "CHUNKS": 2,
        "VALIDATION_CHUNKS": 1,
        "COUNTS": (1, 3, 6),
        "SEVERAL": (6,),
        "SETTLED": 3,
        "SEEDS": (0, 1),
        "CHOSEN": (0, 2),
    },
    uncertainty: {"CHUNKS": 2, "RUNGS": ("minislakh",), "RESAMPLES": 20},
    exactness: {"SEQUENCES": 2, "SECONDS": 0.5, "COUNTS": (2, 4)},
    contributions: {"CHUNKS": 2},
    counting: {"CHUNKS": 1, "PAIRS": (100, 20_000)},
    linearity: {"CHUNKS": 1, "WEIGHTS": (0.0, 4.0)},
    third_instrument: {"CHUNKS": 2, "training_seconds": lambda *_: 2.0},
    settings: {"CHUNKS": 1, "GRIDS": {kind: dict.fromkeys(grids, PAIR) for kind, grids in GRIDS.items()}},
    baselines: {
        "CHUNKS": 2,
        "RUNGS": ("minislakh",),
        "training_seconds": lambda *_: 2.0,
        "NMF_SECONDS": 12.0,
        "NMF_COMPONENTS": 4,
        "NMF_ITERATIONS": 20,
        "make_tasnet": lambda: ConvTasNet(2, 32, 8, msk_num_feats=8, msk_num_hidden_feats=8, msk_num_layers=2),
    },
    rungs: {"CHUNKS": 2, "RUNGS": ("minislakh",)},
    statistics: {"PERMUTATIONS": 5000},
}
SCRIPTS = [
    *(two_by_two.two_by_two, protocols.protocols, particles.particles, contributions.contributions),
    *(counting.counting, baselines.baselines, third_instrument.third_instrument, linearity.linearity),
    *(settings.settings, rungs.rungs, exactness.exactness, uncertainty.uncertainty),
]


def recorded_columns(name):
    """Names of the columns of every recorded table of a study."""
    tables = {path.stem: read_rows(path) for path in (study.RESULTS / name).glob("*.csv")}
    return {table: list(rows.columns) for table, rows in tables.items()}


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory, quick_bss_eval):  # noqa: F811
    """One micro run that all studies share: a function that runs a study's command and returns its tables."""
    folder = tmp_path_factory.mktemp("studies")
    profile = micro_profile(folder)
    with pytest.MonkeyPatch.context() as patch:
        for module, values in SMALL.items():
            for name, value in values.items():
                patch.setattr(module, name, value)

        def command(script, out="results"):
            if script is baselines.baselines:
                command(rungs.rungs, out)  # whose scores it stands beside
            given = ["--profile", str(profile), "--runs", str(folder), "--out", str(folder / out)]
            with pytest.MonkeyPatch.context() as arguments:
                arguments.setattr(sys, "argv", [f"{script.__name__}.py", *given])
                study.main(script)
            written = folder / out / script.__name__.replace("_", "-")
            return {path.stem: read_rows(path) for path in written.glob("*.csv")}

        command.pipeline = Pipeline(load_profile(profile), folder)
        command.results = folder / "results"
        yield command


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_study_writes_its_tables_and_a_second_run_makes_nothing_anew(script, run, monkeypatch):
    first, name = run(script), script.__name__.replace("_", "-")
    for table, columns in recorded_columns(name).items():
        assert sorted(first[table].columns) == sorted(columns), table
    known = json.loads((run.results / name / "provenance.json").read_text())
    assert known["study"] == name and known["profile"]["name"] == "micro" and known["commit"]
    monkeypatch.setattr(Separator, "search_codes", lambda *_, **__: pytest.fail("searched again"))
    monkeypatch.setattr(pipeline_module, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(baselines, "train_tasnet", lambda *_: pytest.fail("trained again"))
    second = run(script, "again")
    assert all(second[name].equals(table) for name, table in first.items())


def test_bad_input_of_a_study_ends_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["counting.py", "--profile", "nonsense"])
    with pytest.raises(SystemExit) as stop:
        study.main(counting.counting)
    assert str(stop.value).startswith("counting.py: unknown profile 'nonsense'") and "\n" not in str(stop.value)


def test_a_training_that_the_tables_hold_is_not_made_again(run, monkeypatch):
    found = run(two_by_two.two_by_two)
    scores, effects = found["scores"], found["effects"].set_index(["refine", "source", "effect"])
    means = scores[scores.refine.eq("none") & scores.source.eq("bass")].groupby(["method", "training"]).value.mean()
    assert means["hybrid", 0] != means["hybrid", 1]
    means = means.groupby("method").mean()
    gained = (means["hybrid"] + means["lass"] - means["lqvae"] - means["plain-sum"]) / 2
    assert effects.loc[("none", "bass", "counts"), "mean"] == pytest.approx(gained, abs=1e-3)
    assert set(effects.trainings) == {2} and set(scores.method) == {
        *METHODS,
        "mixture",
        "irm",
        "codec-plain",
        "codec-linear",
    }
    monkeypatch.setattr(two_by_two, "rung_scores", lambda *_: pytest.fail("made again"))
    assert run(two_by_two.two_by_two)["scores"].equals(scores)


def test_songs_and_trainings_are_told_apart():
    """Trainings that differ by 2 dB where songs differ by 0.2: the interval follows the trainings, of both methods."""
    draw = np.random.default_rng(0)
    effect = 1 + draw.normal(0, 2, (6, 1)) + draw.normal(0, 0.2, (1, 40)) + draw.normal(0, 0.3, (6, 40))
    found = two_by_two.over_songs_and_trainings(pd.DataFrame(effect))
    assert found["of_trainings"] == pytest.approx(effect.mean(1).std(ddof=1), rel=0.05)
    assert found["of_songs"] == pytest.approx(0.2, rel=0.4) and found["of_rest"] == pytest.approx(0.3, rel=0.1)
    assert found["model_high"] - found["model_low"] == pytest.approx(
        2 * 1.96 * found["of_trainings"] / 6**0.5, rel=0.05
    )
    assert found["high"] - found["low"] == pytest.approx(found["model_high"] - found["model_low"], rel=0.3)
    assert np.isnan(two_by_two.over_songs_and_trainings(pd.DataFrame(effect[:1]))["of_trainings"])


def test_choices_of_a_protocol_add_up(run):
    choices = run(protocols.protocols)["choices"].set_index(["choice", "search", "method", "source"])["mean"]
    parts = [choices[name] for name in ("oracle", "each source by itself", "default window, seed")]
    assert np.allclose(choices["seed protocol"], sum(parts), atol=2e-3)
    # Each source by itself is never worse than both together, but for the window it is chosen in.
    assert (choices["each source by itself", :, :, "mean"] >= -0.05).all()


def test_several_filters_and_lags_are_compared_with_one_filter_and_whole_paths(run):
    found = run(particles.particles)
    scores, gains = (
        found["scores"],
        found["differences"].set_index(["split", "method", "particles", "refine", "source"]),
    )
    scores = scores[(scores.metric == "sdr") & (scores.split == "test") & (scores.method == "hybrid")]
    means = scores[scores.refine == "wiener"].groupby(["filter_particles", "particles", "lag", "track"]).value.mean()
    assert not means[3, 6, 0].equals(means[0, 6, 0]) and not means[0, 6, 2].equals(means[0, 6, 0])
    gains = gains.loc["test", "hybrid", 6, "wiener", "mean"].set_index(["filter_particles", "lag", "over"])["mean"]
    assert gains[3, 2, "one filter"] == pytest.approx((means[3, 6, 2] - means[0, 6, 2]).mean(), abs=1e-3)
    assert gains[0, 2, "whole paths"] == pytest.approx((means[0, 6, 2] - means[0, 6, 0]).mean(), abs=1e-3)
    assert len(gains) == 4 and len(found["scores"].query("particles == 3").seed.unique()) == 2


def test_a_conditional_filter_bounds_the_evidence_from_above():
    """With the truth drawn from the posterior the inverse of its evidence is unbiased, whether it resamples or not."""
    priors, likelihood = additive_world()
    mixture, copies = [0, 2, 1, 2, 0, 1], 20_000
    posterior, evidence = enumerate_posterior(priors, likelihood, mixture)
    pairs, shares = torch.tensor(list(posterior)), torch.tensor(list(posterior.values()))
    generator = torch.Generator().manual_seed(0)
    truth = pairs[torch.multinomial(shares, copies, replacement=True, generator=generator)].transpose(0, 1)
    mixtures = torch.tensor([mixture]).expand(copies, -1)
    for threshold in (0.0, 0.7):
        found = exactness.conditional_evidence(priors, likelihood, mixtures, truth, 4, threshold, generator)
        assert (-found).exp().mean() * evidence == pytest.approx(1, abs=0.03)
        assert found.mean() > math.log(evidence)
        lower = particle_filter(priors, likelihood, mixtures, 4, generator, ess_threshold=threshold).log_evidence
        assert lower.exp().mean() / evidence == pytest.approx(1, abs=0.03) and lower.mean() < math.log(evidence)


def test_songs_drawn_from_the_model_have_its_statistics():
    priors, likelihood = additive_world()
    generator = torch.Generator().manual_seed(0)
    (first, second), mixtures = exactness.draw_songs(priors, likelihood, 20_000, 2, generator)
    seen = torch.bincount(3 * first[:, 0] + first[:, 1], minlength=9).view(3, 3)
    assert torch.allclose(seen / seen.sum(1, keepdim=True), priors.transition[0], atol=0.02)
    sums = (first + second) % 3
    assert (sums == mixtures).float().mean() == pytest.approx(float(likelihood.table[0, 0, 0]), abs=0.01)


def test_priors_are_compared_down_to_none(run):
    found = run(contributions.contributions)
    scores = found["scores"][found["scores"].metric == "sdr"]
    assert set(scores.priors) == {"uniform", "unigram", "bigram", "transformer", "random codes"}
    nats = found["nats"].set_index(["method", "priors", "source"]).nats_per_code
    assert nats["hybrid", "uniform", "bass"] == pytest.approx(np.log(16), abs=1e-3)


def test_more_counted_pairs_leave_fewer_unseen(run):
    unseen = run(counting.counting)["unseen"].pivot(
        index="pairs", columns="split", values=["unseen_pairs", "unseen_triples"]
    )
    assert len(unseen) == 2 and (unseen.iloc[1] <= unseen.iloc[0]).all()
    assert (unseen["unseen_triples"] >= unseen["unseen_pairs"]).all().all()


def test_share_of_unseen_pairs_of_a_hand_made_count(run):
    vqvae, chunks = run.pipeline.vqvae("linear"), Evaluation(run.pipeline).chunks
    backoff, everything = SumLikelihood(vqvae.codebook, 1.0, 0.1), torch.arange(len(vqvae.codebook) ** 3)
    for keys, share in ((everything, 0.0), (everything[:0], 1.0)):
        counted = CountLikelihood(keys, torch.ones_like(keys), backoff, 1.0)
        found = counting.unseen_shares(counted, vqvae, chunks)
        assert found == {"unseen_pairs": share, "unseen_triples": share}


def test_every_weight_has_a_codec_and_the_plain_one_is_the_reference(run):
    found = run(linearity.linearity)
    figures, ceilings = found["figures"], found["ceilings"].set_index(["kind", "weight", "source"]).sort_index()
    assert list(zip(figures.kind, figures.weight, strict=True)) == [("plain", 0.0), ("linear", 0.0), ("linear", 4.0)]
    assert figures.hit_rate.between(0, 1).all() and (figures.sum_nats_per_code > 0).all()
    assert (ceilings.loc["plain"]["mean"] == 0).all() and (ceilings.loc[("linear", 4.0)]["mean"] != 0).all()
    assert set(found["scores"].track) <= set(run.pipeline.stems("validation").names)


def test_settings_are_chosen_for_each_cell_on_validation_songs(run):
    found = run(settings.settings)
    songs = settings.song_scores(study.Study("settings", run.pipeline, run.results), "hybrid", {"power": 0.5})
    assert len(songs) == 1 and set(songs.track) <= set(run.pipeline.stems("validation").names)
    tried, chosen = found["tried"], found["chosen"].set_index("cell")
    assert list(chosen.index) == ["plain-sum", "plain-counts", "linear-sum", "linear-counts"]
    last = tried[(tried["round"] == settings.ROUNDS) & tried.best & (tried.setting == "power")].set_index("cell")
    assert last.value["linear-counts"] == chosen.power["linear-counts"] and np.isnan(
        chosen.sigma_scale["linear-counts"]
    )
    assert chosen.sdr["plain-sum"] == tried[tried.cell == "plain-sum"].sdr.max()


def test_a_third_instrument_takes_a_prior_and_counts_and_no_other_training(run, monkeypatch):
    labels, real = [], pipeline_module.train
    monkeypatch.setattr(pipeline_module, "train", lambda *a, **k: labels.append(a[3]) or real(*a, **k))
    found = run(third_instrument.third_instrument)
    assert set(labels) <= {"prior piano (linear)"}
    scores = found["scores"]
    rows = scores[(scores.metric == "sdr") & (scores.selection == "blind") & (scores.refine == "none")]
    pairs = {"bass + piano": 4, "drums + piano": 4, "bass + drums": 4}
    assert rows.groupby("pair").size().to_dict() == {pair: 2 * count for pair, count in pairs.items()}
    assert set(rows[rows.pair == "drums + piano"].source) == {"drums", "piano"} and np.isfinite(rows.value).all()
    assert list(found["priors"].source) == ["bass", "drums", "piano"]


def test_baselines_are_scored_like_everything_else_and_timed(run):
    found = run(baselines.baselines)
    rows = found["scores"][(found["scores"].metric == "sdr") & (found["scores"].refine == "none")]
    assert rows.groupby("method").size().to_dict() == dict.fromkeys(baselines.OWN, 4) and np.isfinite(rows.value).all()
    times = found["times"].set_index("method")
    assert (times.seconds_per_chunk[list(baselines.OWN)] > 0).all()
    assert times.index[times.training_seconds.isna()].tolist() == ["hpss"]
    assert times.training_seconds.hybrid == 2 <= times.training_seconds.convtasnet < 60
    parts = [run.pipeline.vqvae("linear"), *(run.pipeline.prior("linear", name) for name in ("bass", "drums"))]
    assert times.weights.hybrid == sum(p.numel() for part in parts for p in part.parameters())
    # Beside the recorded scores of the cells on the same songs.
    cells = run(rungs.rungs)["scores"].query("method == 'hybrid' and search == 'particle' and refine == 'wiener'")
    masked = found["scores"].query("method == 'hpss' and refine == 'wiener'")
    both = [part[part.metric == "sdr"].groupby("track").value.mean() for part in (cells, masked)]
    shown = found["differences"].set_index(["rung", "method", "other", "source"])["mean"]
    assert shown["minislakh", "hybrid", "hpss", "mean"] == pytest.approx((both[0] - both[1]).mean(), abs=1e-3)


def test_baselines_without_the_rungs_say_what_to_run(run, monkeypatch, capsys):
    given = ["baselines.py", "--profile", "smoke", "--out", "nowhere"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as stop:
        study.main(baselines.baselines)
    assert "run the study of the rungs first" in str(stop.value)


def test_ranks_of_spread_and_error_are_correlated_within_a_rung():
    rows = [
        {"rung": rung, "method": "hybrid", "source": "bass", "refine": refine, "track": f"song{n % 6}"}
        | {"spread": n, "relative_spread": n, "error": sign * n**3, "relative_error": -sign * n}
        for rung, sign in (("minislakh", 1), ("people", -1))
        for refine in ("none", "wiener")
        for n in range(12)
    ]
    found = uncertainty.correlations(pd.DataFrame(rows)).set_index(["rung", "refine", "predictor"])
    assert len(found) == 2 * len(uncertainty.PAIRS) and (found.n == 12).all() and (found.songs == 6).all()
    assert found.rho["minislakh", "none", "spread"] == pytest.approx(1)
    assert found.rho["minislakh", "wiener", "relative_spread"] == pytest.approx(-1)
    assert found.rho["people", "none", "spread"] == pytest.approx(-1)
    assert (found.low <= found.rho + 1e-9).all() and (found.rho <= found.high + 1e-9).all()


def test_the_error_of_a_second_is_that_of_its_own_stem(run):
    evaluation = Evaluation(run.pipeline)
    table = uncertainty.seconds_table(run.pipeline, "hybrid", evaluation.chunks)
    options = SearchOptions("particle", run.pipeline.profile.search.particles, label="hybrid", spread=True)
    stems = run.pipeline.separator("hybrid").estimate(evaluation.chunks.mixture, options).stems
    row = table[(table.refine == "none") & (table.source == "drums") & (table.second == 0)].iloc[-1]
    place, rate = evaluation.chunks.tracks.index(row.track), evaluation.chunks.sample_rate
    wrong = (stems[1, place, :rate] - evaluation.chunks.sources[1, place, :rate]).square().mean()
    assert row.error == pytest.approx(10 * np.log10(float(wrong)), abs=1e-3)
