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
    found: set[int] = set()
    for line in below.splitlines():
        said = line.partition('"""')[2] or line.partition("#")[2]
        found |= {int(n) for n in re.findall(r"\((\d+)\)", said)}
        for first, last in re.findall(r"\((\d+)\) to \((\d+)\)", said):
            found |= {*range(int(first), int(last) + 1)}
    return found


def numbers(source):
    """The numbered equations of a module's docstring."""
    return {int(n) for n in NUMBER.findall(ast.get_docstring(ast.parse(source)) or "")}


def missing(source):
    """Numbered equations of a module's docstring that no comment in it names."""
    return numbers(source) - comments(source)


@pytest.mark.parametrize("entry", [e for e in METHODS.values() if e.module], ids=lambda e: e.id)
def test_every_equation_has_its_number_in_the_code(entry):
    module = Path(import_module(entry.module).__file__)
    files = [module, *sorted(module.parent.glob("*.py"))] if module.name == "__init__.py" else [module]
    sources = [file.read_text() for file in files]
    stated, named = (set().union(*(of(source) for source in sources)) for of in (numbers, comments))
    assert stated, f"{entry.id}: no docstring has numbered equations"
    assert stated <= named, f"{entry.id}: equations {sorted(stated - named)} have no number in the code"


def test_a_number_without_code_is_found():
    head = '"""T.\n\n(1) a\n(2) b\n(3) c\n"""\n\n'
    assert missing(head + "x = 1  # (1)\n") == {2, 3}
    assert missing(head + "x = 1  # (1) to (3)\n") == set()
    assert missing(head + 'def f():\n    """(2) what it is."""\n') == {1, 3}
