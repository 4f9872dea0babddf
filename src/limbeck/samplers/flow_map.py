"""The flow map of the probability-flow ODE to a given accuracy, by an adaptive Runge-Kutta method."""

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, times_like
from limbeck.errors import LimbeckError
from limbeck.noise import spread

# Dormand and Prince, "A family of embedded Runge-Kutta formulae" (1980), RK5(4)7M; the last row are the weights of order 5
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # order 5 minus order 4


def solve(
    denoiser: Denoiser,
    x: Tensor,
    t_from: float | Tensor,
    t_to: float | Tensor,
    cond: Cond | None = None,
    *,
    rtol: float = 1e-8,
    atol: float | None = None,
    max_steps: int = 10_000,
) -> Tensor:
    """x at t_to on the probability-flow trajectory through x at t_from, forward or backward in time.

    x (B, ...); t_from and t_to are numbers or (B,). Integrates y = x / (a + s) over u = s / (a + s), dy/du = (y - x0) / u, with
    steps whose error is at most atol + rtol |y| in the root mean square of every sample (atol: rtol unless given). The
    state is float64, the denoiser is asked in the dtype of x: in float32 ask for no more than rtol = 1e-5. Differentiable
    as the steps are. Raises LimbeckError at noise level 0 and after ``max_steps`` steps.
    """
    process = denoiser.process
    t_0, t_1 = times_like(x, t_from), times_like(x, t_to)
    u_0, u_1 = (process.s(t) / (process.a(t) + process.s(t)) for t in (t_0, t_1))
    if not bool(((u_0 > 0) & (u_1 > 0)).all()):
        raise LimbeckError("the flow map ends where no noise is left (s = 0); stop at the process's t_min")
    atol = rtol if atol is None else atol

    def slope(share: float, y: Tensor) -> Tensor:
        u = u_0 + share * (u_1 - u_0)
        t = process.time_of(u / (1 - u))
        x0 = denoiser((spread(process.a(t) + process.s(t), y) * y).to(x.dtype), t, cond)
        return spread((u_1 - u_0) / u, y) * (y - x0.double())

    y = x.double() / spread(process.a(t_0) + process.s(t_0), x.double())
    share, step, first = 0.0, 0.01, slope(0.0, y)
    for _ in range(max_steps):
        step = min(step, 1.0 - share)
        slopes, y_new = [first], y
        for node, row in zip(_NODES, _STAGES, strict=True):
            y_new = y + step * _weighted(row, slopes)
            slopes.append(slope(share + node * step, y_new))
        allowed = atol + rtol * torch.maximum(y.abs(), y_new.abs())
        error = ((step * _weighted(_ERROR, slopes) / allowed) ** 2).flatten(1).mean(1).max().sqrt().item()
        if error <= 1:
            share, y, first = share + step, y_new, slopes[-1]
            if share >= 1 - 1e-14:
                return (y * spread(process.a(t_1) + process.s(t_1), y)).to(x.dtype)
        step *= min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
    raise LimbeckError(
        f"the flow map was not found to rtol={rtol:g} within {max_steps} steps ({100 * share:.3g} % of the way); raise rtol or "
        "max_steps, and check that the denoiser is smooth and works in the precision of x"
    )


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return sum((w * k for w, k in zip(weights, slopes, strict=True) if w), start=torch.zeros_like(slopes[0]))
