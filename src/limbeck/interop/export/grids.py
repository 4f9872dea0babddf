"""Schedulers' own parameters, solved for the times that a student was trained at."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np


def shifts(sigmas: list[float], even: bool) -> Iterator[tuple[float, float | None]]:
    """(shift, terminal sigma) with which a flow scheduler may come to ``sigmas`` by their number alone."""
    K = len(sigmas)
    if abs(sigmas[0] - 1) > 1e-6:
        return
    yield 1.0, None
    if K == 1:
        return
    if even and sigmas[1] < 1:
        u = 1 - 1 / K
        yield sigmas[1] * (1 - u) / (u * (1 - sigmas[1])), None
    low, high = -7.0, 7.0  # ln shift; the second sigma grows with it
    for _ in range(60 if K > 2 else 0):
        middle = (low + high) / 2
        if _row(K, even, math.exp(middle), sigmas[-1])[1] < sigmas[1]:
            low = middle
        else:
            high = middle
    yield math.exp((low + high) / 2), sigmas[-1]


def _row(K: int, even: bool, shift: float, terminal: float) -> Any:
    least = shift / 1000 / (1 + (shift - 1) / 1000)
    u = np.linspace(1.0, 1 / K if even else least, K)
    rest = 1 - shift * u / (1 + (shift - 1) * u)
    return 1 - rest * (1 - terminal) / rest[-1]


def rho_of(high: float, second: float, low: float) -> tuple[int, float] | None:
    """(N, rho) with which two of N Karras levels are ``high`` and ``second``: the second is number floor(N / 2) of 0..N-1."""
    for N in (3, 2 * 2, 2 * 3, 2 * 5, 2 * 10, 2 * 50):
        share = (N // 2) / (N - 1)
        level = lambda rho, w=share: (high ** (1 / rho) * (1 - w) + w * low ** (1 / rho)) ** rho  # noqa: E731
        least, most = 1.0, 60.0
        if not level(most) <= second <= level(least):
            continue
        for _ in range(80):
            middle = (least + most) / 2
            least, most = (middle, most) if level(middle) > second else (least, middle)
        return N, (least + most) / 2
    return None
