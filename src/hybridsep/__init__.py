"""Bayesian source separation over the codes of a VQ-VAE: LQ-VAE, LASS and their Hybrid."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybridsep.inference.separator import Separator

__version__ = "0.2.0"
__all__ = ["Separator"]


def __getattr__(name: str) -> object:
    """Import `Separator` when it is first asked for: torch takes seconds."""
    if name == "Separator":
        from hybridsep.inference.separator import Separator

        return Separator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
