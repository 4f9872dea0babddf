"""Adapters as files: stock diffusers with load_lora_weights draws what the merged student draws."""

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.interop.export import PIPELINES, Plan, write_lora
from limbeck.interop.export.lora import lora_state
from limbeck.networks import adapted
from limbeck.networks.adapters import adapters
from limbeck.runs.exporting import export_run

pytestmark = pytest.mark.filterwarnings("ignore:2 samples are judged")  # nobody looks at the figures
PROMPTS = ["a red cat", "a dog on the hill"]  # those of the runs
# alpha / r = 2.5; the critic learns first, else it is the teacher and nothing pulls
ADAPTERS = {"student_rank": 2, "adapter_alpha": 5.0, "student": {"lr": 0.1, "warmup": 0}, "iterations": 2, "student_after": 1}
KINDS = {"stable_diffusion": "StableDiffusionPipeline", "sd3": "StableDiffusion3Pipeline"}


def jobs(name, model, lora, merged):
    """One with the teacher's folder and the adapters, one with the merged student, one with the teacher alone."""
    asked = {"prompt": PROMPTS, "output_type": "latent"}
    common = {"kind": KINDS[name], "call": {**asked, **merged.call}, "seed": 3}
    teacher = {**common, "folder": str(model), "scheduler": str(lora.path / "scheduler")}
    return [{**teacher, "lora": str(lora.path)}, {**common, "folder": str(merged.path)}, teacher]


def made(name, run_of, tmp_path):
    run = run_of(name, "dmd", **ADAPTERS)
    lora, merged = (export_run(run, form, tmp_path / f"{name}-{form}") for form in ("lora", "diffusers"))
    assert lora.call == merged.call
    return run_of.model(name), lora, merged


def check(answers):
    loaded, merged, teacher = answers
    scale = np.abs(merged).max()
    np.testing.assert_allclose(loaded, merged, rtol=0, atol=1e-5 * max(1.0, scale))
    assert np.abs(loaded - teacher).max() > 1e-3 * scale  # the adapters are not nothing


@pytest.mark.slow
def test_load_lora_weights_equals_the_merged_student(run_of, stock, tmp_path):
    asked = [job for name in KINDS for job in jobs(name, *made(name, run_of, tmp_path))]
    answers = stock(asked)
    check(answers[:3])
    check(answers[3:])


def test_peft_computes_what_the_adapters_do():
    """Linear layers and convolutions, with alpha / r folded into B: peft's own layers, given the file's tensors."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(16, 5)).double()
    tree = adapted(base, 2, alpha=3.0)
    for _, layer in adapters(tree):
        nn.init.normal_(layer.B)
    state = {name.removeprefix("unet."): value for name, value in lora_state({"unet": tree}).items()}
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(16, 5)).double()
    theirs.load_state_dict(base.state_dict())
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["0", "2"]), theirs)
    assert not set_peft_model_state_dict(theirs, state).unexpected_keys
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), tree(x), rtol=1e-12, atol=1e-12)
    assert float((tree(x) - base(x)).detach().abs().max()) > 0.1


def test_a_student_that_was_trained_whole_has_no_adapters():
    with pytest.raises(LimbeckError, match="student's unet has no adapters.*student_rank >= 1.*--to diffusers"):
        lora_state({"unet": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    "stock, networks, message",
    [
        ("ConsistencyModelPipeline", 1, "a ConsistencyModelPipeline has no load_lora_weights.*--to diffusers"),
        ("WanPipeline", 2, "belong to 2 networks \\(transformer, transformer_2\\)"),
    ],
)
def test_where_no_file_of_adapters_can_go_is_refused(stock, networks, message, tmp_path):
    plan = Plan(PIPELINES[stock], "DDIMScheduler", {}, {})
    models = {name: adapted(nn.Linear(2, 2), 1) for name in ("transformer", "transformer_2")[:networks]}
    with pytest.raises(LimbeckError, match=message):
        write_lora(tmp_path, plan, models)
    assert not list(tmp_path.iterdir())
