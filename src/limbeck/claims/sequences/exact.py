"""What LSD's objectives ask for, in closed form: expectations over all states instead of samples."""

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.methods.sequences.lsd import log_of
from limbeck.samplers.discrete import (
    Enumerated,
    LearnedSteps,
    teacher_times,
)

LOW, HIGH = 0.05, 4.0  # where Phi is searched


def plain(world: Enumerated, steps: int, param: str | None = None) -> LearnedSteps:
    """Euler's method, nothing learned."""
    return LearnedSteps(world.graph, world.schedule, steps, param=param).requires_grad_(False)


def fitted(world: Enumerated, steps: int, teacher_steps: int, objective: str, param: str = "score") -> LearnedSteps:
    """The steps that ``objective`` asks for: trajectory, mean or same_state. Step k depends on those before it alone."""
    found = plain(world, steps, param)
    fine = teacher_times(steps, teacher_steps, found.end)
    teacher, law, each = world.laws(found, fine), world.start(), teacher_steps // steps
    possible = world.graph.jumps(world.states) > 0
    times = found.times()
    for k in range(steps):
        step = world.step(found, times, k, found.phi[k])
        s = torch.where(possible, step.log_score.exp(), 0.0)
        here, there = (torch.einsum("n,nls->ls", p, s) for p in (law, teacher[k * each]))
        if objective == "trajectory":
            found.phi[k] = (there * here).sum() / torch.einsum("n,nls->", law, s.square())
        elif objective == "mean":
            found.phi[k] = there.sum() / here.sum()
        else:
            ahead = world.ahead(found, fine, k * each, (k + 1) * each)
            found.phi[k] = lowest(lambda phi: missing(world, found, k, phi, law, ahead))  # noqa: B023
        law = law @ world.matrix(found.probabilities(world.step(found, times, k, found.phi[k])))
    return found


def missing(world: Enumerated, steps: LearnedSteps, k: int, phi: Tensor, law: Tensor, ahead: Tensor) -> float:
    """- E log p_k of what the teacher does from states of ``law``, summed over places."""
    p = steps.probabilities(world.step(steps, steps.times(), k, phi))
    return -float((law[:, None, None] * ahead * log_of(p)).sum())


def guarded(world: Enumerated, steps: LearnedSteps, teacher_steps: int) -> LearnedSteps:
    """The guard without sampling error: Phi_k = 1 where that explains the teacher's own transitions as well."""
    found, fine = plain(world, steps.steps, steps.param), teacher_times(steps.steps, teacher_steps, steps.end)
    laws, each = world.laws(found, fine), teacher_steps // steps.steps
    for k in range(steps.steps):
        ahead = world.ahead(found, fine, k * each, (k + 1) * each)
        new, old = (missing(world, steps, k, phi, laws[k * each], ahead) for phi in (steps.phi[k], torch.ones(()).double()))
        found.phi[k] = steps.phi[k] if new < old else 1.0
    return found


def oracle(world: Enumerated, steps: int, rounds: int = 4, param: str = "score") -> LearnedSteps:
    """The steps of the lowest KL that a search of one Phi_k after the other finds. It knows the data, so it is no method."""
    best = plain(world, steps, param)

    def kl(k: int) -> Callable[[Tensor], float]:
        def of(phi: Tensor) -> float:
            best.phi[k] = phi
            return world.kl(world.laws(best)[-1])

        return of

    for _ in range(rounds):
        for k in range(steps):
            best.phi[k] = lowest(kl(k), 21)
    return best


def lowest(f: Callable[[Tensor], float], points: int = 41, rounds: int = 4) -> Tensor:
    """Where f is lowest in [``LOW``, ``HIGH``]: a grid, then finer ones around its lowest point."""
    low, high = LOW, HIGH
    for _ in range(rounds):
        grid = torch.linspace(low, high, points, dtype=torch.float64)
        best = min(grid, key=f)
        width = (high - low) / (points - 1)
        low, high = max(LOW, float(best) - width), min(HIGH, float(best) + width)
    return best


def kl_of_scaled(world: Enumerated, steps: int, coefficient: float, param: str) -> float:
    """KL of the sampler with one coefficient on all steps."""
    found = plain(world, steps, param)
    found.phi.fill_(coefficient)
    return world.kl(world.laws(found)[-1])
