"""From CT to iCT one ingredient at a time, on the digits, from scratch, at equal iterations (arXiv 2310.14189, Table 2).

    python benchmarks/ict_ladder.py [--iterations 1500] [--seeds 1] [--json FILE]

Prints Frechet distance and class accuracy of one and two calls, and CPU seconds. Every rung keeps the ingredients above it.
Nothing is asserted: single rungs are noisy at this size. Distillation (CD) and ECT stand beside the ladder. The first call
trains the digits' teacher, which is cached. ``--iterations 40 --count 200`` shows in seconds that everything runs.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from limbeck.claims.generators.digits import digits_task, distil, judged
from limbeck.tasks import Evaluator, Task

# (rung, the options that it changes and those below keep)
LADDER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("CT", {}),
    ("+ no EMA target", {"target": "student"}),
    ("+ pseudo-Huber", {"distance": "pseudo_huber"}),
    ("+ lognormal levels", {"law": "lognormal"}),
    ("+ weight 1 / dt", {"weight": "inverse_gap"}),
    ("+ doubling grid", {"curriculum": "doubling", "s0": 4, "s1": 32}),
)
BESIDE = ("cd", "ect")
FIGURES = ("1 step frechet", "1 step accuracy", "2 steps frechet", "2 steps accuracy", "seconds")


def measured(label: str, preset: str, options: dict[str, Any], seeds: int, task: Task) -> dict[str, Any]:
    """The medians of one arm over its seeds."""
    runs = []
    for seed in range(seeds):
        method, seconds = distil("ict", seed, preset, task, **options)
        one, two = judged(method, "1 step", 1, task), judged(method, "2 steps", 2, task)
        runs.append({**one, **two, "seconds": seconds})
    return {"arm": label, **{name: median(run[name] for run in runs) for name in FIGURES}}


def smaller(task: Task, count: int | None) -> Task:
    """The task judged by its first ``count`` samples (None: all)."""
    if count is None:
        return task
    whole: Evaluator = task.evaluator
    assert whole.cond is not None
    cond = {name: value[:count] for name, value in whole.cond.items()}
    return replace(task, evaluator=replace(whole, count=count, cond=cond))


def main() -> None:
    parser = argparse.ArgumentParser(description="From CT to iCT, one ingredient at a time.")
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--count", type=int, help="samples that judge an arm (default: the task's 7,188)")
    parser.add_argument("--json", type=Path, help="write the table here too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = smaller(digits_task(), given.count)
    arms: list[tuple[str, str, dict[str, Any]]] = []
    options: dict[str, Any] = {}
    for label, change in LADDER:
        options = {**options, **change}
        arms.append((label, "ct", options))
    arms += [(name.upper(), name, {}) for name in BESIDE]
    print(f"{'':<20}" + "".join(f"{name:>18}" for name in FIGURES))
    rows = []
    for label, preset, chosen in arms:
        row = measured(label, preset, {**chosen, "iterations": given.iterations}, given.seeds, task)
        rows.append(row)
        print(f"{label:<20}" + "".join(f"{row[name]:>18.3f}" for name in FIGURES), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({"iterations": given.iterations, "seeds": given.seeds, "arms": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
