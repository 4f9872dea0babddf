"""Attention with an exchangeable processor."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks.taps import unknown_layer

Processor = Callable[["Attention", Tensor, Tensor], Tensor]


def attended(attention: "Attention", x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
    """Z = softmax(Q K^T / sqrt(d)) V, the heads merged: what goes into the output projection, (B, L, C).

    x: (B, L, C), context: (B, M, C'); mask: (B, M) bool, True where a token of the context counts (None: all do).
    """
    q, k, v = attention.query(x), attention.key(context), attention.value(context)
    seen = None if mask is None else mask[:, None, None]
    return attention.merge(
        F.scaled_dot_product_attention(attention.split(q), attention.split(k), attention.split(v), attn_mask=seen)
    )


def attend(attention: "Attention", x: Tensor, context: Tensor) -> Tensor:
    """Z through the output projection: the processor of every new Attention. x: (B, L, C), context: (B, M, C') -> (B, L, C)."""
    return attention.output(attended(attention, x, context))


def masked(mask: Tensor) -> Processor:
    """The processor that attends to a part of the context alone: mask (B, M) bool, some True in every row."""
    return lambda attention, x, context: attention.output(attended(attention, x, context, mask))


class Attention(nn.Module):
    """Multi-head attention of tokens (B, L, channels) on themselves, or on a context (B, M, context).

    What happens between input and output is up to `processor(attention, x, context) -> Tensor like x`, a
    function or a module (then its parameters belong to the network); see `exchange_processors`.
    """

    def __init__(self, channels: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise LimbeckError(f"{channels} channels cannot be split into {heads} heads: choose a divisor of {channels}")
        self.channels, self.heads, self.cross = channels, heads, context is not None
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(context or channels, channels, bias=False)  # the softmax would not see a bias
        self.value = nn.Linear(context or channels, channels)
        self.output = nn.Linear(channels, channels)
        self.processor: Any = attend

    def split(self, x: Tensor) -> Tensor:
        """(B, L, channels) -> (B, heads, L, channels / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """(B, heads, L, channels / heads) -> (B, L, channels)"""
        return x.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if self.cross == (context is None):
            raise LimbeckError(f"this attention {'needs a context' if self.cross else 'takes no context'}")
        return self.processor(self, x, x if context is None else context)

    def exchange(self, processor: Processor) -> Processor:
        """Install `processor` and return the previous one."""
        previous = self.processor
        del self.processor  # a module cannot be overwritten by a function in place
        self.processor = processor
        return previous


def attentions(module: nn.Module) -> dict[str, Attention]:
    """The Attention modules inside `module` by dotted name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, Attention)}


@contextmanager
def exchange_processors(module: nn.Module, processors: Mapping[str, Processor]) -> Iterator[None]:
    """Within this context the named Attention modules inside `module` use other processors than their own.

    Raises LimbeckError for a name that is not an Attention of `module`, with the nearest ones.
    """
    table = attentions(module)
    for name in processors:
        if name not in table:
            raise unknown_layer("attention", name, table)
    previous: dict[str, Processor] = {}
    try:
        for name, processor in processors.items():
            previous[name] = table[name].exchange(processor)
        yield
    finally:
        for name, processor in previous.items():
            table[name].exchange(processor)
