"""What a run depends on, and its config.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.errors import LimbeckError, unknown
from limbeck.training.durable import refuse_links
from limbeck.training.options import options_from_dict
from limbeck.training.plain import read_plain
from limbeck.training.trackers import check_trackers
from limbeck.version import __version__

FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on; written as config.yaml, replayed by ``--config`` and checked by ``--resume``."""

    method: str
    task: str = "digits"
    task_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    micro_batches: int = 1
    checkpoint_every: int = 300
    from_run: str | None = None
    """The folder of a run whose student is what students and critics start as (None: the task's own start)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    version: str = __version__
    format: int = FORMAT

    def __post_init__(self):
        if self.micro_batches < 1 or self.checkpoint_every < 0:
            raise LimbeckError(
                f"micro_batches={self.micro_batches} must be at least 1, and checkpoint_every={self.checkpoint_every} at least 0 "
                "(0: at evaluations alone)"
            )


@dataclass(frozen=True)
class Execution:
    """How a run is carried out. None of it changes what is computed, so all of it may differ when a run is resumed."""

    track: tuple[Literal["none", "tensorboard", "wandb", "trackio"], ...] | None = None
    """Where figures go besides metrics.jsonl: tensorboard, wandb, trackio, none (default: TensorBoard if it is installed)."""
    compile: bool = False
    """Run the networks through torch.compile, once it was seen to give the same answers and gradients (to rounding)."""
    quiet: bool = False
    parallel: Literal["replicate", "shard"] = "replicate"
    """Of several processes (torchrun): each holds all weights, or a part of them."""
    trust_code: bool = False
    """Import the code (MODULE:NAME, .pt2) that a run's folder or config.yaml names, not only what you name yourself."""
    gradient_checkpointing: bool = False
    """Blocks of the networks are computed twice and held once: less memory, one more forward each."""
    offload: bool = False
    """Weights, averages and optimizer states wait on the CPU while their role is idle."""

    def __post_init__(self):
        check_trackers(self.track)


def read_config(folder: Path | str) -> RunConfig:
    """The configuration of a run. Raises LimbeckError where the folder is no run, half-written, or too new."""
    file = Path(folder) / "config.yaml"
    if not file.is_file():
        raise LimbeckError(f"{folder} is not a run: it has no config.yaml (half-written or another folder); start a new run")
    refuse_links(Path(folder))
    return parse_config(file)


def parse_config(file: Path) -> RunConfig:
    """The configuration in a YAML file."""
    config = options_from_dict(RunConfig, read_plain(file)[1], str(file))
    if config.format != FORMAT:
        raise LimbeckError(f"{file} has format {config.format}, this version reads {FORMAT}; use limbeck {config.version}")
    return config


def check_place(device: str, dtype: str) -> None:
    """Raise LimbeckError for a device that is not there and a dtype that cannot be trained in."""
    if dtype not in (dtypes := ("float32", "float64")):
        raise unknown("dtype", dtype, dtypes)
    try:
        torch.zeros(1, device=device).item()  # "meta" has no values
    except (RuntimeError, AssertionError) as error:
        raise LimbeckError(f"the device {device!r} is not here ({str(error).splitlines()[0]}); use cpu or cuda") from None


def jsonable(value: Any) -> Any:
    """A value as JSON takes it: not-a-number is None, what JSON does not know is its text."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
