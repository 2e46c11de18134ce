"""The run of record: little room, nothing lost that must be exact, and models that a run takes as if it had made them itself."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from command import lines_of, run
from micro import micro_profile, quick_bss_eval  # noqa: F401, a fixture of every test here
from safetensors.torch import load_file
from tiny import random_counts, seeded

from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import METHODS, load_profile
from hybridsep.core.records import halved, packed, records_root, unpacked
from hybridsep.evaluation import rows as scored
from hybridsep.inference import saved
from hybridsep.inference.separator import SearchOptions, Separator
from hybridsep.pipeline import pipeline, record
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import RUNGS, Pipeline
from hybridsep.pipeline.record import record_run, write_record
from hybridsep.report import repository_root
from hybridsep.report.chapter import budget, step_times, trained_line
from hybridsep.report.model_card import RUNG_SIGNALS, model_card

CHANGES = {"evaluation": {"searches": ["particle"]}}
SMALL_FILE = 2_000_000  # bytes; pictures and tables of the book have less


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return load_profile(micro_profile(tmp_path_factory.mktemp("profile"), CHANGES))


@pytest.fixture(scope="module")
def trained(profile, tmp_path_factory):
    """A finished run that no record had a part in."""
    made = Pipeline(profile, tmp_path_factory.mktemp("trained"), records=None)
    Evaluation(made).table()
    return made


@pytest.fixture(scope="module")
def records(trained, tmp_path_factory):
    """Folder of records, with that of the finished run; tests that change it copy it first."""
    out = tmp_path_factory.mktemp("records")
    record_run(trained, out, partial(model_card, results=out / "no results"))
    return out


@pytest.fixture
def fresh(profile, records, tmp_path, trained):
    """A run that has songs and stems, but no model."""
    made = Pipeline(profile, tmp_path / "runs", records=records)
    for step in trained.cache.finished():
        if step.label in ("songs", "stems"):
            shutil.copytree(step.folder, made.root / step.folder.name)
    return made


@pytest.fixture
def copied(records, tmp_path):
    return shutil.copytree(records, tmp_path / "records")


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(pipeline, "train", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(pipeline.Pipeline, "_fit_likelihood", lambda *_: pytest.fail("counted"))


def anew(run):
    """The same run for somebody who wants every model trained there."""
    return Pipeline(run.profile, run.root.parent, records=None)


def again(run):
    return Pipeline(run.profile, run.root.parent, records=run.records)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# --- tensors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codes, triples, largest", [(12, 300, 1), (300, 5000, 70_000), (40, 0, 1), (512, 1, 2**31 - 1)]
)
def test_counted_triples_come_back_to_the_last_one(codes, triples, largest):
    keys, _ = random_counts(codes, triples) if triples else (torch.empty(0, dtype=torch.long), None)
    counts = torch.randint(1, largest + 1, keys.shape, generator=seeded(3)).int()
    kept = packed({"keys": keys, "counts": counts})
    found = unpacked(kept)
    assert torch.equal(found["keys"], keys) and torch.equal(found["counts"], counts)
    assert found["keys"].dtype == torch.int64 and found["counts"].dtype == torch.int32
    assert kept.keys() == {"packed_counts"}


def test_floats_are_halved_and_nothing_else_is():
    numbers = {
        "sigma_squared": torch.tensor(0.1, dtype=torch.float64),
        "steps": torch.tensor([1, 2**40]),
        "mask": torch.tensor([True]),
    }
    tensors = {"weight": torch.randn(5, 3), **numbers}
    kept = packed(tensors)
    assert kept["weight"].dtype == torch.float16
    found = unpacked(kept)
    assert torch.equal(found["weight"], tensors["weight"].half().float()) and found["weight"].dtype == torch.float32
    for name in numbers:
        assert torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype
    huge = torch.tensor([1e30])
    assert halved(huge) is huge


# --- writing ---------------------------------------------------------------------------------------------------------------


def test_record_holds_every_model_and_says_where_it_was_made(records, trained):
    folder = records / "micro"
    models = {step.key for step in trained.model_steps()}
    assert len(models) == 2 + 4 + 4 and {path.name for path in folder.iterdir() if path.is_dir()} == models
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "README.md",
        "SHA256SUMS",
        "profile.json",
        "provenance.json",
    }
    made = json.loads((folder / "provenance.json").read_text())
    assert set(made["minutes"]) == models and made["hardware"] and made["packages"]["torch"] and made["commit"]
    assert json.loads((folder / "profile.json").read_text()) == trained.profile.model_dump(mode="json")
    assert len(list(folder.glob("*/history.csv"))) == 6


def test_record_takes_half_the_room_of_the_models(records, trained):
    weights = [path for step in trained.model_steps() for path in step.folder.glob("*.safetensors")]
    sizes = [
        sum(path.stat().st_size for path in paths) for paths in (weights, (records / "micro").glob("*/*.safetensors"))
    ]
    assert sizes[1] < 0.75 * sizes[0]


@pytest.mark.parametrize("limit", ["LARGEST_FILE", "LARGEST_RECORD"])
def test_record_that_is_too_large_is_refused_and_the_former_kept(trained, copied, monkeypatch, limit):
    before = contents(copied)
    monkeypatch.setattr(record, limit, 5000)
    with pytest.raises(HybridsepError, match="MB"):
        record_run(trained, copied, partial(model_card, results=copied / "no results"))
    assert contents(copied) == before


def test_record_that_cannot_be_written_leaves_the_former(trained, copied, monkeypatch):
    before = contents(copied)
    real = record.write_atomically

    def full(path, content):
        if path.name == "history.csv":
            raise HybridsepError(f"cannot write {path}: No space left on device")
        real(path, content)

    monkeypatch.setattr(record, "write_atomically", full)
    with pytest.raises(HybridsepError, match="No space left"):
        record_run(trained, copied, partial(model_card, results=copied / "no results"))
    assert contents(copied) == before


def test_run_without_all_models_or_scores_is_no_record(trained, fresh, tmp_path):
    with pytest.raises(HybridsepError, match="no vqvae-plain yet"):
        record_run(fresh, tmp_path / "out", partial(model_card, results=tmp_path))
    for step in trained.model_steps():
        shutil.copytree(step.folder, fresh.root / step.folder.name)
    with pytest.raises(HybridsepError, match="no evaluation.csv yet"):
        record_run(fresh, tmp_path / "out", partial(model_card, results=tmp_path))
    assert not (tmp_path / "out").exists()


def test_model_card_says_data_scores_with_spread_limits_and_licence(records, trained, tmp_path):
    card = (records / "micro" / "README.md").read_text()
    assert (
        not re.search(r"\bnan\b", card)
        and "n = 2 chunks" in card
        and "reference: the real sources" in card
        and "GNU General Public License" in card
    )
    table = scored.read_rows(trained.root / "evaluation.csv")
    rows = scored.rows_where(
        table,
        method="hybrid",
        search="particle",
        selection="blind",
        refine="wiener",
        reference="real",
        metric="sdr",
        source="bass",
    )
    line = next(line for line in card.splitlines() if line.startswith("| Hybrid |"))
    assert f"{rows.value.mean():.2f}".replace("-", "−") in line.replace("\N{NARROW NO-BREAK SPACE}", "") and "±" in line
    assert "three rungs" not in card and "Merlin" not in card
    folder = tmp_path / "rungs"
    folder.mkdir()
    scores = pd.DataFrame(product(RUNGS, RUNG_SIGNALS, ("bass", "drums", "mean")), columns=["rung", "method", "source"])
    refine = scores.method.map(lambda method: "wiener" if method in METHODS else "none")
    scores = scores.assign(
        metric="sdr",
        search=np.where(refine == "wiener", "particle", ""),
        refine=refine,
        mean=np.arange(len(scores)) / 8,
    )
    scores.to_csv(folder / "levels.csv", index=False)
    record_run(trained, tmp_path / "out", partial(model_card, results=tmp_path))
    card = (tmp_path / "out" / "micro" / "README.md").read_text()
    lines = [line for line in card.splitlines() if line.startswith(tuple(f"| {rung} |" for rung in RUNGS))]
    assert (
        len(lines) == len(RUNGS) * len(RUNG_SIGNALS)
        and lines[0] == f"| {RUNGS[0]} | mixture, not separated | 0.0 | 0.1 |"
    )


# --- the pipeline's cache --------------------------------------------------------------------------------------------------


def test_run_takes_recorded_models_as_its_own(fresh, trained, no_training):
    for method in ("hybrid", "lass", "lqvae", "plain-sum"):
        fresh.separator(method)
    for old, new in zip(trained.model_steps(), fresh.model_steps(), strict=True):
        assert new.recorded and not old.recorded and new.key == old.key
        for key in ("seconds", "hardware", "commit", "figures"):
            assert new.record[key] == old.record[key]
        (name,) = (path.name for path in old.folder.glob("*.safetensors"))
        before, after = load_file(old.folder / name), load_file(new.folder / name)
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            exact = tensor.ndim == 0 or not tensor.is_floating_point()
            assert (
                torch.equal(after[key], tensor if exact else tensor.half().float()) and after[key].dtype == tensor.dtype
            )
        history = old.folder / "history.csv"
        assert not history.is_file() or (new.folder / "history.csv").read_bytes() == history.read_bytes()


def test_what_is_made_with_recorded_models_is_the_same_each_time(fresh, profile, records, tmp_path, no_training):
    other = Pipeline(profile, tmp_path / "other", records=records)
    shutil.copytree(fresh.root, other.root)
    runs = [Evaluation(each).blind_run("hybrid") for each in (fresh, other)]
    assert runs[0][runs[0].metric != "seconds"].equals(runs[1][runs[1].metric != "seconds"])


def test_only_what_is_asked_for_is_taken(fresh):
    fresh.prior("linear", "bass")
    assert {step.label for step in fresh.cache.finished() if step.recorded} == {"prior-linear-bass"}


def test_training_anew_takes_nothing_recorded_and_later_runs_take_what_was_trained(fresh):
    Evaluation(fresh).blind_run("hybrid")
    fresh.separator("lass")
    recorded = {step.key: contents(step.folder) for step in fresh.cache.finished() if step.recorded}
    own = anew(fresh)
    own.separator("hybrid")
    steps = own.method_steps("hybrid")
    for step in steps:
        assert not step.recorded and contents(step.folder) != recorded[step.key]
    # Later without the wish: own models stay, those of the other method are still recorded, and what was made with recorded ones is made again.
    kept = {step.folder.name: contents(step.folder) for step in steps}
    later = again(fresh)
    evaluated = Evaluation(later).blind_run("hybrid")
    assert {step.folder.name: contents(step.folder) for step in steps} == kept
    assert all(step.recorded for step in later.method_steps("lass"))
    expected = Evaluation(anew(fresh)).blind_run("hybrid")
    assert evaluated.equals(expected)
    loaded = Separator.load(later.export("hybrid"))
    assert torch.equal(loaded.vqvae.codebook, own.vqvae("linear").codebook)


def test_recorded_prior_is_not_used_on_the_codes_of_another_vqvae(fresh):
    fresh.separator("hybrid")
    anew(fresh).vqvae("linear")
    later = again(fresh)
    later.prior("linear", "bass")
    assert not later.vqvae_step("linear").recorded and not later.prior_step("linear", "bass").recorded
    assert not any(step.recorded for step in later.cache.finished() if step.label == "codes-linear-train")


def test_training_anew_gives_the_weights_of_a_run_without_a_record(fresh, trained):
    fresh.vqvae("plain")
    anew(fresh).prior("plain", "bass")
    for step in (fresh.vqvae_step("plain"), fresh.prior_step("plain", "bass")):
        assert (step.folder / "model.safetensors").read_bytes() == (
            trained.root / step.folder.name / "model.safetensors"
        ).read_bytes()


def test_run_with_other_settings_trains_though_there_is_a_record(fresh, records, tmp_path):
    other = Pipeline(load_profile(micro_profile(tmp_path, {**CHANGES, "seed": 1})), fresh.root.parent, records=records)
    other.vqvae("plain")
    assert not other.vqvae_step("plain").recorded


DAMAGES = {
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "done.json"])
def test_damaged_record_is_said_in_one_line_and_nothing_is_restored(fresh, copied, how, name):
    step = fresh.vqvae_step("plain")
    DAMAGES[how](copied / "micro" / step.key / name)
    with pytest.raises(HybridsepError, match=f"{step.key}/{name}.*TRAIN=1") as caught:
        Pipeline(fresh.profile, fresh.root.parent, records=copied).vqvae("plain")
    assert "\n" not in str(caught.value) and not step.done


@pytest.mark.parametrize("how", ["cut short", "gone"])
def test_damaged_checksums_of_a_record_are_said_in_one_line(fresh, copied, how):
    DAMAGES[how](copied / "micro" / "SHA256SUMS")
    with pytest.raises(HybridsepError, match="record.*TRAIN=1") as caught:
        Pipeline(fresh.profile, fresh.root.parent, records=copied).vqvae("plain")
    assert "\n" not in str(caught.value)


def test_names_of_models_are_the_same_on_every_machine(profile, tmp_path, monkeypatch):
    automatic = profile.model_copy(update={"precision": "auto"})
    names = set()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        monkeypatch.setattr(pipeline, "fast_dtype", lambda *_, dtype=dtype: dtype)
        made = Pipeline(automatic, tmp_path)
        names.add((made.method_version("hybrid"), *(step.folder.name for step in made.model_steps())))
    assert len(names) == 1
    (name,) = {
        Pipeline(automatic.model_copy(update={"precision": p}), tmp_path).prior_step("plain", "bass").folder.name
        for p in ("bf16",)
    }
    assert name not in names.pop()


def test_precision_of_a_training_is_written_down(trained):
    assert trained.prior_step("plain", "bass").record["figures"]["dtype"] == str(trained.dtype).removeprefix("torch.")
    assert trained.vqvae_step("plain").record["figures"]["dtype"] == "float32"


# --- what readers see ------------------------------------------------------------------------------------------------------


def test_curves_and_times_of_recorded_models_are_called_recorded(fresh, trained):
    Evaluation(fresh).blind_run("hybrid")
    line, record = trained_line(fresh.method_steps("hybrid")), fresh.vqvae_step("linear").record
    assert "recorded, not trained in this build: 4 (make book TRAIN=1" in line
    assert record["hardware"] in line and record["commit"] in line
    assert "recorded" not in trained_line(trained.model_steps())
    taken = budget(fresh, "hybrid").set_index("step")["wall time"]
    assert taken["VQ-VAE, kind linear"].endswith(", recorded") and "recorded" not in taken["composing and rendering"]
    recorded = step_times(fresh).set_index("step").recorded
    assert (
        recorded["vqvae-linear"]
        and not recorded["songs"]
        and not recorded[recorded.index.str.startswith("estimated")].any()
    )


# --- the model that comes along --------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(records, monkeypatch):
    """The test's record in the place of the one that comes with the project."""
    monkeypatch.setattr(saved, "RECORDS", records)
    monkeypatch.setattr(saved, "SHIPPED_PROFILE", "micro")
    return records


def test_model_that_comes_along_is_the_hybrid_of_the_record(shipped, fresh, no_training):
    """As a pipeline restores it, tuned by the profile."""
    found, expected, codes = Separator.load(), fresh.separator("hybrid"), torch.arange(16)[None]
    assert found.profile == expected.profile
    first, second = (model.search_codes(codes, SearchOptions(seed=1)) for model in (found, expected))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.log_weights, second.log_weights)
    assert torch.equal(found.decode(first.codes), expected.decode(first.codes))


def test_separate_needs_no_model_where_one_comes_along(shipped, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "song.wav", 0.2 * torch.randn(16_000, generator=seeded()).numpy(), 8000)
    status, said, _ = run("separate", tmp_path / "song.wav", tmp_path / "out", "--particles", 2)
    assert status == 0 and "bass.wav" in said and (tmp_path / "out" / "drums.wav").is_file()
    monkeypatch.setattr(saved, "RECORDS", None)
    status, _, said = run("separate", tmp_path / "song.wav", tmp_path / "other", "--particles", 2)
    (line,) = lines_of(said)
    assert status == 1 and "no trained model came with this copy" in line and "hybridsep train hybrid" in line


@pytest.mark.parametrize(
    "name", ["profile.json", "vqvae-linear-*/model.safetensors", "likelihood-linear-counts-*/*.safetensors"]
)
def test_damaged_model_that_comes_along_is_refused_in_one_line(copied, monkeypatch, name):
    monkeypatch.setattr(saved, "RECORDS", copied), monkeypatch.setattr(saved, "SHIPPED_PROFILE", "micro")
    (path,) = (copied / "micro").glob(name)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(HybridsepError, match=f"model .*micro: .*{path.name} is damaged") as error:
        Separator.load()
    assert "\n" not in str(error.value)


def test_record_command_writes_it_and_says_how_large_it_is(trained, tmp_path):
    path = micro_profile(tmp_path, CHANGES)
    status, said, _ = run(
        "record", "--profile", path, "--runs", trained.root.parent, "--out", tmp_path / "out", "--results", tmp_path
    )
    assert (
        status == 0
        and said.startswith("0.")
        and "MB in" in said
        and (tmp_path / "out" / "micro" / "SHA256SUMS").is_file()
    )


# --- the repository --------------------------------------------------------------------------------------------------------


def test_large_files_of_the_repository_are_its_records_and_stay_small_enough():
    root = repository_root()
    sizes = {
        path: path.stat().st_size
        for name in ("book", "src", "tests", ".ci")
        for path in (root / name).rglob("*")
        if path.is_file()
    }
    kept = {path: size for path, size in sizes.items() if root / "book" / "record" in path.parents}
    assert max(size for path, size in sizes.items() if path not in kept) <= SMALL_FILE
    for folder in (root / "book" / "record").glob("*/"):
        own = [size for path, size in kept.items() if folder in path.parents]
        assert (
            max(own) <= record.LARGEST_FILE and sum(own) <= record.LARGEST_RECORD + 100_000
        )  # the checksums themselves
    assert records_root() in (None, root / "book" / "record")


@pytest.mark.parametrize("folder", [path.name for path in (repository_root() / "book" / "record").glob("*/")])
def test_shipped_record_is_that_of_its_profile_as_it_is_today(folder):
    made = Pipeline(load_profile(folder), records=None)
    steps = {path.name for path in (repository_root() / "book" / "record" / folder).glob("*/")}
    assert steps == {step.key for step in made.model_steps()}


def test_wheel_holds_the_records(tmp_path):
    for name in ("setuptools", "wheel"):
        pytest.importorskip(name)
    root, copy = repository_root(), tmp_path / "copy"
    shutil.copytree(root / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(root / name, copy)
    records = copy / "book" / "record"
    write_record({}, records / "micro", {"README.md": b"a model", "prior-linear-bass-0/model.safetensors": b"weights"})
    options = (
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
        "--disable-pip-version-check",
        "--wheel-dir",
        tmp_path,
    )
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, copy], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed_files:
        inside = {
            name: packed_files.read(name) for name in packed_files.namelist() if name.startswith("hybridsep/recorded/")
        }
    assert inside == {f"hybridsep/recorded/{name}": content for name, content in contents(records).items()}
    assert "hybridsep/recorded/micro/SHA256SUMS" in inside
