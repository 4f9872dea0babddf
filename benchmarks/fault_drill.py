"""Nothing is lost: every method is killed, damaged, refused and poisoned, and must end as if nothing had happened.

Each method runs 40 iterations on a task that costs nothing (tests/tiny_task.py), with a checkpoint every 4. It is killed by
SIGKILL ``--kills`` times, at random moments of its work on the disk (in the middle of a file, between two renames) and at random
times, and resumed each time; its checkpoints are truncated and bit-flipped 100 times; the disk is full, the folder read-only;
a checkpoint has an older format; each role answers NaN. Weights, averages, optimizer states, metrics, pictures and the names of
all files must equal those of an undisturbed run bit for bit, and each failure must say what it is. Exit code 1 where not.

    python benchmarks/fault_drill.py [--methods dmd sid ...] [--kills 20] [--seed 0] [--jobs 2] [--json FILE]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

# Children are forked: no pool of threads, and no device's, may exist before that.
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "LIMBECK_TRACK": "none"}
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import drill
import drill_faults
from limbeck.methods import METHODS
from limbeck.tasks import TASKS

TRIES = 100


def drilled(method: str, place: Path, kills: int, seed: int) -> drill.Drilled:
    """All that is done to one method."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    drill.train(method, place / f"{method}-warm")  # what is imported late is imported once
    done = drill.drill_kills(method, place, kills, seed)
    whole = place / f"{method}-whole"
    expected = drill.outcome(whole)
    done.damaged = TRIES
    done.wrong += drill_faults.drill_damage(whole, TRIES, seed)
    done.wrong += drill_faults.drill_damaged_resume(method, whole, expected, seed)
    done.wrong += drill_faults.drill_formats(method, whole, expected)
    done.wrong += drill_faults.drill_disk(method, place, expected)
    for role in drill_faults.roles_of(method, place):
        said, wrong = drill_faults.drill_poison(method, place, role)
        done.poisoned[role] = said
        done.wrong += wrong
    done.seconds = time.perf_counter() - start
    return done


def main() -> int:
    distilling = [entry.id for entry in METHODS.values() if entry.distils]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=distilling, choices=distilling, metavar="METHOD")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    TASKS["tiny"] = "tiny_task:tiny"
    console, results, start = Console(width=200), [], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fault-drill-") as name, Progress(console=Console(stderr=True)) as bar:
        place = Path(name)
        place.chmod(0o755)
        drill.base(place)
        task = bar.add_task("methods", total=len(given.methods))
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("fork")) as pool:
            futures = [pool.submit(drilled, method, place, given.kills, given.seed) for method in given.methods]
            for future in as_completed(futures):
                results.append(future.result())
                bar.update(task, advance=1, description=f"methods (last: {results[-1].method})")
    results.sort(key=lambda result: given.methods.index(result.method))
    console.print(table(results), "", sep="\n")
    wrong = [f"{result.method}: {text}" for result in results for text in result.wrong]
    for text in wrong:
        console.print(text, highlight=False, markup=False)
    seconds = time.perf_counter() - start
    total = sum(result.kills for result in results)
    console.print(
        f"{total} kills, {len(results) * TRIES} damaged files, {len(wrong)} differences; {seconds:.0f} s", highlight=False
    )
    if given.json:
        given.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return int(bool(wrong))


def table(results: list[drill.Drilled]) -> Table:
    """A line per method."""
    drawn = Table(box=None, pad_edge=False)
    for column in (
        "method",
        "kills",
        "inside writes",
        "resumes",
        "runs compared",
        "damaged",
        "NaN in",
        "no effect",
        "equal",
        "s",
    ):
        drawn.add_column(column, justify="left" if column in ("method", "NaN in", "no effect") else "right")
    for r in results:
        stops = ", ".join(role for role, said in r.poisoned.items() if said)
        unused = ", ".join(role for role, said in r.poisoned.items() if not said)
        counts = (r.kills, r.inside, r.resumes, r.runs, r.damaged)
        drawn.add_row(r.method, *map(str, counts), stops, unused, "no" if r.wrong else "yes", f"{r.seconds:.0f}")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
