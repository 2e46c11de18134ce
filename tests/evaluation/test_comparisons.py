"""Effects of ingredients: planted ones are found, noise is not."""

from itertools import product

import numpy as np
import pytest
from scores import by_columns

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation import comparisons, statistics


def test_planted_effects_are_found_and_noise_is_not(monkeypatch):
    """The linear codebook is worth 1 dB with counts, and nothing with sums."""
    monkeypatch.setattr(statistics, "PERMUTATIONS", 5000)
    rng, rows = np.random.default_rng(0), []
    for song, source in product(range(30), ("bass", "drums")):
        level = rng.normal(5, 3)
        for method, refine in product(METHODS, ("none", "wiener")):
            rows.append((f"song{song}", method, refine, source, "sdr", level + rng.normal(0, 0.3)))
    noise = by_columns(rows)
    planted = noise.assign(value=noise.value + (noise.method == "hybrid"))
    found = (
        comparisons.effects_table(planted).set_index(["refine", "source", "effect"]).sort_index().loc["wiener", "mean"]
    )
    assert found["mean"]["linear"] == pytest.approx(0.5, abs=0.2)
    assert found["mean"]["interaction"] == pytest.approx(1.0, abs=0.3)
    alone = found.index.str.endswith(" alone")
    assert (found.p_holm[~alone] < 0.01).all() and (found.low[~alone] > 0).all()
    assert (found.p_holm[alone] > 0.05).all() and found["mean"][alone].abs().max() < 0.2
    nothing = comparisons.effects_table(noise)
    assert (nothing.p_holm > 0.05).all() and nothing.p.min() < nothing.p_holm.min()
