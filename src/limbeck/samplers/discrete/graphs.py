"""Graphs of discrete diffusion: which symbol may turn into which, at what rate, on the way to noise and back."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class Uniform:
    """Every symbol turns into every other at rate 1/V; noise is uniform over the V symbols."""

    vocab: int

    def __post_init__(self):
        if self.vocab < 2:
            raise LimbeckError(f"vocab={self.vocab}: a graph needs at least two symbols")

    @property
    def symbols(self) -> int:
        return self.vocab

    @property
    def mask(self) -> int | None:
        return None

    def start(self, u: Tensor) -> Tensor:
        """x_T (B, L), int64, from uniform numbers u (B, L) in [0, 1)."""
        return (u * self.vocab).long()

    def other(self, x: Tensor, u: Tensor) -> Tensor:
        """A uniformly random other symbol at every place, from uniform numbers u (B, L)."""
        return (x + 1 + (u * (self.vocab - 1)).long()) % self.vocab

    def jumps(self, x: Tensor) -> Tensor:
        """Rates Q(y, x_i) of the jumps y -> x_i on the way to noise, which the reverse way undoes: (B, L, S), 0 at y = x_i."""
        return (1 - F.one_hot(x, self.symbols).double()) / self.vocab

    def stagger(self, s: Tensor, x: Tensor, d: Tensor) -> Tensor:
        """exp(-d Q) applied to the ratios s (B, L, S): those of the time at which the total noise is d less."""
        return s * d.exp() - d.expm1() / self.vocab * s.sum(-1, keepdim=True)

    def arrive(self, x: Tensor, d: Tensor) -> Tensor:
        """P(x_i after noise d | y before it), (B, L, S) over y."""
        return F.one_hot(x, self.symbols) * (-d).exp() - (-d).expm1() / self.vocab

    def transition(self, d: Tensor) -> Tensor:
        """P(b after noise d | a before it) as a matrix (S, S), row = from."""
        return torch.eye(self.vocab, dtype=torch.float64) * (-d).exp() - (-d).expm1() / self.vocab


@dataclass(frozen=True)
class Absorbing:
    """Every symbol turns into MASK at rate 1 and stays there. ``mask`` is one of the ``symbols`` (None: the last)."""

    symbols: int
    mask: int | None = None

    def __post_init__(self):
        if self.symbols < 2:
            raise LimbeckError(f"symbols={self.symbols}: an absorbing graph needs MASK and at least one more")
        if self.mask is None:
            object.__setattr__(self, "mask", self.symbols - 1)
        if not 0 <= self.at < self.symbols:
            raise LimbeckError(
                f"mask={self.mask} lies outside the vocabulary of {self.symbols} symbols (MASK included); "
                f"give an index in [0, {self.symbols - 1}]"
            )

    @property
    def at(self) -> int:
        """The index of MASK."""
        return -1 if self.mask is None else self.mask

    @property
    def vocab(self) -> int:
        return self.symbols - 1

    def start(self, u: Tensor) -> Tensor:
        """x_T (B, L): MASK everywhere; u (B, L) gives the shape alone."""
        return torch.full(u.shape, self.at, dtype=torch.int64, device=u.device)

    def other(self, x: Tensor, u: Tensor) -> Tensor:
        """A uniformly random symbol that is neither x_i nor MASK, from uniform numbers u (B, L)."""
        masked = x == self.at
        real = x - (x > self.at).long()  # numbered without MASK
        count = torch.where(masked, self.vocab, self.vocab - 1)
        drawn = (u * count).long()
        y = torch.where(masked, drawn, (real + 1 + drawn) % self.vocab)
        return y + (y >= self.at).long()

    def jumps(self, x: Tensor) -> Tensor:
        """Rates Q(y, x_i) of the jumps y -> x_i on the way to noise: 1 from every symbol to MASK, (B, L, S), 0 at y = x_i."""
        return (x == self.at)[..., None] * (1 - F.one_hot(x, self.symbols).double())

    def stagger(self, s: Tensor, x: Tensor, d: Tensor) -> Tensor:
        """exp(-d Q) applied to the ratios s (B, L, S): those of the time at which the total noise is d less."""
        column = F.one_hot(torch.tensor(self.at, device=s.device), self.symbols)
        return s * d.exp() - d.expm1() * s.sum(-1, keepdim=True) * column

    def arrive(self, x: Tensor, d: Tensor) -> Tensor:
        """P(x_i after noise d | y before it), (B, L, S) over y."""
        return F.one_hot(x, self.symbols) * (-d).exp() - (-d).expm1() * (x == self.at)[..., None]

    def transition(self, d: Tensor) -> Tensor:
        """P(b after noise d | a before it) as a matrix (S, S), row = from."""
        column = F.one_hot(torch.tensor(self.at), self.symbols)
        return torch.eye(self.symbols, dtype=torch.float64) * (-d).exp() - (-d).expm1() * column


Graph = Uniform | Absorbing


def perturbed(graph: Graph, x: Tensor, share: float, order: Tensor, u: Tensor) -> Tensor:
    """x (B, L) with ceil(share L) places of every sequence changed to another symbol, never MASK.

    The places are those where ``order`` (B, L) is smallest, the symbols come from u (B, L), both uniform in [0, 1).
    """
    if not 0 <= share <= 1:
        raise LimbeckError(f"perturb={share:g} is no share of the places: give a number in [0, 1], e.g. 0.05")
    count = -int(-share * x.shape[-1] // 1)
    chosen = torch.zeros_like(x, dtype=torch.bool).scatter_(1, order.argsort(1)[:, :count], True)
    return torch.where(chosen, graph.other(x, u), x)
