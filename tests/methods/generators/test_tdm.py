"""TDM: the points at which laws are compared, what the critic's targets mean, one step is DMD, K as an input, and bad input."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import denoising_loss, denoising_target, importance_weight
from limbeck.methods.generators.producers import clean_time
from limbeck.methods.generators.tdm import PRESETS, TDMOptions, grids
from limbeck.noise import DDPM, VE, VP, RectifiedFlow, TrigFlow
from limbeck.samplers import ddim
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
WINDOW = {"score_low": 0.01, "score_high": 100.0}


def made(tiny, process=None, **options):
    parts = None if process is None else tiny.ingredients(tiny.teacher(process=process))
    return tiny.make("tdm", parts, **{**WINDOW, **options})


def grads(method, loss):
    params = [p for p in method.student.parameters() if p.requires_grad]
    return [g for g in torch.autograd.grad(loss, params, allow_unused=True) if g is not None]


# -- the points ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VE(), VP(), RectifiedFlow(), TrigFlow()], ids=lambda p: type(p).__name__)
def test_mixed_noise(process, tiny):
    """x_tau = a_tau x0h + s_tau m with m of Eq. (8), and the importance weight is that of m."""
    method = made(tiny, process)
    at = tiny.batch(method, size=16)
    sample = method.producer(method, at, 0)
    step = at.noise.randint("segment", 0, 4)
    t_from = method.times[step]
    x_from, x0 = inputs(method, at)[step, torch.arange(16)], sample.x0.detach()

    def column(v):
        return v[:, None]

    a, s = process.a, process.s
    eh = (x_from - column(a(t_from)) * x0) / column(s(t_from))
    torch.testing.assert_close(sample.x.detach(), column(a(sample.level)) * x0 + column(s(sample.level)) * eh)  # (1)
    tau, e = method.score_time(at, sample), method.normal(at, "score noise")
    x_tau = process.diffuse(sample.x.detach(), e, tau, sample.level)
    ratio = a(tau) / a(sample.level)
    spread = torch.sqrt(s(tau) ** 2 - (ratio * s(sample.level)) ** 2)
    m = (column(ratio * s(sample.level)) * eh + column(spread) * e) / column(s(tau))
    torch.testing.assert_close(x_tau, column(a(tau)) * x0 + column(s(tau)) * m, rtol=1e-12, atol=1e-12)
    tempered = torch.exp(-0.5 * m.square().mean(1)) / torch.exp(-0.5 * e.square().mean(1))
    torch.testing.assert_close(importance_weight(process, x_tau, x0, e, tau), tempered, rtol=1e-10, atol=0)
    torch.testing.assert_close(importance_weight(process, x_tau, x0, e, tau, False), tempered**2, rtol=1e-10, atol=0)  # d = 2


def inputs(method, at):
    """The states of the deterministic trajectory, (K, B, 2)."""
    z, nodes, states = method.normal(at, "z"), method.times, []
    x = method.process.s(nodes[:1]).to(z) * z
    for k in range(len(nodes)):
        states.append(x if k == 0 else ddim(method.student, x, nodes[: k + 1], at.cond, final=False))
    return torch.stack(states).detach()


@pytest.mark.parametrize("process", [VE(), RectifiedFlow(), DDPM()], ids=lambda p: type(p).__name__)
def test_segments_end_where_the_sampler_goes(process, tiny):
    method = made(tiny, process)
    at = tiny.batch(method, size=24)
    sample = method.producer(method, at, 0)
    step = at.noise.randint("segment", 0, 4)
    end = method.sampler(ema=False)(method.normal(at, "z"), at.cond)
    torch.testing.assert_close(end, ddim(method.student, inputs(method, at)[0], method.times, at.cond).detach())
    states = torch.cat([inputs(method, at)[1:], end[None]])
    torch.testing.assert_close(sample.x.detach(), states[step, torch.arange(24)], rtol=1e-10, atol=1e-12)
    assert set(step.tolist()) == {0, 1, 2, 3}
    last = step == 3
    assert torch.equal(sample.x[last], sample.x0[last]) and bool((process.s(sample.level[last]) == 0).all())


@pytest.mark.parametrize("process", [VE(), VP(), RectifiedFlow(), DDPM()], ids=lambda p: type(p).__name__)
def test_segments_partition_the_times(process, tiny):
    """Every tau in [0, T) belongs to exactly one segment, and tau is drawn in its own."""
    method = made(tiny, process, score_low=1e-4, score_high=1e6)
    level, low, high = method.segments.windows(process, 4)
    assert torch.equal(low, level) and torch.equal(high, method.times) and float(level[-1]) == clean_time(process)
    tau = process.time_of(torch.linspace(1e-3, 4.99, 50, dtype=F64))
    inside = (level[:, None] <= tau) & (tau < high[:, None])
    assert bool((inside.sum(0) == 1).all())
    _, _, top = made(tiny, process, separate=False).segments.windows(process, 4)
    assert int(((level[:, None] <= tau) & (tau < top[:, None])).sum(0).max()) == 4  # what overlaps is seen
    at = tiny.batch(method, size=64)
    sample = method.producer(method, at, 0)
    for t in (method.score_time(at, sample), method.critic_time(at, sample)):
        assert bool((t >= sample.level).all() and (t <= method.times[at.noise.randint("segment", 0, 4)]).all())


def test_margins_and_overlap_move_the_windows(tiny):
    method = made(tiny, margin_low=0.01, margin_high=0.02, separate=False)
    _, low, high = method.segments.windows(method.process, 4)
    torch.testing.assert_close(low, torch.cat([method.times[1:], torch.zeros(1, dtype=F64)]) + 0.01)
    assert high.tolist() == [pytest.approx(4.98)] * 4


def test_a_random_end_lies_in_the_segments_own_share(tiny):
    plain, moved = made(tiny), made(tiny, randmid=0.25)
    at = tiny.batch(plain, size=64)
    a, b = plain.producer(plain, at, 0), moved.producer(moved, at, 0)
    step = at.noise.randint("segment", 0, 4)
    share = ((b.level - a.level) / (plain.times[step] - a.level))[step < 3]
    assert 0 < float(share.min()) < 0.05 and 0.2 < float(share.max()) < 0.25
    assert torch.equal(b.level[step == 3], a.level[step == 3]) and torch.equal(b.low, b.level)


# -- the surrogates -----------------------------------------------------------------------------------------------------


def test_one_step_is_dmd(tiny):
    """K = 1, t_0 = 0: the student's gradient, and the critic's loss, are those of DMD."""
    dmd, method = tiny.make("dmd", sigmas=(5.0,)), tiny.make("tdm", counts=(1,))
    for m in (dmd, method):
        torch.manual_seed(1)
        torch.nn.init.normal_(m.critic.network.output.weight)
    at = tiny.batch(dmd)
    losses = [next(m.step(at)).loss for m in (dmd, method)]
    for one, other in zip(grads(dmd, losses[0]), grads(method, losses[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
    sample = method.producer(method, at, 0).detach()
    t, eps = torch.linspace(0.2, 4.0, 6, dtype=F64), method.normal(at, "critic noise")
    given = {"damping": 10.0, "relative": True}
    anchored = denoising_loss(method.critic, sample.x, t, eps, at.cond, level=sample.level, **given)
    torch.testing.assert_close(anchored, denoising_loss(method.critic, sample.x, t, eps, at.cond), rtol=1e-11, atol=0)
    damped = denoising_loss(
        method.critic, sample.x, t, eps, at.cond, level=sample.level
    )  # by the variance: not DMD's at small t
    assert float((damped - anchored).abs().detach()) > 1e-3 * float(anchored.detach())


def test_the_anchors_differ_by_a_positive_factor_per_step(tiny):
    """dx_{t_i} = (a_{t_i} - s_{t_i} a_{t_{i+1}} / s_{t_{i+1}}) dx0h."""
    method = made(tiny, VP())
    at = tiny.batch(method)
    sample = method.producer(method, at, 0)
    pull = torch.randn(6, 2, dtype=F64)
    of_x, of_x0 = (torch.autograd.grad((y * pull).sum(), method.student.network.output.weight, retain_graph=True)[0]
                   for y in (sample.x, sample.x0))  # fmt: skip
    a, s, t = method.process.a, method.process.s, method.times[at.noise.randint("segment", 0, 4)]
    factor = a(sample.level) - s(sample.level) * a(t) / s(t)
    weighed = torch.autograd.grad((sample.x0 * factor[:, None] * pull).sum(), method.student.network.output.weight)[0]
    torch.testing.assert_close(of_x, weighed, rtol=1e-10, atol=1e-12)
    assert bool((factor > 0).all()) and float((of_x - of_x0).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["code", "paper"])
def test_the_huber_surrogates_are_the_equations(kind, tiny):
    code = kind == "code"
    options = {"surrogate": "huber" if code else "huber_sample", "huber_c": 0.3, "normaliser": "mean_abs" if code else "none"}
    method = made(tiny, anchor="x0" if code else "x", **options)
    torch.nn.init.normal_(method.critic.network.output.weight)
    at = tiny.batch(method)
    loss = next(method.step(at)).loss
    sample = method.producer(method, at, 0)
    t, eps = method.score_time(at, sample), method.normal(at, "score noise")
    x_t = method.process.diffuse(sample.x.detach(), eps, t, sample.level)
    with torch.no_grad():
        teacher, critic = method.teacher(x_t, t, at.cond), method.critic(x_t, t, at.cond)
    if code:
        target, n = sample.x0.detach() - (critic - teacher), (sample.x0.detach() - teacher).abs().mean(1, keepdim=True) + 1e-6
        expected = ((torch.sqrt((sample.x0 - target) ** 2 + 0.09) - 0.3) / n).mean()  # (4)
    else:
        target = sample.x.detach() - (critic - teacher)
        expected = (torch.sqrt(((sample.x - target) ** 2).sum(1) + 0.09) - 0.3).mean()  # (5)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for one, other in zip(grads(method, loss), grads(method, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


def test_any_rule_pulls_segments(tiny):
    kl, fisher = made(tiny), made(tiny, divergence="fisher", alpha=1.0)
    at = tiny.batch(kl)
    for m in (kl, fisher):
        torch.manual_seed(1)
        torch.nn.init.normal_(m.critic.network.output.weight)
    a, b = (torch.cat([g.flatten() for g in grads(m, next(m.step(at)).loss)]) for m in (kl, fisher))
    assert bool(torch.isfinite(b).all()) and float(b.norm()) > 0 and float((a / a.norm() - b / b.norm()).norm()) > 0.1


# -- what the critic learns, in one dimension, by quadrature ------------------------------------------------------------


X = torch.linspace(-14, 14, 8001, dtype=F64)
START, END = torch.tensor(1.0, dtype=F64), torch.tensor(0.5, dtype=F64)  # one step of VE, on data that a mixture is


def density(x, s):
    return sum(
        w * torch.exp(-0.5 * (x - m) ** 2 / (0.09 + s**2)) / torch.sqrt(0.09 + s**2) for w, m in ((0.7, -1.0), (0.3, 1.5))
    )


def student(x):
    """Some prediction x0h, far from the exact one, so that eh depends on it."""
    return 0.5 * x + 0.4 * torch.sin(x)


def learned(x_tau, tau, target, importance="none"):
    """argmin of the critic's loss at x_tau: the mean of its target over x_{t_{i+1}} given x_tau, weighed."""
    process, column = VE(), (-1, 1)
    x0 = student(X)
    x_end = x0 + END * (X - x0) / START
    noise = torch.sqrt(tau**2 - END**2)
    e = (x_tau - x_end) / noise
    w = density(X, START) * torch.exp(-0.5 * e**2)
    rows = torch.full_like(X, float(tau)), torch.full_like(X, float(END))
    points = torch.full_like(X, float(x_tau)).reshape(column)
    if importance == "raw":
        w = w * importance_weight(process, points, x0.reshape(column), e.reshape(column), rows[0], tempered=False)
    if target == "exact":
        d = denoising_target(process, x_end.reshape(column), points, e.reshape(column), *rows)[:, 0]
    else:
        d = x0
    return float((w * d).sum() / w.sum())


def true_denoiser(x_tau, tau, of):
    """x_tau + tau^2 d log p / dx by central differences of the density of the noised law."""
    x0 = student(X)
    x_end, variance = (x0 + END * (X - x0) / START, tau**2 - END**2) if of == "segment" else (x0, tau**2)

    def log_p(y):
        return torch.log((density(X, START) * torch.exp(-0.5 * (y - x_end) ** 2 / variance)).sum())

    h = 1e-4
    return float(x_tau + tau**2 * (log_p(x_tau + h) - log_p(x_tau - h)) / (2 * h))


@pytest.mark.parametrize("x_tau", [-1.7, -0.2, 0.9, 2.5])
def test_the_exact_target_is_the_score_of_the_segments_law(x_tau):
    tau = torch.tensor(0.8, dtype=F64)
    assert learned(x_tau, tau, "exact") == pytest.approx(true_denoiser(x_tau, tau, "segment"), abs=1e-7)


def test_clean_predictions_are_not_unless_their_noise_is_independent():
    """Not weighed they are no score; with raw weights they are the score of x0h's own noised law, another one here."""
    tau, points = torch.tensor(0.8, dtype=F64), (-1.7, -0.2, 0.9, 2.5)
    segment, clean = ([true_denoiser(x, tau, of) for x in points] for of in ("segment", "clean"))
    plain = [learned(x, tau, "x0") for x in points]
    raw = [learned(x, tau, "x0", "raw") for x in points]
    assert raw == pytest.approx(clean, abs=1e-6)
    assert max(abs(a - b) for a, b in zip(plain, segment, strict=True)) > 0.05
    assert max(abs(a - b) for a, b in zip(raw, segment, strict=True)) > 0.05


@pytest.mark.parametrize("importance", ["raw", "none"])
def test_with_independent_noise_all_targets_agree(importance):
    """x_end = x0 + s n, n independent: m is standard normal, the raw weight has mean one given (x0, x_tau)."""
    process, tau = VE(), torch.tensor(0.8, dtype=F64)
    x0, n = torch.meshgrid(torch.tensor([-1.0, 0.2, 1.5], dtype=F64), torch.linspace(-8, 8, 4001, dtype=F64), indexing="ij")
    x_end, noise = x0 + END * n, torch.sqrt(tau**2 - END**2)
    for x_tau in (-0.8, 0.4, 1.1):
        e = (x_tau - x_end) / noise
        points = torch.full_like(x0, x_tau).reshape(-1, 1)
        rows = torch.full((x0.numel(),), 0.8, dtype=F64), torch.full((x0.numel(),), 0.5, dtype=F64)
        w = torch.exp(-0.5 * n**2 - 0.5 * e**2)
        exact = denoising_target(process, x_end.reshape(-1, 1), points, e.reshape(-1, 1), *rows).reshape(x0.shape)
        mean = (w * exact).sum() / w.sum()
        if importance == "raw":
            r = importance_weight(process, points, x0.reshape(-1, 1), e.reshape(-1, 1), rows[0], tempered=False)
            # q(x_tau | x0) in place of q(x_tau | x_end): n keeps its own law
            w = torch.exp(-0.5 * n**2 - 0.5 * e**2) * r.reshape(x0.shape)
        assert float((w * x0).sum() / w.sum()) == pytest.approx(float(mean), abs=1e-9)


def test_the_critics_losses_are_the_equations(tiny):
    for target, weight in (("is", "min_snr_5"), ("x0", "x0"), ("exact", "x0")):
        method = made(tiny, critic_target=target, critic_weight=weight)
        at = tiny.batch(method)
        sample = method.producer(method, at, 0).detach()
        t, e = method.critic_time(at, sample), method.normal(at, "critic noise")
        x_t = method.process.diffuse(sample.x, e, t, sample.level)
        answer, variance = method.critic(x_t, t, at.cond), t**2 - sample.level**2
        if target == "exact":
            clean, w = x_t - (t**2 / torch.sqrt(variance))[:, None] * e, (10 * variance / t**2).clamp(max=1.0)  # (6)
        else:
            clean = sample.x0
            m = (x_t - clean) / t[:, None]
            w = (t**-2).clamp(max=5) * torch.exp(0.5 * (e**2 - m**2).mean(1)) if target == "is" else torch.ones_like(t)  # (7)
        expected = (w * (answer - clean).square().mean(1)).mean()
        torch.testing.assert_close(method.critic_loss(at, sample), expected, rtol=1e-8, atol=0)


# -- several K ----------------------------------------------------------------------------------------------------------


def test_student_and_critic_are_told_k_and_the_teacher_is_not(tiny, monkeypatch):
    parts = tiny.ingredients()
    method = tiny.make("tdm", parts, counts=(1, 2, 4), **WINDOW)
    calls = {name: tiny.spy(m, monkeypatch) for name, m in (("student", method.student), ("critic", method.critic),
                                                            ("teacher", parts.teacher))}  # fmt: skip
    seen = set()
    for step in range(12):
        tiny.yields(method, tiny.batch(method, step))
        told = {
            name: {int(k) for _, _, cond in made for k in cond.get("steps", torch.zeros(1))} for name, made in calls.items()
        }
        assert told["student"] == told["critic"] and len(told["student"]) == 1 and told["teacher"] == {0}
        seen |= told["student"]
        for made_calls in calls.values():
            made_calls.clear()
    assert seen == {1, 2, 4}
    untold = tiny.make("tdm", counts=(1, 2, 4), critic_told=False, **WINDOW)
    assert untold.producer(untold, tiny.batch(untold), 0).cond.keys() == {"label"}


def test_k_changes_the_samples_and_its_grid_is_kept(tiny):
    method = made(tiny, counts=(1, 2, 4))
    with torch.no_grad():
        for table in method.student.network.conditioning.tables.values():
            torch.nn.init.normal_(table.weight)
    z, cond = torch.randn(5, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0, 1])}
    for K in (1, 2, 4):
        times = method.segments.rollouts[K].times
        told = {**cond, "steps": torch.full((5,), K)}
        by_hand = ddim(method.student, times[0] * z, list(times), told)
        torch.testing.assert_close(method.sampler(ema=False, steps=K)(z, cond), by_hand.detach())
    assert torch.equal(method.sampler(ema=False)(z, cond), method.sampler(ema=False, steps=4)(z, cond))
    with pytest.raises(LimbeckError, match="K=3 steps were not trained; the student knows K = 1, 2, 4"):
        method.sampler(steps=3)
    with pytest.raises(LimbeckError, match="steps=3 was not trained; the network knows steps 1, 2, 4"):
        method.student(z, torch.ones(5, dtype=F64), {**cond, "steps": torch.full((5,), 3)})
    with pytest.raises(LimbeckError, match="needs the condition 'steps', one of 1, 2, 4 per sample"):
        method.student(z, torch.ones(5, dtype=F64), cond)


def test_where_segments_overlap_the_critic_is_told_the_step(tiny, monkeypatch):
    method = made(tiny, separate=False)
    calls = tiny.spy(method.critic, monkeypatch)
    at = tiny.batch(method)
    next(method.step(at))
    assert torch.equal(calls[-1][2]["segment"], at.noise.randint("segment", 0, 4))
    assert "segment" not in method.student.network.config.get("counted", {})


def test_any_deterministic_solver_samples(tiny):
    method = made(tiny)
    z, cond = torch.randn(5, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0, 1])}
    first, second = (method.sampler(ema=False, solver=name)(z, cond) for name in ("ddim", "dpm_solver_pp_2m"))
    assert first.shape == second.shape and float((first - second).abs().max()) > 1e-3
    for solver in ("ancestral", "stochastic_edm"):
        with pytest.raises(LimbeckError, match=rf"deterministic trajectory \(eta = 0\): {solver} cannot sample"):
            method.sampler(solver=solver)
    with pytest.raises(LimbeckError, match="unknown solver 'dimm': did you mean 'ddim'"):
        method.sampler(solver="dimm")


# -- grids and bad input ------------------------------------------------------------------------------------------------


def test_grids():
    raw = TDMOptions(grid="raw", counts=(4, 2))
    assert grids(DDPM(), raw)[4].tolist() == [899, 674, 449, 224] and grids(DDPM(), raw)[2].tolist() == [899, 449]
    torch.testing.assert_close(grids(RectifiedFlow(), raw)[4], torch.tensor([0.9, 0.675, 0.45, 0.225], dtype=F64))
    video = grids(DDPM(), TDMOptions(nodes=(999.0, 856.0, 665.0, 399.0)))
    assert video[4].tolist() == [999, 856, 665, 399]
    karras = grids(VE(), TDMOptions(counts=(1, 2, 4)))
    assert karras[1][0] == karras[2][0] == karras[4][0] == 5.0 and karras[2][1] == pytest.approx(float(karras[4][2]))
    free = grids(VE(), TDMOptions(grid="sigmas", sigmas=(5.0, 2.0, 0.1)))
    assert free[3].tolist() == [5.0, 2.0, 0.1]


@pytest.mark.parametrize(
    ("process", "options", "message"),
    [
        (DDPM(), {"grid": "raw", "total_steps": 1001}, "total_steps=1001 must lie between the steps, 4, and the 1000 of training"),
        (None, {"grid": "raw", "total_steps": 3}, "total_steps=3 must lie between the steps, 4,"),
        (None, {"counts": ()}, r"counts=\(\): give the numbers of steps"),
        (None, {"grid": "sigmas", "sigmas": (1.0, 5.0)}, "sigmas must decrease strictly"),
        (None, {"renoise": "fresh"}, r"deterministic trajectory \(eta = 0\), not to one with renoise='fresh'; use 'ode'"),
        (None, {"randmid": 1.0}, "randmid=1 is a share of a segment"),
        (None, {"margin_low": 0.2, "margin_high": 0.1}, "4 steps: segment 4 of 4 has no times left: margins .* leave 0.2 to 0.116"),
        (None, {"score_low": 0.6}, r"segment 4 of 4 has no times left: margins and score_low, score_high leave 0.6 to 0.216"),
        (None, {"counts": (1, 4), "critic_guidance": 2.0}, "takes no guidance, no dropped conditions and no adversary"),
        (None, {"separate": False, "critic_drop": 0.1}, "takes no guidance, no dropped conditions and no adversary"),
    ],
)  # fmt: skip
def test_bad_input(process, options, message, tiny):
    with pytest.raises(LimbeckError, match=message):
        made(tiny, process, **options)


def test_guidance_without_a_null_condition(tiny):
    with pytest.raises(LimbeckError, match="guidance 3.5 needs a null condition"):
        tiny.make("tdm", tiny.ingredients(classes=0), guidance=3.5)


def test_a_network_that_cannot_be_told_k(tiny):
    class Foreign(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(2, 2).double()

        def forward(self, x, c_noise, cond=None):
            return self.inner(x)

    teacher = tiny.teacher()
    teacher.network = Foreign()
    with pytest.raises(LimbeckError, match="a Foreign cannot be told steps: that needs one of the library's networks"):
        tiny.make("tdm", tiny.ingredients(teacher, classes=0), counts=(1, 2))


def test_presets():
    for preset in PRESETS.values():
        assert options_from_dict(TDMOptions, options_to_dict(preset)) == preset
    paper = PRESETS["paper-sd15"]
    assert (paper.counts, paper.guidance, paper.student.lr, paper.critic.lr) == ((1, 2, 3, 4), 3.5, 2e-6, 2e-5)
    assert grids(DDPM(), PRESETS["code-pixart512"])[4].tolist() == [799, 599, 399, 199]
    assert math.isclose(float(DDPM().sigma(torch.tensor(20.0))), PRESETS["paper-pixart"].score_low, rel_tol=1e-3)
