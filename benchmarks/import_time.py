"""CPU time of `import limbeck` beyond `import torch`.

    python benchmarks/import_time.py [--repeats N] [--bound SECONDS]

Each import runs in a fresh interpreter, after one unmeasured run of each (files cached, bytecode written).
The two alternate, so that a slow phase of the machine falls on both; the cost is the median of the
differences of neighbours. Exits with 1 above the bound.
"""

import argparse
import statistics
import subprocess
import sys

IMPORTS = {"torch": "import torch", "torch, limbeck": "import torch, limbeck"}


def cpu_seconds(code: str) -> float:
    """User and system CPU seconds of a fresh interpreter that runs `code`, all its threads counted."""
    program = f"{code}\nimport time\nprint(time.process_time())"
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU time of `import limbeck` beyond `import torch`.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bound", type=float, default=1.5, help="seconds")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    for code in IMPORTS.values():
        cpu_seconds(code)
    runs = [[cpu_seconds(code) for code in IMPORTS.values()] for _ in range(options.repeats)]
    columns = [*zip(*runs, strict=True), [both - alone for alone, both in runs]]
    print(f"{'import':<16}{'median':>9}{'min':>9}{'max':>9}   CPU seconds, {options.repeats} repeats")
    for name, values in zip([*IMPORTS, "limbeck alone"], columns, strict=True):
        print(f"{name:<16}{statistics.median(values):9.3f}{min(values):9.3f}{max(values):9.3f}")
    cost = statistics.median(columns[-1])
    print(f"{'within' if cost <= options.bound else 'ABOVE'} the bound of {options.bound} s")
    return int(cost > options.bound)


if __name__ == "__main__":
    sys.exit(main())
