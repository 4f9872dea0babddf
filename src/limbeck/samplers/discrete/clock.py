"""Drawing the next symbols so that samplers with different steps share their noise."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Uniforms = Callable[[int], Tensor]  # number of a jump -> uniform numbers (B, L, S + 1)


class Clock:
    """Draws x' ~ p (B, L, S) step by step; ``noise(c)`` serves the c-th jump of every place, c = 0, 1, ...

    A place jumps when the probability that it would still stand where it does falls to a uniform number drawn once for that
    jump; where to is the maximum of log p plus Gumbel noise. So each step is an exact draw from p, and two samplers that are
    given the same noise and know the same make the same jump, at the same time, even where one takes many small steps
    and the other few large ones: common random numbers.
    """

    def __init__(self, noise: Uniforms, x: Tensor):
        self.noise = noise
        first = noise(0)
        self.threshold, self.gumbel = first[..., 0], _gumbel(first[..., 1:])
        self.alive = torch.ones(x.shape, dtype=torch.float64, device=x.device)
        self.jumped = torch.zeros_like(x)

    def __call__(self, x: Tensor, p: Tensor) -> Tensor:
        """The next symbols, (B, L)."""
        self.alive = self.alive * p.gather(-1, x[..., None])[..., 0]
        away = p.double().log().masked_fill(F.one_hot(x, p.shape[-1]).bool(), -torch.inf)
        jump = (self.threshold >= self.alive) & (away.amax(-1) > -torch.inf)  # rounding moves nothing that cannot move
        x = torch.where(jump, (away + self.gumbel).argmax(-1), x)
        self.jumped = self.jumped + jump
        for count in self.jumped[jump].unique().tolist():
            fresh, anew = self.noise(count), jump & (self.jumped == count)
            self.threshold = torch.where(anew, fresh[..., 0], self.threshold)
            self.gumbel = torch.where(anew[..., None], _gumbel(fresh[..., 1:]), self.gumbel)
        self.alive = self.alive.masked_fill(jump, 1.0)
        return x


def _gumbel(u: Tensor) -> Tensor:
    return -torch.log(-torch.log(u.clamp(min=1e-300)))


def generator_uniforms(shape: tuple[int, int, int], generator: torch.Generator) -> Uniforms:
    """Uniform numbers (B, L, S + 1) from a generator, kept, so that several samplers may ask for the same jump."""
    return functools.cache(lambda count: torch.rand(shape, generator=generator, dtype=torch.float64))
