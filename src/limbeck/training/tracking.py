"""The figures of a run: one JSON object per line of metrics.jsonl, and whatever else tracks them."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.training.trackers import Sink, check_trackers, close, open_trackers


class Tracker:
    """Writes figures by step; a context manager.

    Args:
        folder: the run's folder; gets `metrics.jsonl`, and what the trackers keep there.
        track: names of trackers (tensorboard, wandb, trackio); None uses TensorBoard if it is installed.
        sinks: called with (step, figures) at every `log`, and closed if they can be.
        resume_from: the step that a resumed run continues after: lines of later steps are removed, and a line
            that was being written when the run died is repaired. None starts new metrics.

    Raises:
        LimbeckError: metrics are already there and `resume_from` is None; a damaged file; no such tracker.
    """

    def __init__(
        self,
        folder: Path | str,
        track: Sequence[str] | None = None,
        sinks: Iterable[Sink] = (),
        resume_from: int | None = None,
    ) -> None:
        folder = Path(folder)
        self.path = folder / "metrics.jsonl"
        names = check_trackers(track)
        if resume_from is not None:
            _truncate(self.path, resume_from)
        elif self.path.exists() and self.path.stat().st_size:
            raise LimbeckError(f"{self.path} already has metrics: resume that run, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._sinks: list[Sink] = [*sinks, *open_trackers(names, folder, resume_from)]
        self._append("")

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Append the figures of one step; NaN and infinities are written as the strings nan, inf and -inf."""
        values: dict[str, float] = {}
        for name, value in figures.items():
            try:
                values[name] = float(value)
            except (TypeError, ValueError, RuntimeError):
                kind = type(value).__name__
                raise LimbeckError(f"figure {name!r} of step {step} is a {kind}: log single numbers") from None
        if "step" in values:
            raise LimbeckError("a figure cannot be named 'step': it names the line's step; choose another name")
        stored = {name: value if isfinite(value) else str(value) for name, value in values.items()}
        self._append(json.dumps({"step": int(step), **stored}, allow_nan=False) + "\n")
        for sink in self._sinks:
            sink(step, values)

    def sync(self) -> None:
        """Wait until all lines are on the disk, as a checkpoint of the same step will be."""
        with self._refused(), open(self.path, "rb") as file:
            os.fsync(file.fileno())

    def _append(self, line: str) -> None:
        # Opened for each line: nothing waits in a buffer when the process dies or the disk is full.
        with self._refused(), open(self.path, "ab") as file:
            file.write(line.encode())

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LimbeckError(
                f"figures could not be written to {self.path}: {error.strerror or error}. All checkpoints are intact: free "
                "space or make the folder writable, then resume"
            ) from error

    def close(self) -> None:
        """Close the sinks."""
        for sink in self._sinks:
            close(sink)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path | str) -> dict[str, tuple[list[int], list[float]]]:
    """Figures by name: (steps, values) in the order in which they were logged.

    An unfinished last line, as a running process may leave it, is passed over.

    Raises:
        LimbeckError: no such file, or a damaged line before the last.
    """
    figures: dict[str, tuple[list[int], list[float]]] = {}
    for line in _lines(Path(path)):
        step = line.pop("step")
        for name, value in line.items():
            steps, values = figures.setdefault(name, ([], []))
            steps.append(step)
            values.append(float(value))
    return figures


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise LimbeckError(f"no metrics at {path}: check the run's folder") from None
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            if text:
                lines.append(_figures(text))
        except (ValueError, RecursionError):
            if number < len(texts):
                raise LimbeckError(f"{path}, line {number} is damaged: repair or remove that line") from None
    return lines


def _figures(text: bytes) -> dict[str, Any]:
    line = json.loads(text)
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        raise ValueError("no object with a step")
    for name, value in line.items():
        if not isinstance(value, int | float) and value not in ("nan", "inf", "-inf"):
            raise ValueError(f"{name} is no number")
    return line


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in _lines(path) if line["step"] <= step]
    fresh = path.with_name(f"{path.name}.new")
    with open(fresh, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
