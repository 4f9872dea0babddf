"""Pictures from disk: a folder of image files, or a file of tensors, as images (N, C, H, W) in [-1, 1] and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
TENSORS = (".npy", ".npz", ".pt", ".safetensors")


@dataclass(frozen=True)
class Pictures:
    """``images`` (N, C, H, W), float32 in [-1, 1]; ``labels`` (N,), int64, with the names of the ``classes``, or None;
    ``files`` where they are a folder's."""

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def load_pictures(path: Path | str, size: int | tuple[int, int] | None = None) -> Pictures:
    """A folder of pictures (PNG, JPEG, BMP, WebP, TIFF), or a file of tensors (.npy, .npz, .pt, .safetensors).

    In a folder with several subfolders of pictures each subfolder is a class, in the order of their names; pictures may
    lie deeper in them. All grayscale pictures give C = 1, else C = 3; a level v of 8 bits becomes v / 127.5 - 1, of 16 bits
    v / 32767.5 - 1; transparency is put on white. ``size``: cut the largest square (or rectangle, of height and width) from
    each centre and resize it to that; without it all must have one size. A file holds images alone or "images" and
    "labels"; see `as_images`.
    Raises LimbeckError for missing, empty, unreadable or mixed data.
    """
    path = Path(path)
    if path.is_file():
        images, labels = load_tensors(path)
        return Pictures(images, labels, tuple(str(k) for k in range(int(labels.max()) + 1)) if labels is not None else ())
    if not path.is_dir():
        raise LimbeckError(f"{path} does not exist; give a folder of pictures, or a file {', '.join(TENSORS)}")
    files, labels, classes = _listed(path)
    images = _stacked(files, size)
    return Pictures(images, labels, classes, tuple(files))


def load_rgb(folder: Path | str) -> dict[str, Tensor]:
    """A folder's pictures, each in its own size: RGB (3, H, W), uint8, by file name. Grayscale is repeated, transparency put on white.

    Raises LimbeckError for missing, empty or unreadable data.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LimbeckError(f"{folder} does not exist; give a folder of pictures")
    files, _, _ = _listed(folder)
    found = {}
    for file, array in zip(files, _arrays(files, None), strict=True):
        levels = torch.from_numpy(array).add(1).mul(127.5).round().to(torch.uint8)
        rgb = levels.movedim(-1, 0) if levels.ndim == 3 else levels.expand(3, -1, -1)
        found[str(file.relative_to(folder))] = rgb.contiguous()
    return found


def _listed(folder: Path) -> tuple[list[Path], Tensor | None, tuple[str, ...]]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and not _hidden(p.relative_to(folder)))
    if not files:
        raise LimbeckError(f"{folder} holds no pictures; Limbeck reads {', '.join(PICTURES)}")
    tops = [p.relative_to(folder).parts[0] if p.parent != folder else "" for p in files]
    classes = tuple(sorted(set(tops)))
    if len(classes) == 1:
        return files, None, ()
    if "" in classes:
        loose = files[tops.index("")]
        raise LimbeckError(
            f"{folder} mixes pictures ({loose.name}) and folders of classes ({classes[1]}); move one or the other"
        )
    return files, torch.tensor([classes.index(top) for top in tops]), classes


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _stacked(files: Sequence[Path], size: int | tuple[int, int] | None) -> Tensor:
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and min(sides) < 4:
        raise LimbeckError(f"the image size is {size}; pictures need at least 4 x 4 pixels")
    arrays = _arrays(files, sides)
    for file, array in zip(files, arrays, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            (h0, w0), (h, w) = arrays[0].shape[:2], array.shape[:2]
            raise LimbeckError(
                f"the pictures differ in size: {files[0]} has {w0} x {h0} pixels, {file} has {w} x {h}; choose one size with "
                "--image-size (image_size=), e.g. --image-size 64"
            )
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, 2) for array in arrays]
    images = torch.stack([torch.from_numpy(array) for array in arrays])
    return (images.movedim(-1, 1) if images.ndim == 4 else images[:, None]).contiguous()


def _arrays(files: Sequence[Path], sides: tuple[int, int] | None) -> list[np.ndarray]:
    from PIL.Image import DecompressionBombError

    arrays, bad = [], []
    for file in files:
        try:
            arrays.append(_array(file, sides))
        except (OSError, ValueError, SyntaxError, DecompressionBombError) as error:
            bad.append((file, str(error) or type(error).__name__))
    if bad:
        file, reason = bad[0]
        raise LimbeckError(
            f"{len(bad)} of {len(files)} pictures cannot be read, the first is {file} ({reason}); repair or remove them"
        )
    return arrays


def _array(file: Path, size: tuple[int, int] | None) -> np.ndarray:
    """(H, W) or (H, W, 3), float32 in [-1, 1]."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        picture: Image.Image = ImageOps.exif_transpose(opened)
        half = 127.5
        if picture.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
            picture, half = Image.fromarray(np.asarray(picture).astype(np.float32)), 32767.5
        elif picture.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
            gray = picture.mode in ("1", "L", "LA")
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("L" if gray else "RGB")
        else:
            raise ValueError(f"its mode {picture.mode} has no known range; save it with 8 or 16 bits")
    if size is not None:
        height, width = size
        scale = min(picture.width / width, picture.height / height)
        cut = round(scale * width), round(scale * height)
        left, top = (picture.width - cut[0]) // 2, (picture.height - cut[1]) // 2
        picture = picture.crop((left, top, left + cut[0], top + cut[1])).resize((width, height), Image.Resampling.LANCZOS)
    return (np.asarray(picture).astype(np.float32) / np.float32(half) - 1).clip(-1, 1)


def load_tensors(file: Path) -> tuple[Tensor, Tensor | None]:
    """(images, labels or None) in a file: one array, or arrays named "images" (or "arr_0") and "labels" (or "arr_1").

    Raises LimbeckError for another kind of file, a damaged one, and what `as_images` and `as_labels` refuse.
    """
    if file.suffix not in TENSORS:
        raise LimbeckError(f"{file} is no file of tensors that Limbeck reads ({', '.join(TENSORS)}); pictures go into a folder")
    try:
        found = _read(file)
    except Exception as error:  # each library has its own for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LimbeckError(
            f"{file} cannot be read ({reason}); save plain arrays or tensors, Limbeck opens no pickles"
        ) from None
    if not isinstance(found, Mapping):
        return as_images(found, str(file)), None
    images = found.get("images", found.get("arr_0"))
    if images is None and len(found) == 1:
        images = next(iter(found.values()))
    if images is None:
        raise LimbeckError(f'{file} holds {", ".join(map(str, found))}; name the images "images" and their classes "labels"')
    images, labels = as_images(images, str(file)), found.get("labels", found.get("arr_1"))
    return images, None if labels is None else as_labels(labels, len(images), str(file))


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(str(error)) from None
    if file.suffix == ".pt":
        return torch.load(file, map_location="cpu", weights_only=True)
    found = np.load(file, allow_pickle=False)
    return dict(found) if file.suffix == ".npz" else found


def as_images(values: Any, name: str = "data") -> Tensor:
    """Images (N, C, H, W), float32 in [-1, 1], from a tensor or an array; uint8 v becomes v / 127.5 - 1, (N, H, W) gets C = 1.

    Raises LimbeckError for other shapes and dtypes, no image, values that are not finite or beyond [-1, 1], and images
    without a value below 0, which are taken for images in [0, 1].
    """
    if not isinstance(values, (Tensor, np.ndarray)):
        raise LimbeckError(f"{name} is a {type(values).__name__}; give a tensor or an array of images (N, C, H, W)")
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fui":
            raise LimbeckError(f"{name} has dtype {values.dtype}; give images as uint8 or floating point")
        values = torch.from_numpy(np.ascontiguousarray(values))
    x = values.detach().cpu()
    if x.ndim == 3:
        x = x[:, None]
    shape = tuple(values.shape)
    if x.ndim != 4 or 0 in x.shape:
        raise LimbeckError(f"{name} has shape {shape}; give at least one image, (N, C, H, W)")
    if x.shape[3] in (1, 3, 4) and x.shape[1] > 4:
        raise LimbeckError(f"{name} has shape {shape}, channels last; give (N, C, H, W), e.g. x.permute(0, 3, 1, 2)")
    if x.dtype == torch.uint8:
        return x.float() / 127.5 - 1
    if not x.is_floating_point():
        raise LimbeckError(f"{name} has dtype {x.dtype}; give uint8 (0..255) or floating point in [-1, 1]")
    x = x.float()
    if bad := int((~x.isfinite()).sum()):
        raise LimbeckError(f"{name} has {bad} values that are NaN or infinite; find out where they come from")
    low, high = float(x.min()), float(x.max())
    if low < -1.001 or high > 1.001 or 0 <= low < high:
        raise LimbeckError(
            f"the values of {name} go from {low:.4g} to {high:.4g}; images are expected in [-1, 1]: rescale them (from [0, 1]: "
            "2 x - 1; from 0..255: x / 127.5 - 1). The range of your network is another thing (data_range, --data-range)"
        )
    return x


def as_labels(values: Any, count: int, name: str = "labels") -> Tensor:
    """Classes (count,), int64, from 0 on. Raises LimbeckError for anything else."""
    labels = torch.as_tensor(values).detach().cpu()
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex() or int(labels.min()) < 0:
        raise LimbeckError(
            f"the labels of {name} have shape {tuple(labels.shape)} and dtype {labels.dtype}; give {count} integers from 0 on, "
            "one per image"
        )
    return labels.long()
