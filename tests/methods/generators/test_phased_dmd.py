"""Phased DMD: the equations of a subinterval, who is trained when, experts and critics of each phase, and bad input."""

import json

import pytest
import torch
from torch import nn

from limbeck.denoisers import MixtureDenoiser, Preconditioned, load_denoiser, save_student
from limbeck.errors import ConversionError, LimbeckError
from limbeck.losses import denoising_loss, denoising_target
from limbeck.methods.generators.phased_dmd import PRESETS, PhasedDMDOptions, serving, student_experts
from limbeck.noise import VE, VP, RectifiedFlow, TrigFlow
from limbeck.rules import DistributionMatching, Sample
from limbeck.samplers import Experts, ddim, load_experts
from limbeck.training.checkpoints import load
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
PROCESSES = [VE(), VP(), RectifiedFlow(), RectifiedFlow(3.0), TrigFlow()]
FOUR = {"sigmas": (5.0, 1.6, 0.5, 0.17)}


# -- the equations, for every process -----------------------------------------------------------------------------------

POINTS, WEIGHTS = torch.tensor([-1.5, -0.4, 0.3, 1.2], dtype=F64), torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=F64)
LEVELS = [(s, t) for s in (0.1, 0.3, 0.5, 0.7) for t in (0.2, 0.6, 0.8, 0.95) if s < t]


def coefficients(process, s, t):
    a_s, s_s, a_t, s_t = (float(f(torch.tensor(v, dtype=F64))) for v in (s, t) for f in (process.a, process.s))
    a = a_t / a_s
    return a_s, s_s, a_t, s_t, a, (s_t**2 - a**2 * s_s**2) ** 0.5


def conditional_means(process, s, t, x_t):
    """E[x_s | x_t] and E[e | x_t] by quadrature over x_s of the mixture's law at s: the targets are linear in both."""
    a_s, s_s, _, _, a, noise = coefficients(process, s, t)
    x = torch.linspace(-9, 9, 36_001, dtype=F64)
    density = (WEIGHTS * torch.exp(-0.5 * ((x[:, None] - a_s * POINTS) / s_s) ** 2)).sum(1)
    e = (x_t - a * x) / noise
    w = density * torch.exp(-0.5 * e**2)
    return tuple(float((w * v).sum() / w.sum()) for v in (x, e))


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_subinterval_target_has_the_velocity_of_the_law_as_its_mean(process):
    """(2): E[u | x_t] = E[e - x_0 | x_t] to 1e-10; e - x_s is off by more than 0.1; the denoiser's form is the same."""
    wrong, means = 0.0, POINTS[:, None]
    for s, t in LEVELS:
        a_s, s_s, a_t, s_t, _, noise = coefficients(process, s, t)
        of_e, of_d = (a_s**2 * s_t + a_t * s_s**2) / (a_s**2 * noise), a_t * s_s**2 / (a_s**2 * noise)
        for x_t in (-1.1, 0.2, 0.9):
            mean_x, mean_e = conditional_means(process, s, t, x_t)
            exact = float(
                MixtureDenoiser(WEIGHTS, means, 0.0, process)(torch.tensor([[x_t]], dtype=F64), torch.tensor([t], dtype=F64))
            )
            v = (x_t - a_t * exact) / s_t - exact
            assert of_e * mean_e - mean_x / a_s == pytest.approx(v, abs=1e-10)
            assert mean_x / a_s - of_d * mean_e == pytest.approx(exact, abs=1e-10)
            wrong = max(wrong, abs(mean_e - mean_x - v))
    assert wrong > 0.1


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_librarys_target_is_the_papers(process):
    x, e = (torch.linspace(-2, 2, 7, dtype=F64)[:, None], torch.linspace(1, -1.5, 7, dtype=F64)[:, None])
    for s, t in LEVELS:
        a_s, s_s, a_t, s_t, a, noise = coefficients(process, s, t)
        rows = torch.full((7,), t, dtype=F64), torch.full((7,), s, dtype=F64)
        x_t = a * x + noise * e
        torch.testing.assert_close(process.diffuse(x, e, *rows), x_t, rtol=1e-11, atol=1e-12)  # (1)
        d = denoising_target(process, x, x_t, e, *rows)
        torch.testing.assert_close(d, x / a_s - a_t * s_s**2 / (a_s**2 * noise) * e, rtol=1e-9, atol=1e-11)  # eq. 12
        u = (a_s**2 * s_t + a_t * s_s**2) / (a_s**2 * noise) * e - x / a_s
        torch.testing.assert_close((x_t - a_t * d) / s_t - d, u, rtol=1e-9, atol=1e-10)  # (2)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_noising_in_two_steps_is_noising_in_one(process):
    for s, t in LEVELS:
        a_s, s_s, a_t, s_t, *_ = coefficients(process, s, t)
        a, noise = (float(v) for v in process.transition(torch.tensor(s, dtype=F64), torch.tensor(t, dtype=F64)))
        assert a * a_s == pytest.approx(a_t, rel=1e-13)
        assert (a * s_s) ** 2 + noise**2 == pytest.approx(s_t**2, rel=1e-13)


def test_the_damped_weight(tiny):
    """(3) with the velocity's weight is min(1/s^2, 10) |s (F - u)|^2 of velocities e - x0."""
    process = RectifiedFlow()
    torch.manual_seed(0)
    x, e = torch.randn(6, 2, dtype=F64), torch.randn(6, 2, dtype=F64)
    t, s = torch.tensor([0.51, 0.55, 0.6, 0.7, 0.8, 0.95], dtype=F64), torch.full((6,), 0.5, dtype=F64)
    critic = tiny.teacher(process=process)
    cond = {"label": torch.tensor([0, 1, 2, 0, 1, 2])}
    loss = denoising_loss(critic, x, t, e, cond, weight="velocity", level=s)
    a, noise = (v[:, None] for v in process.transition(s, t))
    x_t = a * x + noise * e
    F = (x_t - critic(x_t, t, cond)) / t[:, None]  # x_t = (1 - t) x0 + t e: e - x0 = (x_t - x0) / t
    u = (0.25 * t + (1 - t) * 0.25)[:, None] / (0.25 * noise) * e - x / 0.5
    expected = ((1 / noise**2).clamp(max=10) * (noise * (F - u)) ** 2).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    assert bool((noise**2 < 0.1).any()) and bool((noise**2 > 0.1).any())


def test_the_pull_is_the_papers(tiny):
    """(4): a_t a_{t|s} / (a_t s_t + s_t^2) times the difference of velocities, at a level and without one."""
    process = RectifiedFlow()
    teacher, critic = (tiny.teacher(process=process, seed=k) for k in (0, 1))
    torch.manual_seed(0)
    x, e = torch.randn(4, 2, dtype=F64), torch.randn(4, 2, dtype=F64)
    t, cond = torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=F64), {"label": torch.tensor([0, 1, 2, 0])}
    for level in (torch.full((4,), 0.5, dtype=F64), None):
        got = DistributionMatching(teacher, critic, normaliser="kl")(Sample(x, cond, level), t, e).gradient
        x_t, a_t, s_t = process.diffuse(x, e, t, level), (1 - t)[:, None], t[:, None]
        step = a_t / 0.5 if level is not None else a_t
        T, F = ((x_t - d(x_t, t, cond)) / s_t for d in (teacher, critic))
        torch.testing.assert_close(got, a_t * step / (a_t * s_t + s_t**2) * (T - F), rtol=1e-10, atol=1e-12)


def test_level_zero_is_dmd_bit_for_bit(tiny):
    """One phase: samples, target, losses and gradients are DMD's with deterministic steps, given the same times."""
    same = {"sigmas": (5.0, 1.0), "renoise": "ode"}
    dmd, phased = tiny.make("dmd", **same), tiny.make("phased-dmd", boundaries=(), anchor="x", per_sample=False, **same)
    for critic in (dmd.critic, phased.critic.phases[0]):
        torch.manual_seed(1)
        nn.init.normal_(critic.network.output.weight)
    at = tiny.batch(dmd)
    dmd.score_time = phased.score_time = lambda batch, sample: torch.linspace(0.2, 4.0, 6, dtype=F64)
    dmd.critic_time = phased.critic_time = lambda batch, sample: torch.linspace(0.1, 3.0, 6, dtype=F64)
    found = [tiny.yields(m, at) for m in (dmd, phased)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.loss, other.loss)
    for a, b, inner in ((dmd.student, phased.student.expert_0, 0), (dmd.critic, phased.critic.phases[0], 1)):
        params = [[p for p in m.parameters() if p.requires_grad] for m in (a, b)]
        gradients = [torch.autograd.grad(f[inner].loss, p, allow_unused=True) for f, p in zip(found, params, strict=True)]
        assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True) if x is not None)
    sample = phased.producer(phased, at, 0)
    assert sample.level is None and torch.equal(sample.x, dmd.producer(dmd, at, 0).x)


# -- phases -------------------------------------------------------------------------------------------------------------


def moved(tiny, method, step, roles=("student", "critic")):
    """Names of the experts and critics that one iteration gives a gradient."""
    for name in roles:
        method.roles[name].module.zero_grad(set_to_none=True)
    tiny.yields(method, tiny.batch(method, step), lambda update: update.loss.backward())
    named = [*method.student.named_children(), *((f"critic_{n}", m) for n, m in method.critic.phases.named_children())]
    return {name for name, m in named if any(p.grad is not None for p in m.parameters())}


@pytest.mark.parametrize("order", ["sequential", "joint"])
def test_each_phase_trains_its_own_expert_and_critic(order, tiny):
    method = tiny.make("phased-dmd", order=order, iterations=6, **FOUR)
    first, second = {"expert_1", "critic_0"}, {"expert_0", "critic_1"}
    expected = [first, first, first, second, second, second] if order == "sequential" else 3 * [first, second]
    assert [moved(tiny, method, k) for k in range(6)] == expected


@pytest.mark.parametrize("per_sample", [True, False])
def test_a_sample_of_a_phase_is_at_its_end(per_sample, tiny):
    method = tiny.make("phased-dmd", iterations=16, boundaries=(0.5,), per_sample=per_sample, **FOUR)
    seen = set()
    for step in range(16):
        at = tiny.batch(method, step)
        sample = method.producer(method, at, 0)
        z, times, steps = method.normal(at, "z"), method.times, (0, 2) if step < 8 else (2, 4)
        j = at.noise.randint("step", *steps) if per_sample else torch.full((6,), at.noise.shared_randint("step", *steps))
        states = [5.0 * z, *(ddim(method.student, 5.0 * z, times[: i + 1], at.cond, final=False) for i in (1, 2, 3))]
        x = torch.stack(states).detach()[j, torch.arange(6)]
        x0 = method.student(x, times[j], at.cond)
        if step < 8:
            expected = x0 + 0.5 * (x - x0) / times[j][:, None]  # one Euler step to t_1
            assert sample.level.tolist() == 6 * [0.5] and sample.low.tolist() == 6 * [0.5]
            torch.testing.assert_close(sample.x0, x0)
        else:
            expected = x0
            assert sample.level is None
        torch.testing.assert_close(sample.x, expected, rtol=1e-12, atol=1e-12)
        (gradient,) = torch.autograd.grad(sample.x.sum(), method.student.expert_1.network.output.weight, allow_unused=True)
        assert (gradient is None) == (step >= 8)  # what is frozen gets none
        seen |= set(j.tolist())
        assert per_sample or len(set(j.tolist())) == 1
        if step >= 8:
            continue
        t = method.score_time(at, sample)
        assert bool(((t > 0.5) & (t <= 5.0)).all())
    assert seen == {0, 1, 2, 3}


def test_time_ranges(tiny):
    nested, own = (tiny.make("phased-dmd", nested=n, boundaries=(1.6, 0.5), margin=0.1, **FOUR) for n in (True, False))
    level, low, high = nested.phases.windows(nested.process)
    assert level.tolist() == [1.6, 0.5, 0.0] and low.tolist() == pytest.approx([1.7, 0.6, 0.1]) and high.tolist() == 3 * [80.0]
    assert own.phases.windows(own.process)[2].tolist() == [5.0, 1.6, 0.5]
    assert nested.edges.tolist() == [0.1, 5.0]  # both are cut to these


def test_times_are_uniform_before_the_shift(tiny):
    """U(0.5, 1) -> shift 5 -> (0.833, 1)."""
    parts = tiny.ingredients(tiny.teacher(process=RectifiedFlow()))
    options = {"sigmas": (float("inf"), 15.0, 5.0, 5 / 3), "boundaries": (5.0,), "score_low": 1e-3, "score_high": 1e4}
    method = tiny.make("phased-dmd", parts, score_law="uniform", time_shift=5.0, **options)
    torch.testing.assert_close(method.times, torch.tensor([1000, 937.5, 833.3333333, 625], dtype=F64) / 1000)
    level = torch.tensor([5 / 6], dtype=F64)
    u = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    raw = 0.5 + 0.5 * u
    torch.testing.assert_close(method.times_between(u, level, torch.ones(1, dtype=F64)), 5 * raw / (1 + 4 * raw))
    method.producer(method, tiny.batch(method), 0)
    with pytest.raises(LimbeckError, match="time_shift=5 carries times that are uniform: set score_law to uniform"):
        tiny.make("phased-dmd", parts, time_shift=5.0, **options)


@pytest.mark.parametrize("freeze", ["average", "last"])
@pytest.mark.parametrize("start", ["teacher", "previous"])
def test_what_a_phase_leaves_and_the_next_one_starts_from(start, freeze, tiny):
    parts = tiny.ingredients()
    method = tiny.make("phased-dmd", parts, start=start, freeze=freeze, iterations=8, **FOUR)
    loop = tiny.loop(method)
    for _ in range(3):
        loop.iterate()
    before = {n: p.clone() for n, p in method.roles["student"].ema.expert_1.named_parameters()}
    loop.iterate()
    frozen = {n: p.clone() for n, p in method.student.expert_1.named_parameters()}
    assert all(torch.equal(frozen[n], before[n]) for n in frozen) == (freeze == "average")
    begin = parts.teacher if start == "teacher" else method.student.expert_1
    assert all(torch.equal(p, begin.get_parameter(n)) for n, p in method.student.expert_0.named_parameters())
    teacher = dict(parts.teacher.named_parameters())
    assert all(torch.equal(p, teacher[n]) for n, p in method.critic.phases[1].named_parameters())  # never from F_1
    for _ in range(4):
        loop.iterate()
    assert all(torch.equal(p, frozen[n]) for n, p in method.student.expert_1.named_parameters())
    assert not any(torch.equal(p, begin.get_parameter(n)) for n, p in method.student.expert_0.named_parameters() if p.ndim > 1)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_checkpoint_holds_the_phase_all_experts_and_all_critics(rank, tiny, tmp_path):
    def fresh():
        return tiny.make("phased-dmd", iterations=8, student_rank=rank, critic_rank=rank, **FOUR)

    whole, first = tiny.loop(fresh()), tiny.loop(fresh(), tmp_path)
    for _ in range(8):
        whole.iterate()
    for _ in range(6):  # in the middle of the second phase
        first.iterate()
    first.save()
    method = fresh()
    second = tiny.loop(method, tmp_path)
    checkpoint = load(tmp_path / "checkpoints")
    assert int(checkpoint.tensors["method"]["phase"]) == 1
    named = {n.partition(".")[0] for n in checkpoint.tensors["student"]}, {n[:8] for n in checkpoint.tensors["critic"]}
    assert named == ({"expert_0", "expert_1"}, {"phases.0", "phases.1"})
    second.restore(checkpoint)
    assert method.critic.active == 1
    for _ in range(2):
        second.iterate()
    a, b = tiny.weights(whole), tiny.weights(second)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_adapters_of_all_experts_share_one_base(tiny):
    parts = tiny.ingredients()
    method = tiny.make("phased-dmd", parts, student_rank=2, critic_rank=2, iterations=8, boundaries=(1.6, 0.5), **FOUR)
    base = {id(p) for p in parts.teacher.parameters()}
    for module in (method.student, method.critic, method.roles["student"].ema):
        own = [p for p in module.parameters() if id(p) not in base]
        assert len({id(p) for p in module.parameters()}) == len(base) + len(own)
        assert sum(p.numel() for p in own) < 3 * sum(p.numel() for p in parts.teacher.parameters()) / 2
    loop = tiny.loop(method)
    for _ in range(8):
        loop.iterate()
    assert all(".A" in n or ".B" in n for n in loop.trained["student"].names)


# -- teachers and students made of experts ------------------------------------------------------------------------------


def test_a_teacher_of_two_experts_has_two_critics_in_the_second_phase(tiny):
    noisy, clean = tiny.teacher(seed=1), tiny.teacher(seed=2)
    teacher = Experts([(0.0, 0.5, clean), (0.5, 80.0, noisy)])
    method = tiny.make("phased-dmd", tiny.ingredients(teacher), iterations=4, **FOUR)
    one, two = method.critic.phases
    assert [e[:2] for e in one.experts] == [(0.5, 80.0)] and [e[:2] for e in two.experts] == [(0.0, 0.5), (0.5, 80.0)]
    for got, of in ((one.expert_0, noisy), (two.expert_0, clean), (two.expert_1, noisy),
                    (method.student.expert_0, clean), (method.student.expert_1, noisy)):  # fmt: skip
        assert all(torch.equal(p, of.get_parameter(n)) and p is not of.get_parameter(n) for n, p in got.named_parameters())
    loop = tiny.loop(method)
    for _ in range(4):
        loop.iterate()
    with pytest.raises(
        LimbeckError, match=r"the phase \(1, 5\] belongs to no single expert .* \(0, 2\], \(2, 80\]; end phases"
    ):
        serving(Experts([(0.0, 2.0, clean), (2.0, 80.0, noisy)]), 1.0, 5.0)


def test_the_student_is_saved_as_experts(tiny, tmp_path):
    for options in ({}, {"student_rank": 2}):
        method = tiny.make("phased-dmd", iterations=2, **FOUR, **options)
        loop = tiny.loop(method)
        for _ in range(2):
            loop.iterate()
        student = method.roles["student"].best
        index = save_student(tmp_path / "student", student, {"times": method.times.tolist()})
        described = json.loads(index.read_text())
        assert [e["file"] for e in described["experts"]] == ["student-0.safetensors", "student-1.safetensors"]
        experts, info = load_experts(tmp_path / "student")
        z, cond = torch.randn(4, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0])}
        got = ddim(experts.double(), 5.0 * z, info["times"], cond).detach()
        torch.testing.assert_close(got, method.sampler()(z, cond), rtol=1e-5, atol=1e-6)  # read in float32
        assert isinstance(load_denoiser(tmp_path / "student-1")[0], Preconditioned)
    (tmp_path / "student.json").write_text("{}")
    with pytest.raises(LimbeckError, match=r"student.json does not describe experts \('experts'\); make it with save_student"):
        load_experts(tmp_path / "student")


# -- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boundaries": (0.5, 1.6)}, r"boundaries must decrease strictly, not \(0.5, 1.6\)"),
        ({"boundaries": (0.4,)}, "the boundary 0.4 is not where a step starts; choose among 1.6, 0.5, 0.17"),
        ({"boundaries": (5.0,)}, "the boundary 5 is not where a step starts"),
        ({"margin": 4.6}, r"phase 1 of 2 has no times left: margins and score_low, score_high leave 5.1 to 5"),
        ({"score_high": 0.4}, r"phase 1 of 2 has no times left: .* leave 0.5 to 0.4"),
        ({"critic_guidance": 2.0}, "student and critics are not guided"),
        ({"critic_training_guidance": 2.0}, "student and critics are not guided"),
        ({"renoise": "fresh"}, "phases belong to a deterministic trajectory, not to renoise='fresh'; use 'ode'"),
    ],
)
def test_bad_options(options, message, tiny):
    with pytest.raises(LimbeckError, match=message):
        tiny.make("phased-dmd", **{**FOUR, **options})


def test_experts_and_phases_belong_together(tiny):
    one = tiny.teacher()
    with pytest.raises(LimbeckError, match="1 experts cannot serve 2 phases; give one per phase"):
        student_experts((5.0, 0.5, 0.0), [one])
    method = tiny.make("phased-dmd", **FOUR)
    x = torch.zeros(1, 2, dtype=F64)
    with pytest.raises(LimbeckError, match=r"no expert serves the times \[6.0\]; the intervals are \(0, 0.5\], \(0.5, 5\]"):
        method.student(x, torch.tensor([6.0], dtype=F64), {"label": torch.tensor([0])})


def test_a_phase_cannot_end_where_no_signal_is_left(tiny):
    from limbeck.methods.generators.producers import Phases
    from limbeck.samplers import Rollout

    rollout = Rollout(RectifiedFlow(), (1.0, 1 - 1e-6, 0.5), "ode")
    with pytest.raises(LimbeckError, match=r"a phase ends where no signal is left \(a = 0\)"):
        Phases(rollout, (1, 3), 8)
    with pytest.raises(LimbeckError, match=r"phases of 3 steps end at increasing steps up to 3, not at \(2, 2, 3\)"):
        Phases(rollout, (2, 2, 3), 8)


def test_a_teacher_of_eps_cannot_answer_at_pure_noise(tiny):
    teacher = tiny.teacher(process=RectifiedFlow())
    teacher.prediction = "eps"
    method = tiny.make("phased-dmd", tiny.ingredients(teacher), sigmas=(float("inf"), 1.0), boundaries=(1.0,))
    with pytest.raises(ConversionError, match="cannot divide by a = 0 at times"):
        method.sampler()(torch.randn(2, 2, dtype=F64), {"label": torch.tensor([0, 1])})


def test_presets():
    for preset in PRESETS.values():
        assert options_from_dict(PhasedDMDOptions, options_to_dict(preset)) == preset
    paper = PRESETS["paper-wan22"]
    assert (paper.critic_steps, paper.guidance, paper.critic_damping, paper.student_rank) == (5, 4.0, 10.0, 64)
    times = RectifiedFlow().time_of(torch.tensor(PRESETS["paper-qwen-image"].sigmas, dtype=F64))
    assert times.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5])


@pytest.mark.parametrize(("name", "how"), [("phased-dmd", {"boundaries": (0.5,)}), ("compose", {"producer": "phases"})])
def test_warm_up_and_decay_run_once_per_phase(name, how, tiny):
    for order, times in (("sequential", 2), ("joint", 1)):
        roles = tiny.make(name, sigmas=(5.0, 1.6, 0.5, 0.17), order=order, **how).roles
        assert [roles[role].optimizer.restarts for role in ("student", "critic")] == [times, times]
