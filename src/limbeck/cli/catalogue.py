"""limbeck methods: what there is, and one method in full: its equations, options, presets and citation."""

import ast
import inspect
import itertools
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from limbeck.methods import METHODS, Entry, find
from limbeck.training.options import changed


def methods(arguments: list[str]) -> int:
    """limbeck methods [NAME] [--json]"""
    as_json = "--json" in arguments
    names = [a for a in arguments if a != "--json"]
    entries = [find(name) for name in names] or list(METHODS.values())
    if as_json:
        print(json.dumps([facts(e) for e in entries], indent=2))
    elif names:
        print("\n\n".join(page(e) for e in entries))
    else:
        print("\n".join(listing(e) for e in entries))
    return 0


def facts(e: Entry) -> dict[str, Any]:
    """An entry as JSON."""
    return {
        "id": e.id, "title": e.title, "paper": e.paper, "arxiv": e.arxiv, "year": e.year, "aliases": list(e.aliases),
        "data": e.data, "gradients_through_teacher": e.input_gradients, "null_condition": e.null, "networks": e.networks,
    }  # fmt: skip


def needs(e: Entry) -> str:
    """What a method needs and holds, on one line."""
    through = "yes" if e.input_gradients else "no"
    return f"data: {e.data} | gradients through the teacher: {through} | null condition: {e.null} | networks: {e.networks}"


def listing(e: Entry) -> str:
    """Two lines of the list."""
    source = f", {e.year}, arXiv {e.arxiv}" if e.arxiv else ""
    return f"{e.id:<16}{e.title}{source}\n{'':<16}{needs(e)}"


def page(e: Entry) -> str:
    """A method in full."""
    source = [f"{e.paper}, arXiv {e.arxiv} ({e.year})"] if e.arxiv else []
    lines = [f"{e.id}: {e.title}", *source, needs(e), ""]
    if e.module:
        cls, options, presets = e.load(to_read=True)
        base = presets["recommended"]
        lines += [inspect.getdoc(sys.modules[cls.__module__]) or "", "", "Options (defaults):", *option_lines(options)]
        lines += ["", "Presets:"]
        for name, preset in presets.items():
            differs = "; ".join(changed(base, preset)) if preset is not base else "the defaults"
            lines += textwrap.wrap(f"{name}: {differs}", 110, initial_indent="  ", subsequent_indent="      ")
    return "\n".join([*lines, "", "Citation:", citation(e)] if e.arxiv else lines)


def option_lines(options: type) -> Iterator[str]:
    """A line per option, its default and what the class says under it."""
    said = documented(options)
    for f in fields(options):
        value: Any = f.default
        text = "..." if is_dataclass(value) else repr(value)
        yield from textwrap.wrap(
            f"{f.name} = {text}" + (f": {said[f.name]}" if f.name in said else ""),
            110,
            initial_indent="  ",
            subsequent_indent="      ",
        )


def documented(options: type) -> dict[str, str]:
    """What stands under the fields of a dataclass and of its bases."""
    said: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        if not is_dataclass(cls):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        body = tree.body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                said[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return said


def citation(e: Entry) -> str:
    """BibTeX of the paper."""
    key = e.id.replace("-", "")
    return (
        f"@misc{{{key}{e.year},\n  title = {{{e.paper}}},\n  year = {{{e.year}}},\n  eprint = {{{e.arxiv}}},\n"
        f"  archivePrefix = {{arXiv}},\n  url = {{https://arxiv.org/abs/{e.arxiv}}}\n}}"
    )
