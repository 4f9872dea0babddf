"""Attention's forward derivative in blocks against torch.func.jvp of torch's plain attention, on one thread.

    python benchmarks/attention_jvp.py [--quick]

4 heads of 64 numbers, float32, one sample. Rounds are interleaved; times are medians of the thread's own CPU time. Memory is
the growth of a process's peak while it works, inputs excluded, each in a process of its own. Bounds: from L = 512 on not
slower, at L = 4096 at most half the time and an eighth of the memory.
"""

import argparse
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.networks import attention_jvp

HEADS, DIM = 4, 64


def plain(x: list[Tensor]) -> tuple[Tensor, Tensor]:
    """torch's own, with matrices of L x L numbers."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(F.scaled_dot_product_attention, tuple(x[:3]), tuple(x[3:]))


def blocks(x: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ours."""
    with torch.no_grad():
        return attention_jvp(*x)


def inputs(L: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, L, DIM, generator=g) for _ in range(6)]


def cpu_ms(work: Callable[[list[Tensor]], object], x: list[Tensor]) -> float:
    start = time.thread_time()
    work(x)
    return 1e3 * (time.thread_time() - start)


def peak(name: str, L: int) -> float:
    """MiB by which the peak of this process grows."""
    torch.set_num_threads(1)
    x, work = inputs(L), globals()[name]
    work([y[:, :, :16] for y in x])  # loads what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = high_water()
    work(x)
    return high_water() - before


def high_water() -> float:
    """The process's peak of resident memory, MiB (Linux)."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description="Attention's forward derivative in blocks.")
    parser.add_argument("--quick", action="store_true", help="short sequences alone")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    missed = []
    print(
        f"{'L':>6} {'torch ms':>9} {'blocks ms':>10} {'ratio':>6} {'torch MiB':>10} {'blocks MiB':>11} {'ratio':>6} {'difference':>11}"
    )
    for L in (64, 128, 256, 512, 1024) if quick else (64, 128, 256, 512, 1024, 2048, 4096):
        x = inputs(L)
        difference = max(float((a - b).abs().max()) for a, b in zip(plain(x), blocks(x), strict=True))
        times: dict[str, list[float]] = {"plain": [], "blocks": []}
        for _ in range(3 if L > 1024 else 9):
            for name in times:
                times[name].append(cpu_ms(globals()[name], x))
        a, b = (statistics.median(times[name]) for name in ("plain", "blocks"))
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            most, least = (pool.apply(peak, (name, L)) for name in ("plain", "blocks"))
        print(
            f"{L:>6} {a:>9.2f} {b:>10.2f} {b / a:>6.2f} {most:>10.1f} {least:>11.1f} {least / max(most, 0.1):>6.2f} {difference:>11.1e}"
        )
        if (L >= 512 and b > a) or (L == 4096 and (b > a / 2 or least > most / 8)):
            missed.append(L)
    if missed:
        print(f"a bound was missed at L = {missed}", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
