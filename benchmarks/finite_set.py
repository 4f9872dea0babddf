"""The finite set's exact denoiser against broadcasting, on one thread: times per batch and their ratio.

    python benchmarks/finite_set.py [--quick]

Both work on the same 128 noisy samples of 768 numbers; rounds are interleaved, times are medians of the thread's own CPU
time. Banks of random images at noise levels 2 (all in float32), 0.1 and 0.002 (float32 proposes, float64 decides), and a
crowded bank of near-copies at 0.02, where all exponents are in float64. Errors of both are distances to the answer by
broadcasting in float64, in units of the smallest distance between neighbours in the bank.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.denoisers import FiniteSetDenoiser
from limbeck.noise import VE

BATCH, DIM = 128, 768


def broadcast(bank: Tensor, x: Tensor, sigma: float) -> Tensor:
    """softmax(-||x - x_i||^2 / (2 sigma^2)) x_i by explicit differences, 8 rows at a time to fit in memory."""
    out = []
    for rows in x.split(8):
        square = (rows[:, None] - bank).square().sum(-1)
        out.append(torch.softmax(-square / (2 * sigma**2), 1) @ bank)
    return torch.cat(out)


def cpu_ms(work: Callable[[], Tensor]) -> float:
    start = time.thread_time()
    work()
    return 1e3 * (time.thread_time() - start)


def measure(bank: Tensor, sigma: float, rounds: int) -> tuple[float, float, float, float]:
    """Milliseconds of broadcasting and of the denoiser, and the worst error of each in neighbour distances."""
    g = torch.Generator().manual_seed(1)
    denoiser = FiniteSetDenoiser(bank, VE())
    x = denoiser.sample(BATCH, generator=g) + sigma * torch.randn(BATCH, DIM, generator=g)
    t = torch.full((BATCH,), sigma, dtype=torch.float64)
    naive, ours = [], []
    denoiser(x, t)
    for _ in range(rounds):
        naive.append(cpu_ms(lambda: broadcast(bank, x, sigma)))
        ours += [cpu_ms(lambda: denoiser(x, t)) for _ in range(5)]
    exact = broadcast(bank.double(), x[:8].double(), sigma)
    distance = torch.cdist(bank[:50], bank, compute_mode="donot_use_mm_for_euclid_dist")
    neighbour = distance[distance > 0].min()
    errors = [
        float((some.double() - exact).norm(dim=1).max() / neighbour)
        for some in (broadcast(bank, x[:8], sigma), denoiser(x, t)[:8])
    ]
    return statistics.median(naive), statistics.median(ours), *errors


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="The finite set's denoiser against broadcasting.")
    parser.add_argument("--quick", action="store_true", help="small banks alone")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    print(f"{BATCH} samples of {DIM} numbers, one thread, CPU time\n")
    print(
        f"{'n':>6} {'bank':>8} {'sigma':>6} {'broadcast ms':>13} {'ours ms':>8} {'ratio':>6} {'its error':>9} {'our error':>9}"
    )
    for n in (500, 1000) if quick else (500, 1000, 2000, 4000, 8000):
        random = 2 * torch.rand(n, DIM, generator=g) - 1
        crowded = random[:50].repeat(n // 50, 1) + 0.02 * torch.randn(n, DIM, generator=g) / (2 * DIM) ** 0.5
        for name, bank, sigma in (
            ("random", random, 2.0),
            ("random", random, 0.1),
            ("random", random, 0.002),
            ("crowded", crowded, 0.02),
        ):
            naive, ours, its_error, error = measure(bank, sigma, 3)
            print(
                f"{n:>6} {name:>8} {sigma:>6g} {naive:>13.1f} {ours:>8.2f} {naive / ours:>6.1f} "
                f"{its_error:>9.1e} {error:>9.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
