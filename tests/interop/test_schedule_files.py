"""Schedulers that are not known, and scheduler_config.json, whole and damaged."""

import json
import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.interop import SCHEDULERS, load_schedule, load_scheduler, nodes, read_schedule

diffusers = pytest.importorskip("diffusers")
import_now = diffusers.EulerDiscreteScheduler  # diffusers loads its schedulers on first use, which takes seconds


def build(name, **options):
    return getattr(diffusers, name)(**options)


def test_what_is_not_known_is_named():
    for scheduler, message in [
        (diffusers.VQDiffusionScheduler(num_vec_classes=4), "the noise of a VQDiffusionScheduler is not known; those of DDIM"),
        (build("DDIMScheduler", prediction_type="velocity"), "unknown prediction type 'velocity'.*epsilon, sample, v_pred"),
        (build("EDMEulerScheduler", prediction_type="sample"), "unknown prediction type of an EDM scheduler 'sample'"),
        (
            build("UniPCMultistepScheduler", use_flow_sigmas=True, prediction_type="v_prediction"),
            "prediction type of a flow 'v_pred",
        ),
        (build("DPMSolverMultistepScheduler", prediction_type="flow_prediction"), "unknown prediction type 'flow_prediction'"),
        (build("FlowMatchEulerDiscreteScheduler", num_train_timesteps=500), "num_train_timesteps=500.*only 1000 s"),
        (build("FlowMatchEulerDiscreteScheduler", invert_sigmas=True), "invert_sigmas=True"),
        (build("SCMScheduler", prediction_type="epsilon"), "unknown prediction type of an SCMScheduler 'epsilon'"),
        (build("DDIMScheduler", trained_betas=[0.1, math.nan, 0.1]), "betas of this DDIMScheduler are no schedule"),
        (build("DDIMScheduler", trained_betas=[0.1, -0.1, 0.1]), "must decrease strictly"),
        (build("EDMEulerScheduler", sigma_min=2.0, sigma_max=1.0), "sigma_min = 2.0 of a EDMEulerScheduler must be less"),
        (build("EDMEulerScheduler", sigma_data=-1.0), "sigma_data of a EDMEulerScheduler is -1.0; it must be a positive"),
    ]:
        with pytest.raises(LimbeckError, match=message):
            read_schedule(scheduler)
    with pytest.raises(LimbeckError, match="DDIMScheduler cannot take 2000 steps"):
        nodes(build("DDIMScheduler"), 2000)
    with pytest.raises(LimbeckError, match="cannot take 8 steps.*mu"):
        nodes(build("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True), 8)


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_files_come_back(tmp_path, name):
    scheduler = build(name)
    scheduler.save_pretrained(tmp_path / "scheduler")
    for place in (tmp_path, tmp_path / "scheduler", tmp_path / "scheduler" / "scheduler_config.json"):
        assert type(load_scheduler(place)) is type(scheduler)
        assert load_schedule(place) == read_schedule(scheduler)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable JSON"),
        ("[1]", "names no scheduler class"),
        ("{}", "names no scheduler class"),
        ('{"_class_name": 3}', "names no scheduler class"),
        ('{"_class_name": "DDIMSchedule"}', "unknown scheduler class 'DDIMSchedule': did you mean 'DDIMScheduler'"),
        ('{"_class_name": "os.system"}', "unknown scheduler class 'os.system'"),
        ('{"_class_name": "DDIMScheduler", "beta_start": "low"}', "DDIMScheduler refuses it"),
        ('{"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}', "DDIMScheduler refuses it .NotImplementedError: cubic"),
        ('{"_class_name": "DDIMScheduler", "trained_betas": ["a"]}', "DDIMScheduler refuses it"),
        (
            '{"_class_name": "DDIMScheduler", "num_train_timesteps": 1e9}',
            "num_train_timesteps is 1000000000.0; give an integer",
        ),
        ('{"_class_name": "DDIMScheduler", "num_train_timesteps": 1}', "betas of this DDIMScheduler are no schedule"),
        ('{"_class_name": "DDIMScheduler", "beta_start": NaN}', "betas of this DDIMScheduler are no schedule"),
        ('{"_class_name": "DDIMScheduler", "beta_end": 2.0}', "betas of this DDIMScheduler are no schedule"),
        ('{"_class_name": "EDMEulerScheduler", "sigma_min": NaN}', "sigma_min of a EDMEulerScheduler is nan"),
        ('{"_class_name": "EDMEulerScheduler", "sigma_data": "x"}', "sigma_data of a EDMEulerScheduler is 'x'"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    file = tmp_path / "scheduler_config.json"
    file.write_text(text)
    with pytest.raises(LimbeckError, match=message):
        load_schedule(file)


def test_a_missing_file_says_what_to_give(tmp_path):
    with pytest.raises(LimbeckError, match="has no scheduler_config.json; give a pipeline's folder"):
        load_scheduler(tmp_path / "nowhere")
    (tmp_path / "scheduler_config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(LimbeckError, match="is not readable JSON"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_damaged_values_never_escape_as_other_errors(tmp_path, name):
    values = [None, -1, 0, math.nan, math.inf, "x", [1, 2], 10**12]
    file = tmp_path / "scheduler_config.json"
    for key in [k for k in build(name).config if not k.startswith("_")]:
        for value in values:
            file.write_text(json.dumps({"_class_name": name, key: value}))
            try:
                read = load_schedule(file)
            except LimbeckError:
                continue
            t = torch.tensor([read.process.t_min, read.process.t_max], dtype=torch.float64)
            assert bool(torch.isfinite(read.process.a(t) + read.process.s(t)).all()), (key, value)
