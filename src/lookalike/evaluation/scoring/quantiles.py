"""Quantiles of the beta distribution and of Student's t, for which NumPy has no function."""

from __future__ import annotations

import math

_TINY = 1e-300
_TERMS = 100_000
_HALVINGS = 60


def beta_quantile(share: float, a: float, b: float) -> float:
    """Returns the x below which a beta distribution has this share of its mass; a, b > 0.

    >>> round(beta_quantile(0.025, 40, 1), 4)  # the least recall that 40 hits of 40 speak for
    0.9119
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if beta_share(middle, a, b) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def student_quantile(share: float, freedom: float) -> float:
    """Returns the t below which Student's distribution has this share (0.5 to 1) of its mass.

    >>> round(student_quantile(0.975, 4), 3)
    2.776
    """
    x = max(_TINY, beta_quantile(2 * (1 - share), freedom / 2, 0.5))
    return math.sqrt(freedom * (1 - x) / x)


def beta_share(x: float, a: float, b: float) -> float:
    """Returns the share of a beta distribution's mass below x: the regularised incomplete beta.

    Source: the continued fraction of DLMF 8.17.22, https://dlmf.nist.gov/8.17.v, summed by Lentz's
    method as Thompson and Barnett changed it (J. Comput. Phys. 64, 1986).

    >>> round(beta_share(0.5, 2, 2), 6)
    0.5
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the other side is the quick one
        return 1 - beta_share(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front += a * math.log(x) + b * math.log1p(-x)
    value, upper, lower = 1.0, 1.0, 0.0
    for term in range(_TERMS):
        m = term // 2
        if term == 0:
            factor = 1.0
        elif term % 2:
            factor = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            factor = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / _away_from_zero(1 + factor * lower)
        upper = _away_from_zero(1 + factor / upper)
        value *= upper * lower
        if term and abs(upper * lower - 1) < 1e-14:
            break
    # Lentz began with 1 and a first factor of 1, which makes it 1 + 1 / (1 + ...).
    return math.exp(front) / a * (value - 1)


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
