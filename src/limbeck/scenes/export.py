"""Scenes as files: splats as the PLY that viewers read, cameras as transforms.json, frames as a GIF or a strip.

The PLY is one fixed binary layout, so it is written and read here without a PLY library.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.scenes.cameras import Cameras, pinhole
from limbeck.scenes.harmonics import degree_of
from limbeck.scenes.splats import Splats, check_splats

_TYPES = {
    "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8", "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4",
}  # fmt: skip


def save_splats(path: Path | str, splats: Splats) -> None:
    """Write a 3DGS PLY: float32, little endian, normals 0, the higher harmonics channel by channel (all of red first).

    Opacities are logits, scales logarithms, quaternions wxyz as they are. Raises LimbeckError for numbers that are not finite.
    """
    check_splats(splats)
    N, more = splats.shN.shape[:2]
    columns = [
        splats.means,
        torch.zeros_like(splats.means),
        splats.sh0[:, 0],
        splats.shN.mT.reshape(N, 3 * more),
        splats.logits[:, None],
        splats.log_scales,
        splats.quaternions,
    ]
    table = torch.cat(columns, 1).detach().cpu().float().numpy().astype("<f4", copy=False)
    if not np.isfinite(table).all():
        raise LimbeckError(f"{path}: some numbers are beyond float32, which is what the file holds")
    names = ["x", "y", "z", "nx", "ny", "nz", *_names("f_dc", 3), *_names("f_rest", 3 * more), "opacity"]
    names += [*_names("scale", 3), *_names("rot", 4)]
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {N}",
        *(f"property float {n}" for n in names),
        "end_header",
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode() + b"\n" + table.tobytes())


def load_splats(path: Path | str) -> Splats:
    """The splats of a 3DGS PLY in float32, with or without normals and other properties, in any order.

    Raises LimbeckError where the file is damaged, of another format, without a property that is needed (it names them all), or
    holds numbers that are not finite.
    """
    table = _vertices(Path(path))
    have = table.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in have)
    wanted = ["x", "y", "z", *_names("f_dc", 3), *_names("f_rest", rest), "opacity", *_names("scale", 3), *_names("rot", 4)]
    missing = [name for name in wanted if name not in have]
    if missing:
        raise LimbeckError(f"{path} has no property {', '.join(missing)}: it is no PLY of Gaussian splats")
    if rest % 3:
        raise LimbeckError(f"{path} has {rest} properties f_rest: the three channels need equally many")
    try:
        degree_of(1 + rest // 3)
    except LimbeckError as error:
        raise LimbeckError(f"{path}: {error}") from error

    def read(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([table[name] for name in names], 1).astype(np.float32))

    sh0 = read(*_names("f_dc", 3))[:, None]
    shN = read(*_names("f_rest", rest)).reshape(-1, 3, rest // 3).mT.contiguous() if rest else torch.zeros(len(table), 0, 3)
    splats = Splats(read("x", "y", "z"), read(*_names("scale", 3)), read(*_names("rot", 4)), read("opacity")[:, 0], sh0, shN)
    try:
        check_splats(splats)
    except LimbeckError as error:
        raise LimbeckError(f"{path}: {error}") from error
    return splats


def _names(stem: str, count: int) -> list[str]:
    return [f"{stem}_{i}" for i in range(count)]


def _vertices(path: Path) -> np.ndarray:
    """The table of vertices, a structured array."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LimbeckError(f"{path} cannot be read ({error.strerror}): give the path of a PLY file") from error
    head, mark, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("latin-1").splitlines()]
    if not mark or lines[0] != ["ply"] or ["format", "binary_little_endian", "1.0"] not in lines:
        raise LimbeckError(f"{path} is no PLY in binary_little_endian 1.0, which is the format of splats")
    try:
        count, dtype = _layout(path, lines[1:])
    except (ValueError, IndexError) as error:
        raise LimbeckError(f"{path} has a damaged header ({error}): write it again") from error
    if len(body) < count * dtype.itemsize:
        raise LimbeckError(
            f"{path} is cut short: {count} vertices take {count * dtype.itemsize} bytes, and {len(body)} follow its header"
        )
    return np.frombuffer(body, dtype, count)


def _layout(path: Path, lines: list[list[str]]) -> tuple[int, np.dtype]:
    """How many vertices a header announces, and of what."""
    count, fields, element = 0, [], ""
    for words in lines:
        if words[:1] == ["element"]:
            if element == "" and words[1] != "vertex":
                raise LimbeckError(f"{path} begins with the element {words[1]!r}: splats are a PLY's first element, vertex")
            element = words[1]
            count = int(words[2]) if element == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            if words[1] not in _TYPES:
                raise LimbeckError(f"{path}: property {words[-1]} is a {words[1]}, but splats have numbers alone")
            fields.append((words[2], _TYPES[words[1]]))
    return count, np.dtype(fields)


def save_cameras(path: Path | str, cameras: Cameras, files: Sequence[str] | None = None) -> None:
    """Write transforms.json as NeRF programs read it: OpenGL camera-to-world matrices, z up, intrinsics per frame.

    ``files``: the image of each camera (default 0000.png, 0001.png and so on).
    """
    files = [f"{i:04}.png" for i in range(len(cameras))] if files is None else files
    if len(files) != len(cameras):
        raise LimbeckError(f"{len(files)} files for {len(cameras)} cameras: give one each")
    frames = [
        {"file_path": file, "fl_x": f[0], "fl_y": f[1], "cx": c[0], "cy": c[1], "transform_matrix": matrix}
        for file, f, c, matrix in zip(files, cameras.focal.tolist(), cameras.centre.tolist(), cameras.c2w.tolist(), strict=True)
    ]
    angle = 2 * math.atan(cameras.width / (2 * float(cameras.focal[0, 0])))
    described = {"camera_angle_x": angle, "w": cameras.width, "h": cameras.height, "frames": frames}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described, indent=1))


def load_cameras(path: Path | str, width: int | None = None, height: int | None = None) -> tuple[Cameras, list[str]]:
    """(cameras in float32, their files) of a transforms.json; ``width`` and ``height`` where it names none (NeRF-synthetic).

    Raises LimbeckError where something is missing, damaged, or no rigid motion.
    """
    try:
        told = json.loads(Path(path).read_text())
        frames = told["frames"]
        c2w = torch.tensor([frame["transform_matrix"] for frame in frames])
        files = [str(frame["file_path"]) for frame in frames]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LimbeckError(
            f"{path} is no transforms.json ({error!r}): it needs frames with transform_matrix and file_path"
        ) from error
    width, height = width or int(told.get("w", 0)), height or int(told.get("h", 0))
    if not (width and height):
        raise LimbeckError(f"{path} names no w and h: give width and height, the size of its images")
    if "fl_x" in told or all("fl_x" in frame for frame in frames):
        merged: list[dict[str, Any]] = [{"cx": width / 2, "cy": height / 2, **told, **frame} for frame in frames]
        focal = torch.tensor([[m["fl_x"], m.get("fl_y", m["fl_x"])] for m in merged])
        centre = torch.tensor([[m["cx"], m["cy"]] for m in merged])
        return Cameras(c2w, focal, centre, width, height), files
    if "camera_angle_x" not in told:
        raise LimbeckError(f"{path} has neither fl_x nor camera_angle_x: the focal length is unknown")
    fovy = 2 * math.atan(height / width * math.tan(float(told["camera_angle_x"]) / 2))
    return pinhole(c2w, math.degrees(fovy), width, height), files


def save_strip(path: Path | str, frames: Tensor) -> None:
    """Write frames (N, 3, H, W) in [-1, 1] side by side as one PNG; values beyond are clamped."""
    from PIL import Image

    levels = _levels(frames)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(levels), 1)).save(path, format="PNG", optimize=True)


def save_gif(path: Path | str, frames: Tensor, seconds: float = 0.08) -> None:
    """Write frames (N, 3, H, W) in [-1, 1] as an endless GIF, ``seconds`` per frame (it counts in hundredths)."""
    from PIL import Image

    first, *rest = [Image.fromarray(level) for level in _levels(frames)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0)


def _levels(frames: Tensor) -> np.ndarray:
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise LimbeckError(f"frames of shape {tuple(frames.shape)}: expected (N, 3, H, W) with N at least 1")
    levels = (frames.detach().cpu().double().clamp(-1, 1) + 1) * 127.5
    return levels.nan_to_num(0).round().to(torch.uint8).movedim(1, -1).numpy()
