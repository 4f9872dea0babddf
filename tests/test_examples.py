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


def recognition():
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "recognition.md").read_text(), re.DOTALL)


class Small(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 3))


def test_the_page_on_classifiers_distils_images_in_memory(tmp_path):
    command, *_ = recognition()
    images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    names = {"teacher": Small(), "Small": Small, "images": images, "labels": torch.arange(60) % 3}
    short = f"iterations=4, quiet=True, track=('none',), out={str(tmp_path / 'run')!r}"
    assert "iterations=500" in command
    exec(command.replace("iterations=500", short), names)
    assert isinstance(names["run"].student, Small) and (tmp_path / "run" / "report.html").is_file()


def test_the_page_on_classifiers_trains_a_pair():
    _, loop, method = recognition()
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
