"""Several denoisers that share the time axis: a mixture of experts by noise level."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, Denoiser, load_denoiser
from limbeck.errors import LimbeckError


class Experts(nn.Module):
    """One denoiser made of several, each serving its interval low < t <= high of times; a module that holds those of them
    that are modules (``expert_0`` is the least noisy).

    A phase that starts at a boundary is thus served by the expert below it. Samples of one batch may belong to different
    experts; every expert is asked once. Raises LimbeckError for empty or overlapping intervals, for experts of different
    processes, and at times that no expert serves.
    """

    def __init__(self, experts: Sequence[tuple[float, float, Denoiser]]):
        super().__init__()
        self.experts = sorted(experts, key=lambda expert: expert[0])
        if not self.experts:
            raise LimbeckError("a mixture of experts needs at least one (low, high, denoiser)")
        for low, high, denoiser in self.experts:
            if not low < high:
                raise LimbeckError(f"an expert's interval needs low < high, not ({low:g}, {high:g}]")
            if denoiser.process != self.experts[0][2].process:
                raise LimbeckError("all experts must live in one process; wrap them with limbeck.denoisers.in_process")
        for (low, high, _), (low_next, high_next, _) in zip(self.experts, self.experts[1:], strict=False):
            if low_next < high:
                raise LimbeckError(
                    f"experts overlap: times in ({low_next:g}, {min(high, high_next):g}] belong to two of them, "
                    f"({low:g}, {high:g}] and ({low_next:g}, {high_next:g}]"
                )
        for i, (_, _, denoiser) in enumerate(self.experts):
            if isinstance(denoiser, nn.Module):
                self.add_module(f"expert_{i}", denoiser)
        self.process = self.experts[0][2].process
        self.null: Mapping[str, Tensor] | None = self.experts[0][2].null

    def index(self, t: Tensor) -> Tensor:
        """Which expert, counted from the least noisy, serves each time; LongTensor in the shape of t."""
        t = t.double()
        served = torch.stack([(low < t) & (t <= high) for low, high, _ in self.experts])
        if not bool(served.any(0).all()):
            alone = sorted(set(t[~served.any(0)].flatten().tolist()))
            intervals = ", ".join(f"({low:g}, {high:g}]" for low, high, _ in self.experts)
            raise LimbeckError(f"no expert serves the times {alone}; the intervals are {intervals}")
        return served.long().argmax(0)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        index = self.index(t)
        used = index.unique().tolist()
        if len(used) == 1:
            return self.experts[used[0]][2](x_t, t, cond)
        members = [(index == i).nonzero().flatten() for i in used]
        parts = [
            self.experts[i][2](x_t[rows], t[rows], None if cond is None else {name: v[rows] for name, v in cond.items()})
            for i, rows in zip(used, members, strict=True)
        ]
        return torch.cat(parts)[torch.cat(members).argsort()]


def load_experts(path: Path | str) -> tuple[Experts, dict[str, Any]]:
    """(experts, info) from the PATH.json that :func:`limbeck.denoisers.save_student` writes of them.

    Raises LimbeckError where it or one of the files that it names is missing or damaged.
    """
    path = Path(path).with_suffix(".json")
    try:
        described = json.loads(path.read_text())
        named = [(float(e["low"]), float(e["high"]), str(e["file"])) for e in described["experts"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LimbeckError(
            f"{path} does not describe experts ({' '.join(str(error).split())}); make it with save_student"
        ) from error
    for _, _, file in named:
        if file in ("", "..") or Path(file).name != file or "\\" in file:
            raise LimbeckError(f"{path} names {file!r}, which is no file beside it; make it with save_student")
    return Experts([(low, high, load_denoiser(path.parent / file)[0]) for low, high, file in named]), described["info"]
