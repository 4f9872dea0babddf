"""Progress of long work: a bar with figures on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

SHOWN = ("frechet", "accuracy", "gap", "loss/student", "loss/teacher", "loss/critic", "critic_lag")


def short(figures: Mapping[str, float], most: int = 3) -> str:
    """The figures that matter most, e.g. ``frechet 1.83  gap 0.12``."""
    return "  ".join(f"{name.split('/')[-1]} {figures[name]:.3g}" for name in SHOWN if name in figures)[: 24 * most]


class Progress:
    """A context manager: ``advance(step, figures)`` and ``say(message)``. ``quiet`` shows nothing but messages."""

    def __init__(self, title: str, total: int, done: int = 0, quiet: bool = False):
        self.title, self.total, self.done, self.quiet = title, total, done, quiet
        self.live = sys.stderr.isatty() and not quiet
        self.figures: dict[str, float] = {}
        self._bar: Any = None
        self._start = time.perf_counter()
        self._first = done

    def __enter__(self) -> "Progress":
        if self.live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            extra = (TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
            self._bar = Bar(*columns, *extra, console=Console(stderr=True))
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, figures="")
            self._bar.start()
        return self

    def advance(self, step: int, figures: Mapping[str, float]) -> None:
        """Show that ``step`` is done. Figures that are computed rarely stay visible."""
        self.figures.update(figures)
        if self.live:
            self._bar.update(self._task, completed=step, figures=short(self.figures))
        elif not self.quiet and (step == self.total or step * 10 // self.total > self.done * 10 // self.total):
            rate = (time.perf_counter() - self._start) / max(step - self._first, 1)
            left = rate * (self.total - step)
            print(f"{self.title}: {step}/{self.total}  {short(self.figures)}  {left:.0f} s left", file=sys.stderr, flush=True)
        self.done = step

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self.live:
            self._bar.console.print(message)
        else:
            print(message, file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self._bar.stop()
