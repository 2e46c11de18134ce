"""Trained models in small files that a repository can keep, and the way back into a run."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from hybridsep.core.files import load_weights, write_atomically
from hybridsep.core.profiles import VQVAEKind
from hybridsep.pipeline.pipeline import Pipeline, Step
from hybridsep.pipeline.record import halved

INDEX = "index.json"
LARGEST_FILE = 16 * 2**20 - 2**16
"""Bytes of tensors in a file; what is left of 16 MiB is for its header."""
VQVAE_KINDS: tuple[VQVAEKind, ...] = ("plain", "linear")


def model_steps(pipeline: Pipeline) -> list[Step]:
    """The steps of a run that train a model: both VQ-VAEs and their priors."""
    steps = []
    for kind in VQVAE_KINDS:
        steps += [
            pipeline.vqvae_step(kind),
            *(pipeline.prior_step(kind, source) for source in pipeline.profile.source_names),
        ]
    return steps


def export_weights(step: Step, folder: Path, largest: int = LARGEST_FILE) -> list[Path]:
    """Write a finished model as safetensors files of at most `largest` bytes, and how it was made into index.json.

    A prior is kept in float16. A VQ-VAE is small, and codes depend on all of its bits: it is kept as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = load_weights(step.folder / "model.safetensors")
    if step.label.startswith("prior"):
        tensors = {name: halved(tensor) for name, tensor in tensors.items()}
    paths = []
    for number, shard in enumerate(_shards(tensors, largest)):
        paths.append(folder / f"{step.label}-{number:02d}.safetensors")
        write_atomically(paths[-1], save(shard))
    index = _index(folder) | {
        step.label: {"step": step.folder.name, "files": [path.name for path in paths], "record": step.record}
    }
    write_atomically(folder / INDEX, json.dumps(index, indent=1, sort_keys=True).encode())
    return paths


def exported(step: Step, folder: Path) -> bool:
    """Whether this very model was exported."""
    return _index(folder).get(step.label, {}).get("step") == step.folder.name


def restore_weights(pipeline: Pipeline, folder: Path) -> list[str]:
    """Put exported models where a run with the same settings finds them trained; names of those that were not there."""
    restored = []
    for step in model_steps(pipeline):
        if step.done or not exported(step, folder):
            continue
        kept = _index(folder)[step.label]
        tensors = {name: tensor for file in kept["files"] for name, tensor in load_weights(folder / file).items()}
        step.folder.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        write_atomically(step.folder / "model.safetensors", save(plain))
        write_atomically(step.folder / "done.json", json.dumps(kept["record"], indent=1).encode())
        restored.append(step.label)
    return restored


def _index(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text()) if (folder / INDEX).is_file() else {}


def _shards(tensors: dict[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, as many in a file as fit; one that does not fit has a file to itself."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(x.nbytes for x in shards[-1].values()) + tensor.nbytes > largest:
            shards.append({})
        shards[-1][name] = tensor
    return shards
