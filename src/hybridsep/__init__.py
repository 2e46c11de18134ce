"""Bayesian source separation over the codes of a VQ-VAE: LQ-VAE, LASS and their Hybrid."""

import os

# Two "cores" are often two threads of one: a worker that spins while it waits takes the time of the one that computes, and two
# programs that spin against each other crawl. Must be said before torch starts its workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
