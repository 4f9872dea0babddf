import re
from math import cos

import pytest

from limbeck.report.curves import BOTTOM, BUCKETS, LEFT, RIGHT, TOP, chart, positions

NAN, INF = float("nan"), float("inf")


def _points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_points_lie_where_the_ticks_say():
    steps, values = list(range(101)), [0.5 * step for step in range(101)]
    drawn = chart("gap", {"run": (steps, values)})
    assert drawn is not None and not drawn.log
    points = dict(zip(steps, _points(drawn.series[0].line), strict=True))
    for x, label in drawn.x_ticks:
        assert points[int(label)][0] == pytest.approx(x, abs=0.11)
    assert len(drawn.y_ticks) >= 3
    for y, label in drawn.y_ticks:
        assert points[int(float(label) / 0.5)][1] == pytest.approx(y, abs=0.11)


def test_wide_positive_ranges_get_a_logarithmic_axis():
    drawn = chart("frechet", {"run": ([1, 2, 3], [0.1, 1.0, 10.0])})
    assert drawn is not None and drawn.log and "logarithmic" in drawn.description
    (_, low), (_, middle), (_, high) = _points(drawn.series[0].line)
    assert middle == pytest.approx((low + high) / 2, abs=0.11)
    ticks = {label: y for y, label in drawn.y_ticks}
    assert ticks["1"] == pytest.approx(middle, abs=0.11)


def test_long_curves_are_thinned_to_means_with_a_band_of_extremes():
    steps = list(range(100_000))
    values = [2 + cos(step) for step in steps]
    drawn = chart("gap", {"run": (steps, values)}, {"one": 1.0, "three": 3.0})
    assert drawn is not None
    line, band = _points(drawn.series[0].line), _points(drawn.series[0].band)
    assert len(line) <= BUCKETS and len(band) == 2 * len(line)
    level = {label: y for y, label in drawn.references}
    middle = (level["one"] + level["three"]) / 2
    assert all(y == pytest.approx(middle, abs=1) for _, y in line)
    assert min(y for _, y in band) == pytest.approx(level["three"], abs=0.11)
    assert max(y for _, y in band) == pytest.approx(level["one"], abs=0.11)


def test_values_that_are_not_finite_break_the_line_and_are_told():
    drawn = chart("loss/student", {"run": ([10, 20, 30, 40, 50], [1.0, 2.0, NAN, 3.0, 4.0])})
    assert drawn is not None
    assert drawn.series[0].line.count("M") == 2
    assert len(drawn.series[0].broken) == 1
    assert drawn.not_finite == "1 value not finite, first at 30"
    assert drawn.title == "Loss, student"


def test_only_values_that_are_not_finite_give_no_chart():
    assert chart("gap", {"run": ([1, 2], [NAN, INF])}) is None
    assert chart("gap", {"run": ([], [])}) is None


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-3.0, -3.0], [1e-300, 1e300], [0.0, 1e-320], [-1e9, 1e9]])
def test_everything_stays_inside_the_frame(values: list[float]):
    drawn = chart("other", {"run": (list(range(len(values))), values)}, {"far": 5.0, "none": None, "lost": NAN})
    assert drawn is not None
    series = drawn.series[0]
    for x, y in [*_points(series.line), *_points(series.band), *series.dots]:
        assert LEFT <= x <= RIGHT and TOP <= y <= BOTTOM
    assert [label for _, label in drawn.references] == ["far"]


def test_overlaid_runs_keep_their_colours_where_one_lacks_the_figure():
    drawn = chart("gap", {"a": ([1], [1.0]), "b": ([], []), "c": ([1], [2.0])})
    assert drawn is not None
    assert [(series.label, series.colour) for series in drawn.series] == [("a", "s0"), ("b", "s1"), ("c", "s2")]
    many = chart("gap", {str(index): ([1], [1.0]) for index in range(9)})
    assert many is not None and many.series[8].colour == "s0 dashed"


def test_positions_are_logarithmic_between_the_extremes():
    assert positions([0.1, 1.0, 10.0, None, NAN]) == [0.0, 50.0, 100.0, None, None]
    assert positions([-1.0, 0.0, 3.0]) == [0.0, 25.0, 100.0]
    assert positions([2.0, None]) == [None, None]
    assert positions([]) == []
