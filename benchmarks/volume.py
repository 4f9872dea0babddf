"""The volume renderer on one thread: time and memory of pictures and their gradients, and how the cost grows.

    python benchmarks/volume.py [--quick]

Voxel grids of 18^3, 16 x 16 pixels, 18 samples per ray, float32, uniform numbers given. Times are medians of the thread's own CPU
time, forward and backward together; ratios are between medians of rounds that take turns. Memory is the growth of a process's
peak while it works, in a process of its own. Targets: 6 cameras in 30 ms; four scenes in one call at most as long as one after
the other; cost linear in the points, that is a slope of at most 1.1 of log(time) over log(points), whether there are more
cameras, pixels or samples; at most half the memory where points are not remembered.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from splats import high_water, slope

from limbeck.scenes import Cameras, HashField, HashGrid, VolumeScene, VoxelGrid, orbit
from limbeck.training.allocator import keep_freed_memory

Case = tuple[int, int, int]  # cameras, pixels of each side, samples per ray
SMALL: Case = (6, 16, 18)


def grid(scenes: int = 1, size: int = 18) -> VoxelGrid:
    return VoxelGrid(size, scenes, start=0.1 * torch.randn(scenes, 4, *(size,) * 3, generator=torch.Generator().manual_seed(0)))


def cameras(count: int, size: int) -> Cameras:
    return orbit(torch.arange(count) * 360.0 / count - 179, 15.0, 2.5, width=size, height=size)


def worker(scene: VolumeScene, case: Case) -> Callable[[], None]:
    """What makes pictures of a case and their gradients."""
    views = cameras(*case[:2])
    u = torch.rand(case[0], case[1], case[1], case[2], generator=torch.Generator().manual_seed(1))

    def work() -> None:
        scene.zero_grad()
        scene(views, 1.0, u).image.square().mean().backward()

    return work


def measure(*works: Callable[[], None], rounds: int = 15) -> list[float]:
    """Milliseconds of each."""
    times: list[list[float]] = [[] for _ in works]
    for round_ in range(rounds + 1):
        for work, found in zip(works, times, strict=True):
            start = time.thread_time()
            work()
            if round_:
                found.append(1e3 * (time.thread_time() - start))
    return [statistics.median(found) for found in times]


def peak(case: Case, max_points: int) -> float:
    """MB by which the peak of this process grows."""
    torch.set_num_threads(1)
    for most in (1, 2**30):
        worker(VolumeScene(grid(), 2, max_points=most), (1, 2, 2))()  # loads what is loaded once
    work = worker(VolumeScene(grid(), case[2], max_points=max_points), case)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = high_water()
    work()
    return high_water() - before


def memory(case: Case, max_points: int) -> float:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(peak, (case, max_points))


def main() -> int:
    parser = argparse.ArgumentParser(description="The volume renderer: time, memory, and growth.")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    missed = []

    def judge(what: str, value: float, unit: str, target: float) -> None:
        reached = value <= target
        print(f"{what}: {value:.3g} {unit}, target {target:g}: {'reached' if reached else 'NOT reached'}", flush=True)
        if not reached:
            missed.append(what)

    cases = {f"time, {count} cameras": worker(VolumeScene(grid(), 18), (count, 16, 18)) for count in (4, 6)}
    for what, ms in zip(cases, measure(*cases.values(), rounds=51), strict=True):
        judge(what, ms, "ms", 30)
    one, four = worker(VolumeScene(grid(), 18), SMALL), worker(VolumeScene(grid(4), 18), (24, 16, 18))
    alone, together = measure(lambda: [one() for _ in range(4)] and None, four)
    judge("four scenes in one call over one after the other", together / alone, "", 1.1)
    for levels in (4, 16):
        torch.manual_seed(0)
        field = HashField(HashGrid(levels, log2_size=14, coarsest=8, finest=128))
        (ms,) = measure(worker(VolumeScene(field, 18), SMALL), rounds=5)
        print(f"a hash field of {levels} levels: {ms:.0f} ms, {1e6 * ms / (6 * 256 * 18):.0f} ns a point")
    steps = 3 if quick else 5
    families = {
        "more cameras": [(6 * 2**i, 16, 18) for i in range(steps)],
        "more pixels": [(6, 16 * 2**i, 18) for i in range(min(steps, 4))],
        "more samples": [(6, 16, 18 * 2**i) for i in range(steps)],
    }
    print(f"\n{'':>14} {'cameras':>7} {'pixels':>7} {'samples':>8} {'ms':>8} {'ns a point':>11}")
    slopes = {}
    for name, several in families.items():
        found = []
        for case in several:
            points = case[0] * case[1] ** 2 * case[2]
            (ms,) = measure(worker(VolumeScene(grid(), case[2]), case), rounds=7)
            found.append((points, ms))
            print(f"{name:>14} {case[0]:>7} {case[1]:>7} {case[2]:>8} {ms:>8.1f} {1e6 * ms / points:>11.0f}", flush=True)
        slopes[name] = slope(found)
    for name, value in slopes.items():
        judge(f"slope, {name}", value, "", 1.1)
    case = (4, 64, 64)
    blocked, whole = (memory(case, most) for most in (2**16, 2**30))
    each = 1e6 * whole / (case[0] * case[1] ** 2 * case[2])
    print(f"\n4 cameras, 64 x 64, 64 samples: {whole:.0f} MB remembered, {each:.0f} bytes a point; {blocked:.0f} MB where not")
    judge("memory where points are found again over that where they are remembered", blocked / whole, "", 0.5)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
