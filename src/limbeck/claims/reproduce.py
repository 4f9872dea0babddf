"""limbeck reproduce: run claims over seeds, in one process or two, and show what held."""

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro

from limbeck.claims.claim import Claim, Figures, failed, result
from limbeck.claims.page import markdown, shown, verdict
from limbeck.errors import LimbeckError
from limbeck.methods import METHODS, find

CLAIMS = {n: f"limbeck.claims.{e.wing}.{n.replace('-', '_')}" for n, e in METHODS.items() if e.arxiv}


@dataclass(frozen=True)
class Arguments:
    """Run methods' own claims on this computer; exit code 1 where a gated one does not hold."""

    methods: Annotated[tuple[str, ...], tyro.conf.Positional]
    seeds: int = 3
    """Runs of every arm; figures are medians."""
    jobs: int = field(default_factory=lambda: min(2, os.cpu_count() or 1))
    """Processes; the figures do not depend on it."""
    json: Path | None = None
    """Write the results here."""
    markdown: Path | None = None
    """Write the tables here, to read."""


def reproduce(arguments: list[str]) -> int:
    """Parse the command's arguments, run the claims, print the table; returns the exit code."""
    everything = "--all" in arguments
    arguments = [a for a in arguments if a != "--all"]
    if everything:
        arguments = [*CLAIMS, *arguments]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise LimbeckError(f"name the methods to reproduce, or --all; there are claims for: {', '.join(CLAIMS)}")
    given = tyro.cli(Arguments, prog="limbeck reproduce", args=arguments)
    if given.seeds < 1 or given.jobs < 1:
        raise LimbeckError(f"--seeds {given.seeds} and --jobs {given.jobs} must be at least 1")
    names = list(dict.fromkeys(find(name).id for name in given.methods))
    for file in (given.json, given.markdown):
        if file is not None and not file.resolve().parent.is_dir():
            raise LimbeckError(f"the folder of {file} does not exist; make it first")
    for name in names:  # before any of them has run for minutes
        METHODS[name].require_extra()
    results = []
    for name in names:
        results.append(run_claim(name, given.seeds, given.jobs))
        show(results[-1])
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.markdown is not None:
        given.markdown.write_text(markdown(results))
    if lost := failed(results):
        print(f"\n{len(lost)} gated claim(s) did not hold:\n  " + "\n  ".join(lost), file=sys.stderr)
    return 1 if lost else 0


def load_claim(name: str) -> Claim:
    """The claim of a method's id."""
    if name not in CLAIMS:
        raise LimbeckError(f"{name} has no claim yet; there are claims for: {', '.join(CLAIMS)}")
    return import_module(CLAIMS[name]).CLAIM


def run_claim(name: str, seeds: int, jobs: int = 1) -> dict[str, Any]:
    """A claim's result over seeds 0, 1, ...; what ``prepare`` makes is not counted in its seconds."""
    claim = load_claim(name)
    claim.prepare()
    start, runs = time.perf_counter(), []
    if jobs == 1:
        for seed in range(seeds):
            runs.append(claim.measure(seed))
            _say(name, seed, seeds, start)
    else:
        with ProcessPoolExecutor(min(jobs, seeds), multiprocessing.get_context("spawn"), _worker) as pool:
            for seed, figures in enumerate(pool.map(_measure, [name] * seeds, range(seeds))):
                runs.append(figures)
                _say(name, seed, seeds, start)
    return result(claim, runs, claim.judge(runs), time.perf_counter() - start)


def _say(name: str, seed: int, seeds: int, start: float) -> None:
    print(f"{name}: seed {seed + 1} of {seeds} done, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def _worker() -> None:
    import torch

    torch.set_num_threads(1)


def _measure(name: str, seed: int) -> Figures:
    return load_claim(name).measure(seed)


def show(outcome: dict[str, Any]) -> None:
    """The table of one method's claim."""
    from rich.console import Console
    from rich.table import Table

    title = f"{outcome['method']} (arXiv {outcome['arxiv']}), {outcome['seeds']} seeds, {outcome['seconds']:.0f} s"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("claim", "measured", "bound", ""):
        table.add_column(column, justify="right" if column in ("measured", "bound") else "left")
    for c in outcome["claims"]:
        table.add_row(c["statement"], shown(c["measured"]), str(c["bound"]), verdict(c))
    console = Console()
    console.print()
    console.print(table, highlight=False)
