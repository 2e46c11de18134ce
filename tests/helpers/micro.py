"""The smallest run of the whole pipeline: ten synthesised songs, models of a few thousand weights, a few steps each."""

from pathlib import Path

import pytest
import yaml

from hybridsep.evaluation import protocols

MICRO = {
    "base": "smoke",
    "data": {"tracks": 10, "seconds": 6.0, "sample_rate": 8000},
    "vqvae": {"codes": 16, "strides": [16, 8], "widths": [4, 8], "encoder_depth": 1, "decoder_depth": 1, "latent_width": 4, "crop_samples": 4096,
              "training": {"steps": 6, "batch": 2}},
    "prior": {"layers": 1, "width": 16, "heads": 2, "window": 16, "crop_codes": 64, "training": {"steps": 4, "batch": 2}},
    "likelihood": {"counted_seconds": 96, "fit_seconds": 48},
    "search": {"particles": 3},
    "evaluation": {"chunks": 2, "chunk_seconds": 1.0, "searches": ["ancestral", "particle"]},
}  # fmt: skip


def merged(base: dict, changes: dict) -> dict:
    return {**base, **{k: merged(base[k], v) if isinstance(v, dict) and k in base else v for k, v in changes.items()}}


def micro_profile(folder: Path, changes: dict | None = None, name: str = "micro") -> Path:
    """Write the profile, with `changes`, to a file."""
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(merged(MICRO, changes or {})))
    return path


@pytest.fixture(scope="module", autouse=True)
def quick_bss_eval():
    """museval takes most of an evaluation's time and is held to account in test_metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            protocols, "bss_eval", lambda estimates, *_: {name: estimates.std(-1) for name in ("isr", "sir", "sar")}
        )
        yield
