"""Wilson's interval, worked out by hand and from a paper; the cluster bootstrap, compared with SciPy's bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bico_ext.evaluation.intervals import clustered_interval, wilson_interval


def test_wilson_interval_by_hand():
    square = 1.959963984540054**2
    assert wilson_interval(0, 10) == (0.0, pytest.approx(square / (10 + square)))  # closed form for p = 0
    assert wilson_interval(10, 10) == (pytest.approx(10 / (10 + square)), 1.0)
    half_width = math.sqrt(square / (10 + square)) / 2  # closed form for p = 1/2
    assert wilson_interval(5, 10) == (pytest.approx(0.5 - half_width), pytest.approx(0.5 + half_width))
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    for successes, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)]:
        assert wilson_interval(successes, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.1, 5))
def test_wilson_bounds_solve_the_score_equation(trials, z):
    successes, n = trials
    rate = successes / n
    low, high = wilson_interval(successes, n, z)
    assert 0 <= low <= rate <= high <= 1
    for bound in (low, high):
        assert (rate - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (0, -1), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="must be"):
        wilson_interval(successes, n)


def test_clustered_interval_is_scipys():
    """Both are random: their bounds differ by what 2,000 resamples leave open."""
    random = np.random.default_rng(1)
    clusters = [
        (random.random(size) < rate).tolist() for size, rate in zip([3, 10, 5, 8] * 10, random.random(40), strict=True)
    ]
    counts = ([sum(cluster) for cluster in clusters], [len(cluster) for cluster in clusters])
    expected = stats.bootstrap(
        counts, lambda s, t, axis: s.sum(axis) / t.sum(axis), paired=True, method="percentile", random_state=2
    ).confidence_interval
    assert clustered_interval(clusters) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert clustered_interval(clusters) == clustered_interval(clusters)
    assert clustered_interval(clusters, seed=1) != clustered_interval(clusters)


def test_clustered_interval_is_of_two_thousand_resamples():
    """The percentiles of all resamples, drawn at once from the same seed; the default seed is 0."""
    clusters = [[True] * right + [False] * wrong for right, wrong in [(1, 4), (3, 0), (2, 2), (0, 6), (5, 1), (4, 4)]]
    right, trials = np.array([(sum(cluster), len(cluster)) for cluster in clusters]).T
    for seed, options in [(0, {}), (3, {"seed": 3})]:
        times = np.random.default_rng(seed).multinomial(6, [1 / 6] * 6, 2000)
        expected = np.percentile((times * right).sum(1) / (times * trials).sum(1), [2.5, 97.5])
        assert clustered_interval(clusters, **options) == pytest.approx(tuple(expected), rel=1e-12)


def test_clustered_interval_is_wilsons_where_trials_are_alone():
    """The rate of 300 independent trials: both approximate the same normal distribution."""
    trials = [[index % 3 == 0] for index in range(300)]
    assert clustered_interval(trials) == pytest.approx(wilson_interval(100, 300), abs=0.01)


def test_clustered_interval_counts_clusters_not_trials():
    """Thirty facts in ten wordings are thirty facts: the interval is that of thirty trials, not of three hundred."""
    clusters = [[True] * 10] * 15 + [[False] * 10] * 15
    low, high = clustered_interval(clusters)
    half_width = 1.96 * math.sqrt(0.25 / 30)
    assert (low, high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.02)
    narrow_low, narrow_high = wilson_interval(150, 300)
    assert high - low > 2.9 * (narrow_high - narrow_low)


@pytest.mark.parametrize("right", [0, 3, 10])
def test_clusters_that_do_not_differ_are_one_trial_each(right):
    """A bootstrap of equal clusters would claim certainty, also where no answer of 300 is right."""
    low, high = clustered_interval([[index < right for index in range(10)]] * 30)
    expected = {0: wilson_interval(0, 30), 3: wilson_interval(9, 30), 10: wilson_interval(30, 30)}[right]
    assert (low, high) == pytest.approx(expected)


@pytest.mark.parametrize("clusters", [[], [[True, False]], [[True], []]])
def test_clustered_interval_refuses_what_it_cannot_resample(clusters):
    with pytest.raises(ValueError, match="clusters must hold two or more clusters"):
        clustered_interval(clusters)
