"""Large pictures in tiles: a network sees overlapping parts of one size, and each pixel of the answer comes from one of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

SMALLEST = 64  # sides of tiles below which overlap leaves little of them


class Part(NamedTuple):
    """Along one side: a tile's first pixel, and the pixels [begin, end) of the picture that are taken from it."""

    start: int
    begin: int
    end: int


def tile_parts(n: int, count: int, overlap: int, align: int) -> tuple[int, list[Part]]:
    """(side of all tiles, their parts) along a side of n pixels: ``count`` parts that share it out, each with its surroundings.

    The tiles' side is a multiple of ``align``. A part at a border is seen with ``overlap`` pixels beyond it, less at most
    2 align (rounding); an inner one so on both sides, its tile starting at a multiple of ``align``. Two tiles are the corners of
    adaptive cropping (IMDN, arXiv 1909.11856, section 3.3). Raises LimbeckError where no such tiles fit.
    """
    if not 1 <= count <= n:
        raise LimbeckError(f"{count} tiles along {n} pixels: give from 1 to {n}")
    side = n // count + overlap * min(count - 1, 2)
    side -= side % align
    if side > n or (count == 1 and side != n):
        raise LimbeckError(
            f"{count} tiles of side {side} (overlap {overlap}, a multiple of {align}) do not fit a side of {n} pixels: give fewer tiles, "
            "less overlap, or pad the picture"
        )
    parts = []
    for i in range(count):
        begin, end = i * n // count, (i + 1) * n // count
        if i in (0, count - 1):
            start = 0 if i == 0 else n - side
        else:
            start = min(max(begin - (side - (end - begin)) // 2, 0), n - side)
            start -= start % align
        parts.append(Part(start, begin, end))
    if any(not p.start <= p.begin <= p.end <= p.start + side for p in parts):
        raise LimbeckError(
            f"overlap={overlap} is too little for tiles that are multiples of {align}: give at least {2 * align}"
        )
    return side, parts


def tiled(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    grid: tuple[int, int] = (2, 2),
    overlap: int = 32,
    align: int = 4,
    chunk: int = 4,
) -> Tensor:
    """network(x) for pictures x (B, C, H, W), computed on ``grid`` (rows, columns) overlapping tiles, ``chunk`` of them at a time.

    Every pixel is written once, from the tile that has most around it. The answer of a network whose receptive field fits into the
    overlap is that for the whole picture; one that pools over the picture (attention) pools over the tile instead.
    The network may enlarge by a whole factor. Raises LimbeckError where the tiles do not fit, or it answers with another size.
    """
    (high, rows), (wide, columns) = (tile_parts(x.shape[-2 + a], grid[a], overlap, align) for a in (0, 1))
    places = [(row, column) for row in rows for column in columns]
    out: Tensor | None = None
    factor = 1
    for k in range(0, len(places), chunk):
        some = places[k : k + chunk]
        tiles = torch.cat([x[..., r.start : r.start + high, c.start : c.start + wide] for r, c in some])
        answers = network(tiles)
        if out is None:
            factor = answers.shape[-2] // high
            out = answers.new_empty(len(x), answers.shape[1], factor * x.shape[-2], factor * x.shape[-1])
        if tuple(answers.shape[-2:]) != (factor * high, factor * wide):
            raise LimbeckError(
                f"the network made {tuple(answers.shape[-2:])} of a tile ({high}, {wide}); it must enlarge both sides by one whole factor"
            )
        for (r, c), tile in zip(some, answers.split(len(x)), strict=True):
            inner = tile[..., _scaled(r, factor, r.start), _scaled(c, factor, c.start)]
            out[..., _scaled(r, factor), _scaled(c, factor)] = inner
    assert out is not None
    return out


def _scaled(part: Part, factor: int, origin: int = 0) -> slice:
    return slice(factor * (part.begin - origin), factor * (part.end - origin))


def cropped_adaptively(network: Callable[[Tensor], Tensor], x: Tensor, overlap: int = 32, align: int = 4) -> Tensor:
    """network(x) where it takes sides that are multiples of ``align`` alone: whole if they are, else four overlapping corners.

    Where a corner would be smaller than 64 pixels, the picture is extended at its lower and right border instead, by repeating
    the border, and cut again. The network keeps the size or enlarges it by a whole factor.
    """
    h, w = x.shape[-2:]
    if h % align == 0 and w % align == 0:
        return network(x)
    sides = [n // 2 + overlap - (n // 2 + overlap) % align for n in (h, w)]
    if all(SMALLEST <= side <= n for side, n in zip(sides, (h, w), strict=True)):
        return tiled(network, x, (2, 2), overlap, align)
    padded = torch.nn.functional.pad(x, (0, -w % align, 0, -h % align), mode="replicate")
    y = network(padded)
    factor = y.shape[-2] // padded.shape[-2]
    return y[..., : factor * h, : factor * w]
