"""Every gate of SiD's claim can fail; what is only shown is not gated."""

import pytest

from limbeck.claims.generators.sid import STRATEGIES, judge

GOOD = {
    "teacher frechet": 0.7, "teacher accuracy": 0.98, "student frechet": 0.7, "student accuracy": 0.98,
    "student seconds": 40.0, "teacher at 1 NFE frechet": 13.0, "dead critic frechet": 9.9,
    **{f"{name} {figure}": 0.01 for name in ("SiD", "DMD") for figure in ("energy", "weights tv")},
    "start energy": 0.1, **{f"{name} {figure}": 0.95 for name in STRATEGIES for figure in ("spread", "accuracy")},
    "LSG 1.5 spread": 0.8,
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("student frechet", 1.0),
        ("student accuracy", 0.9),
        ("student seconds", 90.0),
        ("teacher at 1 NFE frechet", 1.0),
        ("dead critic frechet", 1.0),
        ("LSG 1.5 spread", 0.95),
        ("Anti-CFG spread", 0.7),
    ],
)
def test_every_gate_can_fail(figure, value):
    assert lost(**{figure: value})
