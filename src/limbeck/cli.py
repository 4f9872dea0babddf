"""The command line: limbeck methods | distill | sample | evaluate | reproduce | report."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace
from dataclasses import field as make_field
from pathlib import Path
from typing import Annotated, Any, Literal

from limbeck.errors import LimbeckError, unknown
from limbeck.methods import METHODS, find, preset_of
from limbeck.version import __version__

USAGE = f"""limbeck {__version__}: distil a slow teacher into a fast student

  limbeck methods [NAME] [--json]       the methods, or one in full
  limbeck distill [METHOD] [options]    distil (default: dmd on the digits); --help lists the options
  limbeck sample RUN [options]          pictures from a run's student
  limbeck evaluate RUN                  judge a run's student and teacher again
  limbeck reproduce METHOD... [options] a method's own claims as an experiment on this computer
  limbeck report RUN... [--out FILE]    the report of a run, or a comparison of several
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (a claim failed), 2 (a user's error), 130 (interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "methods": methods,
        "distill": distill,
        "sample": sample,
        "evaluate": evaluate,
        "reproduce": reproduce,
        "report": report,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"limbeck {__version__}")
        return 0
    try:
        if arguments[0] not in commands:
            raise unknown("command", arguments[0], commands)
        one_thread()
        return commands[arguments[0]](arguments[1:])
    except LimbeckError as error:
        print(f"limbeck: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("limbeck: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except SystemExit as stop:  # tyro has said what is wrong
        return int(stop.code or 0)


def one_thread() -> None:
    """One torch thread unless OMP_NUM_THREADS says otherwise: small networks gain nothing from two."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))


def methods(arguments: list[str]) -> int:
    """limbeck methods [NAME] [--json]"""
    as_json = "--json" in arguments
    names = [a for a in arguments if a != "--json"]
    entries = [find(name) for name in names] or list(METHODS.values())
    facts = [
        {
            "id": e.id, "title": e.title, "arxiv": e.arxiv, "year": e.year, "aliases": list(e.aliases), "data": e.data,
            "gradients_through_teacher": e.input_gradients, "networks": e.networks,
        }
        for e in entries
    ]  # fmt: skip
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    if names:
        for entry in entries:
            print(f"{entry.id}: {entry.title}, arXiv {entry.arxiv} ({entry.year})\n")
            if entry.module:
                cls, _, presets = entry.load()
                print(sys.modules[cls.__module__].__doc__)
                print(f"presets: {', '.join(presets)}")
        return 0
    for e in entries:
        through = "yes" if e.input_gradients else "no"
        print(f"{e.id:<16}{e.title}, {e.year}, arXiv {e.arxiv}")
        print(f"{'':<16}data: {e.data} | gradients through the teacher: {through} | networks: {e.networks}")
    return 0


@dataclass(frozen=True)
class Shared:
    """What every distillation takes, whatever the method."""

    task: str = "digits"
    """digits, photos; with --teacher or --data: own."""
    teacher: str | None = None
    """Your own teacher: NAME.safetensors (+ .json), a .pt2 or .pt file, or MODULE:FUNCTION."""
    data: Path | None = None
    """A folder of pictures (one subfolder per class for labels)."""
    network: str | None = None
    """MODULE:CLASS of the teacher's network, for a bare state dict."""
    prediction: str | None = None
    """What your network predicts: edm, x0, eps, v, velocity, score."""
    process: str | None = None
    """Its noising process: ve, vp, cosine, ddpm, flow, trigflow; options as in flow:shift=3."""
    noise_input: str | None = None
    """How it is told the noise: time, thousand, sigma, log_sigma, angle."""
    data_range: str | None = None
    """The range of its images: "-1,1" (default), "0,1" or LOW,HIGH."""
    null_label: int | None = None
    """The label that means "no class" to your network, if one does."""
    sigma_data: float | None = None
    """The data's standard deviation (default: measured)."""
    image_size: int | None = None
    """Cut the centre square of every picture and resize it to N x N."""
    teacher_nodes: int | None = None
    """Noise levels of your teacher's Heun sampler (default: 18)."""
    features: str | None = None
    """MODULE:FUNCTION, images (N, C, H, W) in [-1, 1] -> features (N, D) for the Frechet distance."""
    preset: str | None = None
    """A preset of the method, e.g. paper-cifar10."""
    out: Path | None = None
    """The run's folder (default: a new one under runs/)."""
    config: Path | None = None
    """Replay a run's config.yaml."""
    resume: Path | None = None
    """Go on with this run."""
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
    tensorboard: bool = False
    """Write TensorBoard files beside metrics.jsonl."""
    fail_above: float | None = None
    """Exit with 1 where the student's Frechet distance is more than this many times the teacher's."""
    quiet: bool = False


OWN = (
    "teacher", "data", "network", "prediction", "process", "noise_input", "data_range", "null_label", "sigma_data",
    "image_size", "teacher_nodes", "features",
)  # fmt: skip


def distill(arguments: list[str]) -> int:
    """limbeck distill [METHOD] [options]"""
    from limbeck import runs
    from limbeck.tasks import build_task

    named = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if named else ("dmd", arguments)
    base, options = Shared(), None
    stored: runs.RunConfig | None = None
    for flag in ("--resume", "--config"):
        if path := _value(rest, flag):
            stored = runs.read_config(path) if flag == "--resume" else runs.parse_config(_existing(Path(path)))
    entry = find(name) if named or stored is None else find(stored.method)
    if stored is not None:
        if "python" in stored.task_options:
            build_task(stored.task, stored.task_options)  # raises: says why it cannot
        if named and find(stored.method).id != entry.id:
            raise LimbeckError(f"that run is of the method {stored.method!r}, not of {entry.id!r}; leave the method out")
        same: dict[str, Any] = {
            n: getattr(stored, n) for n in ("task", "seed", "device", "dtype", "micro_batches", "checkpoint_every", "precision")
        }
        same |= {n: Path(v) if n == "data" else v for n, v in stored.task_options.items() if n in OWN}
        base = replace(base, **same)
    _, options_class, presets = runs.distilling(entry.id).load()
    preset = _value(rest, "--preset")
    options = preset_of(name, presets, preset)
    if stored is not None:
        options = runs.options_from_dict(options_class, stored.options, f"options of {entry.id}")
    given = _parse(f"limbeck distill {entry.id}", rest, base, options)
    shared: Shared = given[0]
    own = {n: getattr(shared, n) for n in OWN if getattr(shared, n) is not None}
    task_options = {n: str(v) if isinstance(v, Path) else v for n, v in own.items()}
    task_name = "own" if own else shared.task
    if stored is None and preset is None:
        given = (shared, _suited(entry.id, task_name, options, given[1], rest))
    runs.check_place(shared.device, shared.dtype)
    config = runs.RunConfig(
        entry.id, task_name, task_options, runs.options_to_dict(given[1]), shared.seed, shared.device, shared.dtype,
        shared.micro_batches, shared.checkpoint_every, shared.precision,
    )  # fmt: skip
    folder = runs.open_folder(shared.resume or shared.out, config, shared.overwrite, shared.resume is not None)
    task = build_task(config.task, config.task_options, device=config.device, dtype=config.dtype, quiet=shared.quiet)
    command = " ".join(["limbeck", "distill", *arguments])
    done = runs.run(
        config, task, folder, shared.overwrite, shared.resume is not None,
        quiet=shared.quiet, command=command, tensorboard=shared.tensorboard,
    )  # fmt: skip
    show(done.summary)
    print(f"\nreport: {folder / 'report.html'}")
    ratio = done.summary["student"]["frechet"] / done.summary["teacher"]["frechet"]
    if shared.fail_above is not None and not ratio <= shared.fail_above:
        print(
            f"limbeck: the student's Frechet distance is {ratio:.2f} times the teacher's, above {shared.fail_above:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def _suited(method: str, task: str, defaults: Any, given: Any, rest: list[str]) -> Any:
    """The options with what the task prefers where the user said nothing."""
    from limbeck import runs
    from limbeck.tasks import preferred_options

    preferred = preferred_options(task).get(method, {})
    asked = {line.split(":")[0].split(".")[0] for line in runs.changed(defaults, given)}
    return runs.merged_options(given, {n: v for n, v in preferred.items() if n not in asked})


def _parse(program: str, arguments: list[str], shared: Shared, options: Any) -> tuple[Shared, Any]:
    """The shared and the method's own options from the command line, as flat flags."""
    import tyro

    flat = tyro.conf.arg(name="")
    both = make_dataclass(
        "Arguments",
        [
            ("shared", Annotated[Shared, flat], make_field(default=shared)),
            ("method", Annotated[type(options), flat], make_field(default=options)),
        ],
    )
    parsed: Any = tyro.cli(both, prog=program, args=arguments)
    return parsed.shared, parsed.method


def _value(arguments: list[str], flag: str) -> str | None:
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


def show(summary: dict[str, Any]) -> None:
    """The table of a run: teacher, teacher at the student's NFE, student."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "NFE", "Frechet distance", "class accuracy", "images/s"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    rows = {"teacher": "teacher", "teacher_at_student_nfe": "teacher, student's NFE", "student": "student"}
    for key, label in rows.items():
        f = summary.get(key)
        if f:
            accuracy = "-" if f["accuracy"] is None or f["accuracy"] != f["accuracy"] else f"{f['accuracy']:.3f}"
            table.add_row(label, str(f["nfe"]), f"{f['frechet']:.3f}", accuracy, f"{f['images_per_second']:,.0f}")
    console = Console()
    console.print()
    console.print(table)
    teacher, student = summary["teacher"], summary["student"]
    console.print(
        f"\nstudent / teacher: {student['frechet'] / teacher['frechet']:.2f} x the Frechet distance, "
        f"{student['images_per_second'] / teacher['images_per_second']:.0f} x the images per second; "
        f"noise floor {summary['noise_floor']:.3f}; distilled in {summary['seconds']:.0f} s",
        highlight=False,
    )


@dataclass(frozen=True)
class SampleArguments:
    """Pictures from a run's student."""

    count: int = 80
    columns: int = 10
    seed: int = 0
    out: Path | None = None
    """The picture to write (default: samples/sample-SEED.png in the run)."""


def sample(arguments: list[str]) -> int:
    """limbeck sample RUN [--count N] [--columns N] [--seed N] [--out FILE]"""
    import tyro

    from limbeck import runs
    from limbeck.report import save_grid

    folder, rest = _run_and_rest(arguments, "sample")
    given = tyro.cli(SampleArguments, prog="limbeck sample RUN", args=rest)
    if given.count < 1 or given.columns < 1:
        raise LimbeckError(f"--count {given.count} and --columns {given.columns} must be at least 1")
    done, task = runs.open_run(folder, quiet=True)
    x = task.evaluator.sample(done.sampler(), given.count, given.seed)
    out = given.out or folder / "samples" / f"sample-{given.seed}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_grid(out, x, given.columns)
    print(out)
    return 0


def evaluate(arguments: list[str]) -> int:
    """limbeck evaluate RUN"""
    from limbeck import runs

    folder, rest = _run_and_rest(arguments, "evaluate")
    if rest:
        raise LimbeckError(f"limbeck evaluate takes a run alone, not {' '.join(rest)}")
    done, task = runs.open_run(folder, quiet=True)
    nfe = len(done.method.times)
    figures = {
        "teacher": task.judged_teacher(task.teacher_nodes),
        "teacher_at_student_nfe": task.judged_teacher((nfe + 1) // 2),
        "student": task.evaluator(done.sampler(), nfe),
        "noise_floor": task.evaluator.noise_floor(),
    }
    show({"seconds": done.summary.get("seconds", float("nan")), **figures})
    return 0


def report(arguments: list[str]) -> int:
    """limbeck report RUN... [--out FILE]"""
    from limbeck.report import write_comparison, write_report

    out = _value(arguments, "--out")
    folders = [Path(a) for a in arguments if not a.startswith("-") and a != out]
    if not folders:
        raise LimbeckError("limbeck report needs the folder of a run (or several, to compare them)")
    page = (
        write_report(folders[0]) if len(folders) == 1 and not out else write_comparison(folders, Path(out or "comparison.html"))
    )
    print(page)
    return 0


def reproduce(arguments: list[str]) -> int:
    """limbeck reproduce METHOD... | --all [--seeds N] [--jobs N] [--json FILE]"""
    from limbeck.claims import reproduce as run_claims

    return run_claims(arguments)


def _run_and_rest(arguments: list[str], command: str) -> tuple[Path, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        raise LimbeckError(f"limbeck {command} needs the folder of a run first, e.g. runs/demo")
    return Path(arguments[0]), arguments[1:]


if __name__ == "__main__":
    sys.exit(main())
