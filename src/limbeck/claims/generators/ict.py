"""iCT against CT on the digits, from scratch, at equal iterations (arXiv 2310.14189).

Arms: iCT, CT (EMA target, squared distance, uniform levels, growing curriculum) and CD (CT's ingredients on the teacher's
paths), each sampled with one call and with two. The teacher's figure stands beside them and gates nothing. At 1,500
iterations CT has not yet carried the data from low noise up to T (its one-step samples are noise, two steps repair part of
it), and iCT's second step does not help yet; both are reported as they come.
"""

from collections.abc import Sequence

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.generators.digits import digits_task, distil, judged, teacher_figures

ITERATIONS = 1500


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    figures = dict(teacher_figures())
    for arm, preset in (("iCT", "recommended"), ("CT", "ct"), ("CD", "cd")):
        method, seconds = distil("ict", seed, preset, iterations=ITERATIONS)
        figures |= {**judged(method, f"{arm} 1 step", steps=1), **judged(method, f"{arm} 2 steps", steps=2)}
        figures[f"{arm} seconds"] = seconds
    return figures


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates."""
    m = medians(runs)
    teacher = m["teacher frechet"]
    return [
        at_most("iCT / CT, one step, Frechet distance", m["iCT 1 step frechet"] / m["CT 1 step frechet"], 0.7),
        at_most("iCT, two steps / one step", m["iCT 2 steps frechet"] / m["iCT 1 step frechet"], 1.0, gated=False),
        at_least("iCT's class accuracy, one step", m["iCT 1 step accuracy"], 0.9),
        at_most("iCT / teacher, one step", m["iCT 1 step frechet"] / teacher, 1.25, gated=False),
        at_most("iCT / teacher, two steps", m["iCT 2 steps frechet"] / teacher, 1.25, gated=False),
        at_most("CD / teacher, one step", m["CD 1 step frechet"] / teacher, 1.25, gated=False),
        at_most("CD / teacher, two steps", m["CD 2 steps frechet"] / teacher, 1.25, gated=False),
    ]


CALIBRATION = "3 seeds: iCT / CT 0.018 (CT has not converged), iCT 1.2 at one step and 1.8 at two, accuracy 0.98."
CLAIM = Claim("ict", "2310.14189", measure, judge, digits_task, CALIBRATION)
