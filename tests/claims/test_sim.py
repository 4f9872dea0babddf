"""Every gate of SIM's claim can fail; the spread is over learning rates."""

import pytest

from limbeck.claims.generators.sim import FIGURES, RATES, judge, spread

ARMS = [f"{name} x{rate}" for name in ("SIM", "squared") for rate in RATES] + ["SiD", "DMD", "dead critic", "start"]
GOOD = {f"{arm} {figure}": 0.05 for arm in ARMS for figure in FIGURES} | {
    "squared x10 sliced_w2": 0.3, "start sliced_w2": 0.5, "dead critic sliced_w2": 0.4, "seconds": 50.0,
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()


def test_the_spread_is_largest_over_smallest():
    assert spread(GOOD, "SIM") == 1 and spread(GOOD, "squared") == pytest.approx(6)


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("start sliced_w2", 0.06, "network called once / SIM"),
        ("dead critic sliced_w2", 0.06, "a critic that never learns"),
        ("seconds", 200.0, "CPU seconds"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    assert any(statement in found for found in lost(**{figure: value}))


def test_what_is_only_shown_can_be_not_shown():
    checks = judge([GOOD | {"SIM x10 sliced_w2": 0.5, "DMD sliced_w2": 0.01, "DMD mode_tv": 0.01, "SiD sliced_w2": 0.01}])
    assert [c.statement.partition(",")[0] for c in checks if not c.gated and not c.holds] == [
        "mode shares' total variation", "sliced Wasserstein distance", "sliced Wasserstein distance", "spread over learning rates",
    ]  # fmt: skip
