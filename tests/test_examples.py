"""The example runs and the page that explains it quotes it; the notebook runs."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

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


def test_the_page_on_classifiers_trains_a_pair():
    loop, method = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "recognition.md").read_text(), re.DOTALL)
    assert loop.count("\n") <= 12
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, generator=generator)
    teacher = torch.nn.Linear(8, 5)
    with torch.no_grad():
        teacher.weight.copy_(torch.randn(5, 8, generator=generator))
        y = teacher(x).argmax(1)
    for source in (loop, method):
        torch.manual_seed(0)
        student = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
        names = {
            "teacher": teacher,
            "student": student,
            "x": x,
            "y": y,
            "loader": 30 * list(zip(x.split(50), y.split(50), strict=True)),
        }
        names["optimizer"] = torch.optim.Adam(student.parameters(), 1e-2)
        exec(source, names)
        assert float((student(x).argmax(1) == y).double().mean()) > 0.9
