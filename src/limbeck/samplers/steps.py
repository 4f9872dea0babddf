"""What solvers and rollouts share: checked nodes, the deterministic step between two of them, and noise by step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.noise import Process, check_decreasing, spread

Noise = Callable[[int], Tensor]  # step -> fresh standard normal numbers in the shape of x


def generator_noise(x: Tensor, generator: torch.Generator | None = None) -> Noise:
    """Normal numbers like x from a generator, in the order in which they are asked for (None: torch's default generator)."""
    device = generator.device if generator is not None else x.device
    return lambda step: torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


def drawn(noise: Noise | None, step: int, x: Tensor, why: str) -> Tensor:
    """The normal numbers of a step, in the dtype of x; raises LimbeckError where none were given."""
    if noise is None:
        raise LimbeckError(f"{why} needs noise; pass noise=generator_noise(x, torch.Generator().manual_seed(0)) or your own")
    return noise(step).to(x)


def check_nodes(process: Process, times: Sequence[float] | Tensor) -> Tensor:
    """The nodes of a sampler, float64 on the CPU: strictly decreasing times of a process without drift, within its range.

    Raises LimbeckError for anything else, and for a node without noise: the way from the last node to clean data is not a
    node (``final=True``).
    """
    nodes = check_decreasing(times).cpu()
    low, high = process.t_min * (1 - 1e-6), process.t_max * (1 + 1e-6)
    if nodes[-1] < low or nodes[0] > high:
        raise LimbeckError(
            f"times [{nodes[-1]:.6g}, {nodes[0]:.6g}] leave the range [{process.t_min:g}, {process.t_max:g}] of "
            f"{type(process).__name__}; times are the process's own (time_of(sigma) converts), and clean data is reached with "
            "final=True, not with a node at time 0"
        )
    if not bool((process.s(nodes) > 0).all()):
        raise LimbeckError("a node at noise level 0 has nothing to denoise; leave it out: final=True goes there")
    if bool(process.d(nodes).any()):
        raise LimbeckError(
            f"{type(process).__name__} drifts towards a known end point y: sample x - d(t) y with "
            "limbeck.samplers.Undrifted(denoiser, y)"
        )
    return nodes


def ddim_step(
    process: Process, x: Tensor, x0: Tensor, t: Tensor, t_to: Tensor, std: Tensor | None = None, n: Tensor | None = None
) -> Tensor:
    """x_to = a_to x0 + sqrt(s_to^2 - std^2) eps + std n, where eps = (x - a x0) / s is the noise implied by x at t.

    DDIM (arXiv 2010.02502, Eq. 12) for every process; t, t_to and std have shape () or (B,). Without ``std`` it is Euler's
    step of the probability-flow ODE for x / a over s / a, and equally for any x / (p a + q s) over (q s) / (p a + q s):
    the same step in every such variable. Needs s > 0, allows a = 0.
    """
    s_to = process.s(t_to)
    keep = (s_to if std is None else torch.sqrt((s_to**2 - std**2).clamp(min=0))) / process.s(t)
    moved = scalar(keep, x) * x + scalar(process.a(t_to) - process.a(t) * keep, x) * x0
    return moved if std is None or n is None else moved + scalar(std, x) * n


def scalar(coefficient: Tensor, x: Tensor) -> Tensor | float:
    """A float64 coefficient as a factor of x: a number where all samples share it, which no low precision rounds."""
    return spread(coefficient, x) if coefficient.ndim else coefficient.item()
