"""The contextual stochastic block model as a task: nothing to download, and one knows what there is to find."""

from dataclasses import dataclass

from limbeck.tasks.graphs.asked import TeacherAsked, asked_task
from limbeck.tasks.graphs.computed import block_model
from limbeck.tasks.graphs.task import GraphTask

PREFERRED = {"ff-g2m": {"hidden": 128}}


@dataclass(frozen=True)
class SbmOptions(TeacherAsked):
    """What the task may be told; :func:`limbeck.tasks.graphs.block_model` says what it means."""

    nodes: int | None = None
    """Default: 1200."""
    homophily: float | None = None
    """The share of edges within a class (default: 0.8)."""
    degree: float | None = None
    """The mean degree (default: 6)."""
    separation: float | None = None
    """How far the classes' features lie from 0, in standard deviations (default: 2)."""
    labelled: int | None = None
    """Nodes per class whose class is known, of four classes (default: 20)."""


def sbm(
    teacher: str = "gcn",
    teacher_hidden: int = 64,
    teacher_epochs: int = 200,
    hidden_share: float = 0.0,
    nodes: int = 1200,
    homophily: float = 0.8,
    degree: float = 6.0,
    separation: float = 2.0,
    labelled: int = 20,
    seed: int = 0,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> GraphTask:
    """The task. ``seed`` draws the graph."""
    graph = block_model(nodes, homophily=homophily, degree=degree, separation=separation, labels=labelled, seed=seed)
    return asked_task(
        "sbm", graph, teacher, teacher_hidden, teacher_epochs, hidden_share, PREFERRED, device, dtype, quiet
    )  # fmt: skip


OPTIONS = SbmOptions
