"""Trained methods on disk: a folder of safetensors with their sums, and the record that comes with the project."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import SUMS, check_sums, load_weights, write_atomically, write_sums
from hybridsep.core.profiles import Profile, method_spec
from hybridsep.core.records import RECORDS, unpacked
from hybridsep.inference.counts import tuned

SHIPPED_PROFILE, SHIPPED_METHOD = "cpu", "hybrid"
Weights = dict[str, dict[str, Tensor]]


def write_saved(folder: Path, profile: Profile, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the tensors of each part as safetensors, settings as JSON and the SHA-256 of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS).unlink(missing_ok=True)
    files = {}
    for name, tensors in weights.items():
        files[f"{name}.safetensors"] = save({key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()})
    files["profile.json"] = profile.model_dump_json(indent=1).encode()
    for name, content in files.items():
        write_atomically(folder / name, content)
    write_sums(folder, files)


def read_saved(folder: Path) -> tuple[Profile, Weights]:
    """Read settings, and tensors of "vqvae", "likelihood" and each "prior-<source>"; HybridsepError: a file is missing, damaged or another."""
    for name in ("profile.json", SUMS):
        if not (folder / name).is_file():
            raise HybridsepError(f"{folder} is no model: {name} is missing (train one with 'hybridsep train')")
    with naming(folder):
        check_sums(folder, ["profile.json"])
        profile = Profile.model_validate_json((folder / "profile.json").read_text())
        paths = {name: folder / f"{name}.safetensors" for name in _parts(profile)}
        check_sums(folder, [path.name for path in paths.values()])
        return profile, {name: load_weights(path) for name, path in paths.items()}


def read_recorded() -> tuple[Profile, Weights]:
    """Read the method that comes with the project from its record; HybridsepError: this copy has no record, or a damaged one."""
    record = RECORDS and RECORDS / SHIPPED_PROFILE
    if not record or not (record / SUMS).is_file():
        train = f"hybridsep train {SHIPPED_METHOD}' and name it with --model runs/{SHIPPED_PROFILE}/{SHIPPED_METHOD}"
        raise HybridsepError(f"no trained model came with this copy: train one with '{train}")
    with naming(record):
        check_sums(record, ["profile.json"])
        profile, weights = Profile.model_validate_json((record / "profile.json").read_text()), {}
        spec = method_spec(SHIPPED_METHOD)
        cell = spec.vqvae, spec.likelihood
        for name, step in _parts(profile, *cell).items():
            path = next(iter(sorted(record.glob(f"{step}-*/*.safetensors"))), record / step)
            check_sums(record, [path.relative_to(record).as_posix()])
            weights[name] = unpacked(load_weights(path))
        weights["likelihood"] = tuned(weights["likelihood"], profile.tuning(*cell))
        return profile.for_cell(*cell), weights


@contextmanager
def naming(model: Path | str) -> Iterator[None]:
    """Turn whatever is wrong with the files of a model into one line that names it."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, IndexError, TypeError, OSError) as error:
        raise HybridsepError(f"model {model}: {' '.join(str(error).split())[:300]}") from None


def _parts(profile: Profile, vqvae: str = "", likelihood: str = "") -> dict[str, str]:
    """Name of each part of a saved method -> name of the recorded step it comes from, without its hash."""
    priors = {f"prior-{source}": f"prior-{vqvae}-{source}" for source in profile.source_names}
    return {"vqvae": f"vqvae-{vqvae}", **priors, "likelihood": f"likelihood-{vqvae}-{likelihood}"}
