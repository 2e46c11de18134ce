"""The sentence that answers the book's question follows from the numbers, chance and corrections included."""

import numpy as np
import pandas as pd
import pytest

from hybridsep.profiles import METHODS
from hybridsep.report.conclusion import answer, comparisons, effect_sentence, ingredient_effects


def scores(gain_over_lass, gain_over_lqvae, songs=14, noise=0.2):
    """SDR of every cell on songs of very different levels, dB."""
    rng = np.random.default_rng(0)
    level = rng.normal(6, 4, songs)
    wanted = {"hybrid": 0.0, "lass": -gain_over_lass, "lqvae": -gain_over_lqvae, "plain-sum": -gain_over_lass - gain_over_lqvae}
    return pd.DataFrame({method: level + wanted[method] + rng.normal(0, noise, songs) for method in METHODS})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (scores(1.0, 1.0), "Yes: the Hybrid"),
        (scores(0.0, 1.0), "In part: the Hybrid separates better than LQ-VAE; against LASS chance cannot be ruled out"),
        (scores(-1.0, 1.0), "No: the Hybrid separates worse than LASS"),
        (scores(0.0, 0.0), "Not shown: no difference"),
        (scores(1.0, 1.0, songs=3), "too small to answer"),
    ],
)
def test_the_answer_is_what_the_songs_show(table, said):
    assert said in answer(table)
    assert f"{len(table)} songs" in answer(table)


def test_an_interval_without_zero_is_not_enough_when_many_differences_are_looked_at():
    table = scores(0.0, 1.0)
    rows = comparisons(table)
    assert (rows.p_holm >= rows.p).all() and (rows.n == len(table)).all()
    for seed in range(200):
        noisy = scores(0.0, 1.0)
        noisy["hybrid"] += np.random.default_rng(seed).normal(0.25, 0.5, len(noisy))
        row = comparisons(noisy).loc["LASS"]
        if row.low > 0 and row.p_holm > 0.05:
            assert answer(noisy).startswith("In part")
            return
    pytest.fail("no such table among these")


def test_effects_are_told_with_their_chance():
    table = scores(1.0, 0.0)
    rows = comparisons(table)
    linear, counts, _ = (effect_sentence(what, rows.loc[what]) for what in ingredient_effects(table))
    assert "raises the SDR" in linear and "no difference" in counts
    small = comparisons(table.head(3))
    assert "too few" in effect_sentence("It", small.iloc[0])
