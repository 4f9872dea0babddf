"""SwiftBrush: each equation against its own, the laws it ends in where they are known, the shared base, and bad input."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.denoisers import MixtureDenoiser, Preconditioned
from limbeck.errors import LimbeckError
from limbeck.methods.generators.swiftbrush import PRESETS, ClampedReward, SwiftBrushOptions, reward_gradient
from limbeck.networks import adapters
from limbeck.noise import DDPM, RectifiedFlow, UniformInteger
from limbeck.rules import surrogate
from limbeck.training import LoopOptions, OptimizerOptions, TensorSource
from limbeck.training.loop import Loop
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
STABLE_DIFFUSION = DDPM("scaled_linear", 1000, 0.00085, 0.012)
FAST = OptimizerOptions(lr=2e-2, warmup=2, decay="cosine", clip=1.0)
PAPER = {"sigmas": (), "begin": "unit", "critic": FAST, "critic_rank": 4, "critic_weight": "signal_eps"}


def eps_teacher(tiny, process=STABLE_DIFFUSION, prediction="eps", **options):
    made = tiny.teacher(process=process, **options)
    return Preconditioned(made.network, process, prediction, noise_input="log_sigma").requires_grad_(False).eval()


def brush(tiny, parts=None, **options):
    return tiny.make("swiftbrush", parts or tiny.ingredients(eps_teacher(tiny)), **{**PAPER, **options})


def stir(method, std=0.5):
    """A critic that is no longer the teacher."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, layer in adapters(method.critic):
            layer.B.copy_(std * torch.randn(layer.B.shape, generator=generator, dtype=F64))
    return method


def eps_of(denoiser, x_t, t, cond, w=1.0):
    """The eps prediction of (2), w around the null condition."""
    process = denoiser.process
    answers = []
    for given in (None, cond):
        answers.append(process.convert(denoiser(x_t, t, given), x_t, t, "x0", "eps"))
    return answers[0] + w * (answers[1] - answers[0])


# -- the equations ----------------------------------------------------------------------------------------------------


def test_the_students_sample_divides_by_the_schedules_own_signal(tiny):
    method = brush(tiny)
    at = tiny.batch(method)
    z, t = method.normal(at, "z"), torch.full((6,), 999.0, dtype=F64)
    process = method.process
    assert float(process.a(t[:1]) ** 2) == pytest.approx(0.00466010, abs=5e-9)
    network = method.student.network
    eps = network(z, torch.log(process.s(t) / process.a(t)) / 4, at.cond)
    x = (z - process.s(t)[:, None] * eps) / process.a(t)[:, None]
    torch.testing.assert_close(method.produce(at, 0).x, x, rtol=1e-12, atol=1e-12)
    assert torch.equal(method.sampler(ema=False)(z, at.cond), method.produce(at, 0).x)


def test_the_students_update_is_the_score_difference_over_numel(tiny):
    method = stir(brush(tiny, guidance=4.5, critic_guidance=4.5))
    at = tiny.batch(method)
    update = next(method.step(at))
    update.loss.backward()
    student = dict(method.student.named_parameters())
    got = {n: p.grad.clone() for n, p in student.items() if p.grad is not None}
    x = method.produce(at, 0).x
    t, eps = method.score_times(at.noise.uniform("score time")), method.normal(at, "score noise")
    a, s = method.process.a(t)[:, None], method.process.s(t)[:, None]
    with torch.no_grad():
        x_t = a * x + s * eps
        g = s**2 * (eps_of(method.teacher, x_t, t, at.cond, 4.5) - eps_of(method.critic, x_t, t, at.cond, 4.5))
    half_square = 0.5 * (x - (x - g).detach()).square().mean()  # the paper's form of (4)
    expected = torch.autograd.grad(half_square, list(student.values()), allow_unused=True)
    for name, gradient in zip(student, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(got[name], gradient, rtol=1e-8, atol=1e-11)
    (at_x,) = torch.autograd.grad(surrogate(x, g), x)
    torch.testing.assert_close(at_x, g / g.numel(), rtol=1e-14, atol=0)
    assert float(g.abs().max()) > 1e-2 and all(p.grad is None for p in method.critic.parameters())


def test_the_critics_loss_is_the_eps_error_weighted_by_the_signal(tiny):
    method = stir(brush(tiny, critic_null=0.0))
    at = tiny.batch(method)
    sample = method.produce(at, 0).detach()
    t, eps = method.critic_times(at.noise.uniform("critic time")), method.normal(at, "critic noise")
    a, s = method.process.a(t)[:, None], method.process.s(t)[:, None]
    found = eps_of(method.critic, a * sample.x + s * eps, t, at.cond)
    expected = (a * found - a * eps).square().mean()
    _, critic = tiny.yields(method, at)
    torch.testing.assert_close(critic.loss, expected, rtol=1e-9, atol=1e-12)


def test_times_are_whole_steps_of_the_table(tiny):
    method = brush(tiny)
    assert method.score_times == UniformInteger(20, 980) and method.critic_times == UniformInteger(0, 999)
    u = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=F64)
    assert method.score_times(u).tolist() == [20, 500, 980] and method.critic_times(u).tolist() == [0, 500, 999]
    flow = brush(tiny, tiny.ingredients(tiny.teacher(process=RectifiedFlow())), sigmas=(9.0,), begin="noise")
    assert not isinstance(flow.score_times, UniformInteger)
    tiny.loop(flow).iterate()


def test_the_critic_sees_the_null_condition_for_whole_batches_or_not_at_all(tiny, monkeypatch):
    method = brush(tiny, critic_null=0.3)
    nulls = 0
    for step in range(200):
        at = tiny.batch(method, step)
        cond = method.critic_condition(at, at.cond)
        parts = [replace_index(at, rows) for rows in torch.arange(6).tensor_split(2)]
        assert torch.equal(cond["label"], torch.cat([method.critic_condition(p, p.cond)["label"] for p in parts]))
        assert torch.equal(cond["label"], at.cond["label"]) or bool((cond["label"] == 3).all())
        nulls += bool((cond["label"] == 3).all())
    assert 40 <= nulls <= 80
    assert brush(tiny).options.critic_null == 0.1


def replace_index(at, rows):
    return type(at)(at.source, at.seed, at.step, at.index[rows], at.device, at.stride)


def test_sds_puts_the_noise_in_the_critics_place(tiny):
    method = brush(tiny, sds=True, guidance=3.0)
    assert "critic" not in method.roles
    at = tiny.batch(method)
    (update,) = tiny.yields(method, at)
    x = method.produce(at, 0).x
    t, eps = method.score_times(at.noise.uniform("score time")), method.normal(at, "score noise")
    a, s = method.process.a(t)[:, None], method.process.s(t)[:, None]
    g = (s**2 * (eps_of(method.teacher, a * x + s * eps, t, at.cond, 3.0) - eps)).detach()
    torch.testing.assert_close(update.loss, (x * g).mean(), rtol=1e-8, atol=1e-11)
    tiny.loop(method).iterate()


# -- one base ---------------------------------------------------------------------------------------------------------


def test_the_first_iteration_moves_nothing_but_the_critic(tiny):
    method = brush(tiny)
    before = {n: p.clone() for n, p in method.student.named_parameters()}
    loop = tiny.loop(method)
    figures = loop.iterate()
    assert figures["gap"] == 0.0 and figures["grad_norm/student"] == 0.0
    assert all(torch.equal(p, before[n]) for n, p in method.student.named_parameters())
    loop.iterate()
    assert not all(torch.equal(p, before[n]) for n, p in method.student.named_parameters())


def test_the_teacher_is_the_critic_without_its_adapters_at_any_time(tiny):
    method = brush(tiny, student_rank=2, student_alpha=3.0)
    x, t = tiny.data()[0], torch.full((10,), 400.0, dtype=F64)
    before = method.teacher(x, t, tiny.data()[1])
    base = {id(p) for p in method.teacher.parameters()}
    assert all(base < {id(p) for p in tree.parameters()} for tree in (method.critic, method.student))
    loop = tiny.loop(method)
    for _ in range(4):
        loop.iterate()
        assert torch.equal(method.teacher(x, t, tiny.data()[1]), before)
    assert not torch.equal(method.critic(x, t, tiny.data()[1]), before)
    assert not torch.equal(method.student(x, t, tiny.data()[1]), before)
    for role in ("critic", "student"):
        assert {n.rpartition(".")[2] for n in loop.trained[role].names} == {"A", "B"}
    scales = {tree: next(adapters(getattr(method, tree)))[1].scale for tree in ("critic", "student")}
    assert scales == {"critic": 1.0, "student": 1.5}


def test_a_closed_form_teacher_has_a_critic_of_its_own(tiny):
    ring = MixtureDenoiser.ring(4, 1.0, 0.1, STABLE_DIFFUSION, labels=torch.tensor([0, 1, 2, 0]))
    parts = replace(tiny.ingredients(eps_teacher(tiny)), teacher=ring, start=eps_teacher(tiny))
    method = brush(tiny, parts)
    loop = tiny.loop(method)
    loop.iterate()
    assert next(adapters(method.critic)) and loop.trained.keys() == {"student", "critic"}


def test_images_are_not_looked_at(tiny):
    found = []
    for x in (tiny.data()[0], None):
        method = brush(tiny)
        loop = Loop(method, TensorSource(x, tiny.data()[1]), LoopOptions(4, 6), quiet=True)
        for _ in range(3):
            loop.iterate()
        found.append(tiny.weights(loop))
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


# -- rewards ----------------------------------------------------------------------------------------------------------


def to_the_right(x, cond=None):
    return x[:, 0]


def test_a_clamped_reward_pulls_below_tau_and_fades_linearly(tiny):
    parts = replace(tiny.ingredients(eps_teacher(tiny)), rewards={"right": to_the_right})
    plain = brush(tiny, parts)
    method = brush(tiny, parts, rewards=(ClampedReward("right", weight=0.5, tau=0.2),))
    for step, share in ((0, 1.0), (4, 0.5), (8, 0.0)):
        at = tiny.batch(method, step)
        sample = method.produce(at, 0)
        t, eps = method.score_time(at, sample), method.normal(at, "score noise")
        pull = method.guided_rule(at)(sample, t, eps, step)
        bare = plain.guided_rule(at)(sample, t, eps, step)
        below = (sample.x[:, 0] < 0.2).double()
        added = -0.5 * share * 2 * below  # d/dx of mean max(0, tau - x_0) over B samples, times numel = 2 B
        expected = torch.stack([added, torch.zeros_like(added)], 1)
        torch.testing.assert_close(pull.gradient - bare.gradient, expected, rtol=1e-9, atol=1e-12)
        assert float(pull.logs["reward right"]) == pytest.approx(float(sample.x[:, 0].mean().detach()))
    assert 0 < below.sum() < 6
    tiny.loop(method).iterate()


def test_a_reward_without_a_gradient_is_an_error():
    x = torch.randn(4, 1, 8, 8, dtype=F64)
    through_integers = lambda x, cond: ((x + 1) * 127.5).to(torch.uint8).double().flatten(1).mean(1)  # noqa: E731
    learned = nn.Linear(64, 1).double()
    seen = lambda x, cond: learned(x.flatten(1))[:, 0]  # noqa: E731
    unseen = lambda x, cond: learned(x.detach().flatten(1))[:, 0]  # its weights have gradients, its images none  # noqa: E731
    for reward in (through_integers, unseen, torch.no_grad()(seen), lambda x, cond: x.detach().flatten(1).mean(1)):
        with pytest.raises(LimbeckError, match="no gradient comes through the reward 'clip': it detaches its images"):
            reward_gradient(reward, x, None, 0.35, "clip")
    with pytest.raises(LimbeckError, match=r"the reward 'clip' gave \(\) for 4 samples"):
        reward_gradient(lambda x, cond: x.mean(), x, None, 0.35, "clip")
    gradient, _ = reward_gradient(seen, x, None, 9.0)
    torch.testing.assert_close(gradient.flatten(1), -64 * learned.weight.detach().expand(4, -1), rtol=1e-12, atol=0)


# -- options and bad input --------------------------------------------------------------------------------------------


def test_presets_hold_the_papers_table_and_survive_a_round_trip():
    paper, low = PRESETS["paper-sd21"], PRESETS["paper-v2-low-rank"]
    assert (paper.guidance, paper.critic_guidance, paper.critic_rank, paper.adapter_alpha) == (4.5, 4.5, 64, 108.0)
    assert (paper.student.lr, paper.critic.lr, paper.batch, paper.critic_null) == (1e-6, 1e-3, 64, 0.1)
    assert paper.critic_weight == low.critic_weight == "signal_eps"
    assert (low.student_rank, low.student_alpha, low.adapter_alpha) == (256, 512.0, 128.0)
    assert low.rewards == (ClampedReward("clip", 0.1, 0.35),) and not paper.rewards
    for options in PRESETS.values():
        assert options_from_dict(SwiftBrushOptions, options_to_dict(options)) == options


def test_a_signal_that_is_too_small_to_divide_by(tiny):
    nothing = DDPM(alphas_cumprod=[0.9, 0.5, 1e-7])
    with pytest.raises(
        LimbeckError, match=r"predicts eps and starts at time 2, where the signal is a_T = 0.000316: .* predicts x0"
    ):
        brush(tiny, tiny.ingredients(eps_teacher(tiny, nothing)))
    for prediction in ("x0", "v"):
        brush(tiny, tiny.ingredients(eps_teacher(tiny, nothing, prediction)))
    with pytest.warns(UserWarning, match=r"a_T = 0.00635: x = \(z - s eps\) / a multiplies its errors by 157"):
        brush(tiny, tiny.ingredients(eps_teacher(tiny, DDPM("linear"))))
    with pytest.raises(LimbeckError, match=r"starts from noise of size 1, but the schedule has s = 80"):
        brush(tiny, tiny.ingredients())


def test_what_makes_no_sense_is_said(tiny):
    with pytest.warns(UserWarning, match="the critic's learning rate 0.01 is not above the student's 0.01"):
        brush(tiny, critic=OptimizerOptions(lr=1e-2))
    with pytest.warns(UserWarning, match="guidance 0.5 < 1 leads away"):
        brush(tiny, guidance=0.5, critic_guidance=0.5)
    with pytest.warns(UserWarning, match=r"guidance 3 and critic_guidance 1.5 differ"):
        brush(tiny, guidance=3.0)
    with pytest.raises(LimbeckError, match=r"score_steps needs 0 <= low < high <= 1"):
        brush(tiny, score_steps=(0.5, 0.5))
    with pytest.raises(LimbeckError, match=r"no layer to adapt 'to_q': there are .*network.blocks.0.inner"):
        brush(tiny, critic_layers=("to_q", "to_v"))
    with pytest.raises(LimbeckError, match="unknown reward 'clip'"):
        brush(tiny, rewards=(ClampedReward("clip"),))
    with pytest.raises(LimbeckError, match="unknown prediction type"):
        eps_teacher(tiny, prediction="noise")
    with pytest.raises(LimbeckError, match="guidance 1.5 needs a null condition"):
        brush(tiny, tiny.ingredients(eps_teacher(tiny, classes=0), classes=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brush(tiny)
