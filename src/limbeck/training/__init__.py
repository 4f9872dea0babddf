"""Training: roles, the loop that drives a method's generator, checkpoints, averages, tracking. It knows no method."""

from limbeck.training.checkpoints import Checkpoint, CheckpointError
from limbeck.training.failure import Interrupted, NonFiniteError
from limbeck.training.keyed import Keyed, sample_order
from limbeck.training.launching import launched
from limbeck.training.loop import Loop
from limbeck.training.loop_options import LoopOptions
from limbeck.training.method import (
    Batch,
    Method,
    Role,
    Source,
    Step,
    TensorSource,
    Total,
    Update,
    checkpoint_roles,
    set_precision,
)
from limbeck.training.parallel import ALONE, World, placed
from limbeck.training.role_options import EmaOptions, OptimizerOptions
from limbeck.training.tracking import Tracker, read_metrics

__all__ = [
    "ALONE",
    "Batch",
    "Checkpoint",
    "CheckpointError",
    "EmaOptions",
    "Interrupted",
    "Keyed",
    "Loop",
    "LoopOptions",
    "Method",
    "NonFiniteError",
    "OptimizerOptions",
    "Role",
    "Source",
    "Step",
    "TensorSource",
    "Total",
    "Tracker",
    "Update",
    "World",
    "checkpoint_roles",
    "launched",
    "placed",
    "read_metrics",
    "sample_order",
    "set_precision",
]
