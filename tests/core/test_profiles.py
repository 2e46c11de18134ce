"""Profiles: every key known, every value in range, every message names what is wrong."""

import json

import pytest
import yaml
from tiny import tiny_profile

from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import (
    METHODS,
    Profile,
    SearchSettings,
    Tuning,
    config_hash,
    load_profile,
    method_spec,
    profile_names,
)


def written(folder, text, name="mine.yml"):
    path = folder / name
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return path


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_are_valid(name):
    profile = load_profile(name)
    assert profile.name == name and profile.source_names == ("bass", "drums")
    assert Profile.model_validate(json.loads(profile.model_dump_json())) == profile


def test_all_profiles_ship():
    assert profile_names() == ["cpu", "paper", "quick", "smoke", "t4"]


def test_t4_has_the_codec_of_lqvae_and_paper_the_priors_of_jukebox():
    t4, paper = load_profile("t4"), load_profile("paper")
    codec = t4.vqvae
    assert codec.hop == 64 and codec.codes == 2048 and set(codec.widths) == {32} and set(codec.strides) == {2}
    assert (codec.encoder_depth, codec.decoder_depth, codec.dilation_growth, codec.commit_weight) == (
        4,
        4,
        3,
        1.0,
    ) and codec.stft_weight > 0
    assert (paper.prior.layers, paper.prior.width) == (48, 1024) and paper.vqvae == codec and paper.data == t4.data


def test_file_inherits_what_it_does_not_say(tmp_path):
    path = written(tmp_path, {"base": "smoke", "seed": 7, "prior": {"training": {"steps": 3}}})
    mine, base = load_profile(path), load_profile("smoke")
    assert mine.name == "mine" and mine.seed == 7 and mine.prior.training.steps == 3
    assert mine.prior.training.batch == base.prior.training.batch and mine.prior.layers == base.prior.layers
    assert mine.vqvae == base.vqvae and mine.data == base.data


def test_inheritance_goes_over_several_files(tmp_path):
    first = written(tmp_path, {"base": "smoke", "seed": 1, "search": {"particles": 3, "top_k": 2}}, "first.yml")
    second = written(tmp_path, {"base": str(first), "search": {"particles": 5}}, "second.yml")
    profile = load_profile(second)
    assert (profile.seed, profile.search.particles, profile.search.top_k) == (1, 5, 2)


def test_base_is_found_beside_the_file_that_names_it(tmp_path, monkeypatch):
    written(tmp_path, {"base": "smoke", "seed": 1}, "first.yml")
    second = written(tmp_path, {"base": "first.yml"}, "second.yml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_profile(second).seed == 1


def test_lists_and_sources_are_replaced_whole(tmp_path):
    path = written(
        tmp_path,
        {
            "base": "smoke",
            "sources": {"keys": "Piano", "strings": "Strings"},
            "evaluation": {"searches": ["beam", "particle"]},
        },
    )
    profile = load_profile(path)
    assert profile.source_names == ("keys", "strings") and profile.evaluation.searches == ("beam", "particle")


UNKNOWN = {
    "particels": {"particels": 3},
    "prior.layer": {"prior": {"layer": 3}},
    "vqvae.training.step": {"vqvae": {"training": {"step": 3}}},
}


@pytest.mark.parametrize("where", UNKNOWN)
def test_unknown_key_is_refused_by_name(tmp_path, where):
    with pytest.raises(HybridsepError, match=f"mine.yml.*{where}: unknown key") as error:
        load_profile(written(tmp_path, {"base": "smoke", **UNKNOWN[where]}))
    assert "\n" not in str(error.value)


BAD = [
    ("vqvae.codes", {"vqvae": {"codes": 1}}, "1"), ("prior.training.steps", {"prior": {"training": {"steps": "many"}}}, "many"),
    ("data.tracks", {"data": {"tracks": 3}}, "3"), ("search.ess_threshold", {"search": {"ess_threshold": 1.5}}, "1.5"),
    ("precision", {"precision": "fp8"}, "fp8"), ("sources", {"sources": {"bass": "Bass"}}, "Bass"),
    ("data.pairing", {"data": {"pairing": "duets"}}, "duets"), ("data.effects", {"data": {"effects": 1.5}}, "1.5"),
    ("sources", {"sources": {"a": "A", "b": "B", "c": "C"}}, "C"), ("vqvae.strides", {"vqvae": {"strides": [8, "four", 2]}}, "four"),
]  # fmt: skip


@pytest.mark.parametrize("where, values, value", BAD)
def test_bad_value_is_named_with_its_key(tmp_path, where, values, value):
    with pytest.raises(HybridsepError) as error:
        load_profile(written(tmp_path, {"base": "smoke", **values}))
    said = str(error.value)
    assert where in said and value in said.split(where, 1)[1] and "\n" not in said


SHAPES = [
    ({"vqvae": {"strides": [8, 4]}}, "strides"), ({"vqvae": {"crop_samples": 8193}}, "8193"), ({"prior": {"width": 65}}, "65"),
    ({"prior": {"heads": 2, "kv_heads": 3}}, "kv_heads"), ({"prior": {"crop_codes": 200}}, "200"), ({"vqvae": {"strides": [0, 4, 2]}}, "strides"),
    ({"vqvae": {"strides": [-8, -4, 2]}}, "strides"), ({"vqvae": {"strides": [], "widths": []}}, "strides"), ({"vqvae": {"widths": [8, 0, 8]}}, "widths"),
    ({"vqvae": {"codes": 40000}}, "40000"), ({"evaluation": {"searches": ["beem"]}}, "beem"), ({"evaluation": {"searches": ["beam"]}}, "must contain .particle."),
]  # fmt: skip


@pytest.mark.parametrize("values, value", SHAPES)
def test_settings_that_do_not_fit_each_other_or_the_library_are_refused(tmp_path, values, value):
    with pytest.raises(HybridsepError, match=value) as error:
        load_profile(written(tmp_path, {"base": "smoke", **values}))
    assert "\n" not in str(error.value)


def test_profile_that_inherits_from_itself_is_refused(tmp_path):
    first, second = tmp_path / "first.yml", tmp_path / "second.yml"
    written(tmp_path, {"base": str(second)}, "first.yml"), written(tmp_path, {"base": str(first)}, "second.yml")
    with pytest.raises(HybridsepError, match="inherits from itself.*first.yml.*second.yml"):
        load_profile(first)
    own = written(tmp_path, {"base": str(tmp_path / "own.yml")}, "own.yml")
    with pytest.raises(HybridsepError, match="inherits from itself"):
        load_profile(own)


def test_unknown_profile_lists_the_known_ones():
    with pytest.raises(HybridsepError, match="unknown profile 'smok': choose one of cpu, paper, quick, smoke, t4"):
        load_profile("smok")
    with pytest.raises(HybridsepError, match="nowhere.yml"):
        load_profile("nowhere.yml")


@pytest.mark.parametrize(
    "text",
    ["a: [1, 2", "- a\n- b", "just words", "\tx: 1", "base: [1]", "base: 3", "vqvae: 3\nbase: smoke", b"\xff\xfe\x00"],
)
def test_file_that_is_no_profile_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "mine.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(HybridsepError, match="mine.yml") as error:
        load_profile(path)
    assert "\n" not in str(error.value)


def test_empty_file_says_what_is_missing(tmp_path):
    with pytest.raises(HybridsepError, match="sources"):
        load_profile(written(tmp_path, ""))


def test_settings_cannot_be_changed_after_reading():
    with pytest.raises(ValueError, match="frozen"):
        tiny_profile().seed = 3


# --- hash ------------------------------------------------------------------------------------------------------------------


def variations(values, path=()):
    """Every setting of a dumped profile with another value: (path, value)."""
    for name, value in values.items():
        if name == "sources":
            yield (*path, name), {**value, "drums": "Guitar"}
        elif isinstance(value, dict):
            yield from variations(value, (*path, name))
        elif isinstance(value, list):
            yield (*path, name), [*value, value[-1]]
        else:
            yield (*path, name), 0.25 if value is None else value + ("x" if isinstance(value, str) else 1)


def test_hash_changes_with_any_setting_and_only_then():
    profile = tiny_profile()
    hashes = {config_hash(profile)}
    paths = list(variations(profile.model_dump(mode="json")))
    assert len(paths) > 60
    for path, value in paths:
        changed = profile.model_dump(mode="json")
        block = changed
        for part in path[:-1]:
            block = block[part]
        block[path[-1]] = value
        hashes.add(config_hash(changed))
    assert len(hashes) == len(paths) + 1
    assert config_hash(profile) == config_hash(profile.model_dump(mode="json")) == config_hash(tiny_profile())
    assert config_hash(profile, 1) != config_hash(profile, 2) != config_hash(profile)


def test_a_cell_is_searched_with_its_own_settings_and_the_others_with_the_profiles(tmp_path):
    mine = {"temperature": 1.2, "linear-counts": {"temperature": 1.6, "smoothing": 3.0}, "plain-sum": {"power": 2.0}}
    profile = load_profile("smoke").model_copy(update={"search": SearchSettings.model_validate(mine)})
    assert profile.tuning("linear", "counts") == Tuning(temperature=1.6, power=1.0, smoothing=3.0)
    assert profile.tuning("plain", "sum") == Tuning(temperature=1.2, power=2.0)
    assert profile.for_cell("linear", "counts").search.temperature == 1.6
    assert profile.for_cell("plain", "counts").search.temperature == 1.2
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    with pytest.raises(HybridsepError, match="search.linear-counts.powr: unknown key"):
        load_profile(written(tmp_path, {"base": "smoke", "search": {"linear-counts": {"powr": 2.0}}}))


# --- methods ---------------------------------------------------------------------------------------------------------------


def test_methods_are_the_four_pairs():
    assert {(m.vqvae, m.likelihood) for m in METHODS.values()} == {
        (v, k) for v in ("plain", "linear") for k in ("sum", "counts")
    }
    assert (method_spec("hybrid").vqvae, method_spec("hybrid").likelihood) == ("linear", "counts")
    with pytest.raises(HybridsepError, match="unknown method 'hybird': choose one of .*hybrid"):
        method_spec("hybird")
