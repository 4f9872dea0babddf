"""Variational score distillation with a trained critic, and its runs: in parts, resumed, with the scene's own rates."""

import pytest
import torch
from torch import nn

from limbeck.denoisers import FiniteSetDenoiser, Preconditioned
from limbeck.networks import ResidualMLP
from limbeck.noise import DDPM, CosineVP, spread

F64 = torch.float64


def eps_of(process, x0, x_t, t):
    return (x_t - spread(process.a(t), x_t) * x0) / spread(process.s(t), x_t)


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
    tiny.check_resumes(lambda: run_method(tiny, kind), tmp_path)


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
