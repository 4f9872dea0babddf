"""How a run ends before its last iteration: a value that is not finite, or a signal."""

import json
import signal
from contextlib import suppress
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.training.durable import put_in_place


class NonFiniteError(LimbeckError):
    """A loss or gradient that is not finite: names role and step, and says how to replay them."""


class Interrupted(LimbeckError):
    """A signal ended the run between two iterations; a checkpoint was written."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


class NotFinite(LimbeckError):
    """Raised inside a method's step; the loop adds the step to it (:func:`non_finite`)."""

    def __init__(self, role: str, quantity: str, value: float):
        super().__init__(f"the {quantity} of the role {role!r} is {value}")
        self.role, self.quantity, self.value = role, quantity, value


def non_finite(folder: Path | None, role: str, step: int, quantity: str, value: float, writes: bool = True) -> NonFiniteError:
    """The error for a value that is not finite; its facts go to failure.json in the run's folder, if this process writes it."""
    text = f"the {quantity} of the role {role!r} is {value} at step {step}"
    if folder is None:
        return NonFiniteError(f"{text}; lower its learning rate, clip its gradient, or train in float32")
    replay = f"limbeck distill --resume {folder}"
    facts = {"role": role, "step": step, "quantity": quantity, "value": str(value), "replay": replay}
    if writes:
        with suppress(OSError):  # a full disk must not hide what failed
            put_in_place(folder / "failure.json", json.dumps(facts, indent=2) + "\n")
    return NonFiniteError(
        f"{text}. The last checkpoint is intact and noise is keyed by step, so `{replay}` replays the failure; "
        "to go on, start anew with a lower learning rate, a clip, or float32"
    )


def interrupted(folder: Path | None, step: int, signum: int) -> Interrupted:
    """The error for a signal after a step."""
    where = f"; continue with `limbeck distill --resume {folder}`" if folder else ""
    return Interrupted(f"stopped by {signal.Signals(signum).name} after step {step}{where}", signum)
