"""Analytical teleportation: the early, noisy part of a trajectory in closed form (arXiv 2412.09726).

At high noise a score equals that of the Gaussian with the data's mean and covariance, whose probability-flow ODE is solved
exactly. A sampler may therefore jump to one of its own later nodes and go on from there unchanged: k of N nodes cost nothing.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from limbeck.denoisers import ClassifierFree, ClosedForm, Cond, Denoiser, Reconditioned, explained_variance, times_like
from limbeck.errors import LimbeckError
from limbeck.noise import Process
from limbeck.samplers.steps import check_nodes

PROBE = 0.99  # explained variance of a score below which the Gaussian does not describe what is being sampled


class WithFlowMap(Denoiser, Protocol):
    """A denoiser whose probability-flow ODE is solved: x_from (B, ...) at t_from (B,) is carried to t_to (B,)."""

    def flow_map(self, x_from: Tensor, t_from: Tensor, t_to: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Jump:
    """What a teleport did: ``skip`` nodes left out, from ``sigma_from`` to ``sigma_to`` (s / a).

    ``explained_variance`` of the reference's score by the Gaussian's at the destination, where it was asked for.
    """

    skip: int
    sigma_from: float
    sigma_to: float
    explained_variance: float | None = None


def choose_skip(
    gaussian: Denoiser,
    reference: Denoiser,
    data: Tensor,
    times: Sequence[float] | Tensor,
    tol: float = 1e-3,
    cond: Cond | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """The largest k such that 1 - EV <= tol at every node up to times[k], leaving two nodes to the solver; 0: no jump.

    EV is the explained variance of the reference's score on ``data`` (N, ...) with ``cond``; tol 1e-4 is careful, 1e-3
    normal. Noise is drawn on the CPU from ``generator``.
    """
    nodes = _checked(gaussian, reference, times)
    k = 0
    while k < len(nodes) - 2 and 1 - _quality(gaussian, reference, data, nodes[k + 1], generator, cond) <= tol:
        k += 1
    return k


@torch.no_grad()
def teleport(
    gaussian: WithFlowMap,
    x: Tensor,
    times: Sequence[float] | Tensor,
    skip: int | None = None,
    tol: float = 1e-3,
    *,
    sigma: float | None = None,
    reference: Denoiser | None = None,
    data: Tensor | None = None,
    cond: Cond | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Jump]:
    """Carry x from times[0] to times[skip] with the Gaussian's exact flow: (x there, the remaining nodes, what was done).

    The node is given as ``skip``, or is the first whose s / a is at most ``sigma``, or is chosen by :func:`choose_skip` with
    ``reference`` (the teacher) and a batch of ``data``. Where these two are given, a poor fit at the destination (EV < 0.99)
    is warned of: statistics of other data, or a jump too far. skip = 0 does nothing. The flow is computed in float64.

    Raises LimbeckError unless two nodes remain and sigma lies inside the grid.
    """
    nodes = _checked(gaussian, reference, times)
    if data is not None and isinstance(gaussian, ClosedForm) and gaussian.data_range is not None:
        gaussian.check_range(data)
    sigmas = gaussian.process.sigma(nodes)
    if skip is not None and sigma is not None:
        raise LimbeckError("give the node to jump to as skip or as sigma, not both")
    if sigma is not None:
        if not sigmas[-1].item() < sigma < sigmas[0].item():
            raise LimbeckError(
                f"sigma must lie between {sigmas[-1]:.6g} and {sigmas[0]:.6g}, the ends of the grid, not {sigma:g}"
            )
        skip = int((sigmas > sigma).sum())
    if skip is None:
        if reference is None or data is None:
            raise LimbeckError("to choose the jump, teleport needs reference (the teacher) and data; or give skip or sigma")
        skip = choose_skip(gaussian, reference, data, nodes, tol, cond, generator)
    if not 0 <= skip <= len(nodes) - 2:
        raise LimbeckError(f"cannot skip {skip} of {len(nodes)} nodes: the solver needs two, so skip at most {len(nodes) - 2}")
    quality = None
    if reference is not None and data is not None and skip > 0:
        quality = _quality(gaussian, reference, data, nodes[skip], generator, cond)
        if quality < PROBE:
            warnings.warn(
                f"the Gaussian explains {quality:.4f} < {PROBE} of the score at sigma = {sigmas[skip]:.4g}: statistics of "
                "another data set, or too far a jump? Lower skip, or recompute the statistics in the model's range",
                stacklevel=3,
            )
    jump = Jump(skip, sigmas[0].item(), sigmas[skip].item(), quality)
    if skip > 0:
        x = gaussian.flow_map(x.double(), times_like(x, nodes[0]), times_like(x, nodes[skip])).to(x)
    return x, nodes[skip:], jump


class Teleported:
    """A solver that first teleports: Teleported(heun, gaussian, 5)(denoiser, x, times) leaves out the first 5 nodes.

    Warns where what follows is not the flow that the Gaussian replaces: under guidance (w != 1) and before stochastic solvers.
    """

    def __init__(self, solver: Callable[..., Tensor], gaussian: WithFlowMap, skip: int):
        self.solver, self.gaussian, self.skip = solver, gaussian, skip

    def __call__(
        self, denoiser: Denoiser, x: Tensor, times: Sequence[float] | Tensor, cond: Cond | None = None, **options: object
    ) -> Tensor:
        _checked(self.gaussian, denoiser, times)
        if options.get("noise") is not None:
            warnings.warn("teleportation is deterministic: the nodes it leaves out receive no fresh noise", stacklevel=2)
        inner: object = denoiser
        while inner is not None:
            if isinstance(inner, ClassifierFree) and inner.w != 1:
                warnings.warn(
                    f"guided with w = {inner.w:g}: the flow being left out is not the one of the Gaussian unless its "
                    "statistics are those of the guided samples",
                    stacklevel=2,
                )
            inner = getattr(inner, "denoiser", None)
        x, remaining, _ = teleport(self.gaussian, x, times, self.skip)
        return self.solver(denoiser, x, remaining, cond, **options)


def _quality(
    gaussian: Denoiser,
    reference: Denoiser,
    data: Tensor,
    node: Tensor,
    generator: torch.Generator | None,
    cond: Cond | None,
) -> float:
    model = Reconditioned(gaussian, lambda cond: None)
    return explained_variance(model, reference, data, node[None], generator, cond=cond).item()


def _checked(gaussian: Denoiser, other: Denoiser | None, times: Sequence[float] | Tensor) -> Tensor:
    process: Process = gaussian.process
    if other is not None and other.process != process:
        raise LimbeckError(
            f"the Gaussian lives in {process}, the denoiser in {other.process}; build the Gaussian in the denoiser's process"
        )
    return check_nodes(process, times)
