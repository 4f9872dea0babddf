"""Score distillation's own parts: producers, random guidance, dropped conditions, warm-ups, windows of times, adapters."""

import pytest
import torch

from limbeck.denoisers import guided
from limbeck.errors import LimbeckError
from limbeck.methods.generators.dmd import DMDOptions
from limbeck.networks import adapters
from limbeck.rules import Sample
from limbeck.training.checkpoints import load

F64 = torch.float64


def test_the_whole_chain_carries_the_gradient(tiny):
    method = tiny.make("dmd", sigmas=(5.0, 1.0), match="final")
    at = tiny.batch(method)
    sample = method.producer(method, at, 0)
    assert torch.equal(sample.x, method.produce(at, None).x)
    weight = method.student.network.output.weight
    (through,) = torch.autograd.grad(sample.x.sum(), weight)
    (last,) = torch.autograd.grad(method.produce(at, 1).x.sum(), weight)
    renoise = lambda i: method.normal(at, f"renoise {i}")  # noqa: E731
    inner = method.rollout(method.student, method.normal(at, "z"), at.cond, noise=renoise)
    (whole,) = torch.autograd.grad(inner.x.sum(), weight)
    torch.testing.assert_close(through, whole, rtol=1e-14, atol=0)
    assert float((through - last).abs().max()) > 1e-6


@pytest.mark.parametrize("renoise", ["fixed", "ode"])
def test_other_noise_between_the_steps(renoise, tiny):
    method = tiny.make("sid", sigmas=(5.0, 1.0), renoise=renoise)
    at = tiny.batch(method)
    z = method.normal(at, "z")
    got = method.produce(at, 1).x
    t = torch.full((len(z),), 5.0, dtype=F64)
    x = method.student(5 * z, t, at.cond)
    n = z if renoise == "fixed" else (5 * z - x) / 5
    torch.testing.assert_close(got, method.student(x + n, t / 5, at.cond), rtol=1e-12, atol=1e-12)
    assert torch.equal(method.sampler(ema=False)(z, at.cond), got)  # no noise is asked for


@pytest.mark.parametrize("whose", ["teacher", "critic", "both"])
def test_random_guidance_is_drawn_per_sample(whose, tiny):
    method = tiny.make("dmd", guidance=0.5, guidance_high=4.0, guidance_random=whose)
    at = tiny.batch(method)
    rule = method.guided_rule(at)
    w = 0.5 + 3.5 * at.noise.uniform("guidance")
    assert len(w.unique()) == len(w) and float(w.min()) >= 0.5 and float(w.max()) <= 4.0
    for found, drawn in ((rule.guidance, whose != "critic"), (rule.critic_guidance, whose != "teacher")):
        assert torch.equal(torch.as_tensor(found), w) if drawn else isinstance(found, float)
    assert isinstance(method.rule.guidance, float)  # the method's own rule stays as it is
    sample, t, eps = method.produce(at, 0).detach(), torch.full_like(w, 0.7), method.normal(at, "e")
    x_t = sample.x + 0.7 * eps
    expected = guided(method.critic, x_t, t, at.cond, rule.critic_guidance) - guided(
        method.teacher, x_t, t, at.cond, rule.guidance
    )
    teacher = guided(method.teacher, x_t, t, at.cond, rule.guidance)
    n = 1 / ((sample.x - teacher).abs().mean(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(rule(sample, t, eps).gradient, n * expected, rtol=1e-10, atol=1e-12)


def test_a_random_guidance_needs_an_interval():
    with pytest.raises(LimbeckError, match=r"0 <= low <= high, not U\(4, 2\)"):
        DMDOptions(guidance=4.0, guidance_high=2.0)


def test_conditions_are_dropped_for_the_critic_alone(tiny):
    method = tiny.make("dmd", critic_drop=0.5)
    at = tiny.batch(method)
    dropped = at.noise.uniform("critic drop") < 0.5
    assert 0 < int(dropped.sum()) < len(dropped)
    found = method.critic_condition(at, at.cond)["label"]
    assert torch.equal(found, torch.where(dropped, torch.full_like(found, 3), at.cond["label"]))
    assert torch.equal(method.producer(method, at, 0).cond["label"], at.cond["label"])


def test_the_student_waits_and_the_adversary_waits(tiny):
    for name in ("dmd", "sid"):
        method = tiny.make(name, student_after=2)
        found = [[y.roles for y in tiny.yields(method, tiny.batch(method, step))] for step in range(3)]
        assert found[0] == found[1] == ["critic"] and set(found[2]) == {"student", "critic"}
    late = tiny.make("dmd", gan_weight=0.5, gan_after=1)
    early, acting = (next(late.step(tiny.batch(late, step))) for step in (0, 1))
    assert float(early.loss.detach()) == 0.0 != float(acting.loss.detach())  # critic = teacher: only the adversary pulls


def test_times_stay_in_a_samples_own_window(tiny):
    method = tiny.make("dmd", score_low=0.1, score_high=5.0)
    at = tiny.batch(method, size=64)
    x = torch.zeros(64, 2, dtype=F64)
    low, high = torch.linspace(0.01, 1.0, 64, dtype=F64), torch.linspace(0.5, 20.0, 64, dtype=F64)
    for times in (method.score_time, method.critic_time, method.adversary_time):
        t = times(at, Sample(x, low=low, high=high))
        assert bool(((t >= low.clamp(min=0.1) - 1e-12) & (t <= high.clamp(max=5.0) + 1e-12)).all())
        above = times(at, Sample(x, low=low))
        assert bool((above >= low).all()) and float(above.max()) > 1.5
    assert torch.equal(method.score_time(at, Sample(x)), method.score_times(at.noise.uniform("score time")))


def test_adapters_share_the_teachers_weights_and_resume(tiny, tmp_path):
    parts = tiny.ingredients()
    made = lambda: tiny.make("dmd", parts, student_rank=2, critic_rank=1)  # noqa: E731
    method = made()
    base = {id(p) for p in parts.teacher.parameters()}
    for module in (method.student, method.critic, method.roles["student"].best):
        held = {id(p) for n, p in module.named_parameters() if not n.endswith((".A", ".B"))}
        assert held == base and len(list(adapters(module))) > 0
    at = tiny.batch(method)
    assert float(next(method.step(at)).loss.detach()) == 0.0  # both begin as the teacher
    before = {n: p.clone() for n, p in parts.teacher.named_parameters()}
    whole, first = tiny.loop(method), tiny.loop(made(), tmp_path)
    for _ in range(4):
        whole.iterate()
    for _ in range(2):
        first.iterate()
    first.save()
    assert all(n.endswith((".A", ".B")) for n in load(tmp_path / "checkpoints").tensors["student"])
    second = tiny.loop(made(), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(2):
        second.iterate()
    a, b = tiny.weights(whole), tiny.weights(second)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(torch.equal(p, before[n]) for n, p in parts.teacher.named_parameters())


WINDOWS = {
    "segments": ("tdm", {}),
    "phases": ("compose", {"producer": "phases", "sigmas": (5.0, 1.0), "nested": False}),
}


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("kind", WINDOWS)
def test_the_discriminator_sees_samples_at_a_level_in_their_own_window(kind, paired, tiny, monkeypatch):
    name, given = WINDOWS[kind]
    parts = tiny.ingredients()
    method = tiny.make(name, parts, gan_weight=0.1, gan_paired=paired, **given)
    calls = tiny.spy(parts.teacher, monkeypatch)
    for step in range(4):
        at = tiny.batch(method, step)
        sample = method.producer(method, at, 0).detach()
        calls.clear()
        method.adversary.loss(at, sample)
        (x_t, t, _), (_, real, _) = calls
        for times in (t, real):
            assert bool(((sample.low <= times) & (times <= sample.high)).all())
        assert torch.equal(t, real) == paired
        x_t -= method.process.transition(sample.level, t)[0][:, None] * sample.x
        noise = method.process.transition(sample.level, t)[1][:, None] * method.normal(at, "fake noise")
        torch.testing.assert_close(x_t, noise, rtol=1e-9, atol=1e-11)
