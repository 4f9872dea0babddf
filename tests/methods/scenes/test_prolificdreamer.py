"""Variational score distillation into scenes: its reductions are exact, its runs repeat bit for bit."""

from math import prod

import pytest
import torch
from torch import nn

from limbeck.denoisers import FiniteSetDenoiser, Preconditioned, guided
from limbeck.methods import find
from limbeck.methods.scenes.critics import exact_critic, same_camera
from limbeck.methods.scenes.particles import Particles, Together, pictures
from limbeck.networks import ResidualMLP
from limbeck.noise import DDPM, CosineVP, spread
from limbeck.scenes import VolumeScene, VoxelGrid, orbit
from limbeck.training import checkpoints

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


# -- a critic that is trained -----------------------------------------------------------------------------------------


def net_teacher(prediction="eps", seed=0):
    torch.manual_seed(seed)
    made = Preconditioned(ResidualMLP((3, 4, 4), width=16, blocks=1, embedding=16), CosineVP(), prediction)
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    return made.double()


LEARNED = {"adapters": {"critic_kind": "adapters", "critic_rank": 2}, "network": {"critic_kind": "network"}}


def learned(tiny, kind, **options):
    small = lambda: ResidualMLP((3, 4, 4), width=16, blocks=1, embedding=16).double()  # noqa: E731
    return tiny.make(tiny.task(teacher=net_teacher(), network=small), guidance=1.0, **{**LEARNED[kind], **options})


def test_adapters_begin_as_the_teacher_so_the_first_pull_is_nothing(tiny):
    """Neither the camera nor the adapters change anything before they are trained; and the teacher never changes."""
    method = learned(tiny, "adapters")
    kept = [p.detach().clone() for p in method.teacher.parameters()]
    assert max(float(g.abs().max()) for g in tiny.gradients(method, tiny.batch(method))) == 0
    run = tiny.loop(method)
    for _ in range(3):
        run.iterate()
    assert max(float(g.abs().max()) for g in tiny.gradients(method, tiny.batch(method))) > 0
    assert all(torch.equal(a, b) for a, b in zip(kept, method.teacher.parameters(), strict=True))


@pytest.mark.parametrize("kind", LEARNED)
def test_a_trained_critic_learns_to_see_the_camera(tiny, kind):
    method = learned(tiny, kind)
    run = tiny.loop(method)
    for _ in range(6):
        run.iterate()
    x, t = torch.randn(2, 3, 4, 4, dtype=F64), torch.full((2,), 0.5, dtype=F64)
    camera = torch.randn(2, 16, dtype=F64)
    one, other, none = (method.critic(x, t, {"camera": c}) for c in (camera, 2 * camera, torch.zeros_like(camera)))
    assert not torch.equal(one, other) and not torch.equal(one, none)
    torch.testing.assert_close(method.critic(x, t), none)


def test_the_critic_learns_its_loss_at_its_own_times_with_cameras_dropped(tiny):
    """(5) written out for a critic whose loss is that of eps."""
    method = learned(tiny, "network", batch=32, critic_weight="eps", critic_drop=0.5, critic_steps=2)
    with torch.no_grad():
        for p in method.critic.parameters():
            nn.init.normal_(p, std=0.2)
    at = tiny.batch(method, 1)
    sample, _ = method.produce(at, method.views(at))
    x, process = sample.x.detach(), method.teacher.process
    for k, update in enumerate(tiny.yields(method, at)[1:]):
        t = method.critic_times(at.noise.uniform("critic time", call=k))
        eps = at.noise.normal("critic noise", tiny.SHAPE, F64, call=k)
        kept = (at.noise.uniform("critic drop", call=k) >= 0.5).double()[:, None]
        assert 0 < float(kept.sum()) < 32
        x_t = process.add_noise(x, eps, t)
        found = eps_of(process, method.critic(x_t, t, {"camera": kept * sample.cond["camera"]}), x_t, t)
        torch.testing.assert_close(update.loss, (found - eps).square().mean(), rtol=1e-6, atol=0)
    assert k == 1


def test_a_critic_may_predict_v_in_another_schedule(tiny):
    """The teacher is asked at the same ratio of noise to signal; v -> x0 -> eps is a_t v + s_t x_t."""
    base, table = net_teacher(prediction="v"), DDPM("scaled_linear", 1000, 0.00085, 0.012)
    method = tiny.make(
        tiny.task(teacher=FiniteSetDenoiser(tiny.bank(), table), critic=base),
        guidance=1.0,
        critic_kind="adapters",
        early=(0.2, 0.8),
    )
    at = tiny.batch(method, 1)
    sample, _ = method.produce(at, method.views(at))
    x, t, eps = sample.x.detach(), method.time(at), at.noise.normal("score noise", tiny.SHAPE, F64)
    process = base.process
    x_t, a, s = process.add_noise(x, eps, t), process.a(t), process.s(t)
    u = table.time_of(s / a)
    eps_T = eps_of(process, method.teacher(spread(table.a(u) / a, x) * x_t, u), x_t, t)
    eps_F = spread(a, x) * base.network(x_t, t.float(), None) + spread(s, x) * x_t
    pull = spread(s**2, x) * (eps_T - eps_F)
    expected = torch.autograd.grad(sample.x, list(method.particles.parameters()), pull / len(x))
    for found, b in zip(tiny.gradients(method, at), expected, strict=True):
        torch.testing.assert_close(found, b, rtol=1e-6, atol=1e-10)


# -- runs -------------------------------------------------------------------------------------------------------------

RUNS = {
    "exact": {"particles": 2, "batch": 8, "critic_guidance": 0.5},
    "dirac": {"critic_kind": "dirac", "random_background": 0.5, "sparsity": 1.0, "opaque": 0.1},
    "one": {"critic_kind": "dirac", "update": "one", "particles": 3},
    **LEARNED,
}


def run_method(tiny, kind):
    return learned(tiny, kind, critic_steps=2) if kind in LEARNED else tiny.make(**RUNS[kind])


@pytest.mark.parametrize("kind", RUNS)
def test_micro_batches_change_nothing(tiny, kind):
    """Of 8 or 4 renders in 3 parts that split the particles of a camera: all see the whole iteration's renders."""
    whole, split = tiny.loop(run_method(tiny, kind)), tiny.loop(run_method(tiny, kind), micro_batches=3)
    for _ in range(4):
        one, other = whole.iterate(), split.iterate()
        assert other["loss/student"] == pytest.approx(one["loss/student"], rel=1e-8, abs=1e-12)
    for a, b in zip(whole.method.particles.parameters(), split.method.particles.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_goes_on_bit_for_bit(tiny, tmp_path, kind):
    whole, first, again = (tiny.loop(run_method(tiny, kind), folder=f) for f in (None, tmp_path, None))
    for _ in range(5):
        whole.iterate()
    for _ in range(3):
        first.iterate()
    first.save()
    again.restore(checkpoints.load(tmp_path / "checkpoints"))
    while again.step < 5:
        again.iterate()
    one, other = tiny.weights(whole), tiny.weights(again)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_parameters_learn_at_the_rates_of_their_scene(tiny):
    """Adam's first step is the learning rate."""
    method = tiny.make(critic_kind="dirac")
    before = {n: p.detach().clone() for n, p in method.particles.named_parameters()}
    tiny.loop(method).iterate()
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in method.particles.named_parameters()}
    assert moved["scenes.0.base"] == pytest.approx(0.01, rel=1e-6) and moved["scenes.0.turn"] == pytest.approx(0.005, rel=1e-6)


def test_the_regularisers_are_their_formulas(tiny):
    base = tiny.yields(plain := tiny.make(critic_kind="dirac"), at := tiny.batch(plain))[0].loss
    o = plain.particles.scenes[0](plain.views(at)[0], 1.0).opacity.detach()
    sparse = tiny.yields(tiny.make(critic_kind="dirac", sparsity=2.0), at)[0].loss
    opaque = tiny.yields(tiny.make(critic_kind="dirac", opaque=3.0), at)[0].loss
    entropy = -(o * o.log() + (1 - o) * (1 - o).log()).mean()
    torch.testing.assert_close(sparse - base, 2 * (o**2 + 0.01).sqrt().mean())
    torch.testing.assert_close(opaque - base, 3 * entropy)
    assert prod(tiny.SHAPE) == 48


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
