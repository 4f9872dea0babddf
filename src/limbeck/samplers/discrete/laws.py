"""Laws of short sequences that are known exactly: a Markov chain and the countdown."""

import itertools

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError


def sequences(symbols: int, length: int) -> Tensor:
    """All sequences (symbols^length, length), int64, the last place running fastest."""
    if symbols**length > 20_000:
        raise LimbeckError(f"{symbols}^{length} sequences are too many to enumerate; choose at most 20,000")
    return torch.tensor(list(itertools.product(range(symbols), repeat=length)))


def cyclic_chain(vocab: int, stick: float = 0.85) -> Tensor:
    """Transitions (V, V) that go from a to a + 1 mod V with probability ``stick``, else anywhere, equally."""
    other = (1 - stick) / (vocab - 1)
    return other + (stick - other) * torch.eye(vocab, dtype=torch.float64).roll(1, 1)


def chain_law(x: Tensor, initial: Tensor, transitions: Tensor) -> Tensor:
    """Probabilities (n,) of sequences x (n, L) under a Markov chain."""
    return initial[x[:, 0]] * transitions[x[:, :-1], x[:, 1:]].prod(-1)


def countdown_chain(vocab: int, slip: float = 1e-3) -> Tensor:
    """Transitions (V, V) of the countdown: a to a - 1, 0 to anything. With probability ``slip`` anything follows anything, so
    that no sequence is impossible."""
    steps = torch.eye(vocab, dtype=torch.float64).roll(-1, 1)
    steps[0] = 1 / vocab
    return (1 - slip) * steps + slip / vocab


class ChainPosterior(nn.Module):
    """p(x_i | the places of x (B, L) that are not MASK) of a Markov chain: (B, L, V), by forward-backward; MASK is symbol V.

    A network of probabilities for :class:`CleanPredictor`, exact at any length.
    """

    def __init__(self, initial: Tensor, transitions: Tensor):
        super().__init__()
        self.initial, self.transitions = initial, transitions

    def forward(self, x: Tensor, total: Tensor) -> Tensor:
        symbols = torch.arange(len(self.initial))
        seen = ((x[..., None] == symbols) | (x == len(symbols))[..., None]).double()  # likelihood of each clean symbol
        forward, backward = [_normal(self.initial * seen[:, 0])], [torch.ones_like(seen[:, 0])]
        for i in range(1, x.shape[1]):
            forward.append(_normal(forward[-1] @ self.transitions * seen[:, i]))
            backward.append(_normal((backward[-1] * seen[:, -i]) @ self.transitions.T))
        return _normal(torch.stack(forward, 1) * torch.stack(backward[::-1], 1))


def _normal(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)


def unigram_entropy(x: Tensor) -> float:
    """Entropy in nats of the symbols of all sequences (B, L) together."""
    p = torch.bincount(x.flatten()).double() / x.numel()
    return float(torch.special.entr(p).sum())


def countdown(u: Tensor, vocab: int) -> Tensor:
    """Sequences (B, L) from uniform numbers u (B, L): a random start, then one less at every place; after 0 anew."""
    drawn = (u * vocab).long()
    columns = [drawn[:, 0]]
    for i in range(1, u.shape[1]):
        columns.append(torch.where(columns[-1] == 0, drawn[:, i], columns[-1] - 1))
    return torch.stack(columns, 1)


def countdown_errors(x: Tensor) -> Tensor:
    """The share of places of each sequence (B, L) that do not follow from the one before: (B,)."""
    before, after = x[:, :-1], x[:, 1:]
    return ((before > 0) & (after != before - 1)).double().mean(1)
