"""What every task on a graph may be told of its teacher, and the task that it is then."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from limbeck.tasks.graphs.graph import Graph
from limbeck.tasks.graphs.task import GraphTask, graph_task
from limbeck.tasks.graphs.teachers import GraphTeacherOptions


@dataclass(frozen=True)
class TeacherAsked:
    """Of a task that trains its graph network."""

    teacher: str | None = None
    """The graph network that is trained as the teacher: gcn (default), gat or sage."""
    teacher_hidden: int | None = None
    """Its width (default: 64)."""
    teacher_epochs: int | None = None
    """How long it is trained (default: 200)."""
    hidden_share: float | None = None
    """Hide this share of the test nodes, with their edges, from teacher and student (default: 0, none)."""


def asked_task(
    name: str,
    graph: Graph,
    teacher: str,
    hidden: int,
    epochs: int,
    share: float,
    options: Mapping[str, Mapping[str, Any]],
    device: str,
    dtype: str,
    quiet: bool,
) -> GraphTask:
    """The task of a graph with a graph network that is trained for it."""
    full = graph.to(device, getattr(torch, dtype))
    part = full.inductive(share) if share else full
    trained = GraphTeacherOptions(teacher, hidden=hidden, epochs=epochs)
    return graph_task(part, trained, full=full, name=name, options=options, quiet=quiet)
