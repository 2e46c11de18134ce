"""The pipeline at the smallest size: every step made once, found again, gone on with, and the same for the same seed."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from micro import micro_profile, quick_bss_eval  # noqa: F401, a fixture of every test here
from midi_files import song_bytes, wad
from safetensors.torch import load_file

from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import METHODS, load_profile
from hybridsep.data.midi import split_of
from hybridsep.data.people import make_people
from hybridsep.data.soundfont import own_soundfont
from hybridsep.evaluation import protocols
from hybridsep.evaluation.chunks import choose_chunks
from hybridsep.evaluation.rows import COLUMNS, read_rows, summarise
from hybridsep.inference.counts import CountLikelihood, UnigramLikelihood
from hybridsep.inference.separator import Separator
from hybridsep.inference.sums import SumLikelihood
from hybridsep.pipeline import pipeline
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import EXCERPTS, RUNGS, SPLITS, Pipeline


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with everything in it; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("runs")
    profile = load_profile(micro_profile(folder))
    Evaluation(Pipeline(profile, folder)).table()
    return folder


def opened(runs, changes=None):
    return Pipeline(load_profile(micro_profile(runs, changes)), runs)


@pytest.fixture
def copied(runs, tmp_path):
    """A copy whose songs and models are those of the finished run."""
    return shutil.copytree(runs, tmp_path / "runs")


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(pipeline, "train", refuse)
    monkeypatch.setattr(pipeline, "make_minislakh", refuse)
    monkeypatch.setattr(pipeline, "build_stems", refuse)
    monkeypatch.setattr(pipeline, "encode_songs", refuse)


def folders(pipe):
    return {s.folder.name for s in pipe.cache.finished()}


def labels(names):
    return {name.rsplit("-", 1)[0] for name in names}


def weights(runs):
    """Every tensor file of a run: path -> bytes."""
    return {str(p.relative_to(runs)): p.read_bytes() for p in sorted(runs.rglob("*.safetensors"))}


def scores(runs):
    table = read_rows(runs / "micro" / "evaluation.csv")
    return table[table.metric != "seconds"].reset_index(drop=True)


# --- what is made ----------------------------------------------------------------------------------------------------------


def test_counts_are_smoothed_and_ordered_as_the_profile_says(copied):
    changed = opened(copied, {"likelihood": {"base": "sum", "symmetric": False}})
    found, plain = opened(copied).likelihood("linear", "counts"), changed.likelihood("linear", "counts")
    assert isinstance(found.base, UnigramLikelihood) and isinstance(plain.base, SumLikelihood)
    matrices = found.matrix(3), changed.likelihood("linear", "counts").matrix(3)
    assert [torch.allclose(matrix, matrix.T, atol=0.0) for matrix in matrices] == [True, False]
    assert changed.likelihood_step("linear", "sum") == opened(copied).likelihood_step("linear", "sum")


def test_everything_is_made(runs):
    pipe = opened(runs)
    kinds = ("plain", "linear")
    expected = {
        "songs",
        *(f"stems-{s}" for s in SPLITS),
        *(f"vqvae-{k}" for k in kinds),
        *(f"prior-{k}-{s}" for k in kinds for s in ("bass", "drums")),
    }
    expected |= {f"codes-{k}-{s}" for k in kinds for s in ("train", "validation")}
    expected |= {f"likelihood-{k}-{x}" for k in kinds for x in ("sum", "counts")}
    assert expected <= labels(folders(pipe))
    for name in ("evaluation.csv", "selections.csv", "provenance.json"):
        assert (pipe.root / name).is_file()
    assert not list(runs.rglob("checkpoint*")) and not list(runs.rglob("*.tmp*"))
    for step in pipe.cache.finished():
        assert step.record["seconds"] >= 0 and step.record["finished"]
    assert len(list(runs.glob("micro/*/history.csv"))) == 6


def test_method_is_its_pair_of_kinds_and_loads(runs):
    pipe = opened(runs)
    for name, spec in METHODS.items():
        loaded = Separator.load(pipe.root / name)
        assert isinstance(loaded.likelihood, {"sum": SumLikelihood, "counts": CountLikelihood}[spec.likelihood])
        assert torch.equal(loaded.vqvae.codebook, pipe.vqvae(spec.vqvae).codebook)
        mixture = 0.1 * torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
        assert torch.equal(loaded.estimate(mixture).stems, pipe.separator(name).estimate(mixture).stems)


def test_kinds_differ_only_by_l_lin(runs):
    pipe = opened(runs)
    plain, linear = pipe.vqvae("plain"), pipe.vqvae("linear")
    assert plain.settings == linear.settings and not torch.equal(plain.codebook, linear.codebook)


def test_every_song_is_encoded_once(runs):
    pipe = opened(runs)
    assert [len(pipe.stems(s)) for s in SPLITS] == [7, 1, 2]
    assert [len(pipe.codes("plain", s).songs) for s in ("train", "validation")] == [7, 1]
    song = pipe.stems("validation").song(0)
    expected = pipe.vqvae("plain").encode(song[:, : song.shape[1] // 128 * 128])
    assert torch.equal(pipe.codes("plain", "validation").songs[0].long(), expected)


def test_songs_that_people_wrote_join_training_and_make_rungs_of_their_own(tmp_path, monkeypatch):
    names = [f"D_{number}" for number in range(12)]
    splits = {name: split_of(f"freedoom1/{name}") for name in names}
    assert set(splits.values()) == set(SPLITS)
    (tmp_path / "freedoom1.wad").write_bytes(wad([(name, song_bytes(30 + n)) for n, name in enumerate(names)]))

    def from_wad(out, recipe, split):
        fonts = dataclasses.replace(recipe, soundfonts=(own_soundfont(),))
        return make_people(out, fonts, tmp_path / "freedoom1.wad", split)

    monkeypatch.setattr(pipeline, "make_people", from_wad)
    monkeypatch.setattr(pipeline, "unseen_soundfont", own_soundfont)
    pipe = opened(tmp_path, {"data": {"people": 2}})
    written = {split: list(splits.values()).count(split) for split in SPLITS}
    expected = {"train": 7 + 2 * written["train"], "validation": 1 + EXCERPTS * written["validation"], "test": 2}
    expected |= {"minislakh": 2} | dict.fromkeys(RUNGS[1:], EXCERPTS * written["test"])
    assert {split: len(pipe.stems(split)) for split in expected} == expected
    heard = {name: {n.rsplit("_", 1)[0] for n in pipe.stems(name).names if "_" in n} for name in expected}
    assert heard["people"] == heard["unseen-font"] and len(heard["people"]) == written["test"]
    assert not heard["people"] & (heard["train"] | heard["validation"]) and not heard["train"] & heard["validation"]
    assert pipe.stems_step().key != opened(tmp_path).stems_step().key


def test_evaluation_table_is_tidy_and_complete(runs):
    table = read_rows(runs / "micro" / "evaluation.csv")
    assert tuple(table.columns) == COLUMNS
    assert set(table.method) == {*METHODS, "mixture", "codec-plain", "codec-linear", "irm"}
    assert set(table.selection) == {"", "oracle", "seed", "blind"} and set(table.refine) == {"", "none", "wiener"}
    assert set(table.source) == {"", "bass", "drums"} and set(table.reference) == {"", "real", "codec"}
    assert {"sdr", "sir", "sar", "isr", "si_sdr", "seconds"} <= set(table.metric)
    assert not table.duplicated(list(COLUMNS[:-1])).any() and table.track.nunique() == 2
    main = summarise(table, metric="sdr", selection="blind", refine="wiener", reference="real")
    assert len(main) == 4 * 2 * 2 and (main["count"] == 2).all()


def test_oracle_with_the_ground_truth_is_never_under_the_pick_without(runs):
    table = scores(runs)
    rows = table[(table.metric == "sdr") & (table.reference == "real") & (table.refine == "none")]
    keys = ["method", "search", "track"]
    oracle = rows[rows.selection == "oracle"].groupby(keys).value.mean()
    rules = pd.read_csv(runs / "micro" / "selections.csv", keep_default_na=False)
    picks = rules[(rules.reference == "real") & (rules.refine == "none") & rules.selection.isin(["weight", "residual"])]
    for _, group in picks.groupby("selection"):
        assert (group.groupby(keys).value.mean() <= oracle + 1e-4).all()


def test_mixture_scores_what_the_definition_says(runs):
    chunks = Evaluation(opened(runs)).chunks
    sources = chunks.sources[..., :8000]
    error = (sources - chunks.mixture[:, :8000]).square().sum(-1)
    expected = 10 * torch.log10(sources.square().sum(-1) / error)
    table = scores(runs)
    rows = table[(table.method == "mixture") & (table.metric == "sdr")]
    for (source, track), group in rows.groupby(["source", "track"]):
        p, b = chunks.names.index(source), chunks.tracks.index(track)
        assert group.value.item() == pytest.approx(float(expected[p, b]), abs=1e-3)


# --- the cache -------------------------------------------------------------------------------------------------------------


def test_second_call_loads_and_trains_nothing(runs, no_training):
    before = weights(runs)
    Evaluation(opened(runs)).table()
    assert weights(runs) == before


CHANGES = {
    "priors": ({"prior": {"training": {"steps": 5}}}, {"prior"}),
    "likelihood": ({"likelihood": {"counted_seconds": 48}}, {"counted", "likelihood"}),
    "base": ({"likelihood": {"base": "sum"}}, {"likelihood"}),
    "tuning": ({"likelihood": {"power": 2.0}, "search": {"linear-counts": {"smoothing": 5.0}}}, set()),
    "L_lin": ({"vqvae": {"linear_weight": 0.5}}, {"vqvae", "codes", "prior", "counted", "likelihood"}),
    "search": ({"search": {"ess_threshold": 0.9}}, set()),
    "songs": ({"data": {"seed": 7}}, {"songs", "stems", "vqvae", "codes", "prior", "counted", "likelihood"}),
    "seed": ({"seed": 1}, {"vqvae", "codes", "prior", "counted", "likelihood"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_makes_anew_only_what_depends_on_it(copied, name):
    changes, expected = CHANGES[name]
    before = folders(opened(copied))
    opened(copied, changes).separator("hybrid")
    made = folders(opened(copied, changes)) - before
    assert {label.split("-")[0] for label in made} == expected
    if name == "L_lin":
        assert not any("plain" in label for label in made)


def test_precision_is_part_of_what_a_trained_prior_is(copied):
    """Weights trained in bfloat16 are not those trained in float32."""
    names = {opened(copied, {"precision": p}).prior_step("plain", "bass").folder.name for p in ("fp32", "bf16")}
    assert len(names) == 2


def test_run_that_stopped_in_the_middle_goes_on(copied, monkeypatch):
    before, whole = weights(copied), folders(opened(copied))
    for step in opened(copied).cache.finished():
        if step.label in ("prior-linear-drums", "likelihood-linear-counts") or step.label.startswith(
            "separated-hybrid"
        ):
            shutil.rmtree(step.folder)
    shutil.rmtree(copied / "micro" / "hybrid")
    trained = []
    real = pipeline.train

    def train(task, settings, folder, label, *rest):
        trained.append(label)
        if len(trained) == 1:
            raise KeyboardInterrupt
        return real(task, settings, folder, label, *rest)

    monkeypatch.setattr(pipeline, "train", train)
    with pytest.raises(KeyboardInterrupt):
        opened(copied).separator("hybrid")
    Evaluation(opened(copied)).table()
    assert trained == ["prior drums (linear)"] * 2
    assert weights(copied).keys() == before.keys() and folders(opened(copied)) == whole
    different = {k for k, v in weights(copied).items() if v != before[k]}
    assert not different


def test_seconds_of_a_training_are_those_of_all_its_runs(tmp_path):
    cache = opened(tmp_path).cache
    for known, expected in ((100.0, 100.0), (0.0, 0.0)):
        step = cache.step(f"trained-{known}")
        cache.make(step, lambda known=known: {"seconds": known})
        assert step.record["seconds"] == pytest.approx(expected, abs=1.0)


def test_one_step_asked_for_by_itself_makes_only_what_it_needs(tmp_path):
    pipe = opened(tmp_path)
    pipe.codes("plain", "validation")
    assert labels(folders(pipe)) == {
        "songs",
        "stems-train",
        "stems-validation",
        "vqvae-plain",
        "codes-plain-validation",
    }


def test_same_seed_gives_bit_identical_weights_and_scores(runs, tmp_path):
    again = tmp_path / "elsewhere"
    again.mkdir()
    Evaluation(opened(again)).table()
    first, second = weights(runs), weights(again)
    assert first.keys() == second.keys()
    assert [k for k in first if first[k] != second[k]] == []
    pd.testing.assert_frame_equal(scores(runs), scores(again), check_exact=True)


def test_score_that_is_not_defined_survives_the_cache(copied, monkeypatch):
    """A window in which a source is silent scores NaN: the table must stay one of numbers."""
    for step in opened(copied).cache.finished():
        if step.label.startswith("separated-hybrid-particle"):
            shutil.rmtree(step.folder)
    real = protocols.si_sdr

    def undefined(estimates, targets):
        values = real(estimates, targets)
        values[0, 0] = np.nan
        return values

    monkeypatch.setattr(protocols, "si_sdr", undefined)
    run = Evaluation(opened(copied)).run("hybrid")
    rows = run.rows[run.rows.metric == "si_sdr"]
    assert rows.value.dtype == float and rows.value.isna().any() and rows.value.notna().any()
    assert set(run.rows.refine) == {"", "none", "wiener"}


def test_other_searches_of_the_best_cell_alone(copied, no_training):
    whole = opened(copied)
    short = Evaluation(
        opened(copied, {"evaluation": {**whole.profile.evaluation.model_dump(mode="json"), "every_cell": False}})
    )
    best = short.best_method()
    rows = Evaluation(whole).table()
    refined = rows[
        (rows.metric == "sdr")
        & (rows.selection == "blind")
        & (rows.refine == "wiener")
        & (rows.reference == "real")
        & (rows.search == "particle")
    ]
    assert best == refined.groupby("method").value.mean().idxmax()
    assert set(short.searched()) == {(method, "particle") for method in METHODS} | {(best, "ancestral")}
    kept = short.table()
    both = kept.merge(rows, how="left", on=list(rows.columns))
    assert set(zip(kept.method, kept.search, strict=True)) - set(short.searched()) == {
        (name, "") for name in ("mixture", "irm", "codec-plain", "codec-linear")
    }
    assert len(both) == len(kept) < len(rows)


def test_one_damaged_weight_file_is_named(copied):
    step = opened(copied).vqvae_step("plain")
    path = step.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(HybridsepError, match=step.folder.name):
        opened(copied).vqvae("plain")


# --- refusals --------------------------------------------------------------------------------------------------------------


def test_unknown_names_are_refused_before_anything_is_made(tmp_path):
    pipe = opened(tmp_path)
    with pytest.raises(HybridsepError, match="unknown method 'lasso'"):
        pipe.separator("lasso")
    with pytest.raises(HybridsepError, match="unknown source 'oboe'.*bass, drums"):
        pipe.prior("plain", "oboe")
    with pytest.raises(HybridsepError, match="nowhere"):
        Pipeline(pipe.profile, tmp_path, tmp_path / "nowhere").stems("train")
    assert folders(pipe) == set()


def test_data_folder_without_songs_is_refused_in_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(HybridsepError, match="data"):
        Pipeline(opened(tmp_path).profile, tmp_path, tmp_path / "data").stems("train")


def test_songs_shorter_than_a_crop_of_the_prior_are_refused_in_one_line(copied):
    with pytest.raises(HybridsepError, match="4096 codes"):
        opened(copied, {"prior": {"crop_codes": 4096}}).prior("plain", "bass")


def test_more_chunks_than_songs_are_refused(runs):
    pipe = opened(runs)
    with pytest.raises(HybridsepError, match="only 2 of 2 test songs.*3 chunks"):
        choose_chunks(pipe.stems("test"), ("bass", "drums"), 3, 1.0, 128, 0)
    few = opened(runs, {"evaluation": {"chunks": 3}})
    with pytest.raises(HybridsepError, match="of 1 validation songs.*3 chunks"):
        Evaluation(few, "validation")


def test_chunks_are_of_whole_codes_audible_and_the_same_for_a_seed(runs):
    stems = opened(runs).stems("test")
    first, again, other = (choose_chunks(stems, ("bass", "drums"), 2, 1.0, 128, s) for s in (0, 0, 1))
    assert (
        first.sources.shape == (2, 2, 8064)
        and first.starts == again.starts
        and torch.equal(first.sources, again.sources)
    )
    assert (first.tracks, first.starts) != (other.tracks, other.starts)
    assert (first.sources[..., :8000].square().mean(-1).sqrt() > 10 ** (-50 / 20)).all()


def test_records_of_a_run_can_be_read(runs):
    record = json.loads((runs / "micro" / "provenance.json").read_text())
    assert record["profile"]["seed"] == 0 and record["hardware"] and record["packages"]["torch"]
    assert set(record["steps"]) == folders(opened(runs))
    assert load_file(next((runs / "micro").glob("codes-plain-train-*")) / "codes.safetensors")
