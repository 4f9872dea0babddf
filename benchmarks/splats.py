"""The splat renderer on one thread: time and memory of a picture and its gradients, and how the cost grows.

    python benchmarks/splats.py [--quick]

Splats in a ball, harmonics of degree 0, float32 parameters, one camera. Times are medians of the thread's own CPU time,
forward and backward together. Memory is the growth of a process's peak while it works, in a process of its own. Targets:
2,000 splats of mean 3-sigma radius 3 to 3.5 pixels at 64 x 64 in 30 ms and 40 MB; cost linear in the (splat, pixel) pairs,
that is a slope of at most 1.1 of log(time) over log(pairs), whether there are more splats, bigger ones or more pixels; at most
half the memory where many pairs are not remembered.
"""

import argparse
import math
import multiprocessing
import re
import statistics
import sys
import time
from pathlib import Path

import torch

from limbeck.scenes import Splats, ball, orbit, project, render, splats_from_points
from limbeck.scenes.compositing import MAX_PAIRS, _rows

SCALE = 0.0265  # of a splat, in world units: about 3.3 pixels of 3-sigma radius with the low-pass
Case = tuple[int, float, int]  # splats, scale relative to SCALE, pixels of each side


def scene(case: Case) -> tuple[Splats, object]:
    N, scale, size = case
    g = torch.Generator().manual_seed(0)
    s = splats_from_points(ball(torch.rand(N, 3, generator=g), 0.8), torch.rand(N, 3, generator=g))
    s = s._replace(
        log_scales=math.log(SCALE * scale) + 0.3 * torch.randn(N, 3, generator=g),
        quaternions=torch.randn(N, 4, generator=g),
        logits=torch.randn(N, generator=g),
    )
    return Splats(*(x.requires_grad_() for x in s)), orbit(30.0, 20.0, 2.5, width=size, height=size)


def work(splats: Splats, cameras, max_pairs: int = MAX_PAIRS) -> None:
    """A picture and its gradients."""
    for x in splats:
        x.grad = None
    render(splats, cameras, 0.5, max_pairs=max_pairs, backend="torch").rgb.square().mean().backward()


def measure(case: Case, rounds: int, max_pairs: int = MAX_PAIRS) -> float:
    """Milliseconds."""
    splats, cameras = scene(case)
    work(splats, cameras, max_pairs)
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        work(splats, cameras, max_pairs)
        times.append(1e3 * (time.thread_time() - start))
    return statistics.median(times)


@torch.no_grad()
def pairs_and_radius(case: Case) -> tuple[int, float]:
    splats, cameras = scene(case)
    plane = project(splats, cameras)
    xx, xy, yy = plane.covariances.unbind(-1)
    largest = (xx + yy) / 2 + (((xx - yy) / 2).square() + xy.square()).sqrt()
    return int(_rows(plane, case[2], case[2]).length.sum()), float(3 * largest.sqrt().mean())


def peak(case: Case, max_pairs: int) -> float:
    """MB by which the peak of this process grows."""
    torch.set_num_threads(1)
    splats, cameras = scene(case)
    small = scene((10, 1.0, 8))
    for most in (1, MAX_PAIRS):
        work(*small, most)  # loads what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = high_water()
    work(splats, cameras, max_pairs)
    return high_water() - before


def high_water() -> float:
    """The process's peak of resident memory, MB (Linux)."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024 / 1e6


def memory(case: Case, max_pairs: int = MAX_PAIRS) -> float:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(peak, (case, max_pairs))


def slope(points: list[tuple[int, float]]) -> float:
    """Of the least-squares line through (log pairs, log time)."""
    x, y = torch.tensor(points, dtype=torch.float64).log().T
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def main() -> int:
    parser = argparse.ArgumentParser(description="The splat renderer: time, memory, and growth.")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    missed = []

    def judge(what: str, value: float, unit: str, target: float) -> None:
        reached = value <= target
        print(f"{what}: {value:.3g} {unit}, target {target:g}: {'reached' if reached else 'NOT reached'}", flush=True)
        if not reached:
            missed.append(what)

    case = (2000, 1.0, 64)
    pairs, radius = pairs_and_radius(case)
    print(f"2,000 splats at 64 x 64: {pairs} pairs, mean radius {radius:.2f} pixels")
    judge("time", measure(case, 31), "ms", 30)
    judge("memory", memory(case), "MB", 40)
    steps = 3 if quick else 5
    families = {
        "more splats": [(2000 * 2**i, 1.0, 64) for i in range(steps)],
        "bigger splats": [(2000, 2.0 ** (i / 2), 64) for i in range(steps)],
        "more pixels": [(2000, 1.0, 64 * 2**i) for i in range(min(steps, 4))],
    }
    print(f"\n{'':>14} {'splats':>7} {'pixels':>7} {'pairs':>8} {'ms':>8} {'ns a pair':>10}")
    slopes = {}
    for name, cases in families.items():
        points = []
        for case in cases:
            pairs, ms = pairs_and_radius(case)[0], measure(case, 7)
            points.append((pairs, ms))
            print(f"{name:>14} {case[0]:>7} {case[2]:>7} {pairs:>8} {ms:>8.1f} {1e6 * ms / pairs:>10.0f}", flush=True)
        slopes[name] = slope(points)
    for name, value in slopes.items():
        judge(f"slope, {name}", value, "", 1.1)
    case = (2000, 1.0, 256 if quick else 512)
    pairs = pairs_and_radius(case)[0]
    blocked, whole = (memory(case, most) for most in (2**15, 2**30))
    print(f"\n{pairs} pairs: {whole:.0f} MB where they are remembered, {blocked:.0f} MB where they are found again")
    judge("memory where pairs are found again over that where they are remembered", blocked / whole, "", 0.5)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
