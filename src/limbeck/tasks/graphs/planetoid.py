"""A citation graph in a folder of your own as a task (Cora, Citeseer, Pubmed, or one in the same files)."""

from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.tasks.graphs.asked import TeacherAsked, asked_task
from limbeck.tasks.graphs.files import load_graph
from limbeck.tasks.graphs.task import GraphTask


@dataclass(frozen=True)
class PlanetoidOptions(TeacherAsked):
    """What the task may be told."""

    data: Path | None = None
    """The folder with ind.NAME.x and its companions, NAME.npz, or NAME.content and NAME.cites."""
    graph: str | None = None
    """NAME: cora (default), citeseer, pubmed, or another."""


def planetoid(
    data: Path | str | None = None,
    graph: str = "cora",
    teacher: str = "gcn",
    teacher_hidden: int = 64,
    teacher_epochs: int = 200,
    hidden_share: float = 0.0,
    seed: int = 0,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> GraphTask:
    """The task. ``seed`` draws the split of files that have none."""
    if data is None:
        raise LimbeckError(
            "the task planetoid needs --data (data=): the folder with ind.cora.x and its companions, cora.npz, or cora.content"
        )
    loaded = load_graph(data, graph, seed)
    return asked_task(
        "planetoid", loaded, teacher, teacher_hidden, teacher_epochs, hidden_share, {}, device, dtype, quiet
    )  # fmt: skip


OPTIONS = PlanetoidOptions
