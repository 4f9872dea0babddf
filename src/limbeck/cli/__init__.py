"""The command line: limbeck methods | distill | plan | sample | evaluate | export | reproduce | report."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.cli.catalogue import methods
from limbeck.cli.distilling import distill, value_of
from limbeck.cli.exporting import export
from limbeck.cli.planning import plan
from limbeck.cli.show import show
from limbeck.errors import LimbeckError, unknown
from limbeck.version import __version__

USAGE = f"""limbeck {__version__}: distil a slow teacher into a fast student

  limbeck methods [NAME] [--json]       the methods, or one in full
  limbeck distill [METHOD] [options]    distil (default: dmd on the digits); --help lists the options
  limbeck plan [METHOD] [options]       how much memory that needs, before it begins; --memory 24GB: does it fit?
  limbeck sample RUN [options]          pictures from a run's student
  limbeck evaluate RUN                  judge a run's student and teacher again
  limbeck export RUN --to FORM PLACE    take the student home: diffusers, lora, torch-export, onnx; --table says what goes
  limbeck reproduce METHOD... [options] a method's own claims as an experiment on this computer
  limbeck report RUN... [--out FILE]    the report of a run, or a comparison of several
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (a claim failed), 2 (a user's error), 130 (interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "methods": methods,
        "distill": distill,
        "plan": plan,
        "sample": sample,
        "evaluate": evaluate,
        "export": export,
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
        rank = int(os.environ.get("RANK", "0"))  # of several processes
        print(f"limbeck{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("limbeck: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:  # what the disk or its owner refuses
        where = f": {error.filename}" if error.filename else ""
        print(f"limbeck: {error.strerror or error}{where}; free space, check the name and its permissions", file=sys.stderr)
        return 2
    except SystemExit as stop:  # tyro has said what is wrong
        return int(stop.code or 0)


def one_thread() -> None:
    """One torch thread unless OMP_NUM_THREADS says otherwise: small networks gain nothing from two."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))


@dataclass(frozen=True)
class SampleArguments:
    """Pictures from a run's student."""

    count: int = 80
    columns: int = 10
    seed: int = 0
    noise: Literal["keyed", "torch"] = "keyed"
    """keyed by sample, as in training and evaluation; or as a stock pipeline draws it from torch.manual_seed(SEED)."""
    out: Path | None = None
    """The picture to write (default: samples/sample-SEED.png in the run)."""
    trust_code: bool = False
    """Import the code (MODULE:NAME, .pt2) that the run's config.yaml names."""


def sample(arguments: list[str]) -> int:
    """limbeck sample RUN [--count N] [--columns N] [--seed N] [--noise keyed|torch] [--out FILE]"""
    import tyro

    from limbeck import runs
    from limbeck.report import save_grid
    from limbeck.runs.exporting import sample_as_pipelines_do
    from limbeck.tasks import Task

    folder, rest = _run_and_rest(arguments, "sample")
    given = tyro.cli(SampleArguments, prog="limbeck sample RUN", args=rest)
    if given.count < 1 or given.columns < 1:
        raise LimbeckError(f"--count {given.count} and --columns {given.columns} must be at least 1")
    done, task = runs.open_run(folder, quiet=True, trust_code=given.trust_code)
    if not isinstance(task, Task):
        where = f"its pictures ({', '.join(task.album(done.method))}) are in {folder / 'samples'}"
        raise LimbeckError(f"a student of the task {task.name} draws no samples; {where}")
    if given.noise == "torch":
        x = sample_as_pipelines_do(done, task, given.count, given.seed)
    else:
        x = task.evaluator.sample(done.sampler(), given.count, given.seed)
    out = given.out or folder / "samples" / f"sample-{given.seed}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_grid(out, task.evaluator.shown(x), given.columns)
    print(out)
    return 0


def evaluate(arguments: list[str]) -> int:
    """limbeck evaluate RUN [--trust-code]"""
    from limbeck import runs

    folder, rest = _run_and_rest(arguments, "evaluate")
    if other := [a for a in rest if a != "--trust-code"]:
        raise LimbeckError(f"limbeck evaluate takes a run and --trust-code alone, not {' '.join(other)}")
    done, task = runs.open_run(folder, quiet=True, trust_code=bool(rest))
    known: dict[str, Any] = {name: done.summary[name] for name in ("seconds", "reference") if name in done.summary}
    show({"seconds": float("nan"), **known, **task.judged(done.method)})
    return 0


def report(arguments: list[str]) -> int:
    """limbeck report RUN... [--out FILE]"""
    from limbeck.report import write_comparison, write_report

    out = value_of(arguments, "--out")
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
