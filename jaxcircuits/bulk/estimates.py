"""What additive sums say: means with intervals that respect stories, tests, shrinkage. Arrays in, arrays out.

Attributions of one story are alike, so a story, not an edge, is what is drawn independently. With the sum S_g and the
number n_g of a pair's edges in story g, and n = sum n_g:

- **Mean** m = sum S_g / n, a ratio. Its variance sums the stories' residuals, sum (S_g - m n_g)^2 / n^2, times a
  factor, for a residual is too small by its story's own share in m: that which makes it unbiased if stories differ and
  the edges of one are alike, q2 / (q2 - 2 q3 / n + q2^2 / n^2) with q2 = sum n_g^2, q3 = sum n_g^3. Degrees of freedom
  are Satterthwaite's for edges as different as stories (Bell and McCaffrey 2002). For G stories of equal n_g these are
  G / (G - 1) and G - 1; there are fewer where few stories hold most edges. `confidence_interval` covers the mean of all
  stories like these. The mean of another sample has an error of its own, which `held_out_interval` adds.
- **Is the mean zero?** z = sum S_g / sqrt(sum S_g^2): the variance under the hypothesis. Where stories' signs are
  arbitrary this is a sum of signs with given weights, whose tails the normal distribution describes (up to a factor of
  4.5: Pinelis 1994, "Extremal probabilistic problems and Hotelling's T^2 test"); a t statistic, whose denominator
  vanishes where all signs agree, would not do. No p value is below 2^(1 - G), the least there is with G signs.
- **Are two features active together by chance?** The hypothesis that holds when target activations are dealt to other
  stories, position by position: at each position the two are independent, stories too, but within a story each feature
  keeps its bursts. The number of joint activations has then the mean sum_p Y(p) x(p - offset), Y(p) being how often the
  target is active at p and x the share of stories whose source is at p - offset; its variance is larger than that of
  independent positions by 1 + 2 sum_k w_k r_s(k) r_t(k) (Bartlett 1946), r being each feature's autocorrelation within
  stories and w_k the share of position pairs k apart. The upper tail is the negative binomial's with that mean and
  variance; the lower one, of clumps of that size, the Poisson distribution's, for clumps may well not occur at all.
- **Shrinkage**: pairs differ in scale, and so do their errors; what is shrunk is the mean relative to the pair's mean
  absolute value. True ones are taken as normal around a common one with a common variance, found by the method of
  moments (empirical Bayes); each moves to the common one by its share of noise.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from jaxcircuits.bulk.feature_counts import FeatureCounts

LEVEL = 0.95
"""Of every interval."""

FloatN = Float[np.ndarray, "n"]
IntN = Int[np.ndarray, "n"]


class Mean(NamedTuple):
    """Means of stories' ratios; NaN where there is no error to be had (fewer than two stories)."""

    mean: FloatN
    error: FloatN
    degrees: FloatN


def clustered_mean(
    edges: FloatN,
    total: FloatN,
    story_squares: FloatN,
    story_cross: FloatN,
    edges_2: FloatN,
    edges_3: FloatN,
) -> Mean:
    """Means, standard errors clustered by story, degrees of freedom.

    Args:
        edges: n.
        total: sum S_g.
        story_squares: sum S_g^2.
        story_cross: sum S_g n_g.
        edges_2: sum n_g^2.
        edges_3: sum n_g^3.

    >>> import numpy as np
    >>> from jaxcircuits.bulk.estimates import clustered_mean
    >>> sums = np.array([1.0, 2.0, 6.0])  # of three stories with two edges each
    >>> one = np.ones(1)
    >>> mean = clustered_mean(6 * one, 9 * one, (sums**2).sum() * one, (2 * sums).sum() * one, 12 * one, 24 * one)
    >>> usual = (sums / 2).std(ddof=1) / 3**0.5
    >>> bool(np.isclose(mean.error[0], usual)), float(mean.degrees[0])
    (True, 2.0)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / edges
        residual = np.maximum(story_squares - 2 * mean * story_cross + mean**2 * edges_2, 0)
        several = edges_2 < edges**2
        alike = edges_2 - 2 * edges_3 / edges + edges_2**2 / edges**2
        error = np.where(several, np.sqrt(residual * edges_2 / alike) / edges, np.nan)
        degrees = np.where(several, (edges - edges_2 / edges) ** 2 / alike, np.nan)
    return Mean(mean, error, degrees)


def confidence_interval(mean: Mean, level: float = LEVEL) -> tuple[FloatN, FloatN]:
    """Where the mean over all stories like these lies."""
    # Of few stories with an edge each there are few degrees: looking them up costs less than another quantile.
    degrees, which = np.unique(mean.degrees, return_inverse=True)
    reach = special.stdtrit(degrees, (1 + level) / 2).take(which) * mean.error
    return mean.mean - reach, mean.mean + reach


def held_out_interval(mean: Mean, held_out: Mean, level: float = LEVEL) -> tuple[FloatN, FloatN]:
    """Where the mean over stories not seen lies: around this one, by the errors of both (Welch's degrees of freedom).

    Args:
        mean: Of the stories seen.
        held_out: Of those not seen; of it, only error and degrees are used.
        level: Of the interval.

    >>> import numpy as np
    >>> from jaxcircuits.bulk.estimates import Mean, confidence_interval, held_out_interval
    >>> mean = Mean(np.ones(1), np.full(1, 0.1), np.full(1, 1e6))
    >>> bool(np.isclose(np.ptp(held_out_interval(mean, mean)), np.ptp(confidence_interval(mean)) * 2**0.5))
    True
    """
    one, other = mean.error**2, held_out.error**2
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = (one + other) ** 2 / (one**2 / mean.degrees + other**2 / held_out.degrees)
    return confidence_interval(Mean(mean.mean, np.sqrt(one + other), degrees), level)


def zero_mean(total: FloatN, story_squares: FloatN, stories: FloatN) -> tuple[FloatN, FloatN]:
    """z and two-sided p of the hypothesis that the mean is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(story_squares > 0, total / np.sqrt(story_squares), 0.0)
    return z, np.minimum(1.0, np.maximum(2 * special.ndtr(-np.abs(z)), 2.0 ** (1 - stories)))


def association(counts: FeatureCounts, source: IntN, target: IntN, offset: IntN, both: FloatN) -> tuple[FloatN, FloatN]:
    """How often both would be active by chance, and the two-sided p of `both` under that hypothesis.

    Args:
        counts: Of the run's features.
        source: Source features.
        target: Target features.
        offset: Target position minus source position.
        both: How often both were active.
    """
    from jaxcircuits.bulk.kernels import products

    s, t = counts.source.rows(source), counts.target.rows(target)
    order = np.argsort(s)
    expected = products(counts.target.position, counts.source_rates, t, s, offset, order)
    sources, targets = counts.autocorrelations
    alike = products(targets, sources, t, s, np.zeros_like(offset), order)
    return expected, _two_sided(both, expected, np.maximum(1.0, 1 + 2 * alike))


def _two_sided(both: FloatN, expected: FloatN, spread: FloatN) -> FloatN:
    """Twice the smaller tail, at most 1. By integrals, which keep their digits far out."""
    mean = np.maximum(expected, 1e-300)
    above = np.ones(len(both))
    clustered = spread > 1 + 1e-6
    some, alone = (both > 0) & clustered, (both > 0) & ~clustered  # as indices: `where` of gammainc corrupts memory
    above[some] = special.betainc(both[some], mean[some] / (spread[some] - 1), 1 - 1 / spread[some])
    above[alone] = special.gammainc(both[alone], mean[alone])
    below = special.gammaincc(both / spread + 1, mean / spread)
    return np.minimum(1.0, 2 * np.minimum(above, below))


def correlation(counts: FeatureCounts, source: IntN, target: IntN, offset: IntN, product: FloatN) -> FloatN:
    """Pearson's, of the two activations over all position pairs at the offset; inactive is 0.

    Args:
        counts: Of the run's features.
        source: Source features.
        target: Target features.
        offset: Target position minus source position.
        product: The sum of the activations' products.
    """
    s, t, n = counts.source.rows(source), counts.target.rows(target), counts.pairs[offset]
    mean_s, mean_t = counts.source.total[s, offset], counts.target.total[t, offset]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread_s = counts.source.squares[s, offset] - mean_s**2 / n
        spread_t = counts.target.squares[t, offset] - mean_t**2 / n
        r = (product - mean_s * mean_t / n) / np.sqrt(spread_s * spread_t)
    return np.where((spread_s > 0) & (spread_t > 0), r, np.nan)


class Prior(NamedTuple):
    """Of the true means, relative to the mean absolute value: normal with this mean and variance."""

    mean: float
    variance: float


def fit_prior(means: FloatN, errors: FloatN, scale: FloatN) -> Prior:
    """Method of moments: the variance of the relative means, less their mean squared error."""
    there = scale > 0
    if not there.any():
        return Prior(0.0, 0.0)
    relative, error = means[there] / scale[there], errors[there] / scale[there]
    return Prior(float(relative.mean()), max(0.0, float(relative.var() - (error**2).mean())))


def shrink(mean: FloatN, error: FloatN, scale: FloatN, prior: Prior) -> FloatN:
    """The posterior mean. NaN where there is no error.

    Args:
        mean: Of attribution.
        error: Its standard error.
        scale: The mean of |attribution|.
        prior: From `fit_prior`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        keep = np.where(error > 0, prior.variance / (prior.variance + (error / scale) ** 2), 1.0)
    middle = prior.mean * scale
    return np.where(np.isnan(error), np.nan, middle + (mean - middle) * keep)


def false_discovery(p: FloatN, hypotheses: int | None = None) -> FloatN:
    """Benjamini and Hochberg's q values.

    Args:
        p: Those that were computed.
        hypotheses: How many there are; those that `p` lacks count as p = 1. By default all are in `p`.

    >>> import numpy as np
    >>> from jaxcircuits.bulk.estimates import false_discovery
    >>> false_discovery(np.array([0.01, 0.02, 0.9]), 10).tolist()
    [0.1, 0.1, 1.0]
    """
    if not len(p):
        return p
    order = np.argsort(p)
    q = p[order] * max(len(p), hypotheses or 0) / np.arange(1, len(p) + 1)
    out = np.empty_like(q)
    out[order] = np.minimum(1.0, np.minimum.accumulate(q[::-1])[::-1])
    return out
