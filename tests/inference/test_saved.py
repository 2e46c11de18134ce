"""Models on disk: what was saved comes back to the bit, and nothing else is taken for it."""

import hashlib
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import count_likelihood, noise, tiny_separator

import hybridsep
from hybridsep.core.errors import HybridsepError
from hybridsep.inference.search import SEARCHES
from hybridsep.inference.separator import Separator

SETTINGS = ["profile.json", "SHA256SUMS"]


FILES = ["vqvae.safetensors", "prior-bass.safetensors", "prior-drums.safetensors", "likelihood.safetensors"]


@pytest.fixture(scope="module")
def counting():
    return tiny_separator(count_likelihood())


@pytest.fixture(scope="module")
def saved(counting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "a" / "model"
    counting.save(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.mark.parametrize("kind", ["counts", "sum"])
def test_loaded_model_separates_as_the_saved_one_to_the_bit(kind, counting, tmp_path):
    original = counting if kind == "counts" else tiny_separator()
    original.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*FILES, *SETTINGS])
    loaded = Separator.load(tmp_path)
    assert loaded.profile == original.profile and loaded.sample_rate == 8000
    for search in SEARCHES:
        assert torch.equal(*(model.separate(noise(), 8000, search, 6, seed=2).stems for model in (loaded, original)))


def test_saving_twice_is_byte_identical(counting, saved, tmp_path):
    counting.save(tmp_path)
    for name in [*FILES, *SETTINGS]:
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.parametrize("name", [*FILES, *SETTINGS])
def test_missing_file_is_refused_by_name(model, name):
    (model / name).unlink()
    with pytest.raises(HybridsepError, match=name):
        Separator.load(model)


@pytest.mark.parametrize("name", [*FILES, *SETTINGS])
@pytest.mark.parametrize("how", ["truncated", "empty", "garbage"])
@pytest.mark.parametrize("signed", [True, False])
def test_damaged_file_is_refused(model, name, how, signed):
    content = (model / name).read_bytes()
    (model / name).write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"\x80\xff" * 300}[how]
    )
    if signed and name != "SHA256SUMS":
        sign(model)
    with pytest.raises(HybridsepError, match="model"):
        Separator.load(model)


def sign(model):
    """Say that the files of a model are as they were saved, so that what they hold is all that can be wrong with them."""
    names = [p.name for p in sorted(model.iterdir()) if p.is_file() and p.name != "SHA256SUMS"]
    (model / "SHA256SUMS").write_text(
        "".join(f"{hashlib.sha256((model / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    )


def replace_tensor(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    sign(path.parent)


@pytest.mark.parametrize("name", [*FILES, "profile.json"])
def test_a_flipped_bit_is_noticed(model, name):
    content = bytearray((model / name).read_bytes())
    content[-len(content) // 3] ^= 4
    (model / name).write_bytes(content)
    with pytest.raises(HybridsepError, match=f"{name} is damaged or of another model.*SHA-256"):
        Separator.load(model)


def test_a_file_of_another_model_of_the_same_shape_is_noticed(model, tmp_path):
    tiny_separator().save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "likelihood.safetensors", model)
    with pytest.raises(HybridsepError, match="likelihood.safetensors is damaged or of another model"):
        Separator.load(model)


@pytest.mark.parametrize("name", FILES)
def test_file_of_another_shape_is_refused(model, name):
    def shrink(tensors):
        largest = max(tensors, key=lambda k: tensors[k].numel())
        tensors[largest] = tensors[largest][:-1].clone()

    replace_tensor(model / name, shrink)
    with pytest.raises(HybridsepError, match="model") as error:
        Separator.load(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_file_that_lacks_or_adds_a_tensor_is_refused(model, name):
    replace_tensor(model / name, lambda tensors: tensors.pop(max(tensors, key=lambda k: tensors[k].numel())))
    with pytest.raises(HybridsepError, match="model"):
        Separator.load(model)


@pytest.mark.parametrize("name", FILES[:3])
def test_refusal_of_wrong_weights_says_which_file(model, name):
    shutil.copy(model / "likelihood.safetensors", model / name)
    sign(model)
    with pytest.raises(HybridsepError, match=name) as error:
        Separator.load(model)
    assert len(str(error.value)) < 400 + len(str(model))


NONSENSE = {
    "other K": lambda t: t.update(codebook=torch.randn(9, 3)),
    "codebook of one axis": lambda t: t.update(codebook=torch.randn(12)),
    "codebook with NaN": lambda t: t.update(codebook=t["codebook"] * float("nan")),
    "keys outside the codebook": lambda t: t.update(keys=t["keys"] + 12**3),
    "negative keys": lambda t: t.update(keys=t["keys"] - 12**3),
    "unsorted keys": lambda t: t.update(keys=t["keys"].flip(0).contiguous()),
    "fewer counts than keys": lambda t: t.update(counts=t["counts"][:3].clone()),
    "two variances": lambda t: t.update(sigma_squared=torch.ones(2)),
    "smoothing is NaN": lambda t: t.update(smoothing=torch.tensor(float("nan"))),
}


@pytest.mark.parametrize("change", [pytest.param(c, id=n) for n, c in NONSENSE.items()])
def test_likelihood_that_makes_no_sense_is_refused(model, change):
    replace_tensor(model / "likelihood.safetensors", change)
    with pytest.raises(HybridsepError, match="likelihood"):
        Separator.load(model)


def test_profile_with_an_unknown_key_is_refused_by_name(model):
    text = (model / "profile.json").read_text()
    (model / "profile.json").write_text(text.replace('"seed"', '"sead"', 1))
    sign(model)
    with pytest.raises(HybridsepError, match="sead"):
        Separator.load(model)


def test_source_name_that_leaves_the_folder_is_refused(model):
    text = (model / "profile.json").read_text()
    (model / "profile.json").write_text(text.replace('"drums"', '"../../drums"', 1))
    (model / "prior-..").mkdir()
    shutil.copy(model / "prior-drums.safetensors", model / "drums.safetensors")
    sign(model)
    with pytest.raises(HybridsepError, match="drums"):
        Separator.load(model)


def test_folder_that_is_no_model_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(HybridsepError, match="is no model"):
            Separator.load(folder)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", FILES)
def test_pickle_named_safetensors_is_not_executed(model, tmp_path, name):
    trace = tmp_path / "executed"
    payload = pickle.dumps({"w": Evil(trace)})
    for write in (lambda: (model / name).write_bytes(payload), lambda: torch.save({"w": Evil(trace)}, model / name)):
        write()
        for _ in range(2):
            with pytest.raises(HybridsepError):
                Separator.load(model)
            sign(model)
    assert not trace.exists()
    pickle.loads(payload)["w"].close()
    assert trace.exists(), "the malicious pickle does what it says"


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "pkl"])
def test_pickle_beside_the_weights_or_in_their_place_is_not_executed(model, tmp_path, suffix):
    trace = tmp_path / "executed"
    for name in [*FILES, "model.safetensors"]:
        torch.save({"w": Evil(trace)}, (model / name).with_suffix(f".{suffix}"))
    Separator.load(model)
    (model / FILES[0]).unlink()
    with pytest.raises(HybridsepError, match=f"{FILES[0]} is missing"):
        Separator.load(model)
    assert not trace.exists()


def test_nothing_in_the_library_unpickles():
    """Neither torch.load, nor pickle, nor any of the readers that call it."""
    readers = (
        r"torch\.load\(",
        r"joblib\.load",
        "read_pickle",
        "allow_pickle=True",
        r"yaml\.(unsafe_|full_)?load\(",
        r"import (c?pickle|dill|shelve|marshal)\b",
    )
    forbidden = re.compile("|".join(readers))
    sources = {path: path.read_text() for path in Path(hybridsep.__file__).parent.rglob("*.py")}
    assert len(sources) > 40 and not [path for path, text in sources.items() if forbidden.search(text)]
