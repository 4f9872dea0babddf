"""Variational score distillation into scenes: its reductions are exact, its runs repeat bit for bit."""

import pytest
import torch

from limbeck.denoisers import FiniteSetDenoiser, guided
from limbeck.methods import find
from limbeck.methods.scenes.critics import exact_critic, same_camera
from limbeck.methods.scenes.particles import Particles, Together, pictures
from limbeck.noise import DDPM, CosineVP, spread
from limbeck.scenes import VolumeScene, VoxelGrid, orbit

F64 = torch.float64


def eps_of(process, x0, x_t, t):
    return (x_t - spread(process.a(t), x_t) * x0) / spread(process.s(t), x_t)


def test_the_aliases_find_it():
    assert find("vsd").id == find("sds-3d").id == "prolificdreamer" and find("swiftbrush-v2").id == "swiftbrush"


def test_the_exact_critic_of_one_render_answers_the_noise_itself():
    x = torch.rand(1, 3, 4, 4, dtype=F64)
    process = CosineVP()
    t = torch.tensor([0.05, 0.3, 0.9], dtype=F64)
    eps = torch.randn(3, 3, 4, 4, dtype=F64)
    x_t = process.add_noise(x.expand(3, -1, -1, -1), eps, t)
    found = eps_of(process, exact_critic(x, process)(x_t, t), x_t, t)
    torch.testing.assert_close(found, eps, rtol=0, atol=1e-5)


def test_with_one_particle_vsd_is_sds(tiny):
    """Of four cameras: each row's own render alone is left by its camera."""
    at = [tiny.make(critic_kind=kind) for kind in ("exact", "dirac")]
    exact, dirac = (tiny.gradients(method, tiny.batch(method, 3)) for method in at)
    for a, b in zip(exact, dirac, strict=True):
        assert float(b.abs().max()) > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_with_several_particles_it_is_not(tiny):
    at = [tiny.make(critic_kind=kind, particles=2, batch=4, early=(0.7, 0.98)) for kind in ("exact", "dirac")]
    exact, dirac = (torch.cat([g.flatten() for g in tiny.gradients(method, tiny.batch(method))]) for method in at)
    assert float((exact - dirac).norm() / dirac.norm()) > 0.1


def test_a_teacher_of_the_particles_own_renders_pulls_nothing(tiny):
    """Three particles before one camera; the teacher knows exactly what they look like from there."""
    method = tiny.make(particles=3, batch=3, guidance=1.0)
    views = method.views(at := tiny.batch(method))
    renders = method.produce(at, views)[0].x.detach()
    there = tiny.task(teacher=FiniteSetDenoiser(renders, CosineVP()))
    zero = tiny.gradients(tiny.make(there, particles=3, batch=3, guidance=1.0), at)
    moved = tiny.gradients(tiny.make(there, particles=3, batch=3, guidance=1.0, critic_kind="dirac"), at)
    assert max(float(g.abs().max()) for g in zero) < 1e-12 < 1e-4 < max(float(g.abs().max()) for g in moved)


@pytest.mark.parametrize("w", [1.0, 7.5])
def test_the_gradient_of_the_renders_is_the_weighted_difference_of_predictions(tiny, w):
    """(3) and (4) written out: s^2 (eps_T - e), the mean over the batch, back through the renderer."""
    prior = torch.rand(6, dtype=F64).log()
    of = tiny.task(goal=lambda cameras: {"prior": prior.expand(len(cameras), 6)})
    method = tiny.make(of, critic_kind="dirac", guidance=w)
    at = tiny.batch(method, 2)
    cameras = method.task.cameras(at.noise.uniform("camera", (tiny.NUMBERS,)).float(), 2)
    x = method.particles.scenes[0](cameras, 1.0).image
    t, eps = method.time(at), at.noise.normal("score noise", tiny.SHAPE, F64)
    process = of.teacher.process
    x_t = process.add_noise(x.detach(), eps, t)
    eps_T = eps_of(process, guided(of.teacher, x_t, t, of.goal(cameras), w), x_t, t)
    pull = spread(process.s(t) ** 2, x) * (eps_T - eps)
    expected = torch.autograd.grad(x, list(method.particles.parameters()), pull / len(x))
    for a, b in zip(tiny.gradients(method, at), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


def test_the_camera_free_score_is_that_of_all_renders(tiny):
    """g = 0: every camera's render is pushed away from all of them alike."""
    method = tiny.make(critic_guidance=0.0, guidance=1.0)
    at = tiny.batch(method, 1)
    sample, _ = method.produce(at, method.views(at))
    x, t, eps = sample.x.detach(), method.time(at), at.noise.normal("score noise", tiny.SHAPE, F64)
    process = method.teacher.process
    x_t = process.add_noise(x, eps, t)
    a, s = process.a(t), process.s(t)
    r = torch.softmax(-(x_t[:, None] - spread(a, x_t)[:, None] * x).square().flatten(2).sum(2) / (2 * s[:, None] ** 2), 1)
    difference = torch.einsum("bk,k...->b...", r, x) - method.teacher(x_t, t)
    expected = torch.autograd.grad(sample.x, list(method.particles.parameters()), spread(a * s, x) * difference / len(x))
    for found, b in zip(tiny.gradients(method, at), expected, strict=True):
        torch.testing.assert_close(found, b, rtol=1e-6, atol=1e-10)


def test_the_camera_leaves_its_own_renders():
    number = torch.tensor([0, 0, 1])
    assert same_camera(number, number)["prior"].exp().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


# -- who is seen from where -------------------------------------------------------------------------------------------


def test_all_particles_are_seen_from_the_same_cameras(tiny):
    method = tiny.make(particles=2, batch=6)
    cameras, number, which = method.views(tiny.batch(method))
    assert number.tolist() == [0, 0, 1, 1, 2, 2] and which.tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(cameras.c2w[0::2], cameras.c2w[1::2]) and len(cameras.c2w[::2].unique(dim=0)) == 3


def test_one_particle_per_iteration_learns_alone(tiny):
    method = tiny.make(particles=3, batch=2, update="one", critic_kind="dirac")
    seen, run = set(), tiny.loop(method)
    for step in range(8):
        before = [scene.base.detach().clone() for scene in method.particles.scenes]
        (particle,) = set(method.views(tiny.batch(method, step))[2].tolist())
        run.iterate()
        moved = [not torch.equal(a, s.base) for a, s in zip(before, method.particles.scenes, strict=True)]
        assert moved == [i == particle for i in range(3)]
        seen.add(particle)
    assert seen == {0, 1, 2}


def test_random_backgrounds_are_one_to_a_camera(tiny):
    method = tiny.make(particles=2, batch=12, random_background=0.5)
    at = tiny.batch(method)
    colour = method.background(at, method.views(at))
    assert torch.equal(colour[0::2], colour[1::2])
    plain = (colour == 1).all(1)
    assert 0 < int(plain.sum()) < 12


def test_times_change_once(tiny):
    method = tiny.make(batch=64, early=(0.7, 0.98), late=(0.02, 0.5), late_from=0.5)
    spans = [method.time(tiny.batch(method, step)) for step in (0, 3, 4, 7)]
    assert all(float(t.min()) > 0.7 and float(t.max()) < 0.98 for t in spans[:2])
    assert all(0.02 < float(t.min()) < 0.1 and 0.4 < float(t.max()) < 0.5 for t in spans[2:])


def test_a_table_takes_the_steps_between_both_shares(tiny):
    of = tiny.task(teacher=FiniteSetDenoiser(tiny.bank(), DDPM("scaled_linear", 1000, 0.00085, 0.012)))
    laws = tiny.make(of, late=(0.02, 0.5)).times
    assert [(law.low, law.high) for law in laws] == [(20, 980), (20, 500)]


def test_scenes_rendered_at_once_are_those_rendered_one_by_one():
    """Voxel grids side by side, before cameras in any order, learn the same."""
    cameras = orbit(torch.tensor([0.0, 40.0, 80.0, 120.0]), width=5, height=5).to(F64)
    which, start = torch.tensor([1, 0, 1, 1]), torch.randn(2, 4, 6, 6, 6, dtype=F64)
    background = torch.rand(4, 3, dtype=F64)
    together = Together(VolumeScene(VoxelGrid(6, 2, start=start), samples=8), 2)
    apart = Particles([VolumeScene(VoxelGrid(6, 1, start=start[i : i + 1]), samples=8) for i in range(2)])
    found, grads = [], []
    for particles in (together, apart):
        images = pictures(particles(cameras, which, background))
        found.append(images.detach())
        grads.append(torch.cat(torch.autograd.grad(images.square().sum(), list(particles.parameters()))))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(grads[0], grads[1])
