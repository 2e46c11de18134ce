"""Intervals cover as often as they say, and the permutation test is exact where it can be."""

import numpy as np
import pytest

from hybridsep.evaluation.statistics import bootstrap_interval, holm, permutation_p

DRAWS = {
    "normal": (lambda rng, n: rng.normal(2.0, 1.5, n), 2.0),
    "skewed": (lambda rng, n: rng.exponential(3.0, n), 3.0),
}


@pytest.mark.parametrize("draw, truth", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("songs", [8, 12, 30])
def test_bootstrap_interval_of_few_songs_covers_the_mean_about_as_often_as_it_says(songs, draw, truth):
    rng = np.random.default_rng(1)
    samples = [draw(rng, songs) for _ in range(400)]
    spans = [bootstrap_interval(sample, n=400, seed=trial) for trial, sample in enumerate(samples)]
    covered = np.mean([span.low <= truth <= span.high for span in spans])
    assert 0.91 < covered < 0.98
    # Percentiles of the means, which would be simpler, cover less often.
    picks = rng.integers(songs, size=(400, 400, songs))
    means = np.take_along_axis(np.array(samples)[:, None], picks, 2).mean(2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    simpler = np.mean((low <= truth) & (truth <= high))
    assert simpler < covered if songs < 30 else simpler <= covered


def test_bootstrap_interval_of_constant_or_single_values_has_no_length():
    for values in ([0.1] * 7, [2.5]):
        interval = bootstrap_interval(values)
        assert interval.low == interval.mean == interval.high == pytest.approx(values[0])


def test_bootstrap_interval_is_finite_where_many_resamples_repeat_one_value():
    for values in ([1.0, 2.0], [0.0] * 11 + [1.0]):
        interval = bootstrap_interval(values)
        assert -np.inf < interval.low < interval.mean < interval.high < np.inf


def test_bootstrap_interval_does_not_depend_on_the_unit():
    values = np.array([1.0, 4.0, 2.5, -3.0, 0.5])
    one, other = bootstrap_interval(values), bootstrap_interval(1000 * values + 7)
    assert [other.low, other.high] == pytest.approx([1000 * one.low + 7, 1000 * one.high + 7])


def test_bootstrap_interval_is_reproducible_and_holds_the_mean():
    values = [1.0, 2.0, 4.0, 3.0, 5.0]
    interval = bootstrap_interval(values, seed=3)
    assert interval == bootstrap_interval(values, seed=3)
    assert 0 < interval.low < interval.mean == 3.0 < interval.high
    assert bootstrap_interval([-1.0, 1.0, -2.0, 2.5]).low < 0


def test_permutation_test_enumerates_few_pairs():
    assert permutation_p(np.array([1, 2, 3])) == pytest.approx(2 / 8)
    assert permutation_p(np.ones(10)) == permutation_p(np.array([1.0] * 10 + [np.nan])) == pytest.approx(2 / 1024)
    assert permutation_p(np.zeros(2)) == 1.0


def test_permutation_test_agrees_with_itself_beyond_enumeration():
    rng = np.random.default_rng(0)
    noise, shifted = rng.normal(0, 1, 40), rng.normal(1, 1, 40)
    assert permutation_p(shifted) < 0.01
    assert permutation_p(noise) > 0.05


def test_holm_of_a_hand_computed_case():
    # Smallest first: 0.01·4, 0.02·3, 0.03·2 (no less than the one before), 0.5·1.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="do not lie"):
        holm([0.5, 1.5])


def test_holm_keeps_false_alarms_of_many_tests_below_the_level():
    rng = np.random.default_rng(2)
    alarms = [(holm(rng.uniform(size=20)) < 0.05).any() for _ in range(1000)]
    assert 0.03 < np.mean(alarms) < 0.07


@pytest.mark.parametrize(
    "sample",
    [lambda rng: rng.exponential(3.0, 30), lambda rng: rng.standard_t(4, 30), lambda rng: rng.choice([-2.0, 5.0], 30)],
)
def test_bootstrap_interval_of_songs_unlike_a_normal_distribution_still_covers(sample):
    truth = float(np.mean([sample(np.random.default_rng(s)).mean() for s in range(20_000)]))
    spans = [bootstrap_interval(sample(np.random.default_rng([1, trial])), n=400, seed=trial) for trial in range(300)]
    assert 0.88 < np.mean([span.low <= truth <= span.high for span in spans]) < 0.99


def test_permutation_test_of_nothing_alarms_as_often_as_its_level_says():
    rng = np.random.default_rng(3)
    p = [permutation_p(rng.normal(size=12) - rng.normal(size=12)) for _ in range(300)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_senseless_values_are_refused():
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        bootstrap_interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="shape"):
        bootstrap_interval([])
