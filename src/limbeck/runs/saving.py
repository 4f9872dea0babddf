"""What to switch on where a run does not fit into memory, and what each switch is going to save."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.runs.config import Execution, RunConfig
from limbeck.runs.distillation import distilling
from limbeck.runs.plan import Plan, plan_run
from limbeck.tasks import AnyTask
from limbeck.training import OptimizerOptions

RANK, PIECES = 16, 4  # of the adapters, and how many more micro-batches, that are proposed


@dataclass(frozen=True)
class Choice:
    """A run as it may be carried out."""

    config: RunConfig
    how: Execution
    eight_bit: bool = False

    def plan(self, task: AnyTask) -> Plan:
        """Its memory."""
        return plan_run(self.config, task, self.how, eight_bit=self.eight_bit)


@dataclass(frozen=True)
class Switched:
    """A choice with one switch more: its flags as they are typed, and what they do."""

    flags: str
    meaning: str
    choice: Choice


@dataclass(frozen=True)
class Saving:
    """What a switch does to the peak, in bytes, where it is the only one."""

    flags: str
    meaning: str
    peak: int


Switch = Callable[[Choice], Switched | None]  # None: it is on already, or there is nothing for it to act on


def _checkpointing(c: Choice) -> Switched | None:
    how = replace(c.how, gradient_checkpointing=True)
    on = Switched("--gradient-checkpointing", "blocks computed twice and held once, the same numbers", replace(c, how=how))
    return None if c.how.gradient_checkpointing else on


def _micro_batches(c: Choice) -> Switched | None:
    batch, now = int(c.config.options["batch"] or 1), c.config.micro_batches
    pieces = min(PIECES * now, batch)
    meaning = f"{-(-batch // pieces)} samples at a time, the same gradient"
    on = Switched(f"--micro-batches {pieces}", meaning, replace(c, config=replace(c.config, micro_batches=pieces)))
    return on if pieces > now else None


def _offload(c: Choice) -> Switched | None:
    meaning = "on a GPU: idle weights, averages and optimizer states wait on the CPU"
    return None if c.how.offload else Switched("--offload", meaning, replace(c, how=replace(c.how, offload=True)))


def _bfloat16(c: Choice) -> Switched | None:
    config = replace(c.config, precision="bfloat16")
    on = Switched("--precision bfloat16", "networks in half precision, losses and weights not", replace(c, config=config))
    return None if c.config.precision == "bfloat16" else on


def _eight_bit(c: Choice) -> Switched | None:
    _, options_class, _ = distilling(c.config.method).load()
    roles = [f.name for f in dataclasses.fields(options_class) if isinstance(f.default, OptimizerOptions)]
    kinds = {name: c.config.options[name]["kind"] for name in roles}
    flags = " ".join(f"--{name}.kind {kind}8bit" for name, kind in kinds.items() if kind in ("adam", "adamw"))
    meaning = "Adam's moments in a byte each (needs bitsandbytes)"
    return None if c.eight_bit or not flags else Switched(flags, meaning, replace(c, eight_bit=True))


def _adapters(option: str) -> Switch:
    def switch(c: Choice) -> Switched | None:
        config = replace(c.config, options={**c.config.options, option: RANK})
        who = "critic" if option == "critic_rank" else "student"
        on = f"the {who} is adapters on one frozen base"
        flags = f"--{option.replace('_', '-')} {RANK}"
        return Switched(flags, on, replace(c, config=config)) if c.config.options.get(option) == 0 else None

    return switch


SWITCHES: Sequence[Switch] = (
    _checkpointing, _micro_batches, _offload, _bfloat16, _eight_bit, *map(_adapters, ("critic_rank", "student_rank", "rank")),
)  # fmt: skip
"""First those that leave the numbers as they are, then those that round, then those that train fewer weights."""


def savings(choice: Choice, task: AnyTask, say: Callable[[str], Any] = print) -> list[Saving]:
    """What each switch saves alone; those that the method or a network of it does not take are left out."""
    found = []
    for switch in SWITCHES:
        if (on := switch(choice)) is not None:
            say(f"rehearsing with {on.flags}")
            try:
                found.append(Saving(on.flags, on.meaning, on.choice.plan(task).peak))
            except LimbeckError:
                continue
    return found


def enough(
    choice: Choice, task: AnyTask, single: Sequence[Saving], memory: int, say: Callable[[str], Any] = print
) -> tuple[str, int] | None:
    """(flags, peak) of the first switch that is enough alone, or else of as many as it takes, in their order, each of which
    saves something beside those before it (None: not even all are enough)."""
    for saving in single:
        if saving.peak <= memory:
            return saving.flags, saving.peak
    flags, alone, least = list[str](), {s.flags: s.peak for s in single}, choice.plan(task).peak
    for switch in SWITCHES:
        if (on := switch(choice)) is None or on.flags not in alone:
            continue
        if flags:
            say(f"rehearsing with {' '.join([*flags, on.flags])}")
        peak = on.choice.plan(task).peak if flags else alone[on.flags]
        if peak < least:
            choice, least = on.choice, peak
            flags.append(on.flags)
        if least <= memory:
            return " ".join(flags), least
    return None
