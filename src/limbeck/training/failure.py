"""How a run ends before its last iteration: a value that is not finite, or a signal."""

import json
import signal
from pathlib import Path

from limbeck.errors import LimbeckError


class NonFiniteError(LimbeckError):
    """A loss or gradient that is not finite: names role and step, and says how to replay them."""


class Interrupted(LimbeckError):
    """A signal ended the run between two iterations; a checkpoint was written."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


def non_finite(folder: Path | None, role: str, step: int, quantity: str, value: float, writes: bool = True) -> NonFiniteError:
    """The error for a value that is not finite; its facts go to failure.json in the run's folder, if this process writes it."""
    text = f"the {quantity} of the role {role!r} is {value} at step {step}"
    if folder is None:
        return NonFiniteError(f"{text}; lower its learning rate, clip its gradient, or train in float32")
    replay = f"limbeck distill --resume {folder}"
    facts = {"role": role, "step": step, "quantity": quantity, "value": str(value), "replay": replay}
    if writes:
        (folder / "failure.json").write_text(json.dumps(facts, indent=2) + "\n")
    return NonFiniteError(
        f"{text}. The last checkpoint is intact and noise is keyed by step, so `{replay}` replays the failure; "
        "to go on, start anew with a lower learning rate, a clip, or float32"
    )


def interrupted(folder: Path | None, step: int, signum: int) -> Interrupted:
    """The error for a signal after a step."""
    where = f"; continue with `limbeck distill --resume {folder}`" if folder else ""
    return Interrupted(f"stopped by {signal.Signals(signum).name} after step {step}{where}", signum)
