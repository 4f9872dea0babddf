"""Splats inside a page, to be turned by whoever reads it: packed data, a camera, and one script that loads nothing.

The script (``templates/splats.js``, ``webgl.js``, ``viewer.js``) projects in double precision with the formulas of
:mod:`limbeck.scenes.splatting` and paints with WebGL2, or on the CPU where there is none.
"""

import base64
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.report.pictures import Picture
from limbeck.scenes import Splats, Viewpoint, check_splats
from limbeck.scenes.compositing import LEAST
from limbeck.training.plain import read_plain

MOST_SPLATS = 50_000
OPAQUE = 16.0  # logits beyond it change no alpha by more than 2e-7
LEVELS = 2**16 - 1
SCRIPTS = ("splats.js", "webgl.js", "viewer.js")


@dataclass(frozen=True)
class Viewer:
    """What the template needs: ``told`` a sentence about the splats, ``scene`` the data of the script, ``still`` a picture that
    stands there where no script runs.
    """

    told: str
    scene: dict[str, Any]
    still: Picture | None = None


def viewer(splats: Splats, viewpoint: Viewpoint, still: Picture | None = None, most: int = MOST_SPLATS) -> Viewer:
    """The ``most`` most opaque of the splats that can be seen at all, packed for a page.

    Raises:
        LimbeckError: no splat has an opacity of 1/255, or degenerate ones (:func:`limbeck.scenes.check_splats`).
    """
    check_splats(splats)
    opacity = torch.sigmoid(splats.logits.detach().double())
    visible = int((opacity >= LEAST).sum())
    if not visible:
        raise LimbeckError(f"none of {len(opacity)} splats has an opacity of 1/255 or more: there is nothing to show")
    kept = opacity.argsort(descending=True, stable=True)[: min(visible, most)].sort().values
    packed = pack(Splats(*(x.detach().cpu()[kept.cpu()] for x in splats)))
    size = len(packed["data"]) / 1e6
    which = f"{len(kept):,} splats" if len(kept) == visible else f"the {len(kept):,} most opaque of {visible:,} splats"
    return Viewer(f"{which}, {size:.{1 if size >= 1 else 2}f} MB of this page", {**packed, **asdict(viewpoint)}, still)


def pack(splats: Splats) -> dict[str, Any]:
    """``data``: base64 of the means (N, 3) in float32, then a row of 16-bit codes per splat: log scales (3), unit quaternion (4),
    logit, harmonics (K x 3); a code of column k stands for low[k] + step[k] code. 34 bytes a splat, 124 with degree 3.
    """
    columns = _columns(splats)
    low, high = columns.amin(0), columns.amax(0)
    step = (high - low) / LEVELS
    codes = torch.where(step > 0, (columns - low) / step, 0).round()
    data = splats.means.float().numpy().astype("<f4").tobytes() + codes.numpy().astype("<u2").tobytes()
    return {"count": len(columns), "low": low.tolist(), "step": step.tolist(), "data": base64.b64encode(data).decode()}


def _columns(splats: Splats) -> Tensor:
    s = Splats(*(x.double() for x in splats))
    logits = s.logits.clamp(max=OPAQUE)[:, None]
    return torch.cat([s.log_scales, F.normalize(s.quaternions, dim=1), logits, s.harmonics.flatten(1)], 1)


def read_viewpoint(path: Path) -> Viewpoint:
    """A ``scene.json``; what it does not name, or all where it is missing, is as in :class:`limbeck.scenes.Viewpoint`.

    Raises:
        LimbeckError: a damaged file, other names, or values beyond what is allowed.
    """
    try:
        _, content = read_plain(path)
    except FileNotFoundError:
        return Viewpoint()
    names = Viewpoint.__dataclass_fields__
    if not isinstance(content, dict) or not content.keys() <= names.keys():
        raise LimbeckError(f"{path} must hold no other names than {', '.join(names)}: repair or remove it")
    try:
        values: dict[str, Any] = {name: float(value) for name, value in content.items() if name != "background"}
        if "background" in content:
            red, green, blue = content["background"]
            values["background"] = (float(red), float(green), float(blue))
    except (TypeError, ValueError) as error:
        raise LimbeckError(f"{path} must hold numbers, three for the background ({error}): repair or remove it") from None
    try:
        return Viewpoint(**values)
    except LimbeckError as error:
        raise LimbeckError(f"{path}: {error}") from None


@cache
def script() -> str:
    """What makes each ``figure.viewer`` of a page live, to stand in one script element."""
    parts = [(files("limbeck.report") / "templates" / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def source_hash(source: str) -> str:
    """What a content security policy names an inline script by."""
    return base64.b64encode(sha256(source.encode()).digest()).decode()
