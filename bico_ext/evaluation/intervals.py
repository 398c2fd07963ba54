"""The uncertainty of a rate: 95 % intervals over independent questions, and over facts that several questions share."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2_000
_AT_ONCE = 100  # resamples: 100,000 clusters take 80 MB
_Z = 1.959963984540054  # the half-width of a 95 % interval in standard deviations of a normal distribution


def wilson_interval(successes: int, n: int, z: float = _Z) -> tuple[float, float]:
    """Return Wilson's score interval for a rate observed in n independent trials.

    Args:
        successes: the number of trials that succeeded, 0 to n.
        n: the number of trials, at least 1.
        z: the half-width in standard deviations of a normal distribution. The default gives a 95 % interval.

    Returns:
        The lower and the upper bound, both within [0, 1].

    Raises:
        ValueError: there are no trials, or successes lie outside 0 to n.

    Example:
        >>> low, high = wilson_interval(5, 10)
        >>> round(low, 4), round(high, 4)
        (0.2366, 0.7634)
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: no trials give no interval")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n = {n}, got {successes}")
    return _wilson(successes, n, z)


def clustered_interval(clusters: Sequence[Sequence[bool]], seed: int = 0) -> tuple[float, float]:
    """Return a 95 % interval for a rate observed in trials that come in clusters, by the cluster bootstrap.

    Ten wordings of one question about one person are not ten independent trials. So whole clusters are drawn with
    replacement, as many as there are, `RESAMPLES` times; the interval reaches from the 2.5th to the 97.5th percentile
    of the rates. It covers less than 95 % where clusters are few. Where all clusters have the same rate, there is
    nothing to draw from, and the interval is Wilson's with one trial a cluster.

    Args:
        clusters: the outcomes of the trials of each cluster: two or more clusters of one or more trials.
        seed: the seed of the draws, so that the same outcomes give the same interval.

    Returns:
        The lower and the upper bound, both within [0, 1].

    Raises:
        ValueError: there are fewer than two clusters, or one has no trials.

    Example:
        >>> low, high = clustered_interval([[True] * 10] * 5 + [[False] * 10] * 5)  # Wilson's of 50 in 100: .40 to .60
        >>> round(low, 1), round(high, 1)
        (0.2, 0.8)
    """
    if len(clusters) < 2 or not all(map(len, clusters)):
        raise ValueError(
            "clusters must hold two or more clusters of one or more trials, got clusters of "
            f"{', '.join(str(len(cluster)) for cluster in clusters) or 'none'}"
        )
    trials = np.array([len(cluster) for cluster in clusters])
    successes = np.array([sum(cluster) for cluster in clusters])
    rates = successes / trials
    if (rates == rates[0]).all():
        return _wilson(float(rates[0]) * len(clusters), len(clusters))
    random, shares = np.random.default_rng(seed), np.full(len(clusters), 1 / len(clusters))
    resampled = []
    for _ in range(RESAMPLES // _AT_ONCE):
        times = random.multinomial(len(clusters), shares, _AT_ONCE)  # how often each cluster is drawn
        resampled.append(times @ successes / (times @ trials))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return float(low), float(high)


def _wilson(successes: float, n: int, z: float = _Z) -> tuple[float, float]:
    centre = successes + z * z / 2
    half_width = z * math.sqrt(successes * (n - successes) / n + z * z / 4)
    low = (centre - half_width) / (n + z * z)  # exactly 0 without successes
    high = 1.0 if successes == n else (centre + half_width) / (n + z * z)  # rounding could give more than 1
    return low, high
