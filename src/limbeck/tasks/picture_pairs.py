"""Pairs of a degraded and a real picture, for super-resolution: whole pictures of any size in memory, cut into crops in training."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.metrics import modcrop
from limbeck.networks.bicubic import resize
from limbeck.training import Keyed


class PicturePairs:
    """A source of crops: ``low`` and ``high`` hold a picture (3, h, w) and (3, s h, s w) each, of any sizes.

    RGB, uint8 or floating point in [0, 1]; crops are in [0, 1] and in ``dtype``. s, the ``scale``, is one for all pairs (1: the
    degraded picture has the size of the real one). A row is a pair; which part of it is seen is drawn with the iteration's noise
    (:meth:`crops`), so :meth:`fetch` has nothing to give.
    Raises LimbeckError for another range or dtype, sizes that do not fit, or no picture.
    """

    def __init__(self, low: Sequence[Tensor], high: Sequence[Tensor], dtype: torch.dtype = torch.float32):
        if len(low) != len(high) or not low:
            raise LimbeckError(f"{len(low)} degraded and {len(high)} real pictures: give as many of both, and at least one")
        self.scale = max(high[0].shape[-1] // max(low[0].shape[-1], 1), 1)
        for i, (a, b) in enumerate(zip(low, high, strict=True)):
            check_picture(a, f"degraded picture {i}")
            check_picture(b, f"real picture {i}")
            if tuple(b.shape[1:]) != tuple(self.scale * n for n in a.shape[1:]):
                raise LimbeckError(
                    f"pair {i} has {tuple(a.shape[1:])} and {tuple(b.shape[1:])} pixels, which is no factor of {self.scale} as in the "
                    "first pair: cut the real picture to a multiple of the scale (limbeck.metrics.modcrop) and degrade that"
                )
        self.low, self.high, self.size, self.dtype = list(low), list(high), len(low), dtype

    def fetch(self, rows: Tensor) -> tuple[Tensor | None, Cond | None]:
        """Nothing: crops need the noise of the iteration."""
        return None, None

    def pairs(self, scale: int) -> "PicturePairs":
        """Itself, whatever is asked for: these pairs are given."""
        return self

    def pair(self, row: int) -> tuple[Tensor, Tensor]:
        """One pair whole, as batches of one in [0, 1]: (1, 3, h, w), (1, 3, s h, s w)."""
        return self._unit(self.low[row])[None], self._unit(self.high[row])[None]

    def crops(self, rows: Tensor, noise: Keyed, patch: int) -> tuple[Tensor, Tensor]:
        """(degraded (B, 3, patch / s, patch / s), real (B, 3, patch, patch)) of these rows, one crop each, keyed by sample.

        The place is uniform over the pixels of the degraded picture; both crops are then mirrored left to right, top to bottom
        and at the diagonal, each in half of the cases.
        Raises LimbeckError where a picture is smaller than the patch, or the patch is no multiple of s.
        """
        small = patch // self.scale
        if patch < 1 or patch % self.scale:
            raise LimbeckError(f"patch={patch} must be a multiple of the scale {self.scale}")
        places = noise.uniform("crop", (2,)).tolist()
        turns = noise.randint("turn", 0, 8).tolist()
        crops: tuple[list[Tensor], list[Tensor]] = ([], [])
        for row, place, turn in zip(rows.tolist(), places, turns, strict=True):
            room = [n - small + 1 for n in self.low[row].shape[1:]]
            if min(room) < 1:
                raise LimbeckError(
                    f"patch={patch} is larger than real picture {row}, {tuple(self.high[row].shape[1:])}: take a smaller patch, or leave "
                    "that picture out"
                )
            top, left = (int(u * n) for u, n in zip(place, room, strict=True))
            for out, picture, s in zip(crops, (self.low[row], self.high[row]), (1, self.scale), strict=True):
                part = picture[:, s * top : s * (top + small), s * left : s * (left + small)]
                out.append(_turned(part, turn))
        low, high = (self._unit(torch.stack(part)).to(noise.device) for part in crops)
        return low, high

    def _unit(self, x: Tensor) -> Tensor:
        return x.to(self.dtype) / 255 if x.dtype == torch.uint8 else x.to(self.dtype)


class DegradedPictures:
    """Real pictures (3, H, W), uint8, as a source: their pairs are made for the scale that is asked for, once."""

    def __init__(self, pictures: Sequence[Tensor], dtype: torch.dtype = torch.float32):
        self.pictures, self.size, self.dtype = list(pictures), len(pictures), dtype
        self._made: dict[int, PicturePairs] = {}

    def fetch(self, rows: Tensor) -> tuple[Tensor | None, Cond | None]:
        """Nothing, as with `PicturePairs`."""
        return None, None

    def pairs(self, scale: int) -> PicturePairs:
        """The pictures with MATLAB's bicubic of them at 1 / ``scale``."""
        if scale not in self._made:
            self._made[scale] = degraded_pairs(self.pictures, scale, self.dtype)
        return self._made[scale]


def degraded_pairs(pictures: Sequence[Tensor], scale: int, dtype: torch.dtype = torch.float32) -> PicturePairs:
    """Pairs of RGB pictures (3, H, W), uint8, with MATLAB's bicubic of them at 1 / ``scale``, rounded to 8 bits as the field does.

    Sides that are no multiple of the scale are cut, and a warning says of how many pictures.
    """
    for i, picture in enumerate(pictures):
        if picture.dtype != torch.uint8:
            raise LimbeckError(f"picture {i} has dtype {picture.dtype}: the degradation is that of 8-bit levels, give uint8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = [modcrop(picture, scale) for picture in pictures]
    if cut := sum(a.shape != b.shape for a, b in zip(whole, pictures, strict=True)):
        warnings.warn(f"cut {cut} of {len(pictures)} pictures to multiples of the scale {scale}", stacklevel=2)
    return PicturePairs([resize(picture, 1 / scale) for picture in whole], whole, dtype)


def check_picture(x: Tensor, name: str = "picture") -> None:
    """Raise LimbeckError unless it is RGB (3, H, W), uint8 or floating point in [0, 1]."""
    if x.ndim != 3 or x.shape[0] != 3 or 0 in x.shape:
        hint = "repeat the grey channel: x.expand(3, -1, -1)" if x.ndim == 3 and x.shape[0] == 1 else "give RGB, channels first"
        raise LimbeckError(f"{name} has shape {tuple(x.shape)}, not (3, H, W); {hint}")
    if x.dtype == torch.uint8:
        return
    if not x.is_floating_point():
        raise LimbeckError(f"{name} has dtype {x.dtype}: give uint8, or floating point in [0, 1]")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise LimbeckError(
            f"the values of {name} go from {low:.4g} to {high:.4g}; super-resolution takes RGB in [0, 1]: of 8-bit levels x / 255, of "
            "[-1, 1] (x + 1) / 2"
        )


def _turned(x: Tensor, turn: int) -> Tensor:
    x = x.flip(-1) if turn & 1 else x
    x = x.flip(-2) if turn & 2 else x
    return x.mT if turn & 4 else x
