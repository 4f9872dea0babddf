"""A graph of scikit-learn's digits as a task: neighbours are alike in the left half, a student sees the right half alone."""

from dataclasses import dataclass

from limbeck.tasks.graphs.asked import TeacherAsked, asked_task
from limbeck.tasks.graphs.computed import digits_graph
from limbeck.tasks.graphs.task import GraphTask

PREFERRED = {"ff-g2m": {"hidden": 128}}


@dataclass(frozen=True)
class DigitsGraphOptions(TeacherAsked):
    """What the task may be told."""

    neighbours: int | None = None
    """Edges lead to so many of the nearest (default: 8)."""
    labelled: int | None = None
    """Digits of each class whose class is known (default: 5)."""


def digits(
    teacher: str = "gcn",
    teacher_hidden: int = 64,
    teacher_epochs: int = 200,
    hidden_share: float = 0.0,
    neighbours: int = 8,
    labelled: int = 5,
    seed: int = 0,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> GraphTask:
    """The task. ``seed`` draws which classes are known."""
    graph = digits_graph(neighbours, labelled, seed)
    return asked_task(
        "digits-graph", graph, teacher, teacher_hidden, teacher_epochs, hidden_share, PREFERRED, device, dtype, quiet
    )  # fmt: skip


OPTIONS = DigitsGraphOptions
