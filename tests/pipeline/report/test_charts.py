from __future__ import annotations

import pytest

from pipeline.report import charts


def test_curves_are_thinned_and_smoothed_without_a_shift() -> None:
    points = [(step, float(step)) for step in range(10_000)]
    steps, values = charts.thin(points, 600)
    assert len(steps) <= 600
    assert steps[-1] == 9_999
    assert charts.smoothed([2.0] * 50) == [2.0] * 50
    middle = charts.smoothed(values)[len(values) // 2]
    assert middle == pytest.approx(values[len(values) // 2], rel=1e-3)
