"""What is not finite stops a run: an error that names it, and a file that says how to replay it."""

import json
from contextlib import suppress
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.training.durable import put_in_place


class NonFiniteError(LimbeckError):
    """A loss or gradient that is not finite: names role and step, and says how to replay them."""


class NotFinite(LimbeckError):
    """Raised inside a method's step; the loop adds the step to it (`not_finite`)."""

    def __init__(self, role: str, quantity: str, value: float):
        super().__init__(f"the {quantity} of the role {role!r} is {value}")
        self.role, self.quantity, self.value = role, quantity, value


def not_finite(folder: Path | None, role: str, step: int, quantity: str, value: float) -> NonFiniteError:
    """The error for a role's quantity that is not finite at a step; where there is a folder, failure.json says the same."""
    text = f"the {quantity} of the role {role!r} is {value} at step {step}"
    if folder is None:
        return NonFiniteError(f"{text}; lower its learning rate, clip its gradient, or train in float32")
    replay = f"limbeck distill --resume {folder}"
    facts = {"role": role, "step": step, "quantity": quantity, "value": str(value), "replay": replay}
    with suppress(OSError):  # a full disk must not hide what failed
        put_in_place(folder / "failure.json", json.dumps(facts, indent=2) + "\n")
    return NonFiniteError(
        f"{text}. The last checkpoint is intact and noise is keyed by step, so `{replay}` replays the failure; "
        "to go on, start anew with a lower learning rate, a clip, or float32"
    )
