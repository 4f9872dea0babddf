"""DMD on the digits: one call of the student against 35 of its teacher (arXiv 2311.18828, 2405.14867).

Arms: the student; two negative controls, a critic that never learns (at a third of the iterations) and the student asked
for other classes than it is judged by. The teacher is gated as well as the ratio: a weak teacher would make
any student pass.
"""

from collections.abc import Sequence
from dataclasses import replace

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.generators.digits import digits_task, distil, judged, teacher_figures
from limbeck.training import OptimizerOptions

TEACHER_BOUND = 0.85  # Frechet distance of a healthy teacher
STUDENT_RATIO = 1.25


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    figures = dict(teacher_figures())
    method, seconds = distil("dmd", seed)
    figures |= {**judged(method, "student"), "student seconds": seconds}
    dead, _ = distil("dmd", seed, iterations=50, critic=OptimizerOptions(lr=0.0))
    figures |= judged(dead, "dead critic")
    evaluator = digits_task().evaluator
    assert evaluator.cond is not None
    others = {"label": (evaluator.cond["label"] + 1) % 10}
    shifted = replace(evaluator, accuracy=lambda x, cond: evaluator.accuracy(x, others))  # type: ignore[misc]
    figures["shuffled accuracy"] = shifted(method.sampler(), 1)["accuracy"]
    return figures


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates."""
    m = medians(runs)
    ratio = m["student frechet"] / m["teacher frechet"]
    return [
        at_most("teacher's Frechet distance at 35 NFE", m["teacher frechet"], TEACHER_BOUND),
        at_least("teacher's class accuracy", m["teacher accuracy"], 0.975),
        at_most("one-step student's Frechet distance / teacher's", ratio, STUDENT_RATIO),
        at_least("student's class accuracy - teacher's", m["student accuracy"] - m["teacher accuracy"], -0.01),
        at_least("images per second, student / teacher", m["student images_per_second"] / m["teacher images_per_second"], 25),
        at_most("CPU seconds of distillation", m["student seconds"], 60),
        at_least("teacher at 1 NFE / student, Frechet distance", m["teacher at 1 NFE frechet"] / m["student frechet"], 5),
        at_least(
            "control: Frechet distance with a critic that never learns / student's",
            m["dead critic frechet"] / m["student frechet"],
            3,
        ),
        at_most("control: accuracy against other classes than asked for", m["shuffled accuracy"], 0.1),
    ]


CALIBRATION = (
    "8 teachers: Frechet distance 0.716 +- 0.026 (largest 0.761), accuracy 0.9765 to 0.982, 19 to 23 CPU s. 8 students of the "
    "first teacher: ratio 1.155 (median), 900 iterations gave 1.168 +- 0.051; 37 CPU s. With a teacher of 3,000 iterations "
    "(0.342) the ratio was 1.6 after 900 iterations and 1.37 after 1,800 (one seed)."
)
CLAIM = Claim("dmd", "2311.18828", measure, judge, digits_task, CALIBRATION)
