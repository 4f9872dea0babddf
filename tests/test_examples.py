"""The example runs and the page that explains it quotes it; the notebook runs."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "write_a_method.py"


def test_the_example_distils():
    spec = importlib.util.spec_from_file_location("write_a_method", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    student, once = module.main(iterations=25)
    assert student < 0.1 * once


def test_the_page_quotes_the_whole_example():
    quoted = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "write-a-method.md").read_text(), re.DOTALL)
    assert EXAMPLE.read_text() in quoted


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, tmp_path):
    import nbformat
    from nbconvert.preprocessors import ExecutePreprocessor

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "first_distillation.ipynb", as_version=4)
    nbformat.validate(notebook)
    close = "assert distances[{!r}] < 0.05 * distances['teacher, 1 call']"
    for name in ("teacher, 35 calls", "student, 1 call", "student, 2 calls"):
        notebook.cells.append(nbformat.v4.new_code_cell(close.format(name)))
    ExecutePreprocessor(timeout=300, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
