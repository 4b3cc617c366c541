"""Student's t distribution: tail probabilities and quantiles, for whole and fractional degrees of freedom.

By the regularised incomplete beta function, whose continued fraction is evaluated after Lentz (DLMF 8.17.22; Thompson and
Barnett, 1986). Relative errors are below 1e-10 where p is above 1e-300.
"""

from __future__ import annotations

import math

_TINY = 1e-300
_STEPS = 500
_EXACT = 1e-15
_NORMAL = 1e7
"""Above so many degrees of freedom it is the normal distribution."""


def two_sided_p(t: float, freedom: float) -> float:
    """The probability of a value at least as far from 0 as ``t``; ``freedom`` (degrees of it) is above 0."""
    if math.isinf(t):
        return 0.0
    if freedom > _NORMAL:
        return math.erfc(abs(t) / math.sqrt(2))
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def quantile(level: float, freedom: float) -> float:
    """The t that a share ``level`` (0 to 1, exclusive) of all values is within, on both sides of 0: 12.71 for 0.95 and 1."""
    t = 1.0
    for _ in range(_STEPS):
        # The tail's logarithm is concave, so that steps along its tangent come closer from below.
        tail = two_sided_p(t, freedom)
        step = (math.log(tail) - math.log(1 - level)) * tail / (2 * _density(t, freedom))
        t = max(t + step, t / 2)
        if abs(step) <= 1e-10 * t:
            break
    return t


def _density(t: float, freedom: float) -> float:
    if freedom > _NORMAL:
        return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    return math.exp(scale - (freedom + 1) / 2 * math.log1p(t * t / freedom))


def incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), for x from 0 to 1, a and b above 0."""
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # The fraction converges fast below the mean; above it the other tail is taken.
    if x < (a + 1) / (a + b + 2):
        return math.exp(logarithm) * _fraction(x, a, b) / a
    return 1 - math.exp(logarithm) * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, _away_from_zero(1 - (a + b) * x / (a + 1))
    d = 1 / d
    value = d
    for step in range(1, _STEPS):
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _EXACT:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
