"""All generators on the digits at equal time: the table of docs/choose.md.

    python benchmarks/choose.py [--seconds 40] [--methods dmd sid ...] [--write docs/choose.md]

Each method runs in a process of its own with its recommended options and as many iterations as fit into the given CPU
seconds (one thread; measured on a few iterations beforehand). Quality is the Frechet distance of 7,188 samples in the
library's digit features, diversity the within-class variance of the pixels over that of the real digits (1: as diverse),
memory the peak of live tensor bytes in two iterations, weights, averages and optimizer states included.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from limbeck.claims.generators.digits import digits_task
from limbeck.methods import METHODS, find
from limbeck.methods.generators.generator import make_method
from limbeck.metrics import class_variance_ratio
from limbeck.training import Loop, LoopOptions
from limbeck.training.live import held, peak_bytes

MARK = "<!-- measured by benchmarks/choose.py -->"
LEFT_OUT = ("pso", "sfd", "compose")  # they have another goal, or are no system of their own
COLUMNS = ("method", "calls", "Frechet", "accuracy", "diversity", "s per 1,000 updates", "peak MB", "networks held")


def measured(name: str, seconds: float) -> dict[str, float | str]:
    """One row: the method of that id on the digits for so many CPU seconds."""
    torch.set_num_threads(1)
    task, entry = digits_task(), find(name)
    cls, _, presets = entry.load()
    options = presets["recommended"]

    def loop(iterations: int) -> Loop:
        chosen = replace(options, iterations=iterations)
        return Loop(make_method(cls, chosen, task, 0), task.source, LoopOptions(iterations, options.batch), quiet=True)

    trial = loop(options.iterations)
    trial.iterate()
    peak = peak_bytes(lambda: [trial.iterate() for _ in range(2)], held(trial.method.roles, trial.trained))
    start = time.process_time()
    for _ in range(10):
        trial.iterate()
    each = (time.process_time() - start) / 10
    final = loop(max(int(seconds / each), 20))
    final.train()
    method = final.method
    sampler = method.sampler()
    figures = task.evaluator(sampler, len(method.times))
    row = (
        figures["nfe"],
        figures["frechet"],
        figures["accuracy"],
        diversity(sampler),
        1000 * each,
        peak / 2**20,
    )
    return dict(zip(COLUMNS, (name, *row, entry.networks), strict=True))


def teacher_row(nodes: int) -> dict[str, float | str]:
    """The teacher with 2 nodes - 1 calls, which trained nothing more."""
    task = digits_task()
    sampler = task.teacher_sampler(nodes)
    figures = task.evaluator(sampler, 2 * nodes - 1)
    nan = float("nan")
    row = "teacher", figures["nfe"], figures["frechet"], figures["accuracy"], diversity(sampler), nan, nan, ""
    return dict(zip(COLUMNS, row, strict=True))


def diversity(sampler: Callable[..., torch.Tensor]) -> float:
    """Within-class variance of a sampler's pixels over that of the real digits."""
    task = digits_task()
    x, labels = task.evaluator.sample(sampler).clamp(-1, 1), task.evaluator.cond["label"]
    return class_variance_ratio(x, labels, task.evaluator.real, task.source.cond["label"])


def cell(value: float | str, form: str) -> str:
    """A figure in its form; what is not known stays empty."""
    return str(value) if isinstance(value, str) else "" if value != value else format(value, form)


def table(rows: list[dict], seconds: float) -> str:
    """Markdown."""
    digits = dict(zip(COLUMNS, ("", ".0f", ".3g", ".3f", ".2f", ".1f", ".1f", ""), strict=True))
    lines = [MARK, f"The digits' teacher, {seconds:g} CPU seconds of training each, one seed, one thread:", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in sorted(rows, key=lambda r: r["Frechet"]):
        lines.append("| " + " | ".join(cell(row[c], digits[c]) for c in COLUMNS) + " |")
    return "\n".join([*lines, MARK])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40)
    distilling = [e for e in METHODS.values() if e.distils]
    parser.add_argument("--methods", nargs="+", default=[e.id for e in distilling if e.id not in LEFT_OUT])
    parser.add_argument("--write", type=Path, help="replace the table between the two marks of this page")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measured(given.row, given.seconds)))
        return
    rows = []
    for name in given.methods:
        command = [sys.executable, __file__, "--row", name, "--seconds", str(given.seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr)
    rows += [teacher_row(18), teacher_row(1)]
    made = table(rows, given.seconds)
    if given.write:
        before, _, rest = given.write.read_text().partition(MARK)
        given.write.write_text(before + made + rest.partition(MARK)[2])
    print(made)


if __name__ == "__main__":
    main()
