"""Bayesian source separation over the codes of a VQ-VAE: LQ-VAE, LASS and their Hybrid."""

__version__ = "0.1.0"
