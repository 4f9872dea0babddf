"""Students exported, then sampled by stock diffusers where limbeck cannot be imported: the same numbers."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from limbeck.noise import DDPM
from limbeck.runs import open_run
from limbeck.runs.exporting import export_run

pytestmark = pytest.mark.filterwarnings("ignore:2 samples are judged")  # nobody looks at the figures
PROMPTS = ["a red cat", "a dog on the hill"]  # those of the runs
EVEN = {True: (999.0, 749.0, 499.0, 249.0), False: (1.0, 0.75, 0.5, 0.25)}
VIDEO = {"height": 16, "width": 16, "num_frames": 5}
FLUX = {"height": 16, "width": 16}


@dataclass(frozen=True)
class Case:
    """A pipeline, a method, and its options; ``steps`` 4: four even steps."""

    name: str
    method: str
    steps: int = 1
    options: dict = field(default_factory=dict)
    scheduler: str = ""
    pictures: bool = False


FAST = [
    Case("classes", "dmd", scheduler="DDIMScheduler"),
    Case("classes", "sid", 4, scheduler="LCMScheduler"),
    Case("stable_diffusion", "dmd", 4, scheduler="LCMScheduler"),
]
TSCD = {"segments": (4,), "then": (), "lengths": (), "w_adv": (0.0,), "w_mse": (1.0,)}
FLOW = "FlowMatchEulerDiscreteScheduler"
SLOW = {
    "pixels": [
        Case("ddpm_v", "dmd", scheduler="DDIMScheduler"),
        Case("ddpm_v", "dmd", 4, {"begin": "noise", "renoise": "ode"}, "DDIMScheduler"),
        Case("ddpm_v", "ict", 2, {"s0": 2, "s1": 2}, "CMStochasticIterativeScheduler", pictures=True),
        Case("ddpm_v", "ict", 2, {"schedule": "ect"}, "CMStochasticIterativeScheduler", pictures=True),
        Case("ddpm_v", "f-distill", 1, {}, "DDIMScheduler", pictures=True),
    ],
    "tables": [
        Case("stable_diffusion", "dmd", scheduler="DDIMScheduler"),
        Case("stable_diffusion", "tdm", 0, scheduler="DDIMScheduler"),
        Case("stable_diffusion", "hyper-sd", 0, TSCD, "DDIMScheduler", True),
        Case("stable_diffusion", "hyper-sd", 0, {**TSCD, "eta": 0.3}, "TCDScheduler", True),
        Case("sdxl", "dmd", scheduler="DDIMScheduler"),
        Case("dit", "dmd", scheduler="DDIMScheduler"),
        Case("dit", "dmd", 4, scheduler="LCMScheduler"),
    ],
    "flows": [
        Case("sd3", "dmd", scheduler=FLOW),
        Case("sd3", "dmd", 4, scheduler=FLOW),
        Case("sd3", "rcm", 0, {"steps": 4, "scm_weight": 0.0, "dmd_weight": 1.0, "warmup": 0, "sigma_max": math.inf}, FLOW),
        Case("flux", "dmd", 1, FLUX, FLOW),
        Case("flux", "dmd", 4, FLUX, FLOW),
        Case("flux", "tdm", 0, FLUX, FLOW),
        Case("wan_experts", "phased-dmd", 0, VIDEO, FLOW),
    ],
}


def even_sigmas(run_of, case):
    from limbeck.interop.pipelines import open_pipeline

    if case.steps != 4:
        return {}
    model = run_of.model(case.name)
    process = open_pipeline(str(model), **{n: v for n, v in case.options.items() if n in VIDEO}).schedule.process
    times = torch.tensor(EVEN[isinstance(process, DDPM)], dtype=torch.float64)
    return {"sigmas": tuple((process.sigma(times) * (1 - 1e-12)).tolist())}


def job(case, exported, run):
    """What stock diffusers is to do."""
    kind = json.loads((exported.path / "model_index.json").read_text())["_class_name"]
    asked = {"prompt": PROMPTS, "output_type": "latent"}
    if case.name in ("classes", "dit"):
        asked = {"class_labels": open_run(run, quiet=True)[1].evaluator.cond["label"].tolist(), "output_type": "pt"}
    elif case.name == "ddpm_v":
        asked = {"output_type": "pt"}
    rows = {"batch_size": 2} if case.name in ("classes", "ddpm_v") else {}
    return {"folder": str(exported.path), "kind": kind, "call": {**asked, **rows, **exported.call}, "seed": 7}


def as_drawn(case, run, x):
    """Limbeck's samples as the pipeline answers them."""
    from limbeck.interop.conventions import packed

    if case.name == "flux":
        return packed(x)
    if case.name in ("classes", "ddpm_v", "dit"):
        return (open_run(run, quiet=True)[1].evaluator.shown(x) / 2 + 0.5).clamp(0, 1)
    return x


def card_code(folder):
    """The code block of a model card."""
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


def check(cases, run_of, stock, ours, tmp_path):
    runs, exports = [], []
    for i, case in enumerate(cases):
        data = torch.rand(4, 3, *((16, 16) if case.name == "stable_diffusion" else (8, 8))) * 2 - 1 if case.pictures else None
        runs.append(run_of(case.name, case.method, data=data, **even_sigmas(run_of, case), **case.options))
        exports.append(export_run(runs[-1], "diffusers", tmp_path / str(i)))
        scheduler = json.loads((exports[-1].path / "scheduler" / "scheduler_config.json").read_text())
        assert scheduler["_class_name"] == case.scheduler, case
    cards = [{"code": card_code(exported.path), "place": str(tmp_path)} for exported in exports[-1:]]
    jobs = [job(*each) for each in zip(cases, exports, runs, strict=True)]
    *theirs, _ = stock([*jobs, *cards])
    assert (tmp_path / ("sample.gif" if cases[-1].name == "wan_experts" else "sample.png")).is_file()
    for case, run, asked, array in zip(cases, runs, jobs, theirs, strict=True):
        x = as_drawn(case, run, ours(run, 7)).numpy()
        assert array.shape == x.shape, case
        if asked["call"]["output_type"] == "pt":
            assert ((array > 0) & (array < 1)).mean() > 0.05, "all clamped: nothing is compared"
        np.testing.assert_allclose(array, x, rtol=0, atol=1e-4 * max(1.0, float(np.abs(x).max()) / 10), err_msg=str(case))


def test_stock_pipelines_draw_the_students_samples(run_of, stock, ours, tmp_path):
    check(FAST, run_of, stock, ours, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", SLOW)
def test_every_kind_of_student_comes_home(family, run_of, stock, ours, tmp_path):
    check(SLOW[family], run_of, stock, ours, tmp_path)
