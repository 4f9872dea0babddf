"""A miniature of what is measured, with the facts that are known beforehand, and every gate's failure."""

import pytest
import torch

from limbeck.claims.generators.gaussian_score import CLAIM, exact_figures, judge, learned_figures
from limbeck.denoisers import FiniteSetDenoiser
from limbeck.noise import VE, karras_grid
from limbeck.tasks import Evaluator, load_digits


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits()
    return images[:300], labels[:300]


def test_the_exact_grid_holds_the_samplers():
    torch.testing.assert_close(karras_grid(137)[::8], karras_grid(18))


def test_miniature_of_the_exact_teacher(digits):
    images = digits[0].double()
    figures = exact_figures(1, images, noises=4)
    assert figures == exact_figures(1, images, noises=4)
    assert figures["skip 0 rmse"] == figures["heun 18 nodes rmse"]
    assert (
        figures["gaussian landing error"] < figures["shuffled covariance landing error"] < figures["other data landing error"]
    )
    unexplained = [figures[f"unexplained at {level:g}"] for level in (20, 10, 5, 2, 1, 0.5)]
    assert unexplained == sorted(unexplained) and unexplained[0] < 1e-7 < 0.05 < unexplained[-1]
    assert figures["rule 0.0001 shuffled covariance"] < figures["rule 0.0001"] <= figures["rule 0.001"]


def test_miniature_of_a_conditional_teacher(digits):
    images, labels = digits
    teacher = FiniteSetDenoiser(images, VE(), labels=labels)
    evaluator = Evaluator(lambda x: x.flatten(1), images, len(images))
    figures = learned_figures(1, teacher, images, labels, evaluator)
    assert figures["learned delta unexplained at 1"] == pytest.approx(0, abs=1e-12), "the teacher is the set's own denoiser"
    assert figures["learned difference"] == 0 and figures["learned same"] == 1
    assert figures["learned skip 4 difference"] <= figures["learned skip 7 difference"]
    assert figures["learned skip 7 difference"] < figures["learned class-agnostic skip 7 difference"]


GOOD = {
    "skip 0 rmse": 0.09,
    "skip 7 rmse": 0.09,
    "heun 11 nodes rmse": 0.14,
    "skip 11 rmse": 0.35,
    "heun 7 nodes rmse": 0.27,
    "rule 0.0001": 7,
    "unexplained at 5": 4e-5,
    "unexplained at 1": 0.08,
    "gaussian same after the jump alone": 0.99,
    "other data skip 7 rmse": 0.28,
    "gaussian landing error": 0.01,
    "shuffled covariance landing error": 0.05,
    "rule 0.0001 shuffled covariance": 5,
    "shuffled covariance skip 7 rmse": 0.1,
    "learned skip 4 difference": 0.003,
    "learned skip 7 difference": 0.008,
    "learned heun 11 nodes difference": 0.023,
    "learned class-agnostic skip 7 difference": 0.029,
    "learned frechet": 0.42,
    "learned skip 4 frechet": 0.43,
    "learned skip 7 frechet": 0.44,
    "learned rule 0.0001": 6,
    **{f"learned gaussian unexplained at {s}": v for s, v in (("5", 2e-4), ("2", 4e-3), ("1", 0.03), ("0.5", 0.1))},
    **{f"learned delta unexplained at {s}": v for s, v in (("5", 1e-4), ("2", 3e-3), ("1", 0.05), ("0.5", 0.2))},
}


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()
    reported = [c.statement for c in judge([GOOD]) if not c.gated and not c.holds]
    assert [s.partition(":")[0] for s in reported] == ["learned, sigma 5", "learned, sigma 2"]


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("heun 11 nodes rmse", 0.1, "7 nodes left out / Heun's method with 21"),
        ("skip 11 rmse", 0.2, "limit: 11 left out"),
        ("rule 0.0001", 8, "nodes that the rule leaves out at tol"),
        ("rule 0.0001", 5, "nodes that the rule leaves out at tol"),
        ("unexplained at 5", 1e-4, "unexplained by the Gaussian at sigma 5"),
        ("unexplained at 1", 0.01, "limit: score unexplained"),
        ("gaussian same after the jump alone", 0.9, "the jump alone leaves"),
        ("other data skip 7 rmse", 0.1, "control: statistics of other data"),
        ("shuffled covariance landing error", 0.01, "control: shuffled covariance"),
        ("rule 0.0001 shuffled covariance", 7, "control: the rule"),
        ("learned skip 4 difference", 0.03, "learned teacher, 4 nodes"),
        ("learned skip 7 difference", 0.021, "learned, 7 left out (21 calls)"),
        ("learned heun 11 nodes difference", 0.012, "learned, 7 left out / Heun's"),
        ("learned class-agnostic skip 7 difference", 0.01, "limit: the same with"),
        ("learned skip 4 frechet", 0.5, "learned, 4 left out / none: Frechet"),
        ("learned skip 7 frechet", 0.5, "learned, 7 left out / none: Frechet"),
        ("learned rule 0.0001", 3, "nodes that the rule leaves out of the learned"),
        ("learned gaussian unexplained at 1", 0.06, "learned, sigma 1:"),
        ("learned gaussian unexplained at 0.5", 0.3, "learned, sigma 0.5:"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    failed = lost(**{figure: value})
    assert any(statement in s for s in failed), failed


def test_too_large_an_error_fails_both_of_its_gates():
    assert len(lost(**{"skip 7 rmse": 0.12})) == 2


def test_the_calibration_is_recorded():
    assert "8 seeds" in CLAIM.calibration
