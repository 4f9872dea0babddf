"""What cost grows with: batch, resolution, steps and attention length, with log-log slopes; and four networks on one base.

    python benchmarks/scaling.py [--image docs/images/scaling.png] [--rounds 5]

One thread, float32, small networks, median CPU time. A slope is that from the third last point to the last. Memory of the shared
base: teacher, student, critic and the student's average, once as four copies and once as adapters of rank 8 on the teacher's
weights: bytes of their weights, and the peak of live tensors in two iterations of DMD.
"""

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from limbeck.denoisers import Preconditioned
from limbeck.methods.generators.dmd import DMD, DMDOptions
from limbeck.methods.generators.generator import Ingredients
from limbeck.networks import DiT, UNet
from limbeck.noise import VE, karras_grid
from limbeck.samplers import Rollout
from limbeck.training import Loop, LoopOptions, TensorSource
from limbeck.training.allocator import keep_freed_memory
from limbeck.training.live import held, peak_bytes

Curve = list[tuple[int, float]]  # (size, CPU ms)
RANK = 8


def cpu_ms(work: Callable[[], Any], rounds: int) -> float:
    """Median CPU time, after one run that is not counted."""
    work()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        found.append(1e3 * (time.process_time() - start))
    return statistics.median(found)


def unet(size: int = 16) -> UNet:
    torch.manual_seed(0)
    return UNet((3, size, size), channels=32, multipliers=(1, 2))


def dmd(network: torch.nn.Module, shape: tuple[int, ...], batch: int, **options: Any) -> Loop:
    """A loop of DMD on a teacher of this network, which was not trained."""
    images = torch.randn(batch, *shape)
    parts = Ingredients(Preconditioned(network, VE(), "edm", 0.5), shape, images)
    method = DMD(parts, DMDOptions(iterations=1000, batch=batch, **options))
    return Loop(method, TensorSource(images), LoopOptions(1000, batch), quiet=True)


def batch_curve(rounds: int) -> Curve:
    """One update of student and critic."""
    return [(b, cpu_ms(dmd(unet(), (3, 16, 16), b).iterate, rounds)) for b in (1, 2, 4, 8, 16, 32)]


def resolution_curve(rounds: int) -> Curve:
    """Forward and backward of one image of so many pixels."""
    found = []
    for size in (8, 16, 32, 64, 128):
        network, x = unet(size), torch.randn(1, 3, size, size)
        found.append((size**2, cpu_ms(lambda: network(x, torch.ones(1)).sum().backward(), rounds)))  # noqa: B023
    return found


def sampling_curve(rounds: int) -> Curve:
    """Sampling with K steps."""
    denoiser, z, found = Preconditioned(unet(), VE(), "edm", 0.5), torch.randn(8, 3, 16, 16), []
    for K in (1, 2, 4, 8, 16):
        rollout = Rollout(VE(), karras_grid(K, 0.1, 5.0), "ode")
        with torch.no_grad():
            found.append((K, cpu_ms(lambda: rollout(denoiser, z), rounds)))  # noqa: B023
    return found


def training_curve(rounds: int) -> Curve:
    """One update of student and critic, the gradient through all K steps."""
    grids = {K: tuple(karras_grid(K, 0.2, 5.0).tolist()) for K in (1, 2, 4, 8, 16)}
    return [
        (K, cpu_ms(dmd(unet(), (3, 16, 16), 4, sigmas=s, match="final", renoise="ode").iterate, rounds))
        for K, s in grids.items()
    ]


def attention_curve(rounds: int) -> Curve:
    """Forward and backward of a transformer on one sequence of L tokens."""
    found = []
    for L in (64, 128, 256, 512, 1024, 2048):
        torch.manual_seed(0)
        network, x = DiT((L, 8), width=64, blocks=2, heads=2), torch.randn(1, L, 8)
        found.append((L, cpu_ms(lambda: network(x, torch.ones(1)).sum().backward(), rounds)))  # noqa: B023
    return found


CURVES: dict[str, tuple[str, Callable[[int], Curve]]] = {
    "batch, DMD's cycle": ("samples", batch_curve),
    "resolution, U-Net": ("pixels", resolution_curve),
    "steps, sampling": ("K", sampling_curve),
    "steps, training through all": ("K", training_curve),
    "length, transformer": ("tokens", attention_curve),
}


def slope(curve: Curve) -> float:
    """d log ms / d log size from the third last point to the last."""
    (n, a), (m, b) = curve[-3], curve[-1]
    return math.log(b / a) / math.log(m / n)


def draw(curves: dict[str, Curve], path: Path) -> None:
    """All curves, each in a panel of its own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(3.1 * len(curves), 2.9), layout="constrained")
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        sizes, times = zip(*curve, strict=True)
        panel.loglog(sizes, times, "o-", base=2, color="tab:blue")
        panel.set_title(f"{name}: slope {slope(curve):.2f}", fontsize=9)
        panel.set_xlabel(CURVES[name][0])
        panel.set_ylabel("CPU ms")
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def shared_base() -> dict[str, tuple[float, float]]:
    """(MiB of weights, MiB at the peak) of four copies and of adapters on one base."""
    found, shape = {}, (256, 8)
    for name, options in {"four copies": {}, f"one base, rank {RANK}": {"student_rank": RANK, "critic_rank": RANK}}.items():
        torch.manual_seed(0)
        loop = dmd(DiT(shape, width=192, blocks=6, heads=4), shape, 2, **options)
        loop.iterate()
        known = [*held(loop.method.roles, loop.trained)]
        modules = [m for role in loop.method.roles.values() for m in {role.module, role.best}]
        weights = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for m in modules for p in m.parameters()}
        gc.collect()
        peak = peak_bytes(lambda: [loop.iterate() for _ in range(2)], known)  # noqa: B023
        found[name] = sum(weights.values()) / 2**20, peak / 2**20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What cost grows with.")
    parser.add_argument("--image", type=Path, help="draw the curves here")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    curves = {}
    for name, (unit, of) in CURVES.items():
        curves[name] = of(given.rounds)
        points = ", ".join(f"{n}: {ms:.1f}" for n, ms in curves[name])
        print(f"{name:<28} slope {slope(curves[name]):>5.2f}   CPU ms by {unit}: {points}", flush=True)
    memory = shared_base()
    (weights, peak), *_ = memory.values()
    print()
    for name, (mine, most) in memory.items():
        print(f"{name:<20} weights {mine:>6.1f} MiB ({mine / weights:.2f})   peak {most:>6.1f} MiB ({most / peak:.2f})")
    if given.image is not None:
        draw(curves, given.image)


if __name__ == "__main__":
    main()
