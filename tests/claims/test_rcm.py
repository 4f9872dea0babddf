"""The claim of rCM: what its figures mean, and that every gate can fail."""

import pytest
import torch

from limbeck.claims.generators.rcm import ARMS, CLAIM, STD, judge, placed
from limbeck.denoisers import MixtureDenoiser
from limbeck.methods.generators.rcm import RCMOptions
from limbeck.noise import VE
from limbeck.tasks.ring import UNEQUAL
from limbeck.training.options import merged_options

LAW = MixtureDenoiser.ring(8, 1.0, STD, VE(), torch.tensor(UNEQUAL, dtype=torch.float64))


def test_figures_of_the_law_itself_and_of_worse_points():
    x = LAW.sample(20_000, None, torch.Generator().manual_seed(0), torch.float64)
    good = placed(LAW, x, "law")
    assert good["law off"] == pytest.approx(torch.exp(torch.tensor(-4.5)).item(), abs=3e-3)  # Rayleigh beyond 3
    assert good["law tv"] < 0.02 and good["law spread"] == pytest.approx(1.0, abs=0.03)
    wide = placed(LAW, LAW.means[torch.arange(20_000) % 8] + 2 * (x - x.mean(0)) * STD, "wide")
    assert wide["wide tv"] == pytest.approx(0.5 * (torch.tensor(UNEQUAL) - 0.125).abs().sum().item(), abs=0.01)
    far = placed(LAW, 2 * x, "far")
    assert far["far off"] > 0.9 and far["far nll"] > good["law nll"] + 10
    narrow = placed(LAW, LAW.means[torch.cdist(x, LAW.means).argmin(1)], "narrow")
    assert narrow["narrow spread"] < 0.01 and narrow["narrow tv"] < 0.02


GOOD = {
    "start off": 1.0,
    "sCM 1 steps off": 0.18, "DMD 1 steps off": 0.23, "rCM 1 steps off": 0.15,
    "sCM 1 steps tv": 0.027, "DMD 1 steps tv": 0.1, "rCM 1 steps tv": 0.029,
    "rCM 1 steps spread": 1.03,
    "sCM 4 steps off": 0.15, "DMD 4 steps off": 0.134, "rCM 4 steps off": 0.15, "heavy 4 steps off": 0.117,
    "rCM 4 steps tv": 0.036, "heavy 4 steps tv": 0.054,
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("sCM 1 steps off", 0.13, "one step, quality: samples off the modes, rCM / sCM"),
        ("DMD 1 steps off", 0.15, "one step, quality: samples off the modes, rCM / DMD"),
        ("rCM 1 steps tv", 0.09, "one step, diversity"),
        ("sCM 1 steps tv", 0.09, "one step, diversity: total variation, sCM / DMD"),
        ("rCM 1 steps spread", 1.2, "one step, spread"),
        ("heavy 4 steps off", 0.16, "four steps, quality: off the modes, rCM at ten times lambda / sCM"),
        ("start off", 0.3, "control"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    failed = lost(**{figure: value})
    assert any(statement in s for s in failed), failed


def test_what_is_reported_alone():
    reported = {c.statement: c.holds for c in judge([GOOD]) if not c.gated}
    assert len(reported) == 4 and not all(reported.values())  # at four steps, rCM's quality is not DMD's


def test_the_arms_are_options_of_the_method():
    for options in ARMS.values():
        assert merged_options(RCMOptions(), options).cycle >= 1
    assert "seeds" in CLAIM.calibration
