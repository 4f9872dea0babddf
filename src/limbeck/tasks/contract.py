"""What a run needs of a task, whatever its wing: who is judged by which figures, what is looked at, and what is left behind.

A task of another wing than the few-step generators is a frozen dataclass with these members; the method class of its wing says
in ``on(task, options, seed)`` what it takes from it. :class:`limbeck.tasks.Task` is the generators' own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from limbeck.training import Method, Source

Figures = dict[str, float]


@dataclass(frozen=True)
class Column:
    """How a figure reads in tables: its heading, which values are better, and whether it is a share (shown in per cent)."""

    title: str
    better: Literal["lower", "higher", ""] = ""
    unit: Literal["number", "percent", "count"] = "number"


class Picture(NamedTuple):
    """Images (N, C, H, W) in [-1, 1], row by row in a grid of ``columns``; ``title`` and ``note`` stand above them in the report."""

    images: Tensor
    columns: int
    title: str
    note: str = ""


@runtime_checkable
class AnyTask(Protocol):
    """See the module. Figures along the run (``watched``) are cheap; ``best`` names that of them of which the least is kept."""

    name: str
    source: Source
    facts: Mapping[str, Any]
    """What there is to say about the teacher: seconds, origin (trained or cached), reference (what figures are against)."""
    options: Mapping[str, Mapping[str, Any]]
    """Method options that suit the task better than the method's own defaults, by method."""
    best: str | None

    def watched(self, method: Any) -> Figures:
        """Figures of the student along the run."""
        ...

    def judged(self, method: Any) -> dict[str, Any]:
        """What summary.json says of the run's end: see :func:`judgement`."""
        ...

    def album(self, method: Any) -> dict[str, Picture]:
        """What the report shows, by file name, in the order in which it is compared."""
        ...

    def leave(self, folder: Path, method: Any, about: Mapping[str, Any]) -> None:
        """Write the student, and whatever else a user takes home, into the run's folder; ``about``: ids of method and task."""
        ...

    def exports(self) -> Mapping[str, Callable[[Any, Path], None]]:
        """What `limbeck export RUN --to FORM PLACE` can write of a method's student, by form."""
        ...


def judgement(
    rows: Mapping[str, Figures], columns: Mapping[str, Column], headline: str, notes: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """What ``judged`` returns: figures by the name of who has them, the best possible first and "student" among them; how they
    read, in order; what was achieved, in one sentence; what puts that in its place. ``more`` goes to summary.json as it is.
    """
    table = {"rows": {name: dict(row) for name, row in rows.items()}, "columns": {n: asdict(c) for n, c in columns.items()}}
    return {"table": table, "headline": headline, "notes": list(notes), **more}


def student_of(method: Method) -> Any:
    """The student's averaged weights where there is an average, else the student."""
    return method.roles["student"].best
