"""Super-resolution of photos: five that lie in wheels, or a folder of a person's own; judged by luma on pictures held out.

The degradation is MATLAB's bicubic in 8 bits. Photos: china and flower (scikit-learn), coffee and chelsea (scikit-image) to train
on, astronaut to judge. Without ``held_out_data`` every eighth picture of a folder is held out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, missing_extra
from limbeck.metrics import luma_scores
from limbeck.networks.bicubic import resize
from limbeck.networks.imdn import save_imdn
from limbeck.tasks.contract import Column, Figures, Picture, judgement, student_of
from limbeck.tasks.folder import load_rgb
from limbeck.tasks.picture_pairs import DegradedPictures

EIGHTH, WATCHED, SHOWN, WINDOW = (
    8,
    4,
    4,
    120,
)  # one in so many is held out; pictures judged along a run; looked at; their pixels
COLUMNS = {
    "psnr": Column("PSNR of luma, dB", "higher"),
    "ssim": Column("SSIM of luma", "higher"),
    "error": Column("Error of luma, of 255", "lower"),
    "parameters": Column("Parameters", "lower", "count"),
}


@lru_cache(maxsize=1)
def load_photos() -> dict[str, Tensor]:
    """Five photos by name, RGB (3, H, W), uint8, sides cut to multiples of 12; the last, astronaut, is the one held out."""
    from sklearn.datasets import load_sample_images

    try:
        from skimage import data
    except ImportError:
        raise missing_extra("restoration", "the photos need scikit-image") from None
    china, flower = load_sample_images().images
    arrays = {
        "china": china,
        "flower": flower,
        "coffee": data.coffee(),
        "chelsea": data.chelsea(),
        "astronaut": data.astronaut(),
    }
    pictures = {name: torch.tensor(array).permute(2, 0, 1) for name, array in arrays.items()}
    return {n: p[:, : p.shape[1] // 12 * 12, : p.shape[2] // 12 * 12].contiguous() for n, p in pictures.items()}


@dataclass(frozen=True)
class SuperResolution:
    """The task; see the module. ``source`` are the pictures to train on, ``held_out`` those that judge, with their ``names``."""

    name: str
    source: DegradedPictures
    held_out: DegradedPictures
    names: tuple[str, ...]
    device: str = "cpu"
    begin_with: str | None = None
    """File of a trained IMDN, of another scale, whose weights the student begins with."""
    facts: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: str | None = "error"

    def watched(self, method: Any) -> Figures:
        """Luma's PSNR and error on the first pictures held out."""
        figures = self.figures(method, method.restored, WATCHED)
        return {name: figures[name] for name in ("psnr", "error")}

    def judged(self, method: Any) -> dict[str, Any]:
        """Bicubic and the student, on all pictures held out."""
        scale = method.options.scale
        before = self.figures(method, lambda low: enlarged(low, scale))
        after = self.figures(method, method.restored)
        after["parameters"] = sum(p.numel() for p in student_of(method).parameters())
        count = f"{len(self.names)} pictures" if len(self.names) > 1 else f"{self.names[0]}"
        gain = after["psnr"] - before["psnr"]
        headline = f"x{scale} of {count}: {after['psnr']:.2f} dB, {abs(gain):.2f} dB {'over' if gain > 0 else 'under'} bicubic"
        held = ", ".join(self.names[:6]) + (", ..." if len(self.names) > 6 else "")
        notes = [
            f"Trained on {self.source.size} pictures, judged on others: {held}.",
            "The degradation is bicubic, of 8-bit levels.",
        ]
        return judgement({"bicubic": before, "student": after}, COLUMNS, headline, notes)

    def album(self, method: Any) -> dict[str, Picture]:
        """Where bicubic is most wrong in the pictures held out: it, the student, and the real one beside one another."""
        pairs, scale, rows = self.held_out.pairs(method.options.scale), method.options.scale, []
        for i in range(min(SHOWN, pairs.size)):
            low, high = (v.to(self.device) for v in pairs.pair(i))
            before = enlarged(low, scale)
            top, left, side = hardest(before, high, WINDOW)
            views = [v[..., top : top + side, left : left + side] for v in (before, method.restored(low), high)]
            rows += [torch.nn.functional.pad(2 * v - 1, (0, WINDOW - side, 0, WINDOW - side), value=-1.0) for v in views]
        note = f"{WINDOW} x {WINDOW} pixels of each picture held out, where bicubic is most wrong"
        return {"comparison": Picture(torch.cat(rows).float().cpu(), 3, "Bicubic, student, real", note)}

    def leave(self, folder: Path, method: Any, about: Mapping[str, Any]) -> None:
        """student.safetensors, under the published names, and the pictures held out as the student restores them."""
        from PIL import Image

        save_imdn(folder / "student", student_of(method))
        pairs = self.held_out.pairs(method.options.scale)
        for i, name in enumerate(self.names):
            file = folder / "restored" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            levels = (255 * method.restored(pairs.pair(i)[0].to(self.device))[0]).round().to(torch.uint8)
            Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()).save(file)

    def exports(self) -> Mapping[str, Callable[[Any, Path], None]]:
        """pth: a state dict under the published names; torch-export: a program for pictures of any size."""
        return {"pth": _write_state, "torch-export": _write_program}

    def figures(self, method: Any, restore: Callable[[Tensor], Tensor], most: int | None = None) -> Figures:
        """Means over the pictures held out (the first ``most`` of them) of luma's PSNR, SSIM and error."""
        pairs = self.held_out.pairs(method.options.scale)
        found = []
        for i in range(min(pairs.size, most or pairs.size)):
            low, high = (v.to(self.device) for v in pairs.pair(i))
            psnr, ssim = luma_scores(restore(low), high, pairs.scale)
            found.append(torch.stack([psnr, ssim, 255 * 10 ** (-psnr / 20)]))
        means = torch.cat(found, 1).mean(1).tolist()
        return dict(zip(("psnr", "ssim", "error"), means, strict=True))


def enlarged(low: Tensor, scale: int) -> Tensor:
    """MATLAB's bicubic of pictures in [0, 1], in 8 bits: what a student is to beat."""
    return resize((255 * low).round().to(torch.uint8), scale).to(low) / 255


def hardest(other: Tensor, real: Tensor, window: int) -> tuple[int, int, int]:
    """(top, left, side) of the window in which two pictures (1, 3, H, W) differ most, at multiples of 8 pixels."""
    side = min(window, *real.shape[-2:])
    gap = torch.nn.functional.avg_pool2d((other - real).abs().mean(1, keepdim=True), side, 8)
    at, columns = int(gap.argmax()), gap.shape[-1]
    return 8 * (at // columns), 8 * (at % columns), side


@dataclass(frozen=True)
class PhotosSROptions:
    """What a person may say of the pictures."""

    data: Path | None = None
    """A folder of real pictures of any sizes to train on (default: four photos)."""
    held_out_data: Path | None = None
    """A folder of those that judge (default: every eighth of the data)."""
    begin_with: Path | None = None
    """A trained IMDN of another scale (.safetensors or .pth), whose weights the student begins with: x3 and x4 from x2."""


OPTIONS = PhotosSROptions


def photos_sr(
    data: Path | str | None = None,
    held_out_data: Path | str | None = None,
    begin_with: Path | str | None = None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> SuperResolution:
    """The task; see `PhotosSROptions`. Raises LimbeckError for folders without pictures, or with one alone where two are needed."""
    pictures = load_photos() if data is None else load_rgb(data)
    if held_out_data is not None:
        held = load_rgb(held_out_data)
    else:
        if len(pictures) < 2:
            raise LimbeckError(f"{data} holds one picture: give more, or others to judge by (held_out_data=, --held-out-data)")
        names = list(pictures)[-1:] if data is None else list(pictures)[EIGHTH - 1 :: EIGHTH] or list(pictures)[-1:]
        held = {name: pictures[name] for name in names}
        pictures = {name: picture for name, picture in pictures.items() if name not in held}
    kind = getattr(torch, dtype)
    begin = None if begin_with is None else str(begin_with)
    source, judges = DegradedPictures(list(pictures.values()), kind), DegradedPictures(list(held.values()), kind)
    return SuperResolution("photos-sr", source, judges, tuple(held), device, begin)


def _write_state(method: Any, path: Path) -> None:
    torch.save({name: value.cpu() for name, value in student_of(method).state_dict().items()}, path)


def _write_program(method: Any, path: Path) -> None:
    student = student_of(method).eval()
    like = next(student.parameters())
    sides = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}
    program = torch.export.export(student, (like.new_zeros(2, 3, 16, 24),), dynamic_shapes={"x": sides})
    torch.export.save(program, path)
