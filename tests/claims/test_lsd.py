"""The claim about learned steps: exact figures as they must be, gates that pass them, and every gate can fail."""

import pytest
import torch

from limbeck.claims.sequences.exact import fitted, guarded, lowest, plain
from limbeck.claims.sequences.lsd import CLAIM, judge
from limbeck.samplers.discrete import Uniform
from limbeck.tasks.symbols import chain


@torch.no_grad()
def test_the_exact_figures_of_the_uniform_graph():
    world = chain(Uniform(4), 3)

    def kl(steps):
        return world.kl(world.laws(steps)[-1])

    assert kl(plain(world, 4)) == pytest.approx(1.758, abs=5e-4)
    assert kl(plain(world, 8)) == pytest.approx(0.640, abs=5e-4)
    trajectory = fitted(world, 4, 64, "trajectory")
    assert kl(trajectory) == pytest.approx(1.323, abs=2e-3)
    assert kl(fitted(world, 4, 64, "mean")) == pytest.approx(1.719, abs=5e-3)
    assert trajectory.phi[0] == pytest.approx(0.75, abs=1e-4)
    harmful = fitted(world, 8, 64, "trajectory")
    assert kl(harmful) > 1.1 * kl(plain(world, 8)) > 1.09 * kl(guarded(world, harmful, 64))


def test_the_lowest_point_is_found():
    assert float(lowest(lambda x: float((x - 1.2345) ** 2))) == pytest.approx(1.2345, abs=1e-4)
    assert float(lowest(lambda x: float(x))) == 0.05 and float(lowest(lambda x: -float(x))) == 4.0


GOOD = {
    "teacher": 0.0024, "oracle 4": 1.247, "euler 4": 1.758, "trajectory 4": 1.323, "mean 4": 1.719, "same_state 4": 1.273,
    "euler 8": 0.640, "trajectory 8": 0.751, "mean 8": 0.628, "same_state 8": 0.633, "guarded trajectory 8": 0.640,
    "phi 4 reversed": 1.588, "absorbing euler": 0.142, "absorbing trajectory": 0.213, "absorbing trajectory guarded": 0.142,
    "absorbing same_state": 0.142, "absorbing log score x 1.05": 0.108, "absorbing log score x 1.15": 0.094,
    "absorbing log score x 1.3": 0.105, "absorbing 2 euler": 0.489, "absorbing 2 log score x 1.15": 0.602,
    "independent euler": 1e-15, "drawn same_state": 1.26, "drawn same_state guarded": 1.26,
    "drawn absorbing trajectory": 0.152, "drawn absorbing trajectory guarded": 0.142,
    **{f"countdown {name} {what}": 1.0 for name in ("euler", "LSD+", "log score x 1.15", "64 steps") for what in ("errors", "entropy")},
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold_and_what_is_not_shown_is_reported():
    assert not lost()
    reported = [c.statement for c in judge([GOOD]) if not c.gated and not c.holds]
    assert "absorbing, the same without the guard" in reported and any("countdown, 8 steps, LSD+" in s for s in reported)


@pytest.mark.parametrize(
    "figure, value, statement",
    [
        ("teacher", 0.02, "256 Euler steps"),
        ("trajectory 4", 1.6, "trajectory (the paper's) / Euler"),
        ("same_state 4", 1.6, "4 steps, same_state / Euler"),
        ("drawn same_state guarded", 1.6, "trained by the loop"),
        ("same_state 4", 1.2, "control: lowest KL"),
        ("phi 4 reversed", 1.3, "control: the searched Phi in reverse"),
        ("same_state 8", 0.65, "8 steps, same_state"),
        ("mean 8", 0.65, "8 steps, mean"),
        ("trajectory 8", 0.65, "limit: uniform, 8 steps"),
        ("guarded trajectory 8", 0.7, "the same after the guard"),
        ("absorbing trajectory", 0.15, "limit: absorbing graph"),
        ("absorbing trajectory guarded", 0.15, "the same after the guard"),
        ("absorbing same_state", 0.15, "absorbing, same_state on log scores"),
        ("drawn absorbing trajectory guarded", 0.15, "with common noise, guarded"),
        ("absorbing log score x 1.15", 0.13, "log score x 1.15 (no objective"),
        ("absorbing 2 log score x 1.15", 0.5, "limit: the same with 2 steps"),
        ("independent euler", 0.01, "control: independent places"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    failed = lost(**{figure: value})
    assert any(statement in s for s in failed), failed


def test_every_gated_check_is_tried_above():
    assert sum(c.gated for c in judge([GOOD])) == 17


def test_the_calibration_is_recorded():
    assert "8 seeds" in CLAIM.calibration
