"""Intervals cover as often as they say, and the permutation test is exact where it can be."""

import numpy as np
import pytest

from hybridsep.statistics import bootstrap_interval, paired_permutation_test


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        interval = bootstrap_interval(rng.normal(2.0, 1.5, 30), n=500, seed=trial)
        covered += interval.low <= 2.0 <= interval.high
    assert 0.89 < covered / 300 < 0.98


def test_bootstrap_interval_is_reproducible_and_holds_the_mean():
    values = [1.0, 2.0, 4.0, 3.0, 5.0]
    interval = bootstrap_interval(values, seed=3)
    assert interval == bootstrap_interval(values, seed=3)
    assert interval.low < interval.mean == 3.0 < interval.high
    assert interval.excludes_zero
    assert not bootstrap_interval([-1.0, 1.0, -2.0, 2.5]).excludes_zero


def test_paired_permutation_test_enumerates_few_pairs():
    assert paired_permutation_test([1, 2, 3], [0, 0, 0]) == pytest.approx(2 / 8)
    assert paired_permutation_test([1.0] * 10, [0.0] * 10) == pytest.approx(2 / 1024)
    assert paired_permutation_test([5.0, 1.0], [5.0, 1.0]) == 1.0


def test_paired_permutation_test_agrees_with_itself_beyond_enumeration():
    rng = np.random.default_rng(0)
    noise, shifted = rng.normal(0, 1, 40), rng.normal(1, 1, 40)
    assert paired_permutation_test(shifted, np.zeros(40)) < 0.01
    assert paired_permutation_test(noise, np.zeros(40)) > 0.05


def test_senseless_values_are_refused():
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        bootstrap_interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="3 and 2"):
        paired_permutation_test([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="shape"):
        bootstrap_interval([])
