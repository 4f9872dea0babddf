"""SiD on the digits: data-free, one call of the student against 35 of its teacher (arXiv 2404.04057).

Arms: the student, and the negative control of a critic that never learns. DMD's own claim runs on the same teacher, so the
two can be compared there; nothing is gated between them.
"""

from collections.abc import Sequence

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.generators.digits import digits_task, distil, judged, teacher_figures
from limbeck.training import OptimizerOptions

STUDENT_RATIO = 1.35


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    method, seconds = distil("sid", seed)
    dead, _ = distil("sid", seed, iterations=50, critic=OptimizerOptions(lr=0.0))
    return {
        **teacher_figures(),
        **judged(method, "student"),
        "student seconds": seconds,
        **judged(dead, "dead critic"),
    }


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates."""
    m = medians(runs)
    return [
        at_most("one-step student's Frechet distance / teacher's", m["student frechet"] / m["teacher frechet"], STUDENT_RATIO),
        at_least("student's class accuracy - teacher's", m["student accuracy"] - m["teacher accuracy"], -0.01),
        at_most("CPU seconds of distillation", m["student seconds"], 60),
        at_least("teacher at 1 NFE / student, Frechet distance", m["teacher at 1 NFE frechet"] / m["student frechet"], 2),
        at_least(
            "control: Frechet distance with a critic that never learns / student's",
            m["dead critic frechet"] / m["student frechet"],
            3,
        ),
    ]


CALIBRATION = "8 seeds, one teacher: ratio 0.957 (median), mean 0.972 +- 0.062; accuracy 0.977 +- 0.002; about 45 CPU s."
CLAIM = Claim("sid", "2404.04057", measure, judge, digits_task, CALIBRATION)
