"""Student's t against the tables that statistics books print."""

from __future__ import annotations

import math

import pytest

from recording.student import incomplete_beta, quantile, two_sided_p


@pytest.mark.parametrize(
    ("level", "freedom", "expected"),
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 5, 2.571),
        (0.95, 10, 2.228),
        (0.95, 19, 2.093),
        (0.95, 30, 2.042),
        (0.95, 120, 1.980),
        (0.95, 1e9, 1.960),
        (0.90, 7, 1.895),
        (0.98, 4, 3.747),
        (0.99, 15, 2.947),
        (0.999, 8, 5.041),
        (0.5, 3, 0.765),
    ],
)
def test_quantiles_are_those_of_the_tables(level: float, freedom: float, expected: float) -> None:
    assert quantile(level, freedom) == pytest.approx(expected, abs=0.0006)
    assert two_sided_p(quantile(level, freedom), freedom) == pytest.approx(1 - level, rel=1e-8)


def test_one_degree_of_freedom_is_cauchys_distribution() -> None:
    for t in (1e-6, 0.1, 1.0, 7.0, 1e4):
        assert two_sided_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, rel=1e-9)
        assert two_sided_p(-t, 1) == two_sided_p(t, 1)


def test_far_tails_are_small_and_not_nothing() -> None:
    assert two_sided_p(0, 5) == 1
    assert two_sided_p(math.inf, 5) == 0
    # With two degrees of freedom the tail is 1 - t / sqrt(2 + t * t).
    assert two_sided_p(1e6, 2) == pytest.approx(1e-12, rel=1e-6)
    assert 0 < two_sided_p(50, 20) < 1e-21


def test_the_incomplete_beta_function_where_it_is_a_polynomial() -> None:
    assert incomplete_beta(0.3, 1, 1) == pytest.approx(0.3)
    assert incomplete_beta(0.3, 2, 1) == pytest.approx(0.09)
    assert incomplete_beta(0.8, 2, 3) == pytest.approx(0.9728)
    assert incomplete_beta(0.0, 2, 3) == 0
    assert incomplete_beta(1.0, 2, 3) == 1
