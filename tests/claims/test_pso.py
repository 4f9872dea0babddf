"""A miniature of what is measured, and every gate's failure on made-up figures."""

import pytest
import torch

from limbeck.claims.generators.pso import ARMS, CLAIM, TEACHER, best, divergence, judge, measure, seen, upper


def arm(label, share, sharpness, **more):
    points = {f"{label} at 150 share": share, f"{label} at 150 sharpness": sharpness}
    return {**points, f"{label} share": share, f"{label} sharpness": sharpness, f"{label} alarm": 0.0, **more}


GOOD = {
    "start share": 0.5,
    "start sharpness": 0.94,
    **arm("plain lr 0.001", 0.99, 0.3, **{"plain lr 0.001 kl": 0.4}),
    **arm("plain lr 0.0001", 0.92, 0.35, **{"plain lr 0.0001 kl": 0.2}),
    **arm("online beta 5", 0.97, 0.8, **{"online beta 5 kl": 0.3}),
    **arm("online beta 20", 0.65, 0.86, **{"online beta 20 kl": 0.02}),
    **arm("online beta 100", 0.5, 0.94, **{"online beta 100 kl": 0.001}),
    **arm("offline beta 1", 1.0, 0.4, **{"offline beta 1 kl": 0.9}),
    **arm("offline beta 5", 0.98, 0.75, **{"offline beta 5 kl": 0.5, "offline beta 5 own error": 0.4}),
    **arm("offline beta 20", 0.6, 0.8, **{"offline beta 20 kl": 0.1}),
    **arm("offline beta 5 kappa 0", 0.98, 0.5, **{"offline beta 5 kappa 0 own error": 0.05}),
    **arm("unbounded beta 1", 0.98, 0.05),
    "unbounded beta 1 alarm": 1.0,
    **arm("unbounded beta 50 clipped", 0.55, 0.94),
    **arm("customised", 0.9, 0.8),
    **arm("customised without prior", 0.9, 0.3),
}


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()


@pytest.mark.parametrize(
    ("change", "statement"),
    [
        ({"start sharpness": 0.7}, "start: share of samples at a mode"),
        ({"start share": 0.6}, "start: share in the upper half"),
        ({"plain lr 0.0001 at 150 sharpness": 0.9}, "plain loss, share >= 0.9"),
        ({"online beta 5 at 150 sharpness": 0.5, "online beta 20 at 150 sharpness": 0.5}, "online, share >= 0.6"),
        ({f"offline beta {arm} at 150 sharpness": 0.3 for arm in ("1", "5", "5 kappa 0")}, "offline / plain, share >= 0.9"),
        ({"online beta 20 share": 0.98}, "beta 5, 20, 100: share falls"),
        ({"online beta 20 sharpness": 0.95}, "beta 5, 20, 100: sharpness rises"),
        ({"online beta 20 kl": 0.5}, "beta 5, 20, 100: KL"),
        ({"offline beta 5 kappa 0 own error": 0.3}, "kappa 0 / 1"),
        ({"unbounded beta 1 alarm": 0.0}, "in which the drift monitor speaks"),
        ({"unbounded beta 1 sharpness": 0.8}, "unbounded reward, beta 1: sharpness"),
        ({"online beta 100 alarm": 1.0}, "control: drift monitor at beta 100"),
    ],
)
def test_every_gate_can_fail(change, statement):
    assert any(statement in s for s in lost(**change)), lost(**change)


def test_the_best_point_is_one_that_learned_the_preference():
    assert best(GOOD, "online", 0.9) == pytest.approx(0.8 / 0.94)
    assert best(GOOD, "plain", 0.9) == pytest.approx(0.35 / 0.94)
    assert best(GOOD, "online beta 20", 0.9) == 0.0


def test_the_axes_of_the_frontier():
    x = TEACHER.sample(2000, None, torch.Generator().manual_seed(0))
    figures = seen(x)
    assert figures["sharpness"] > 0.98 and abs(figures["share"] - 0.5) < 0.04
    assert seen(x[upper(x) > 0])["share"] == 1.0 and seen(torch.zeros(10, 2))["sharpness"] == 0.0
    assert divergence(TEACHER, TEACHER) == 0.0


def test_miniature():
    figures = measure(0, rounds=3, iterations=5, states=64, arms=("online beta 5",))
    assert {"start share", "plain lr 0.001 at 6 sharpness", "online beta 5 at 3 share"} <= figures.keys()
    assert figures["online beta 5 kl"] > 0 and figures["online beta 5 alarm"] == 0.0
    assert set(ARMS) >= {"unbounded beta 1", "offline beta 5 kappa 0"} and CLAIM.method == "pso"
