"""limbeck distill: its options, which are those of all methods and those of one, and the run."""

import sys
import typing
from contextlib import AbstractContextManager
from dataclasses import dataclass, make_dataclass, replace
from dataclasses import field as make_field
from pathlib import Path
from typing import Annotated, Any, Literal

from limbeck.cli.catalogue import documented
from limbeck.cli.show import show
from limbeck.errors import LimbeckError
from limbeck.methods import find, preset_of
from limbeck.tasks.catalogue import chosen_task, module_of, recorded, task_options
from limbeck.training.options import changed, merged_options, options_from_dict, options_to_dict


@dataclass(frozen=True)
class Shared:
    """What every distillation takes, whatever the method."""

    task: str | None = None
    """digits, photos, prompts, ring; own and diffusers are meant where one of their options is given. Other wings have others."""
    preset: str | None = None
    """A preset of the method, e.g. paper-cifar10."""
    out: Path | None = None
    """The run's folder (default: a new one under runs/)."""
    config: Path | None = None
    """Replay a run's config.yaml."""
    resume: Path | None = None
    """Go on with this run."""
    from_run: Path | None = None
    """A run whose student this one begins with (and its critic)."""
    overwrite: bool = False
    """Replace the folder --out if it holds a run."""
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    micro_batches: int = 1
    """Pieces of a batch, to save memory; the gradient stays the same."""
    checkpoint_every: int = 300
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the networks under autocast; weights and losses stay in --dtype."""
    fail_above: float | None = None
    """Exit with 1 where a few-step student's Frechet distance is more than this many times the teacher's."""


def task_flags(wing: str) -> type:
    """What the tasks of a wing may be told, as one dataclass of flags; None is not said."""
    import tyro

    merged: dict[str, Any] = {}
    takers: dict[str, list[str]] = {}
    for task in task_options(wing):
        options = module_of(task).OPTIONS
        said, hints = documented(options), typing.get_type_hints(options)
        for name, hint in hints.items():
            merged.setdefault(name, (hint, said.get(name, "")))
            takers.setdefault(name, []).append(task)
    fields: list[Any] = []
    for name, (hint, said_of_it) in merged.items():
        text = f"{said_of_it} (Task: {' or '.join(takers[name])}.)"
        fields.append((name, Annotated[hint, tyro.conf.arg(help=text)], make_field(default=None)))
    return make_dataclass("TaskFlags", fields, frozen=True)


@dataclass(frozen=True)
class Request:
    """What a command line asks for: the run, how to carry it out, and the options that every distillation takes."""

    config: Any  # limbeck.runs.RunConfig
    how: Any  # limbeck.runs.Execution
    shared: Shared

    def named(self) -> AbstractContextManager[None]:
        """Inside, code that a stored run names is refused, unless it is trusted; what the command line names is the user's."""
        from limbeck.tasks import named_by

        stored = self.shared.resume or self.shared.config
        return named_by(stored, trusted=stored is None or self.how.trust_code)


def distill(arguments: list[str]) -> int:
    """limbeck distill [METHOD] [options]"""
    from limbeck import runs
    from limbeck.training import launched

    asked = requested("distill", arguments)
    config, how, shared = asked.config, asked.how, asked.shared
    resuming, command = shared.resume is not None, " ".join(["limbeck", "distill", *arguments])
    with launched(shared.device, how.parallel) as world, asked.named():
        out = shared.resume or shared.out
        done = runs.begun(config, out, shared.overwrite, resuming, how=how, command=command, world=world)
    if not world.writes:
        return 0
    show(done.summary)
    print(f"\nreport: {done.path / 'report.html'}")
    if shared.fail_above is None:
        return 0
    ratio = done.summary["student"]["frechet"] / done.summary["teacher"]["frechet"]
    if not ratio <= shared.fail_above:
        print(
            f"limbeck: the student's Frechet distance is {ratio:.2f} times the teacher's, above {shared.fail_above:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def requested(command: str, arguments: list[str]) -> Request:
    """The run that ``limbeck COMMAND [METHOD] [options]`` asks for. Raises LimbeckError for what it cannot be."""
    from limbeck import runs
    from limbeck.tasks import build_task

    named = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if named else ("dmd", arguments)
    base = Shared()
    stored: runs.RunConfig | None = None
    for flag in ("--resume", "--config"):
        if path := value_of(rest, flag):
            stored = runs.read_config(path) if flag == "--resume" else runs.parse_config(_existing(Path(path)))
    entry = runs.distilling(name if named or stored is None else stored.method)
    flags = task_flags(entry.wing)()
    if stored is not None:
        if "python" in stored.task_options:
            build_task(stored.task, {"python": str(stored.task_options["python"])})  # raises: says why it cannot
        if named and find(stored.method).id != entry.id:
            raise LimbeckError(f"that run is of the method {stored.method!r}, not of {entry.id!r}; leave the method out")
        same: dict[str, Any] = {
            n: getattr(stored, n) for n in ("task", "seed", "device", "dtype", "micro_batches", "checkpoint_every", "precision")
        }
        same["from_run"] = None if stored.from_run is None else Path(stored.from_run)
        base = replace(base, **same)
        known = {n: Path(str(v)) if n == "data" else v for n, v in stored.task_options.items() if hasattr(flags, n)}
        flags = options_from_dict(type(flags), known, "task_options")
    _, options_class, presets = entry.load()
    preset = value_of(rest, "--preset")
    options = preset_of(name, presets, preset)
    if stored is not None:
        options = options_from_dict(options_class, stored.options, f"options of {entry.id}")
    shared, flags, asked, how = _parse(f"limbeck {command} {entry.id}", rest, base, flags, options)
    told = recorded({n: v for n, v in vars(flags).items() if v is not None})
    task_name = chosen_task(shared.task, told, entry.wing)
    if shared.fail_above is not None and entry.wing != "generators":
        raise LimbeckError(f"--fail-above is for few-step generators; {entry.id} is none")
    told = {**({} if stored is None else stored.task_options), **told}
    if stored is None and preset is None:
        asked = _suited(entry.id, task_name, told, options, asked)
    config = runs.RunConfig(
        entry.id, task_name, told, options_to_dict(asked), shared.seed, shared.device, shared.dtype,
        shared.micro_batches, shared.checkpoint_every, None if shared.from_run is None else str(shared.from_run), shared.precision,
    )  # fmt: skip
    runs.loop_options(config, asked)
    return Request(config, how, shared)


def _suited(method: str, task: str, told: dict[str, Any], defaults: Any, given: Any) -> Any:
    """The options with what the task prefers where the user said nothing."""
    from limbeck.tasks import preferred_options

    preferred = preferred_options(task, told).get(method, {})
    asked = {line.split(":")[0].split(".")[0] for line in changed(defaults, given)}
    return merged_options(given, {n: v for n, v in preferred.items() if n not in asked})


def _parse(program: str, arguments: list[str], shared: Shared, flags: Any, options: Any) -> tuple[Shared, Any, Any, Any]:
    """The shared options, the tasks', the method's own, and how to carry the run out, from the command line as flat flags."""
    import tyro

    from limbeck.runs import Execution

    flat = tyro.conf.arg(name="")
    both = make_dataclass(
        "Arguments",
        [
            ("shared", Annotated[Shared, flat], make_field(default=shared)),
            ("flags", Annotated[type(flags), flat], make_field(default=flags)),
            ("method", Annotated[type(options), flat], make_field(default=options)),
            ("how", Annotated[Execution, flat], make_field(default=Execution())),
        ],
    )
    parsed: Any = tyro.cli(both, prog=program, args=arguments)
    return parsed.shared, parsed.flags, parsed.method, parsed.how


def value_of(arguments: list[str], flag: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise LimbeckError(f"{path} does not exist; give the config.yaml of a run")
    return path
