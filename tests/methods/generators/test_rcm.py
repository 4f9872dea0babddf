"""rCM: its losses by their formulas, reductions to sCM and DMD, phases, rollouts, times, and bad input."""

import itertools
import math

import pytest
import torch

from limbeck.denoisers import in_process, load_denoiser, save_student
from limbeck.errors import LimbeckError
from limbeck.losses import denoising_loss, squared
from limbeck.methods.generators import rcm
from limbeck.noise import RectifiedFlow, TrigFlow
from limbeck.rules import DistributionMatching, Sample, surrogate
from limbeck.training import Batch, TensorSource
from limbeck.training.failure import NotFinite

F64 = torch.float64
SD = 0.5


def s(y):
    return y[:, None]


def moved(tiny, parts=None, **options):
    """A method whose student and critic are no longer the teacher."""
    method = tiny.make("rcm", parts, **{"cycle": 5, **options})
    torch.manual_seed(11)
    for name in ("student", "critic"):
        if name in method.roles:
            for p in method.roles[name].module.parameters():
                p.data.add_(0.1 * torch.randn_like(p))
    return method


def gradients(update, method, role="student"):
    parameters = [p for p in method.roles[role].module.parameters() if p.requires_grad]
    return torch.autograd.grad(update.loss, parameters, allow_unused=True)


def assert_same(found, expected, rtol=1e-9, atol=1e-12):
    assert max(float(g.abs().max()) for g in found if g is not None) > 1e-5
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def explicit(method, at, r=1.0, warmup="rcm", normalisation="norm", e=1e-6):
    """The consistency term written out, with the derivative by central differences."""
    trig, teacher = TrigFlow(1.0), method.roles["teacher"].module
    u = lambda net: lambda x, t: in_process(net, TrigFlow(SD))(SD * x, t, at.cond) / SD  # noqa: E731
    F = lambda net: lambda x, t: (s(t.cos()) * x - u(net)(x, t)) / s(t.sin())  # noqa: E731
    x0, eps = at.x / SD, method.normal(at, "noise")
    t = method.options.p_G(at.noise.uniform("time")).clamp(1e-4, math.pi / 2 - 1e-4)
    x_t, cs = trig.add_noise(x0, eps, t), t.cos() * t.sin()
    v, student = F(teacher)(x_t, t), F(method.student)
    with torch.no_grad():
        dF = (student(x_t + e * s(cs) * v, t + e * cs) - student(x_t - e * s(cs) * v, t - e * cs)) / (2 * e)
        still = student(x_t, t)
        if warmup == "rcm":
            g = -s(t.cos() * (1 - r**2 * t.sin() ** 2).sqrt()) * (still - v) - r * s(cs) * x_t - dF
        else:
            g = -s(t.cos() ** 2) * (still - v) - r * (s(cs) * x_t + dF)
        length = g.norm(dim=1)
        g = {"norm": g / s(length + 0.1), "root": g / s((length**2 + 0.1).sqrt()), "clamp": g.clamp(-1, 1), "none": g}[
            normalisation
        ]
    return (student(x_t, t) - still - g).square().mean(), (length / t.cos()).mean()


@pytest.mark.parametrize("normalisation", ["norm", "root", "clamp", "none"])
@pytest.mark.parametrize(("warmup", "step"), [(0, 3), (8, 2), (8, 0)])
@pytest.mark.parametrize("form", ["rcm", "scm"])
def test_the_consistency_term(form, warmup, step, normalisation, tiny):
    method = moved(tiny, dmd_weight=0.0, warmup=warmup, warmup_form=form, normalisation=normalisation)
    at = tiny.batch(method, step)
    (update,) = tiny.yields(method, at)
    r = min(1.0, step / warmup) if warmup else 1.0
    loss, speed = explicit(method, at, r, form, normalisation)
    torch.testing.assert_close(update.loss.detach(), loss.detach(), rtol=1e-5, atol=1e-8)
    parameters = [p for p in method.student.parameters() if p.requires_grad]
    assert_same(gradients(update, method), torch.autograd.grad(loss, parameters, allow_unused=True), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(update.logs["df_dt"], speed, rtol=1e-5, atol=0)
    assert float(update.logs["nonfinite"]) == 0


@pytest.mark.parametrize(("jvp", "tolerance"), [("semi", 3e-3), ("discrete", 3e-3)])
def test_derivatives_by_differences(jvp, tolerance, tiny):
    full, other = (moved(tiny, dmd_weight=0.0, jvp=how) for how in ("full", jvp))
    at = tiny.batch(full)
    a, b = (gradients(tiny.yields(m, at)[0], m) for m in (full, other))
    assert_same(a, b, rtol=tolerance, atol=tolerance)
    assert any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_without_a_teacher_the_path_is_the_samples_own(tiny, monkeypatch):
    method = moved(tiny, dmd_weight=0.0, velocity="data")
    calls, at = tiny.spy(method.roles["teacher"].module, monkeypatch), tiny.batch(method)
    seen = []
    real = rcm.derivative
    monkeypatch.setattr(
        rcm, "derivative", lambda f, x, t, v, scale, **o: (seen.append((x, t, v)), real(f, x, t, v, scale, **o))[1]
    )
    tiny.yields(method, at)
    (x, t, v), e = seen[0], method.normal(at, "noise")
    torch.testing.assert_close(x, s(t.cos()) * at.x / SD + s(t.sin()) * e, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(v, s(t.cos()) * e - s(t.sin()) * at.x / SD, rtol=1e-13, atol=1e-14)
    assert not calls


def test_lambda_zero_is_scm_without_a_critic(tiny):
    alone, both = moved(tiny, dmd_weight=0.0), moved(tiny, dmd_weight=1e-300)
    assert set(alone.roles) == {"teacher", "student"} and set(both.roles) == {"teacher", "student", "critic"}
    both.student.load_state_dict(alone.student.state_dict())
    at = tiny.batch(alone, 5)
    (a,), (b,) = tiny.yields(alone, at), tiny.yields(both, at)
    assert a.roles == b.roles == "student"
    assert_same(gradients(a, alone), gradients(b, both), rtol=1e-12, atol=1e-15)
    assert all(tiny.yields(alone, tiny.batch(alone, i))[0].roles == "student" for i in range(7))


def test_without_the_consistency_term_it_is_distribution_matching(tiny):
    method = moved(tiny, scm_weight=0.0, dmd_weight=0.7)
    at = tiny.batch(method, 0)
    (update,) = tiny.yields(method, at)
    flow, o = TrigFlow(SD), method.options
    sample = method.samples(at)
    rule = DistributionMatching(
        in_process(method.roles["teacher"].module, flow), in_process(method.roles["critic"].module, flow)
    )
    t, eps = o.p_D(at.noise.uniform("score time")), method.normal(at, "score noise")
    pull = rule(Sample(sample.x, at.cond), t, eps)
    expected = 0.7 * 2 * surrogate(sample.x / SD, pull.gradient)
    parameters = [p for p in method.student.parameters() if p.requires_grad]
    assert_same(gradients(update, method), torch.autograd.grad(expected, parameters, allow_unused=True))
    torch.testing.assert_close(update.logs["gap"], pull.logs["gap"])
    x = method.samples(at).x / SD
    paper = 0.7 * (x - (x - pull.gradient).detach()).square().mean()  # L_DMD as the paper writes it
    (update,) = tiny.yields(method, at)
    assert_same(gradients(update, method), torch.autograd.grad(paper, parameters, allow_unused=True))


def test_both_terms_add_up(tiny):
    method = moved(tiny, scm_weight=3.0, dmd_weight=0.2)
    at = tiny.batch(method, 5)
    (update,) = tiny.yields(method, at)
    first, _ = method.consistency(at)
    second, _ = method.matching(at, method.rule)
    parameters = [p for p in method.student.parameters() if p.requires_grad]
    expected = torch.autograd.grad(3.0 * first + 0.2 * second, parameters, allow_unused=True)
    assert_same(gradients(update, method), expected)
    assert set(update.logs) == {"df_dt", "nonfinite", "gap", "critic_lag", "diversity", "nonfinite pulls"}


def test_the_critic_learns_the_velocity_of_the_students_samples(tiny):
    method = moved(tiny)
    at = tiny.batch(method, 1)
    (update,) = tiny.yields(method, at)
    assert update.roles == "critic"
    x = method.samples(at).x.detach() / SD
    t, e = method.options.p_D(at.noise.uniform("critic time")), method.normal(at, "critic noise")
    x_t = s(t.cos()) * x + s(t.sin()) * e
    f = method.critic(SD * x_t, t, at.cond) / SD
    F = (s(t.cos()) * x_t - f) / s(t.sin())
    velocity = (F - (s(t.cos()) * e - s(t.sin()) * x)).square().mean()
    torch.testing.assert_close(update.loss, velocity, rtol=1e-9, atol=0)
    weighted = ((x - f).square().mean(1) / t.sin() ** 2).mean()
    torch.testing.assert_close(update.loss, weighted, rtol=1e-9, atol=0)
    other = denoising_loss(method.critic, SD * x, t, e, at.cond, weight="x0")  # another weight is another loss
    assert abs(float(other / update.loss) - 1) > 0.1
    update.loss.backward()
    assert all(p.grad is None for p in method.student.parameters())


@pytest.mark.parametrize(
    ("phase", "warmup", "cycle", "student"),
    [
        ("paper", 0, 5, [0, 5, 10]),
        ("code", 0, 5, [0, 5, 10]),
        ("paper", 3, 4, [0, 1, 2, 3, 4, 8]),
        ("code", 3, 4, [0, 1, 2, 3, 7, 11]),
        ("paper", 0, 1, list(range(12))),
    ],
)
def test_phases(phase, warmup, cycle, student, tiny):
    method = moved(tiny, phase=phase, warmup=warmup, cycle=cycle)
    found = []
    for i in range(12):
        (update,) = tiny.yields(method, tiny.batch(method, i))
        if update.roles == "student":
            found.append(i)
            assert ("gap" in update.logs) == (i > warmup)  # distribution matching begins after the warm-up
    assert found == student


def test_rollouts(tiny, monkeypatch):
    method = moved(tiny, scm_weight=0.0, rollout_steps=3, rollout_start=None)
    calls, lengths = [], set()
    forward = method.student.forward

    def record(x, t, cond=None):
        calls.append((x.clone(), t.clone(), torch.is_grad_enabled()))
        return forward(x, t, cond)

    monkeypatch.setattr(method.student, "forward", record)
    process = method.student.process
    for i in range(0, 60, 5):
        calls.clear()
        at = tiny.batch(method, i)
        sample = method.samples(at)
        lengths.add(len(calls))
        angles = [torch.atan(process.sigma(t) / SD) for _, t, _ in calls]
        torch.testing.assert_close(angles[0], torch.full_like(angles[0], math.pi / 2 - 1e-4), rtol=1e-9, atol=0)
        assert all(bool((b <= a + 1e-12).all()) for a, b in itertools.pairwise(angles))
        assert [grad for *_, grad in calls] == [False] * (len(calls) - 1) + [True]
        assert not any(x.requires_grad for x, *_ in calls) and sample.x.requires_grad
    assert lengths == {1, 2, 3}


def test_a_rollout_by_hand(tiny):
    method = moved(tiny, scm_weight=0.0, rollout_steps=2, rollout_start=80.0)
    at = next(b for i in range(50) if (b := tiny.batch(method, i)).noise.shared_randint("steps", 1, 3) == 2)
    f = lambda x, t: in_process(method.student, TrigFlow(SD))(SD * x, t, at.cond) / SD  # noqa: E731
    t = torch.full((at.size,), math.atan(80.0), dtype=F64)
    x = f(s(t.sin()) * method.normal(at, "z"), t)
    low = torch.minimum(method.options.p_D(at.noise.uniform("renoise time", call=1)), t)
    expected = f(s(low.cos()) * x + s(low.sin()) * method.normal(at, "renoise 1"), low)
    torch.testing.assert_close(method.samples(at).x, SD * expected, rtol=1e-10, atol=1e-12)


def test_discrete_consistency(tiny, monkeypatch):
    method = moved(tiny, dmd_weight=0.0, jvp="dcm", dcm_points=4)
    seen, real = [], rcm.consistency_loss
    monkeypatch.setattr(rcm, "consistency_loss", lambda *a, **o: (seen.append((a, o)), real(*a, **o))[1])
    at = tiny.batch(method, size=40)
    (update,) = tiny.yields(method, at)
    (f, target, x, t, x_low, low, _), options = seen[0]
    u = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=F64)
    shifted = 5 * u / (1 + 4 * u)
    grid = torch.atan2(shifted, 1 - shifted).clamp(1e-4, math.pi / 2 - 1e-4)
    n = (t[:, None] - grid).abs().argmin(1)
    assert set(n.tolist()) == {0, 1, 2, 3} and f is target is method.f and options["distance"] is squared
    torch.testing.assert_close(t, grid[n], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(low, grid[n + 1], rtol=1e-12, atol=1e-12)
    teacher = in_process(method.roles["teacher"].module, TrigFlow(SD))(x, t, at.cond)
    v = (s(t.cos()) * x - teacher) / s(t.sin())
    torch.testing.assert_close(x_low, s((t - low).cos()) * x - s((t - low).sin()) * v, rtol=1e-10, atol=1e-10)
    error = (method.f(x, t, at.cond) - method.f(x_low, low, at.cond)) / SD
    torch.testing.assert_close(update.loss, error.square().mean(), rtol=1e-10, atol=0)


def test_samples_that_are_not_finite_count_nothing(tiny):
    method = moved(tiny, dmd_weight=0.0)
    x, cond = tiny.data()
    at = Batch(TensorSource(x, cond), 0, 0, torch.arange(6), torch.device("cpu"), 6)
    (clean,) = tiny.yields(method, at)
    at.x = at.x.clone()
    at.x[2] = torch.nan
    (update,) = tiny.yields(method, at)
    assert float(update.logs["nonfinite"]) == pytest.approx(1 / 6) and bool(update.loss.isfinite())
    found = gradients(update, method)
    assert all(bool(g.isfinite().all()) for g in found if g is not None)
    assert any(not torch.equal(a, b) for a, b in zip(found, gradients(clean, method), strict=True))
    at.x[:] = torch.inf
    with pytest.raises(NotFinite, match="the tangent of all 6 samples of the role 'student' is"):
        tiny.yields(method, at)


def test_pulls_that_are_not_finite_count_nothing(tiny, monkeypatch):
    method = moved(tiny, scm_weight=0.0)
    at, real = tiny.batch(method), method.rule

    def broken(sample, t, eps, step=0):
        pull = real(sample, t, eps, step)
        pull.gradient[1] = torch.nan
        return pull

    loss, logs = method.matching(at, broken)
    assert float(logs["nonfinite pulls"]) == pytest.approx(1 / 6)
    assert all(
        bool(g.isfinite().all())
        for g in torch.autograd.grad(loss, list(method.student.parameters()), allow_unused=True)
        if g is not None
    )


def test_one_dropout_mask_for_the_student_and_its_derivative(tiny, monkeypatch):
    method = moved(tiny, parts=tiny.ingredients(dropout=0.5), dmd_weight=0.0)
    loop = tiny.loop(method)  # into training mode
    seen, real = [], rcm.continuous_loss
    monkeypatch.setattr(rcm, "continuous_loss", lambda F, still, g: (seen.append((F, still)), real(F, still, g))[1])
    loop.iterate()
    F, still = seen[0]
    torch.testing.assert_close(F.detach(), still, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        t = torch.full((6,), 0.5, dtype=F64)
        assert not torch.equal(method.f(still, t, None), method.f(still, t, None))  # there is a mask


def test_the_student_starts_as_the_teacher_and_can_be_loaded(tiny, tmp_path):
    parts = tiny.ingredients(tiny.teacher(process=RectifiedFlow()))
    method = tiny.make("rcm", parts)
    x, t = torch.randn(4, 2, dtype=F64), torch.tensor([0.1, 0.5, 1.0, 1.4], dtype=F64)
    trig = TrigFlow(SD)
    assert torch.equal(method.f(x, t), in_process(parts.teacher, trig)(x, t))
    loop = tiny.loop(method)
    loop.iterate()
    loaded, _ = load_denoiser(save_student(tmp_path / "student", method.student, {}))
    assert loaded.process == RectifiedFlow()
    torch.testing.assert_close(in_process(loaded.double(), trig)(x, t), method.f(x, t).detach(), rtol=1e-6, atol=1e-6)


def test_guidance_is_the_teachers_alone(tiny, monkeypatch):
    parts = tiny.ingredients()
    method = moved(tiny, parts=parts, guidance=3.0)
    calls = {name: tiny.spy(role.module, monkeypatch) for name, role in method.roles.items()}
    tiny.yields(method, tiny.batch(method, 5))
    null = lambda name: any(c is not None and bool((c["label"] == 3).all()) for *_, c in calls[name])  # noqa: E731
    assert null("teacher") and not null("student") and not null("critic")
    with pytest.raises(LimbeckError, match="guidance 1.5 needs a null condition"):
        tiny.make("rcm", tiny.ingredients(classes=0), guidance=1.5)
