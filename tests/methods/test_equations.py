"""Every numbered equation of a method's docstring has its number in the code."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from limbeck.methods import METHODS

NUMBER = re.compile(r"^\((\d+)\)", re.MULTILINE)


def comments(source):
    """The numbers in comments and in docstrings below the module's own."""
    tree = ast.parse(source)
    end = tree.body[0].end_lineno
    below = "\n".join(source.splitlines()[end:])
    lines = [line.partition("#")[2] for line in below.splitlines() if "#" in line]
    return {int(n) for line in lines for n in re.findall(r"\((\d+)\)", line)}


def missing(sources):
    """Numbered equations of the first source's docstring that no source names in a comment."""
    numbers = {int(n) for n in NUMBER.findall(ast.get_docstring(ast.parse(sources[0])) or "")}
    assert numbers, "the docstring has no numbered equations"
    return numbers - set().union(*(comments(source) for source in sources))


@pytest.mark.parametrize("entry", [e for e in METHODS.values() if e.module], ids=lambda e: e.id)
def test_every_equation_has_its_number_in_the_code(entry):
    module = Path(import_module(entry.module).__file__)
    files = [module, *sorted(module.parent.glob("*.py"))] if module.name == "__init__.py" else [module]
    sources = [file.read_text() for file in files]
    assert not missing(sources), f"{entry.id}: equations {sorted(missing(sources))} have no number in the code"


def test_a_number_without_code_is_found():
    assert missing(['"""T.\n\n(1) a\n(2) b\n"""\n\nx = 1  # (1)\n']) == {2}
