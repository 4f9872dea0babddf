"""limbeck plan: whether a run fits into memory, before it begins, and what to switch on where it does not."""

import json
import re
import sys
from dataclasses import asdict
from typing import Any

from limbeck.cli.distilling import requested, value_of
from limbeck.errors import LimbeckError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def plan(arguments: list[str]) -> int:
    """limbeck plan [METHOD] [options of distill] [--memory 24GB] [--json]: 0, or 1 where the run does not fit"""
    from limbeck import runs
    from limbeck.tasks import build_task

    given = value_of(arguments, "--memory")
    limit = None if given is None else bytes_of(given)
    rest = [a for a in arguments if a not in ("--json", "--memory") and not a.startswith("--memory=")]
    if given is not None and "--memory" in arguments:
        rest.remove(given)
    asked = requested("plan", rest)
    config, how = asked.config, asked.how
    limit = device_memory(config.device) if limit is None else limit
    choice = runs.Choice(config, how)
    say = (lambda text: None) if how.quiet else (lambda text: print(f"limbeck: {text}", file=sys.stderr))
    with asked.named():
        task = build_task(config.task, config.task_options, device=config.device, dtype=config.dtype, quiet=how.quiet)
        made = choice.plan(task)
        fits = limit is None or made.peak <= limit
        single = [] if fits else runs.savings(choice, task, say)
        way = None if fits or limit is None else runs.enough(choice, task, single, limit, say)
    if "--json" in arguments:
        facts = {**asdict(made), "working": made.working, "memory": limit, "fits": None if limit is None else fits}
        facts |= {"savings": [asdict(s) for s in single], "enough": way and {"flags": way[0], "peak": way[1]}}
        print(json.dumps(facts, indent=2))
        return 0 if fits else 1
    _show(made, config, limit)
    if not fits:
        _show_savings(made, single)
        print("\nnot even all of them are enough" if way is None else f"\nenough: {way[0]}   (peak {size(way[1])})")
    return 0 if fits else 1


def bytes_of(text: str) -> int:
    """Bytes of "24GB" (24 x 10^9) or "24GiB". Raises LimbeckError for other forms."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if not found or found[2].upper() not in UNITS:
        raise LimbeckError(f"--memory {text} is no amount of memory; write a number and a unit, as in 24GB, 24GiB or 800MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def device_memory(device: str) -> int | None:
    """All memory of a CUDA device in bytes; None elsewhere."""
    import torch

    return torch.cuda.mem_get_info(device)[1] if torch.device(device).type == "cuda" else None


def size(n: float) -> str:
    """Bytes with three digits and a unit of 10^3, 10^6 or 10^9."""
    for unit in ("GB", "MB", "kB"):
        if abs(n) >= (scale := UNITS[unit.upper()]):
            return f"{n / scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{n:.0f} B"


def _show(made: Any, config: Any, limit: int | None) -> None:
    from rich.console import Console

    columns = ("weights", "gradients", "optimizer", "average")
    rows = [[r.name, *(size(getattr(r, c)) if getattr(r, c) else "" for c in columns)] for r in made.roles]
    if made.other:
        rows.append(["other", size(made.other), "", "", ""])
    console = Console()
    console.print()
    console.print(_table(("", *columns), rows))
    pieces = f" in {made.micro_batches} micro-batches" if made.micro_batches > 1 else ""
    console.print(
        f"\nat the peak: {size(made.resident)} of weights, averages and optimizer states, "
        f"{size(made.working)} of activations, gradients and temporary tensors (batch {made.batch}{pieces})\n"
        f"peak: {size(made.peak)}" + ("" if limit is None else f"   memory: {size(limit)}   ")
        + ("" if limit is None else "fits" if made.peak <= limit else f"does not fit: {size(made.peak - limit)} too much"),
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _show_savings(made: Any, single: list[Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print()
    console.print(
        _table(("peak", "saves", ""), [[size(s.peak), size(made.peak - s.peak), f"{s.flags}: {s.meaning}"] for s in single])
    )


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> Any:
    """Words are left, numbers right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    return table
