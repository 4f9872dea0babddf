"""iCT against CT on the digits, from scratch, at equal iterations and batch (arXiv 2310.14189).

CT (EMA target, squared distance, uniform levels, growing curriculum) runs with its own best final grid, s1 = 16: with iCT's
64, or with 32, it does not carry the data up to T within as many iterations, and s1 = 8 is worse. Both are sampled with one
call and with two. The teacher called once, which answers a class's mean, is the control for both.
"""

from collections.abc import Sequence

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.generators.digits import digits_task, distil, judged, teacher_figures

ITERATIONS = 1300


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    figures = dict(teacher_figures())
    for arm, preset in (("iCT", "recommended"), ("CT", "ct")):
        method, seconds = distil("ict", seed, preset, iterations=ITERATIONS)
        figures |= {**judged(method, f"{arm} 1 step", steps=1), **judged(method, f"{arm} 2 steps", steps=2)}
        figures[f"{arm} seconds"] = seconds
    return figures


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates."""
    m = medians(runs)
    ict, ct, teacher, once = (m[f"{name} frechet"] for name in ("iCT 1 step", "CT 1 step", "teacher", "teacher at 1 NFE"))
    return [
        at_most("iCT / CT, one step, Frechet distance", ict / ct, 0.7),
        at_least("iCT's class accuracy, one step", m["iCT 1 step accuracy"], 0.95),
        at_least("the baseline has converged: CT's class accuracy, one step", m["CT 1 step accuracy"], 0.95),
        at_least("control: teacher called once / CT, Frechet distance", once / ct, 3.0),
        at_least("control: teacher called once / iCT", once / ict, 5.0),
        at_most("iCT / CT, two steps", m["iCT 2 steps frechet"] / m["CT 2 steps frechet"], 0.7, gated=False),
        at_most("iCT, two steps / one step", m["iCT 2 steps frechet"] / ict, 1.0, gated=False),
        at_most("iCT / teacher, one step", ict / teacher, 1.25, gated=False),
        at_most("iCT / teacher, two steps", m["iCT 2 steps frechet"] / teacher, 1.25, gated=False),
    ]


CALIBRATION = "TODO"
CLAIM = Claim("ict", "2310.14189", measure, judge, digits_task, CALIBRATION)
