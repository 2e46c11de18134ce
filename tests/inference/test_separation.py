"""Audio in, stems out: selection without ground truth, refinement, and models on disk."""

import hashlib
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import count_likelihood, seeded, tiny_separator

from hybridsep.core.device import seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.inference import separator as separation
from hybridsep.inference import wiener as refinement
from hybridsep.inference.search import SEARCHES, SearchResult, particle_filter
from hybridsep.inference.selection import (
    SELECTIONS,
    best_evidence,
    cross_pair,
    highest_weight,
    posterior_mean,
    smallest_residual,
    take_particle,
)
from hybridsep.inference.separator import Candidates, SearchOptions, Separator
from hybridsep.inference.wiener import wiener

SETTINGS = ["profile.json", "SHA256SUMS"]
FILES = ["vqvae.safetensors", "prior-bass.safetensors", "prior-drums.safetensors", "likelihood.safetensors"]


def mixture(batch=2, samples=2048, seed=0):
    return 0.3 * torch.randn(batch, samples, generator=seeded(seed))


def candidates(waveforms, log_weights, target):
    """Candidates of given waveforms [2, B, N, T]."""
    nothing = torch.zeros(1)
    return Candidates(target, waveforms, SearchResult(nothing, log_weights, *[nothing] * 5), 0.0)


@pytest.fixture(scope="module")
def separator():
    return tiny_separator()


@pytest.fixture(scope="module")
def counting():
    return tiny_separator(count_likelihood())


# --- refinement ------------------------------------------------------------------------------------------------------------


def decibels(error, reference):
    return 10 * torch.log10(error.square().sum() / reference.square().sum().clamp_min(1e-12) + 1e-20)


@pytest.mark.parametrize("samples", [1, 100, 1024, 1025, 2047, 2048, 2049, 7777, 66150])
@pytest.mark.parametrize("size", [256, 2048])
def test_mean_of_refined_stems_is_the_mixture(samples, size):
    target = mixture(2, samples)
    stems = torch.randn(2, 2, samples, generator=seeded(1)) * torch.tensor([1.0, 0.01])[:, None, None]
    refined = wiener(stems, target, size)
    assert refined.shape == stems.shape
    assert decibels(refined.mean(0) - target, target) < -60


@pytest.mark.parametrize("level", [0.0, 1e-12])
def test_mixture_is_shared_equally_between_silent_estimates(level):
    target = mixture(1, 5000)
    refined = wiener(torch.full((2, 1, 5000), level), target)
    for stem in refined:
        assert decibels(stem - target, target) < -60


def test_silent_estimate_gets_nothing_of_what_the_other_explains():
    target = mixture(1, 5000)
    refined = wiener(torch.stack([2 * target, torch.zeros_like(target)]), target)
    assert decibels(refined[0] - 2 * target, target) < -40 and decibels(refined[1], target) < -40


def test_refinement_of_silence_is_silence():
    assert (wiener(torch.randn(2, 1, 4096), torch.zeros(1, 4096)) == 0).all()


def test_refinement_separates_tones_of_different_pitch():
    time = torch.arange(16000) / 8000
    sources = torch.stack([torch.sin(2 * torch.pi * hz * time) for hz in (200, 1500)])[:, None]
    target = sources.mean(0)
    refined = wiener(sources, target)
    for stem, source in zip(refined, sources, strict=True):
        assert decibels((stem - source)[:, 2000:-2000], source) < -25


@pytest.mark.parametrize("pan", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_panned_sources_gain_from_trust_as_well(pan, noise):
    """Mono estimates say nothing of the panning; trusting them half still scores better in every channel's mixture than masks alone."""
    time, hiss = torch.arange(2 * 22050) / 22050, torch.randn(3, 2 * 22050, generator=seeded())
    tones = torch.sin(2 * torch.pi * 110 * time) + 0.5 * torch.sin(2 * torch.pi * 220 * time)
    sources = torch.stack([0.3 * tones, 0.6 * hiss[0] * torch.exp(-8 * (time % 0.5))])
    gains = 2 * torch.tensor([[pan, 1 - pan], [1 - pan, pan]])
    panned = gains[:, :, None] * sources[:, None]
    heard = (sources + noise * sources.std(-1, keepdim=True) * hiss[1:])[:, None]
    masked, trusted = (-decibels(wiener(heard, panned.mean(0), 2048, trust) - panned, panned) for trust in (0.0, 0.5))
    assert trusted > masked


# --- selection -------------------------------------------------------------------------------------------------------------


def test_cross_pair_equals_brute_force_over_all_pairs():
    waveforms, target = torch.randn(2, 3, 9, 50, generator=seeded()), mixture(3, 50)
    found = cross_pair(candidates(waveforms, torch.zeros(3, 9), target))
    for b in range(3):
        residuals = (target[b] - 0.5 * (waveforms[0, b][:, None] + waveforms[1, b])).square().sum(-1)
        i, j = divmod(int(residuals.argmin()), 9)
        assert torch.equal(found[:, b], torch.stack([waveforms[0, b, i], waveforms[1, b, j]]))


def test_cross_pair_finds_parts_that_no_single_particle_holds():
    sources = torch.randn(2, 1, 1, 50, generator=seeded())
    waveforms = torch.randn(2, 1, 4, 50, generator=seeded(1))
    waveforms[0, 0, 1], waveforms[1, 0, 3] = sources[0, 0, 0], sources[1, 0, 0]
    target = sources.mean(0)[:, 0]
    assert torch.equal(cross_pair(candidates(waveforms, torch.zeros(1, 4), target)), sources[:, :, 0])


def test_posterior_mean_weighs_the_particles():
    waveforms = torch.tensor([[[[1.0, 2.0], [5.0, 6.0]]], [[[0.0, 0.0], [4.0, 8.0]]]])
    log_weights = torch.tensor([[0.25, 0.75]]).log() + 100.0
    found = posterior_mean(candidates(waveforms, log_weights, torch.zeros(1, 2)))
    assert torch.allclose(found, torch.tensor([[[4.0, 5.0]], [[3.0, 6.0]]]))


def test_posterior_mean_ignores_particles_of_no_weight():
    waveforms = torch.randn(2, 1, 3, 10)
    found = posterior_mean(
        candidates(waveforms, torch.tensor([[-float("inf"), 0.0, -float("inf")]]), torch.zeros(1, 10))
    )
    assert torch.equal(found, waveforms[:, :, 1])


def test_highest_weight_and_smallest_residual_pick_whole_particles():
    waveforms, target = torch.randn(2, 2, 3, 40, generator=seeded()), torch.zeros(2, 40)
    waveforms[:, 0, 2] *= 0.01
    waveforms[1, 1, 0] = -waveforms[0, 1, 0]
    found = candidates(waveforms, torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 2.0]]), target)
    assert torch.equal(highest_weight(found), torch.stack([waveforms[:, 0, 1], waveforms[:, 1, 0]], 1))
    assert torch.equal(smallest_residual(found), torch.stack([waveforms[:, 0, 2], waveforms[:, 1, 0]], 1))
    assert torch.equal(
        take_particle(waveforms, torch.tensor([1, 2])), torch.stack([waveforms[:, 0, 1], waveforms[:, 1, 2]], 1)
    )


@pytest.mark.parametrize("rule", SELECTIONS)
def test_every_rule_gives_one_stem_per_source_and_mixture(separator, rule):
    found = separator.candidates(mixture(3), particles=5)
    assert SELECTIONS[rule](found).shape == (2, 3, 2048)


def test_best_evidence_is_chosen_mixture_by_mixture():
    runs = [torch.tensor([-10.0, -2.0, -5.0]), torch.tensor([-9.0, -3.0, -5.5]), torch.tensor([-11.0, -2.5, -4.0])]
    assert best_evidence(runs).tolist() == [1, 0, 2]


@pytest.mark.parametrize("search", SEARCHES)
def test_same_seed_gives_the_same_stems_to_the_bit(counting, search):
    first, again = (counting.candidates(mixture(), search, 6, seed=3) for _ in range(2))
    assert torch.equal(first.waveforms, again.waveforms) and torch.equal(
        first.search.log_weights, again.search.log_weights
    )
    assert torch.equal(*(counting.estimate(mixture(), search, 6, seed=3).stems for _ in range(2)))


@pytest.mark.parametrize("search", ["particle", "ancestral", "topk"])
def test_another_seed_gives_other_stems(counting, search):
    assert not torch.equal(*(counting.estimate(mixture(), search, 6, seed=s).stems for s in (0, 1)))


@pytest.mark.parametrize("search", SEARCHES)
def test_stems_have_the_shapes_and_scale_promised(counting, search):
    found = counting.candidates(mixture(3, 2048 + 31), search, 5)
    assert found.mixture.shape == (3, 2048) and found.waveforms.shape == (2, 3, 5, 2048)
    assert found.search.codes.shape == (2, 3, 5, 64) and found.search.log_weights.shape == (3, 5)
    assert found.search.log_evidence.shape == (3,) and torch.isfinite(found.search.log_evidence).all()
    assert found.search.ess.shape == found.search.resampled.shape == (3, 64)
    stems = wiener(counting.estimate(mixture(3, 2048 + 31), search, 5).stems, found.mixture)
    assert torch.allclose(stems.mean(0), mixture(3, 2048 + 31)[:, :2048], atol=1e-4)


def test_long_batches_are_searched_in_slices():
    small = tiny_separator(search={"particles": 4, "max_rows": 8})
    found = small.candidates(mixture(5), particles=4)
    assert found.search.codes.shape == (2, 5, 4, 64) and found.search.ess.shape == (5, 64)
    first = small.candidates(mixture(5)[:2], particles=4)
    assert torch.equal(found.search.codes[:, :2], first.search.codes)
    assert torch.equal(
        small.candidates(mixture(1), particles=99).search.codes, small.candidates(mixture(1), particles=99).search.codes
    )


def several_filters(size, **search):
    return tiny_separator(search={"particles": 12, "max_rows": 24, "filter_particles": size, **search})


@pytest.mark.parametrize("particles, filters", [(12, 3), (4, 1), (3, 1), (8, 2), (10, 2), (11, 1)])
def test_more_particles_than_a_filter_holds_are_several_filters_of_equal_share(particles, filters):
    """Each is a filter by itself: same draws, estimate the mean of theirs, evidence the mean of theirs."""
    separator = several_filters(4)
    codes = torch.randint(12, (2, 20), generator=seeded(1))
    found = separator.search_codes(codes, SearchOptions(particles=particles, seed=5))
    alone = particle_filter(
        separator.stack,
        separator.likelihood,
        codes.repeat_interleave(filters, 0),
        particles // filters,
        seeded_generator(5, 0),
    )
    assert torch.equal(found.codes.reshape(2, 2, filters, -1, 20), alone.codes.view(2, 2, filters, -1, 20))
    expected = alone.log_weights.softmax(1).view(2, filters, -1) / filters
    assert torch.allclose(found.log_weights.softmax(1).view_as(expected), expected, atol=1e-6)
    assert torch.allclose(found.log_evidence, alone.log_evidence.exp().view(2, filters).mean(1).log(), atol=1e-4)
    assert torch.equal(found.running_evidence[:, -1], found.log_evidence)
    assert (found.ess <= particles + 1e-3).all() and (found.ess >= filters - 1e-3).all()
    # Ancestors stay within their filter.
    size = particles // filters
    assert (found.ancestors // size == torch.arange(particles) // size).all()


def test_filters_that_are_none_change_nothing():
    codes = torch.randint(12, (2, 20), generator=seeded(1))
    options = SearchOptions(particles=12, seed=5)
    assert torch.equal(
        several_filters(0).search_codes(codes, options).codes, several_filters(12).search_codes(codes, options).codes
    )
    for search in ("ancestral", "beam", "topk"):
        options = SearchOptions(search, 12, 5)
        assert torch.equal(
            several_filters(0).search_codes(codes, options).codes, several_filters(4).search_codes(codes, options).codes
        )


def test_windows_are_carried_by_several_filters_too():
    separator = several_filters(4)
    waveform = mixture(1, int(separator.sample_rate * 5))[0]
    carried, at_once = (
        separator.separate(waveform, separator.sample_rate, particles=8, carry=carry).stems for carry in (True, False)
    )
    assert carried.shape == at_once.shape and not torch.equal(carried, at_once) and carried.isfinite().all()


def test_decoding_each_distinct_sequence_once_changes_nothing(separator):
    codes = torch.randint(12, (3, 16), generator=seeded())
    repeated = codes[torch.tensor([[0, 1, 0], [2, 2, 0]])]
    assert torch.allclose(
        separator.decode(repeated), separator.vqvae.decode(repeated.flatten(0, 1)).view(2, 3, -1), atol=1e-6
    )


@pytest.mark.parametrize("length, shared", [(1, 0), (128, 0), (140, 100), (389, 380), (389, 130), (389, 389)])
def test_decoding_a_shared_past_once_changes_nothing(separator, length, shared):
    """As after a particle filter: every sequence of a mixture begins with the same codes."""
    codes = torch.randint(12, (2, 3, 4, length), generator=seeded(length))
    codes[..., :shared] = codes[:, :, :1, :shared]
    whole = separator.vqvae.decode(codes.flatten(0, 2)).view(2, 3, 4, -1)
    assert torch.allclose(separator.decode(codes), whole, atol=1e-6)


def test_decoding_a_shared_past_decodes_less(separator, monkeypatch):
    codes = torch.randint(12, (2, 1, 8, 640), generator=seeded())
    codes[..., :560] = codes[:, :, :1, :560]
    decoded, decode = [], separator.vqvae.decode
    monkeypatch.setattr(separator.vqvae, "decode", lambda c: decoded.append(c.numel()) or decode(c))
    separator.decode(codes)
    assert sum(decoded) < 0.6 * codes.numel()


@pytest.mark.parametrize("search", list(SEARCHES))
def test_the_estimate_is_the_posterior_mean_of_the_candidates(counting, search):
    found, whole = counting.estimate(mixture(3), search, 5, seed=4), counting.candidates(mixture(3), search, 5, seed=4)
    assert torch.equal(found.search.codes, whole.search.codes) and torch.equal(found.mixture, whole.mixture)
    assert torch.allclose(found.stems, SELECTIONS["mean"](whole), atol=1e-5)


@pytest.mark.parametrize("length", [4000, 8200, 16384, 20_001])
def test_masks_of_a_long_recording_are_the_same_block_by_block(monkeypatch, length):
    stems, heard = torch.randn(2, 1, length, generator=seeded()), torch.randn(1, length, generator=seeded(1))
    whole = refinement.wiener(stems, heard, 256)
    monkeypatch.setattr(refinement, "WIENER_FRAMES", 32)
    assert torch.allclose(refinement.wiener(stems, heard, 256), whole, atol=1e-5)


def test_bad_requests_are_refused_with_their_value(separator):
    with pytest.raises(HybridsepError, match="unknown search 'best'.*particle"):
        separator.estimate(mixture(), "best")
    with pytest.raises(HybridsepError, match="31 samples.*32"):
        separator.estimate(mixture(1, 31))
    for particles in (0, -1):
        with pytest.raises(ValueError, match=f"{particles} particles"):
            separator.estimate(mixture(), particles=particles)


# --- models on disk --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(counting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "a" / "model"
    counting.save(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.mark.parametrize("kind", ["counting", "separator"])
def test_loaded_model_separates_as_the_saved_one_to_the_bit(kind, request, tmp_path):
    original = request.getfixturevalue(kind)
    original.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*FILES, *SETTINGS])
    loaded = Separator.load(tmp_path)
    assert loaded.profile == original.profile and loaded.sample_rate == 8000
    for search in SEARCHES:
        assert torch.equal(*(model.separate(mixture(), 8000, search, 6, seed=2).stems for model in (loaded, original)))


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


def test_the_malicious_pickle_would_have_left_a_trace(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


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
    sources = {path: path.read_text() for path in Path(separation.__file__).parents[1].rglob("*.py")}
    assert len(sources) > 40 and not [path for path, text in sources.items() if forbidden.search(text)]


# --- whole recordings ------------------------------------------------------------------------------------------------------


def test_every_form_of_a_recording_is_separated_alike(counting):
    heard = mixture(1, 8000)
    expected = counting.separate(heard, 8000, particles=3).stems
    assert expected.shape == (2, 1, 8000)
    forms = [
        heard[0],
        heard[0].double(),
        heard[0].numpy(),
        heard[0].numpy().astype(">f8"),
        heard[0].flip(0).numpy()[::-1],
        heard[0].tolist(),
    ]
    for form in forms:
        assert torch.equal(counting.separate(form, 8000, particles=3).stems, expected[:, 0])
    assert torch.equal(counting.separate(heard.numpy(), 8000, particles=3).stems, expected)


def test_integers_are_on_a_scale_of_their_own(counting):
    heard = (20_000 * mixture(1, 8000)).short()
    stems = counting.separate(heard.numpy(), 8000, particles=3).stems
    assert decibels(stems.sum(0) - heard, heard.float()) < -60
    assert torch.allclose(stems, 32768 * counting.separate(heard / 32768, 8000, particles=3).stems, rtol=1e-4, atol=0.1)


@pytest.mark.parametrize("shape", [(), (1, 2, 8000)])
def test_what_is_no_waveform_is_refused_with_its_shape(counting, shape):
    with pytest.raises(HybridsepError, match="is \\[samples\\] or \\[channels, samples\\]"):
        counting.separate(torch.zeros(shape), 8000)


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-20, 1e20, 3e38])
@pytest.mark.parametrize("refine", [True, False])
def test_level_of_a_recording_does_not_matter(counting, scale, refine):
    heard = mixture(2, 8000)
    heard = heard / heard.abs().max() * scale
    stems = counting.separate(heard, 8000, particles=2, refine=refine).stems
    assert torch.isfinite(stems).all()
    if refine:
        assert decibels((stems.double().sum(0) - heard) / scale, heard.double() / scale) < (
            -60 if scale > 1e-40 else -30
        )


@pytest.mark.parametrize("search", SEARCHES)
def test_carried_windows_give_whole_stems_and_the_same_ones_again(counting, search):
    heard = mixture(1, 60_000)
    first, again = (counting.separate(heard, 8000, search, 4, seed=2, carry=True) for _ in range(2))
    assert torch.equal(first.stems, again.stems) and first.log_evidence == again.log_evidence
    assert decibels(first.stems.sum(0) - heard, heard) < -60
    assert not torch.equal(first.stems, counting.separate(heard, 8000, search, 4, seed=2).stems)


def test_long_mixtures_are_separated_together_as_alone(counting):
    heard = mixture(3, 60_000)
    for carry in (True, False):
        together = counting.estimate_windows(heard, SearchOptions(particles=2), carry)
        assert together[0].shape == (2, 3, 60_000) and together[1].shape == (3,)
        alone = counting.estimate_windows(heard[:1], SearchOptions(particles=2), carry)
        assert torch.allclose(together[0][:, :1], alone[0], atol=1e-4) and together[1][0] == pytest.approx(
            float(alone[1]), abs=1e-4
        )


def windows_at_once(monkeypatch, max_rows, carry):
    """How many windows each search is of, for three recordings of three windows by four particles."""
    small, counts = tiny_separator(search={"particles": 4, "max_rows": max_rows}), []
    estimate = small.estimate
    monkeypatch.setattr(
        small, "estimate", lambda heard, *args, **kwargs: counts.append(len(heard)) or estimate(heard, *args, **kwargs)
    )
    small.estimate_windows(mixture(3, 60_000), SearchOptions(), carry)
    return counts


def test_few_windows_are_searched_at_once_however_long_the_recording(monkeypatch):
    assert windows_at_once(monkeypatch, 8, carry=False) == [2, 2, 2, 2, 1]
    assert windows_at_once(monkeypatch, 8, carry=True) == [2] * 3 + [1] * 3


def test_all_windows_are_searched_in_one_batch_where_there_is_room(monkeypatch):
    assert windows_at_once(monkeypatch, 4 * 9, carry=False) == [9]
    assert windows_at_once(monkeypatch, 4 * 9, carry=True) == [3, 3, 3]


@pytest.mark.parametrize("length, channels", [(300, 1), (5000, 3), (70_000, 2)])
def test_masks_of_blocks_are_those_of_the_whole(monkeypatch, length, channels):
    """Estimates in mono, a recording of several channels, and blocks of other lengths in both."""
    stems, heard = torch.randn(2, 1, length, generator=seeded()), torch.randn(channels, length, generator=seeded(1))
    whole = wiener(stems.expand(-1, channels, -1), heard, 256)
    monkeypatch.setattr(refinement, "WIENER_FRAMES", 32)
    blocks = list(refinement.wiener_blocks(stems.split(777, -1), heard.split(1234, -1), 256))
    assert torch.allclose(torch.cat(blocks, -1), whole, atol=1e-5) and max(b.shape[-1] for b in blocks) <= 32 * 64


def test_long_refinement_in_pieces_of_the_default_length_is_that_in_one():
    size = 256
    length = 3 * 2 * refinement.WIENER_FRAMES * size // 4 + 77
    stems, heard = torch.randn(2, 2, length, generator=seeded()), torch.randn(2, length, generator=seeded(1))
    pieces = list(refinement.wiener_blocks([stems], [heard], size))
    assert len(pieces) == 7 and torch.equal(torch.cat(pieces, -1), wiener(stems, heard, size))
    assert torch.allclose(
        wiener(stems, heard, size), refinement._wiener(stems, heard, size, refinement.TRUST), atol=1e-5, rtol=0
    )
