"""Profiles: every number of a run, in one validated YAML file that holds what differs from the one named in its `base` key."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from hybridsep.core.errors import HybridsepError

VQVAEKind = Literal["plain", "linear"]
LikelihoodKind = Literal["sum", "counts"]
SearchKind = Literal["ancestral", "topk", "beam", "particle", "lass-beam", "lass-topk"]
SUFFIXES = (".yml", ".yaml")


class Settings(BaseModel):
    """Base of every settings block: frozen, and unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(Settings):
    """Songs: `tracks` of `seconds` are synthesised; `sample_rate` in Hz is every model's; `pairing` as in `StemSet`."""

    tracks: int = Field(300, ge=10)
    seconds: float = Field(30.0, gt=3.0)
    seed: int = 0
    sample_rate: int = Field(22050, ge=8000)
    pairing: Literal["same-song", "random"] = "same-song"
    effects: float = Field(0.0, ge=0, le=1, description="share of training stems with a random sound effect")
    people: int = Field(0, ge=0, description="excerpts to train on of each song that people wrote")
    variety: float = Field(0.5, ge=0, le=1, description="share of those excerpts' stems with a random timbre")


class TrainingSettings(Settings):
    """The loop: `steps` optimiser steps of `batch` items, `learning_rate` after `warmup` steps, linear decay to `final_lr`."""

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    matrix_learning_rate: float = Field(0.0, ge=0, description="of Muon on hidden matrices; 0: AdamW for everything")
    warmup: int = Field(50, ge=0)
    final_lr: float = Field(0.05, ge=0, le=1, description="last learning rate, as a share of the highest")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    checkpoint_seconds: float = Field(60.0, gt=0, description="seconds between two checkpoints")
    accumulate: int = Field(1, ge=1, description="parts that a batch is computed in; processes share them")


class VQVAESettings(Settings):
    """Shape and losses of the VQ-VAE. Hop (samples per code) is the product of `strides`."""

    strides: tuple[Annotated[int, Field(ge=2, multiple_of=2)], ...] = Field((8, 4, 2), min_length=1)
    widths: tuple[PositiveInt, ...] = (32, 64, 128)
    encoder_depth: int = Field(2, ge=1, description="residual blocks of each encoder stage")
    decoder_depth: int = Field(3, ge=1, description="residual blocks of each decoder stage")
    dilation_growth: int = Field(3, ge=1)
    latent_width: int = Field(16, ge=1)
    codes: int = Field(1024, ge=2, le=32767, description="K, the size of the codebook")
    ema_decay: float = Field(0.98, gt=0, lt=1)
    dead_share: float = Field(0.05, ge=0, description="a code used less than this share of the mean is re-seeded")
    unquantised_share: float = Field(0.1, ge=0, lt=1, description="first share of the steps, without quantisation")
    commit_weight: float = Field(2.0, ge=0)
    l2_weight: float = Field(5.0, ge=0)
    stft_weight: float = Field(0.5, ge=0)
    linear_weight: float = Field(16.0, ge=0, description="weight of L_lin for kind `linear`")
    crop_samples: int = Field(16384, ge=1024)
    training: TrainingSettings

    @model_validator(mode="after")
    def _shapes_agree(self) -> VQVAESettings:
        if len(self.strides) != len(self.widths):
            raise ValueError(f"strides {self.strides} and widths {self.widths} differ in length")
        if self.crop_samples % self.hop:
            raise ValueError(f"crop_samples {self.crop_samples} is no multiple of the hop {self.hop}")
        return self

    @property
    def hop(self) -> int:
        """Samples per code."""
        return math.prod(self.strides)


class PriorSettings(Settings):
    """Shape of the transformer prior. Attention looks back over `window` codes at most."""

    layers: int = Field(5, ge=1)
    width: int = Field(192, ge=8)
    heads: int = Field(6, ge=1)
    kv_heads: int = Field(1, ge=1)
    window: int = Field(128, ge=1)
    crop_codes: int = Field(512, ge=2)
    training: TrainingSettings

    @model_validator(mode="after")
    def _heads_divide(self) -> PriorSettings:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} over {self.heads} heads is no even head width")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are no multiple of {self.kv_heads} kv_heads")
        if self.crop_codes % self.window:
            raise ValueError(f"crop_codes {self.crop_codes} is no multiple of the window {self.window}")
        return self


class LikelihoodSettings(Settings):
    """`counted_seconds` of training pairs are counted; σ, the floor and the smoothing are fitted on validation songs."""

    counted_seconds: float = Field(12000.0, gt=0)
    base: Literal["sum", "unigram"] = Field("sum", description="what `counts` are smoothed towards")
    symmetric: bool = Field(False, description="whether the counts of a pair are those of both its orders")
    fit_seconds: float = Field(300.0, gt=0, description="seconds of validation pairs that likelihoods are fitted on")
    power: float = Field(1.0, gt=0, description="λ of `counts`")


class Tuning(Settings):
    """What one cell, a pair of VQ-VAE and likelihood, is searched with; None: the profile's value, or what the fit found."""

    temperature: float | None = Field(None, gt=0, description="as in SearchSettings")
    sigma_scale: float | None = Field(None, gt=0, description="σ of `sum` as a factor of the fitted one")
    floor: float | None = Field(None, ge=0, lt=1, description="share of `sum` that is uniform")
    smoothing: float | None = Field(None, gt=0, description="α of `counts`, in pseudo-counts")
    power: float | None = Field(None, gt=0, description="λ of `counts`")


class SearchSettings(Settings):
    """Settings of every search over codes, and for each cell a block of its own, such as `linear-counts`."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    particles: int = Field(32, ge=1)
    filter_particles: int = Field(0, ge=0, description="more particles are several filters of so many; 0: one filter")
    temperature: float = Field(1.0, gt=0, description="priors are raised to one over it: above 1 they are less sure")
    ess_threshold: float = Field(0.5, ge=0, le=1, description="share of N under which the effective size resamples")
    lag: int = Field(0, ge=0, description="codes heard beyond a stretch before it is estimated; 0: all of them")
    stretch: int = Field(16, ge=1, description="codes that are estimated from the particles of one moment")
    top_k: int = Field(8, ge=1, description="pairs kept at a step of top-k sampling")
    max_rows: int = Field(512, ge=1, description="mixtures times particles that go through the priors at once")
    plain_sum: Tuning = Field(Tuning(), alias="plain-sum")
    plain_counts: Tuning = Field(Tuning(), alias="plain-counts")
    linear_sum: Tuning = Field(Tuning(), alias="linear-sum")
    linear_counts: Tuning = Field(Tuning(), alias="linear-counts")


class EvaluationSettings(Settings):
    """What is separated and scored: pieces of `chunks` test songs, by every cell with the particle filter."""

    chunks: int = Field(12, ge=1)
    chunk_seconds: float = Field(3.0, gt=0)
    searches: tuple[SearchKind, ...] = ("ancestral", "topk", "beam", "particle")
    every_cell: bool = Field(True, description="other searches by every cell, and not by the best with particles alone")
    seed: int = 0

    @model_validator(mode="after")
    def _every_cell_has_a_filter(self) -> EvaluationSettings:
        if "particle" not in self.searches:
            raise ValueError("evaluation.searches must contain 'particle': cells are compared by it")
        return self


class Profile(Settings):
    """All settings of one run."""

    name: str
    sources: dict[str, str] = Field(description="source name -> Slakh instrument class", min_length=2, max_length=2)
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    data: DataSettings = DataSettings()
    vqvae: VQVAESettings
    prior: PriorSettings
    likelihood: LikelihoodSettings = LikelihoodSettings()
    search: SearchSettings = SearchSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _names_are_file_names(self) -> Profile:
        bad = [name for name in self.sources if Path(name).name != name or not name.strip(".")]
        if bad:
            raise ValueError(f"source name '{bad[0]}' is no file name")
        return self

    def tuning(self, vqvae: VQVAEKind, likelihood: LikelihoodKind) -> Tuning:
        """Return what a cell is searched with, its temperature and λ filled in."""
        base = {"temperature": self.search.temperature, "power": self.likelihood.power}
        own = getattr(self.search, f"{vqvae}_{likelihood}").model_dump(exclude_none=True)
        return Tuning(**{**base, **own})

    def for_cell(self, vqvae: VQVAEKind, likelihood: LikelihoodKind) -> Profile:
        """Return the profile that a cell's separator has: its own temperature is that of the search."""
        temperature = self.tuning(vqvae, likelihood).temperature
        return self.model_copy(update={"search": self.search.model_copy(update={"temperature": temperature})})

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in their fixed order."""
        return tuple(self.sources)


class MethodSpec(NamedTuple):
    """A method is a pair: the kind of VQ-VAE and the kind of likelihood."""

    vqvae: VQVAEKind
    likelihood: LikelihoodKind


METHODS: dict[str, MethodSpec] = {
    "plain-sum": MethodSpec("plain", "sum"),
    "lass": MethodSpec("plain", "counts"),
    "lqvae": MethodSpec("linear", "sum"),
    "hybrid": MethodSpec("linear", "counts"),
}


def method_spec(name: str) -> MethodSpec:
    """Return the pair that `name` stands for; HybridsepError: no such method."""
    if name not in METHODS:
        raise HybridsepError(f"unknown method '{name}': choose one of {', '.join(METHODS)}")
    return METHODS[name]


def profile_names() -> list[str]:
    """Names of the profiles that ship with the library."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.yml"))


def load_profile(name: str | Path) -> Profile:
    """Read a shipped profile by name, or a YAML file by path; HybridsepError names what does not exist, an unknown key or a bad value."""
    values = _read_with_base(str(name), seen=())
    values["name"] = Path(str(name)).stem
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = {"extra_forbidden": "unknown key"}.get(first["type"], first["msg"])
        value = "" if first["type"] in ("extra_forbidden", "missing", "value_error") else f", not {first['input']!r}"
        raise HybridsepError(f"profile '{name}': {where}: {what}{value}") from None


def config_hash(*parts: object) -> str:
    """Eight hex digits that change whenever one of the settings in `parts` changes."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def _read_with_base(name: str, seen: tuple[str, ...]) -> dict:
    if name in seen:
        raise HybridsepError(f"profile '{name}' inherits from itself: {' -> '.join((*seen, name))}")
    path = Path(name)
    if not name.endswith(SUFFIXES):
        path = Path(__file__).with_name(f"{name}.yml")
        if name not in (known := profile_names()):
            raise HybridsepError(f"unknown profile '{name}': choose one of {', '.join(known)} or give a .yml file")
    elif not path.is_file():
        raise HybridsepError(f"no profile file {name}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError:
        raise HybridsepError(f"profile '{name}' is no UTF-8 text") from None
    except yaml.YAMLError as error:
        raise HybridsepError(f"profile '{name}' is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise HybridsepError(f"profile '{name}' is no mapping of keys to values")
    if (base := values.pop("base", None)) is None:
        return values
    if not isinstance(base, str):
        raise HybridsepError(f"profile '{name}': base: {base!r} is no name of a profile")
    beside = Path(name).parent / base
    base = str(beside) if base.endswith(SUFFIXES) and beside.is_file() else base
    return _merge(_read_with_base(base, (*seen, name)), values)


def _merge(base: dict, changes: dict) -> dict:
    """`changes` over `base`, block by block; lists and the map of sources are replaced whole."""
    blocks = {key for key, value in changes.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    merged = {key: _merge(base[key], changes[key]) for key in blocks - {"sources"}}
    return base | changes | merged
