"""Samples as pictures: grids at one pixel per pixel, and several grids side by side for a README."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

if TYPE_CHECKING:
    from PIL import Image

GAP = 1
GAP_LEVEL = 128  # seen on white, on black, and between black digits


def image_grid(images: Tensor, columns: int) -> "Image.Image":
    """The images row by row in a grid of ``columns``, 1 pixel of grey between them, none around.

    ``images`` (N, C, H, W) in [-1, 1], C = 1 (grayscale) or 3 (RGB); values beyond are clamped. What is not a number
    and the places after the last image are drawn as the gap.

    Raises:
        LimbeckError: another shape, no image, or ``columns`` < 1.
    """
    from PIL import Image

    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise LimbeckError(f"images of shape {tuple(images.shape)}: a grid takes (N, C, H, W) with N > 0 and C = 1 or 3")
    if columns < 1:
        raise LimbeckError(f"columns={columns}: a grid needs at least 1")
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    levels = (images.detach().cpu().double().clamp(-1, 1) + 1) * 127.5
    levels = levels.nan_to_num(GAP_LEVEL).round().to(torch.uint8).movedim(1, -1)
    canvas = torch.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), GAP_LEVEL, dtype=torch.uint8)
    for index, image in enumerate(levels):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas.squeeze(-1).numpy())


def save_grid(path: Path | str, images: Tensor, columns: int) -> None:
    """Write ``image_grid(images, columns)`` as a PNG; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns).save(path, format="PNG", optimize=True)


def side_by_side(pictures: Mapping[str, "Image.Image"]) -> "Image.Image":
    """One picture on white: each of ``pictures`` under its title, tiny ones enlarged by a whole factor (pixels stay squares).

    Raises:
        LimbeckError: no pictures.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not pictures:
        raise LimbeckError("side_by_side needs at least one picture")
    factor = enlargement(max(picture.width for picture in pictures.values()), 360)
    panels = [
        picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        for picture in pictures.values()
    ]
    margin = 16

    def fits(size: int) -> bool:
        font = ImageFont.load_default(size)
        return all(font.getlength(title) <= panel.width for title, panel in zip(pictures, panels, strict=True))

    # one size of type for all titles, the largest at which every title fits over its picture
    size = next((size for size in range(20, 1, -1) if fits(size)), 1)
    font = ImageFont.load_default(size)
    head = margin + round(1.6 * size)
    width = sum(panel.width for panel in panels) + margin * (len(panels) + 1)
    canvas = Image.new("RGB", (width, head + max(panel.height for panel in panels) + margin), "white")
    draw, left = ImageDraw.Draw(canvas), margin
    for title, panel in zip(pictures, panels, strict=True):
        draw.text((left, margin), title, fill=(28, 27, 25), font=font)
        canvas.paste(panel, (left, head))
        left += panel.width + margin
    return canvas


def enlargement(width: int, least: int) -> int:
    """The whole factor that brings a picture of ``width`` pixels to about ``least``, 1 for those that have them."""
    return max(1, round(least / width))
