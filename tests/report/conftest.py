import json
import shutil
from collections.abc import Callable, Iterator
from math import exp, sin
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from limbeck.report import save_grid

TEACHER = {"nfe": 35, "frechet": 1.83, "accuracy": 0.985, "images_per_second": 1900.0}
STUDENT = {"nfe": 1, "frechet": 1.75, "accuracy": 0.991, "images_per_second": 72200.0}
SUMMARY: dict[str, Any] = {
    "method": "dmd",
    "title": "Distribution matching distillation",
    "arxiv": "2311.18828",
    "task": "digits",
    "seed": 0,
    "teacher": TEACHER,
    "teacher_at_student_nfe": {"nfe": 1, "frechet": 41.2, "accuracy": 0.352, "images_per_second": 72900.0},
    "student": STUDENT,
    "noise_floor": 0.213,
    "seconds": 52.1,
    "teacher_seconds": 61.0,
    "teacher_origin": "trained",
    "history": [[300, {"nfe": 1, "frechet": 3.2, "accuracy": 0.97}], [900, {"nfe": 1, "frechet": 1.75, "accuracy": None}]],
    "messages": ["step 400: the critic lags behind the student (correlation 0.55 of its error with the score difference)"],
    "versions": {"limbeck": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    "command": "limbeck distill dmd --task digits --seed 0",
}


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One chromium for all tests that need one (devtools.py)."""
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        from devtools import Browser

        opened = Browser(tmp_path_factory.mktemp("browser"))
        yield opened
        opened.close()


def samples(kind: str) -> Tensor:
    """Eight rows of ten images, one pattern per column; (80, 1, 8, 8)."""
    draw = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 1, 8, 8, generator=draw).repeat(8, 1, 1, 1) * 2 - 1
    noise = torch.randn(patterns.shape, generator=draw.manual_seed(len(kind)))
    return patterns + (0 if kind == "real" else 0.1) * noise


def metrics(step: int, scale: float = 1.0) -> dict[str, Any]:
    wave = sin(1.7 * step) * sin(0.13 * step)
    line: dict[str, Any] = {
        "step": step,
        "loss/student": 0.02 * wave,
        "loss/critic": scale * (0.12 + 0.5 * exp(-step / 60)) * (1 + 0.15 * wave),
        "gap": scale * (0.1 + 0.4 * exp(-step / 150)) * (1 + 0.1 * wave),
        "critic_lag": 0.2 + 0.15 * wave,
        "diversity": 0.62 + 0.03 * wave - 0.2 * exp(-step / 40),
        "grad_norm/student": "inf" if step == 410 else 2 * exp(-step / 300) * (1.2 + wave),
        "grad_norm/critic": 0.4 * (1.3 + wave),
        "lr/student": 5e-4 * (1 - step / 1000),
        "lr/critic": 1e-3 * (1 - step / 1000),
    }
    if step % 100 == 0:
        line |= {"nfe": 1, "frechet": scale * (1.7 + 40 * exp(-step / 90)), "accuracy": 0.99 - 0.5 * exp(-step / 90)}
    return line


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a plausible run's folder; ``changes`` to its summary (``summary=False``: unfinished)."""

    def make(name: str = "run", pictures: bool = True, summary: bool = True, scale: float = 1.0, **changes: Any) -> Path:
        folder = tmp_path / name
        (folder / "samples").mkdir(parents=True)
        content = {**SUMMARY, **changes}
        options = {"iterations": 900, "batch": 128, "student": {"lr": 5e-4, "clip": 1.0}, "sigmas": [2.5]}
        config = {key: content[key] for key in ("method", "task", "seed")} | {"options": options}
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(metrics(step, scale)) + "\n" for step in range(10, 901, 10)))
        if summary:
            (folder / "summary.json").write_text(json.dumps(content))
        if pictures:
            for kind in ("real", "teacher", "teacher_at_student_nfe", "student"):
                save_grid(folder / "samples" / f"{kind}.png", samples(kind), 10)
            (folder / "samples" / "columns.json").write_text(json.dumps(list("0123456789")))
        return folder

    return make
