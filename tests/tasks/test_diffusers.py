"""A pipeline of diffusers as a task: what is asked, cached, started from and judged."""

import shutil

import pytest
import torch
from PIL import Image

from limbeck.errors import LimbeckError
from limbeck.interop.pipelines import Pipeline
from limbeck.methods import find, preset_of
from limbeck.methods.generators.generator import make_method
from limbeck.noise import DDPM
from limbeck.tasks import build_task, preferred_options
from limbeck.tasks.diffusers import diffusers_task, teacher_times
from limbeck.tasks.suited import suited_options
from limbeck.tasks.tensor_cache import cached_tensors
from limbeck.training import Loop, LoopOptions
from limbeck.training.options import merged_options

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("prompts have more than", "are mostly noise")]
SMALL = {"judged": 4, "judged_batch": 4, "teacher_nodes": 2, "quiet": True}
SIZES = {
    "sd3": {"tokens": 8},
    "flux": {"height": 16, "width": 16, "tokens": 8},
    "pixart": {"height": 16, "width": 16, "tokens": 8},
    "sana": {"height": 32, "width": 32, "tokens": 8},
    "qwen": {"height": 16, "width": 16, "tokens": 8},
    "wan": {"height": 16, "width": 16, "num_frames": 3, "tokens": 8},
    "wan_experts": {"height": 16, "width": 16, "num_frames": 3, "tokens": 8},
    "cogvideox": {"tokens": 16},
}
UNASKED = ("ddpm", "ddpm_v", "dit")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty current directory with a cache of its own, prompts and pictures with captions."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n\na cat\n  red dog \n")
    return tmp_path


@pytest.fixture
def pictures(place):
    generator = torch.Generator().manual_seed(0)
    (place / "pictures").mkdir()
    for i in range(6):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / "pictures" / f"{i}.png")
        (place / "pictures" / f"{i}.txt").write_text(f"cat {i}")
    return place / "pictures"


def task_of(name, tiny_pipeline, **more):
    asked = {} if name in UNASKED or "data" in more else {"prompts": ["a cat", "red dog"]}
    return diffusers_task(str(tiny_pipeline(name)), **asked, **SIZES.get(name, {}), **{**SMALL, **more})


def trained(task, method, iterations=1, **more):
    cls, _, presets = find(method).load()
    options = merged_options(
        preset_of(method, presets, None), {**task.options[method], "iterations": iterations, "batch": 2, **more}
    )
    made = make_method(cls, options, task, 0)
    Loop(made, task.source, LoopOptions(iterations, 2), quiet=True).train()
    return made


SLOW = ("sdxl", "pixart", "sana", "qwen", "wan", "cogvideox")


@pytest.mark.parametrize(
    "name", ["ddpm_v", "dit", "sd3", "flux", "wan_experts", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def test_dmd_trains_a_student_of_every_pipeline(name, tiny_pipeline):
    task = task_of(name, tiny_pipeline)
    made = trained(task, "dmd", 2, student={"warmup": 0, "lr": 1e-4})  # the first update is zero: the critic is the teacher
    assert float(made.times[0]) == pytest.approx(task.teacher.process.t_max, abs=1e-5) or made.sigmas[0] < 15
    before = dict(task.teacher.named_parameters())
    assert before.keys() == dict(made.student.named_parameters()).keys()
    moved = [n for n, p in made.student.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 0.4 * len(before)  # of experts, the noisier one alone makes one-step samples
    x = task.evaluator.sample(made.sampler(), 2)
    pictures = task.evaluator.shown(x)
    assert x.shape == (2, *task.shape) and pictures.ndim == 4 and pictures.shape[1] == 3 and bool(x.isfinite().all())
    frames = x.shape[1 if name == "cogvideox" else 2] if x.ndim == 5 else None
    assert pictures.shape[3] == pictures.shape[2] * (1 if frames is None else 3)


MANY = [
    (n, m) for n in ("ddpm_v", "sd3") for m in ("sid", "sim", "phased-dmd", "disback", "swiftbrush", "snoopi", "compose", "rcm")
]


@pytest.mark.parametrize(
    "name, method",
    [
        ("sd3", "sid"),
        ("sd3", "tdm"),
        ("ddpm_v", "tdm"),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in MANY[:8] + MANY[9:]),
    ],
)
def test_every_method_without_data_starts_inside_the_schedule(name, method, tiny_pipeline):
    task, process = task_of(name, tiny_pipeline), None
    more = {"degrade": 1, "every": 1, "interval": 1} if method == "disback" else {}
    made = trained(task, method, 4 if method == "disback" else 2, **more)
    process = task.teacher.process
    assert made.times[-1] >= process.t_min and (method == "rcm" or float(made.times[0]) == process.t_max)  # a = 0 there
    assert bool(task.evaluator.sample(made.sampler(), 2).isfinite().all())


@pytest.mark.parametrize(
    "method", ["f-distill", pytest.param("ict", marks=pytest.mark.slow), pytest.param("hyper-sd", marks=pytest.mark.slow)]
)
def test_methods_that_learn_from_data_say_so_or_do(method, tiny_pipeline, pictures):
    more = {"iterations": 10} if method == "ict" else {}
    with pytest.raises(LimbeckError, match="give data"):
        trained(task_of("stable_diffusion", tiny_pipeline), method, 10)
    task = task_of("stable_diffusion", tiny_pipeline, data=pictures)
    made = trained(task, method, 10 if more or method == "hyper-sd" else 2)
    assert bool(task.evaluator.sample(made.sampler(), 2).isfinite().all())


def test_one_step_starts_at_the_end_but_not_where_eps_blows_up(tiny_pipeline):
    process = DDPM(betas="linear")
    start = preferred_options("diffusers", {"model": str(tiny_pipeline("ddpm"))})["dmd"]["sigmas"][0]
    t = float(process.time_of(torch.tensor(start, dtype=torch.float64)))
    assert t == pytest.approx(round(t), abs=1e-4) and 14.9 < start < 15  # sigma at the last index is 157
    sd = preferred_options("diffusers", {"model": str(tiny_pipeline("stable_diffusion"))})["dmd"]
    assert sd["sigmas"] == (pytest.approx(14.6146, rel=1e-4),)
    assert sd["score_low"] == pytest.approx(0.13799, rel=1e-3) and sd["score_high"] == pytest.approx(13.0431, rel=1e-3)
    flow = preferred_options("diffusers", {"model": str(tiny_pipeline("sd3"))})
    assert flow["dmd"]["sigmas"] == (float("inf"),) and flow["dmd"]["critic_weight"] == "velocity"
    assert flow["phased-dmd"]["sigmas"] == pytest.approx((float("inf"), 9.0, 3.0, 1.0))  # shift 3
    assert flow["phased-dmd"]["boundaries"] == (flow["phased-dmd"]["sigmas"][2],)


def test_a_flow_that_predicts_noise_starts_where_x0_can_be_had():
    from limbeck.interop import Schedule
    from limbeck.noise import RectifiedFlow

    options = suited_options(Schedule(RectifiedFlow(), "eps", "thousand"))
    assert options["dmd"]["sigmas"] == (pytest.approx(15.0),) and options["phased-dmd"]["sigmas"][0] == pytest.approx(15.0)


def test_the_phases_of_experts_end_where_one_takes_over(tiny_pipeline):
    options = preferred_options("diffusers", {"model": str(tiny_pipeline("wan_experts")), **SIZES["wan_experts"]})["phased-dmd"]
    assert options["boundaries"] == (pytest.approx(7.0),) and options["sigmas"][2] == options["boundaries"][0]
    made = trained(task_of("wan_experts", tiny_pipeline), "phased-dmd", 2)
    assert len(made.student.experts) == 2


def test_an_edm_schedule_keeps_sigma(tiny_pipeline):
    from diffusers import EDMEulerScheduler

    from limbeck.interop import read_schedule

    options = suited_options(read_schedule(EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)))
    assert options["dmd"]["sigmas"] == (pytest.approx(80.0),) and "score_law" not in options["dmd"]
    assert options["phased-dmd"]["sigmas"] == pytest.approx((80, 80 / 3, 8, 8 / 3))


def test_guidance_of_the_teacher_is_what_students_are_taught_with(tiny_pipeline):
    task = task_of("stable_diffusion", tiny_pipeline, teacher_guidance=3.0)
    assert task.options["dmd"]["guidance"] == 3 and task.options["swiftbrush"]["critic_guidance"] == 3
    z = torch.randn(2, *task.shape)
    rows = {name: value[:2] for name, value in task.evaluator.cond.items()}
    unguided = task_of("stable_diffusion", tiny_pipeline)
    assert not torch.allclose(task.teacher_sampler(2)(z, rows, None), unguided.teacher_sampler(2)(z, rows, None))
    assert task.judged_teacher(2)["nfe"] == 6 and unguided.judged_teacher(2)["nfe"] == 3


@pytest.mark.parametrize("name", ["ddpm_v", "sd3", "stable_diffusion"])
def test_the_teachers_sampler_starts_at_the_very_end(name, tiny_pipeline):
    task = task_of(name, tiny_pipeline)
    process = task.teacher.process
    for n in (1, 2, 7):
        times = task.teacher_times(n)
        assert len(times) == n and float(times[0]) == process.t_max and bool((times[1:] < times[:-1]).all())
    rows = {name: value[:2] for name, value in (task.evaluator.cond or {}).items()}
    assert bool(task.teacher_sampler(5)(torch.randn(2, *task.shape), rows or None).isfinite().all())


def test_a_flows_nodes_are_those_of_its_scheduler(tiny_pipeline):
    from diffusers import FlowMatchEulerDiscreteScheduler

    from limbeck.interop.pipelines import open_pipeline

    pipeline = open_pipeline(tiny_pipeline("sd3"))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 4, 4).tolist())
    plain = scheduler.sigmas[:-1].double()
    torch.testing.assert_close(
        teacher_times(pipeline, pipeline.schedule.process, 4), 3 * plain / (1 + 2 * plain), rtol=1e-6, atol=1e-7
    )


def test_a_second_run_loads_no_text_encoder_and_samples_no_teacher(tiny_pipeline, monkeypatch, capsys):
    loaded, load = [], Pipeline.component
    monkeypatch.setattr(Pipeline, "component", lambda self, name, dtype=None: (loaded.append(name), load(self, name, dtype))[1])
    first = task_of("stable_diffusion", tiny_pipeline, quiet=False)
    said = capsys.readouterr().err
    assert {"text_encoder", "tokenizer", "vae"} <= set(loaded) and said.count(": computed, kept in") == 2
    assert "judged by 4 samples against the teacher's samples" in said
    loaded.clear()
    second = task_of("stable_diffusion", tiny_pipeline, quiet=False)
    assert set(loaded) == {"unet", "scheduler"} and capsys.readouterr().err.count(": cached in") == 2
    for a, b in [(first.source.cond, second.source.cond), ({"x": first.evaluator.real}, {"x": second.evaluator.real})]:
        assert all(torch.equal(a[n], b[n]) for n in a)
    assert torch.equal(first.evaluator.images, second.evaluator.images)
    loaded.clear()
    diffusers_task(str(tiny_pipeline("stable_diffusion")), ["a dog", "red dog"], **SMALL)
    assert "text_encoder" in loaded


def test_the_cache_gives_what_is_computed_on_the_fly(tiny_pipeline):
    from limbeck.interop.pipelines import open_pipeline

    task = task_of("sdxl", tiny_pipeline)
    cond, null = open_pipeline(tiny_pipeline("sdxl")).encode_text(["a cat", "red dog"])
    assert all(torch.equal(task.source.cond[name], value) for name, value in cond.items())
    assert all(torch.equal(task.teacher.null[name], value) for name, value in null.items())
    assert float(null["encoder_hidden_states"].abs().max()) == 0  # as SDXL has the empty prompt


def test_a_damaged_cache_is_computed_again(place, capsys):
    made, origin = cached_tensors("x", ["a"], lambda: {"t": torch.ones(2)})
    (file,) = (place / "cache").glob("x-*.safetensors")
    file.write_bytes(b"broken")
    again, origin = cached_tensors("x", ["a"], lambda: {"t": torch.ones(2)})
    assert origin == "computed" and torch.equal(made["t"], again["t"]) and "is damaged" in capsys.readouterr().err
    assert cached_tensors("x", ["a"], dict)[1] == "cached" and cached_tensors("x", [None], dict) == ({}, "computed")


def test_pictures_are_encoded_at_the_pipelines_size_with_their_captions(tiny_pipeline, pictures):
    task = task_of("stable_diffusion", tiny_pipeline, data=pictures)
    assert task.source.x.shape == (6, 4, 8, 8) and task.source.size == 6 and task.facts["reference"] == "the data"
    assert task.evaluator.images.shape == (4, 3, 16, 16) and task.sigma_data == pytest.approx(
        float(task.source.x.std()), rel=1e-5
    )
    wide = task_of("stable_diffusion", tiny_pipeline, data=pictures, height=16, width=32)
    assert wide.shape == (4, 8, 16) and wide.evaluator.images.shape == (4, 3, 16, 32)
    (pictures / "3.txt").unlink()
    with pytest.raises(LimbeckError, match="1 of 6 pictures have no caption, the first is .*3.txt"):
        task_of("stable_diffusion", tiny_pipeline, data=pictures)


def test_the_judged_rows_are_spread_over_sorted_data(tiny_pipeline, pictures):
    for i in range(6):
        (pictures / "ab"[i // 3]).mkdir(exist_ok=True)
        (pictures / f"{i}.png").rename(pictures / "ab"[i // 3] / f"{i}.png")
    task = task_of("dit", tiny_pipeline, data=pictures)
    assert task.evaluator.cond["label"].tolist() == [0, 0, 1, 1] and task.source.cond["label"].tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(task.evaluator.real, task.source.x[[0, 1, 3, 4]])
    with pytest.raises(LimbeckError, match="the data have 11 classes, the pipeline 10"):
        for k in "cdefghijk":
            (pictures / k).mkdir()
            shutil.copy(pictures / "a" / "0.png", pictures / k / "0.png")
        task_of("dit", tiny_pipeline, data=pictures)


def test_what_does_not_fit_together(tiny_pipeline, pictures):
    folder = str(tiny_pipeline("stable_diffusion"))
    for call, message in [
        (lambda: diffusers_task(folder), "is asked in words; give --prompts FILE.txt"),
        (lambda: task_of("ddpm", tiny_pipeline, prompts=["a"]), "a DDPMPipeline is not asked in words"),
        (lambda: diffusers_task(folder, ["a"], pictures), "captions beside them.*leave --prompts out"),
        (lambda: diffusers_task(folder, ["a"], torch.zeros(2, 3, 16, 16) - 0.5), "2 pictures and 1 prompts"),
        (
            lambda: diffusers_task(folder, ["a"], torch.zeros(1, 3, 8, 8) - 0.5),
            r"the pictures are \(8, 8\), the pipeline's \(16, 16\)",
        ),
        (lambda: task_of("wan_experts", tiny_pipeline, data=pictures), "data are pictures, but this pipeline makes videos"),
        (lambda: task_of("ddpm", tiny_pipeline, judged=1), "an evaluation needs at least 2 samples"),
        (lambda: task_of("ddpm", tiny_pipeline, text_dtype="int8"), "choose float32, bfloat16 or float16"),
        (lambda: build_task("diffusers", {}), r"needs --model \(model=\)"),
    ]:
        with pytest.raises(LimbeckError, match=message):
            call()


def test_too_few_samples_for_a_distance_are_said(tiny_pipeline):
    with pytest.warns(UserWarning, match=r"4 samples are judged in 84 features: .* mostly noise; give --judged 336"):
        task_of("stable_diffusion", tiny_pipeline)
