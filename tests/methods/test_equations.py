"""Every numbered equation of a method's docstring has its number in the code."""

import ast
import re
import sys

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
    cls, _, _ = entry.load()
    module = sys.modules[entry.module]
    files = sorted({f for f in [module.__file__, sys.modules[cls.__module__].__file__] if f})
    if module.__file__.endswith("__init__.py"):  # a package: all its files carry the numbers
        from pathlib import Path

        files = [module.__file__, *map(str, sorted(Path(module.__file__).parent.glob("*.py")))]
    sources = [open(f).read() for f in dict.fromkeys(files)]
    assert not missing(sources), f"{entry.id}: equations {sorted(missing(sources))} have no number in the code"


def test_a_number_without_code_is_found():
    assert missing(['"""T.\n\n(1) a\n(2) b\n"""\n\nx = 1  # (1)\n']) == {2}
