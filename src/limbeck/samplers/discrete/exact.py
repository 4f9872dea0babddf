"""Discrete diffusion by enumeration: exact marginals, exact scores, kernels as matrices, and a sampler's output law."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.samplers.discrete.graphs import Graph
from limbeck.samplers.discrete.laws import sequences
from limbeck.samplers.discrete.learned import LearnedSteps, Step
from limbeck.samplers.discrete.schedules import Schedule


class Enumerated(nn.Module):
    """The data law ``p0`` over all V^L clean sequences (in the order of :func:`sequences`) under a graph and a schedule.

    Called like a network it gives the exact log scores; ``states`` (n, L) are all S^L sequences, ``kl`` compares with p0.
    """

    states: Tensor
    p0: Tensor

    def __init__(self, graph: Graph, schedule: Schedule, p0: Tensor, length: int):
        super().__init__()
        clean = sequences(graph.vocab, length)
        if p0.shape != (len(clean),) or not bool(torch.isclose(p0.sum(), p0.new_ones(()))) or bool((p0 < 0).any()):
            raise LimbeckError(f"p0 must be {len(clean)} probabilities that sum to 1, not {tuple(p0.shape)}")
        self.graph, self.schedule, self.length = graph, schedule, length
        states = sequences(graph.symbols, length)
        self.register_buffer("states", states)
        self.place = graph.symbols ** torch.arange(length - 1, -1, -1)
        if graph.mask is not None:
            clean = clean + (clean >= graph.mask).long()
        whole = torch.zeros(len(states), dtype=torch.float64)
        whole[self.index(clean)] = p0
        self.register_buffer("p0", whole)
        self.table = functools.cache(self._table)

    def index(self, x: Tensor) -> Tensor:
        """The numbers (...,) of sequences x (..., L) among the states."""
        return (x * self.place).sum(-1)

    def marginal(self, t: Tensor) -> Tensor:
        """p_t (n,)."""
        step = self.graph.transition(self.schedule.total(t))
        p = self.p0.reshape([self.graph.symbols] * self.length)
        for axis in range(self.length):
            p = torch.tensordot(p, step, ([axis], [0])).movedim(-1, axis)
        return p.flatten()

    def _table(self, t: float) -> Tensor:
        p = self.marginal(torch.tensor(t, dtype=torch.float64))
        away = torch.arange(self.graph.symbols) - self.states[..., None]
        neighbours = torch.arange(len(p))[:, None, None] + away * self.place[:, None]
        ratios = (p[neighbours] / p[:, None, None]).nan_to_num(0.0, 0.0, 0.0)  # states that cannot be: never asked
        return ratios.log().masked_fill(away == 0, 0.0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Exact log s (B, L, S) of x (B, L) at t (B,), the same for all."""
        return self.table(float(t[0]))[self.index(x)]

    def start(self) -> Tensor:
        """The law of x_T (n,)."""
        if self.graph.mask is None:
            return torch.full_like(self.p0, 1 / len(self.p0))
        return F.one_hot(self.index(torch.full((self.length,), self.graph.mask)), len(self.p0)).double()

    def step(self, steps: LearnedSteps, times: Tensor, k: int, coefficient: Tensor) -> Step:
        """Step k between ``times`` from every state."""
        t = times[k]
        return Step(self.states, self.table(float(t)), coefficient, t, times[k + 1], k == len(times) - 2)

    def matrix(self, p: Tensor) -> Tensor:
        """Place-wise probabilities (n, L, S) from every state as a matrix (n, n), row = from."""
        whole = p[:, 0]
        for i in range(1, self.length):
            whole = (whole[:, :, None] * p[:, i, None, :]).flatten(1)
        return whole

    def laws(self, steps: LearnedSteps, times: Tensor | None = None) -> list[Tensor]:
        """The sampler's law (n,) before every step and at its end; ``times``: a plain sampler's on those instead."""
        phi = steps.phi.detach() if times is None else torch.ones(len(times) - 1, dtype=torch.float64)
        times = steps.times() if times is None else times
        laws = [self.start()]
        for k in range(len(times) - 1):
            laws.append(laws[-1] @ self.matrix(steps.probabilities(self.step(steps, times, k, phi[k])).detach()))
        return laws

    def ahead(self, steps: LearnedSteps, times: Tensor, first: int, last: int) -> Tensor:
        """Laws (n, L, S) of every place after the plain sampler's steps first .. last - 1, from every state before them."""
        found = F.one_hot(self.states, self.graph.symbols).double().flatten(1)
        for k in reversed(range(first, last)):
            found = self.matrix(steps.probabilities(self.step(steps, times, k, torch.ones((), dtype=torch.float64)))) @ found
        return found.unflatten(1, (self.length, -1)).detach()

    def kl(self, law: Tensor) -> float:
        """KL(p0 || law) in nats."""
        seen = self.p0 > 0
        return float((self.p0[seen] * (self.p0[seen] / law[seen]).log()).sum())
