"""Noise keyed by sample, and the order in which samples are drawn.

A random number here is a pure function of (seed, step, stream, call, global sample id), computed by a
counter-based generator, so that a batch split into micro-batches or over ranks draws the same numbers bit for
bit, in any order, and a resumed run has no generator state to restore.

Words and uniform numbers are the same everywhere; normal numbers are so on one kind of processor and version of
numpy (its logarithm and cosine may differ in the last bit, and its Generator.standard_normal is not frozen).

Philox: J. K. Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from math import log2, pi, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import LimbeckError

Words = NDArray[np.uint64]

# Up to so many 64-bit words per sample Philox4x32 on arrays is faster than a loop over numpy's Philox4x64.
SMALL = 256

_MULTIPLIERS = np.array([[[0xD2511F53]], [[0xCD9E8D57]]], dtype=np.uint64)
_WEYL = np.array([[[0x9E3779B9]], [[0xBB67AE85]]], dtype=np.uint64)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = 10) -> Words:
    """Philox4x32 of counters (4, ...) under a key of two words; all words have 32 bits, held in uint64."""
    # A round multiplies words 0 and 2 (32 x 32 -> 64 bits) and mixes the products' halves into words 1 and 3.
    shape = counter.shape
    counter = counter.reshape(4, 1, -1)
    even, odd = counter[0::2, 0][:, None], counter[1::2, 0][:, None]
    k = np.array(key, dtype=np.uint64).reshape(2, 1, 1)
    for _ in range(rounds):
        product = (even * _MULTIPLIERS)[::-1]
        even, odd = (product >> _HALF) ^ odd ^ k, product & _LOW
        k = (k + _WEYL) & _LOW
    return np.stack([even[0], odd[0], even[1], odd[1]]).reshape(shape)


def _digest(bits: int, kind: str, seed: int, step: int, call: int, stream: str) -> int:
    text = f"{kind} {seed:d} {step:d} {call:d} {stream}"
    return int.from_bytes(blake2b(text.encode(), digest_size=bits // 8).digest(), "little")


def _small(key: int, ids: Words, count: int) -> Words:
    """(B, count) words of 64 bits from Philox4x32-10 with counter (block, id low, id high, 0)."""
    blocks = -(-count // 2)
    counter = np.zeros((4, len(ids), blocks), dtype=np.uint64)
    counter[0] = np.arange(blocks, dtype=np.uint64)
    counter[1], counter[2] = (ids & _LOW)[:, None], (ids >> _HALF)[:, None]
    out = philox4x32(counter, (key & 0xFFFFFFFF, key >> 32))
    return np.concatenate([out[0] << _HALF | out[1], out[2] << _HALF | out[3]], axis=1)[:, :count]


def _generators(key: int, ids: Words) -> Iterator[np.random.Generator]:
    """Philox4x64-10, one generator per sample: one key, the id in the counter's highest word."""
    for sample in ids:
        counter = np.array([0, 0, 0, sample], dtype=np.uint64)
        yield np.random.Generator(np.random.Philox(key=key, counter=counter))


def _large(key: int, ids: Words, count: int) -> Words:
    """(B, count) words of 64 bits from Philox4x64-10."""
    words = np.empty((len(ids), count), dtype=np.uint64)
    for row, generator in zip(words, _generators(key, ids), strict=True):
        row[:] = generator.bit_generator.random_raw(count)
    return words


def _box_muller(words: Words) -> NDArray[np.float64]:
    """(B, 2 n) words to (B, 2 n) standard normal numbers."""
    n = words.shape[1] // 2
    u = _unit(words)
    radius, angle = (
        np.sqrt(-2 * np.log(1 - u[:, :n])),
        2 * pi * u[:, n:],
    )  # 1 - u > 0: the logarithm is finite
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _unit(words: Words, precision: int = 53) -> NDArray[np.float64]:
    return (words >> np.uint64(64 - precision)).astype(np.float64) * 2.0**-precision


@dataclass(frozen=True, eq=False)
class Keyed:
    """Random numbers of one step for the samples `index`, each row a function of its own id alone.

    Draw one shape per stream and call: two shapes of one stream share numbers. `call` tells repeated draws
    from one stream apart.
    The same numbers come in every dtype, rounded (normal) or truncated (uniform, so that 1 is never reached).

    Args:
        seed: the run's seed.
        step: the iteration.
        index: int64 (B,), global sample ids.
        device: where the draws are placed; they are computed on the CPU.
    """

    seed: int
    step: int
    index: Tensor
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.index.dtype != torch.int64 or self.index.ndim != 1:
            got = f"{self.index.dtype} of shape {tuple(self.index.shape)}"
            raise LimbeckError(f"sample ids are an int64 tensor of shape (B,), got {got}: pass torch.arange(...)")

    def normal(self, stream: str, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32, *, call: int = 0) -> Tensor:
        """Standard normal numbers, (B, *shape)."""
        count = prod(shape)
        if count <= SMALL:
            z = _box_muller(self._words("normal", stream, call, count + count % 2))[:, :count]
            return self._place(z, shape, dtype)
        out = torch.empty(len(self.index), count, dtype=dtype)
        key = _digest(128, "normal", self.seed, self.step, call, stream)
        for row, generator in zip(out, _generators(key, self._ids()), strict=True):
            row.copy_(torch.from_numpy(generator.standard_normal(count)))
        return out.reshape(len(out), *shape).to(self.device)

    def uniform(self, stream: str, shape: Sequence[int] = (), dtype: torch.dtype = torch.float64, *, call: int = 0) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape): multiples of 2^-p for a dtype of precision p."""
        precision = min(53, 1 - round(log2(torch.finfo(dtype).eps)))
        return self._place(_unit(self._words("uniform", stream, call, prod(shape)), precision), shape, dtype)

    def randint(self, stream: str, low: int, high: int, shape: Sequence[int] = (), *, call: int = 0) -> Tensor:
        """Uniform integers in [low, high), int64 (B, *shape); the bias is below (high - low) / 2^64."""
        words = self._words("randint", stream, call, prod(shape))
        offset = (words % np.uint64(_width(low, high))).astype(np.int64)
        return self._place(offset + np.int64(low), shape, torch.int64)

    def shared_uniform(self, stream: str, *, call: int = 0) -> float:
        """One number in [0, 1) for the whole batch, the same on all ranks."""
        return (_digest(64, "shared_uniform", self.seed, self.step, call, stream) >> 11) * 2.0**-53

    def shared_randint(self, stream: str, low: int, high: int, *, call: int = 0) -> int:
        """One integer in [low, high) for the whole batch, the same on all ranks."""
        word = _digest(128, "shared_randint", self.seed, self.step, call, stream)
        return low + word % _width(low, high)

    def _words(self, kind: str, stream: str, call: int, count: int) -> Words:
        draw, bits = (_small, 64) if count <= SMALL else (_large, 128)
        return draw(_digest(bits, kind, self.seed, self.step, call, stream), self._ids(), count)

    def _ids(self) -> Words:
        return self.index.cpu().numpy().view(np.uint64)

    def _place(self, values: NDArray, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        values = np.ascontiguousarray(values)
        return torch.from_numpy(values).to(dtype).reshape(len(values), *shape).to(self.device)


def _width(low: int, high: int) -> int:
    if not -(2**63) <= low < high <= 2**63:
        raise LimbeckError(f"no 64-bit integer lies in [{low}, {high}): choose low < high")
    return min(high - low, 2**64 - 1)


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    # Sorted raw words, not Generator.permutation: numpy promises only the raw stream over its versions.
    key = _digest(128, "permutation", seed, epoch, 0, "")
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")


def sample_order(seed: int, start: int, count: int, size: int) -> Tensor:
    """The places start .. start + count - 1 of an endless sequence of shuffles of a set of `size` samples.

    Place n holds permutation(seed, n // size)[n % size]: the sampler's whole state is one integer.

    Returns:
        int64 (count,), in [0, size).
    """
    if size < 1 or start < 0 or count < 0:
        raise LimbeckError(
            f"cannot draw {count} samples from place {start} of a set of {size}: "
            "a set holds at least one sample, and places and counts are not negative"
        )
    end = start + count
    parts = [np.empty(0, np.int64)]
    for epoch in range(start // size, -(-end // size)):
        parts.append(_permutation(seed, epoch, size)[max(start - epoch * size, 0) : end - epoch * size])
    return torch.from_numpy(np.concatenate(parts))
