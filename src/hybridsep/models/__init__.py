"""The VQ-VAE and the prior."""
