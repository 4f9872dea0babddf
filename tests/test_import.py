"""`import limbeck` is light, and a plain `pip install limbeck` is enough for every module to import."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
CORE = {
    canonicalize_name(Requirement(line).name)
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
}
HEAVY = {
    "diffusers",
    "gsplat",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "peft",
    "rich",
    "scipy",
    "sklearn",
    "tensorboard",
    "transformers",
    "tyro",
}


def test_import_pulls_in_nothing_heavy():
    program = "import sys; sys.path[:0] = sys.argv[1:]; import limbeck; print(limbeck.__file__, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, SOURCE], check=True, capture_output=True, text=True)
    file, *modules = done.stdout.split("\n")[0].split(" ")
    assert Path(file) == SOURCE / "limbeck" / "__init__.py"
    assert HEAVY.isdisjoint(modules), HEAVY.intersection(modules)


def imports_at_the_top(source: str) -> set[str]:
    """Packages that the module's own statements import (not those in functions or branches)."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_imports_at_the_top_are_told_from_those_in_functions():
    source = "import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    import i\n"
    assert imports_at_the_top(source) == {"a", "c", "d"}


def test_modules_import_core_dependencies_alone():
    distributions = packages_distributions()
    beyond = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path in SOURCE.rglob("*.py")
        for name in imports_at_the_top(path.read_text()) - sys.stdlib_module_names - {"limbeck"}
        if CORE.isdisjoint(map(canonicalize_name, distributions.get(name, [])))
    }
    assert not beyond, f"not in [project.dependencies], so import it where it is needed: {beyond}"
