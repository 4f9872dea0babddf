"""A prompt as a scene, with a tiny pipeline: who is told what, the gradient through the autoencoder, and what is refused."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.interop.latents import encoded
from limbeck.interop.pipelines import open_pipeline
from limbeck.methods.scenes.options import SceneOptions
from limbeck.methods.scenes.prolificdreamer import ProlificDreamer
from limbeck.scenes import orbit
from limbeck.tasks import AnyTask
from limbeck.tasks.scenes.text import text_task
from limbeck.training import Loop, LoopOptions


@pytest.fixture(scope="module")
def task(tiny_pipeline):
    return text_task(tiny_pipeline("stable_diffusion"), "cat", render=12, splats=20)


ADAPTERS = SceneOptions(iterations=3, batch=2, critic_kind="adapters", critic_rank=2, critic_weight="eps", late_from=1.0)


def test_the_teacher_is_told_the_view_and_the_critic_is_not(task):
    cameras = orbit(torch.tensor([0.0, 90.0, 180.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 80.0]), width=12, height=12)
    goal, cond = (f(cameras)["encoder_hidden_states"] for f in (task.goal, task.cond))
    assert len({tuple(row.flatten().tolist()) for row in goal}) == 4
    assert all(torch.equal(row, cond[0]) for row in cond) and not any(torch.equal(row, cond[0]) for row in goal)


def test_latents_are_those_of_the_enlarged_render_with_gradient(task, tiny_pipeline):
    """What the pipeline itself makes of the enlarged picture; and the derivative along a direction by a difference."""
    pipeline = open_pipeline(tiny_pipeline("stable_diffusion"))
    x = (torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    z = task.encode(x)
    large = F.interpolate(x.detach(), size=pipeline.size, mode="bilinear")
    torch.testing.assert_close(z, encoded(pipeline.component("vae"), large))
    (gradient,) = torch.autograd.grad(z.square().sum(), x)
    with torch.no_grad():
        step = 1e-2 * gradient / gradient.norm()
        change = (task.encode(x + step).square().sum() - task.encode(x - step).square().sum()) / 2
    assert float(change) == pytest.approx(float((gradient * step).sum()), rel=2e-2)


def test_adapters_begin_as_the_teacher_whatever_the_camera(task):
    method = ProlificDreamer(task, ADAPTERS)
    cameras = task.around(2)
    x, t = torch.randn(2, *task.shape), torch.tensor([100.0, 700.0], dtype=torch.float64)
    told = {**task.cond(cameras), "camera": torch.randn(2, 16)}
    torch.testing.assert_close(method.critic(x, t, told), task.teacher(x, t, task.cond(cameras)))


def test_a_run_trains_scene_and_adapters_alone(task, tmp_path):
    method = ProlificDreamer(task, ADAPTERS)
    kept = {n: p.detach().clone() for n, p in task.teacher.named_parameters()}
    before = {n: p.detach().clone() for n, p in method.critic.named_parameters()}
    start = method.particles.scenes[0].means.detach().clone()
    run = Loop(method, task.source, LoopOptions(3, 2), quiet=True)
    run.train()
    assert not torch.equal(start, method.particles.scenes[0].means)
    assert all(torch.equal(kept[n], p) for n, p in task.teacher.named_parameters())
    moved = {n for n, p in method.critic.named_parameters() if not torch.equal(before[n], p)}
    assert moved and all(n.endswith((".A", ".B")) or "class_embedding" in n for n in moved)
    assert any("class_embedding" in n for n in moved)
    task.leave(tmp_path, method, {})
    assert (tmp_path / "scene.ply").exists() and (tmp_path / "samples" / "turntable.gif").exists()
    assert set(task.judged(method)["table"]["rows"]["student"]) == {"covered", "variety"}
    assert isinstance(task, AnyTask) and next(iter(task.album(method).values())).images.shape[0] == 8


def test_what_is_refused(tiny_pipeline):
    with pytest.raises(LimbeckError, match="the task text needs --model .* and --prompt"):
        text_task(prompt="cat")
    with pytest.raises(LimbeckError, match="a DiTPipeline makes no pictures from text in a latent space"):
        text_task(tiny_pipeline("dit"), "cat")


def test_a_critic_with_other_latents_is_named(tiny_pipeline, tmp_path):
    from diffusers import StableDiffusionPipeline

    place = tiny_pipeline("stable_diffusion")
    other = StableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    other.vae.register_to_config(scaling_factor=0.5)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(LimbeckError, match="scales its latents by 0.18215, the critic's by 0.5: they are not the same latents"):
        text_task(place, "cat", tmp_path / "other", render=12, splats=20)


def test_a_critic_with_latents_of_another_shape_is_named(tiny_pipeline):
    message = r"the critic's pipeline has latents \(\d+, \d+, \d+\), the teacher's \(4, \d+, \d+\): they must be of one shape"
    with pytest.raises(LimbeckError, match=message):
        text_task(tiny_pipeline("stable_diffusion"), "cat", tiny_pipeline("ddpm"), render=12, splats=20)
