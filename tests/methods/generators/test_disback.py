"""DisBack: the path in closed form, its targets, the reductions to the host, resume, and bad input."""

import math

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.methods.generators.backtracking import trained_weights
from limbeck.methods.generators.disback import PRESETS, DisBack, DisBackOptions
from limbeck.methods.generators.generator import Ingredients
from limbeck.noise import VE, spread
from limbeck.training import EmaOptions, Loop, LoopOptions, OptimizerOptions, TensorSource
from limbeck.training.checkpoints import load
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
PATH = {"iterations": 12, "degrade": 4, "every": 1, "interval": 2}  # targets 3, 2, 1 for two iterations each, then the teacher


def run(loop, steps):
    for _ in range(steps):
        loop.iterate()
    return loop


def same(a, b, prefix=""):
    return all(torch.equal(v, b[k]) for k, v in a.items() if k.startswith(prefix))


# -- A: Gaussians, where all is known ---------------------------------------------------------------------------------


class Normal(nn.Module):
    """The exact denoiser of N(mean, std^2) in one dimension."""

    process, null = VE(), None

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.log_std = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (mean, math.log(std)))

    def forward(self, x_t, t, cond=None):
        variance = self.log_std.exp() ** 2
        return self.mean + spread(variance / (variance + t**2), x_t) * (x_t - self.mean)

    def loss(self, mean, std):
        """E |D(x + t e) - x|^2 / t^2 for x ~ N(mean, std^2), averaged over levels t, in closed form."""
        t = torch.linspace(0.2, 3.0, 30, dtype=F64)
        A = (2 * self.log_std).exp() / ((2 * self.log_std).exp() + t**2)
        return float((((1 - A) ** 2 * ((mean - self.mean) ** 2 + std**2) + A**2 * t**2) / t**2).mean().detach())


class Affine(Normal):
    """The student: samples N(mean, std^2) from its first noise level, here sigma = 1."""

    def forward(self, x_t, t, cond=None):
        return self.mean + self.log_std.exp() * x_t


def gaussian_run(**options):
    teacher = Normal(0.0, 1.0).requires_grad_(False).eval()
    sgd = OptimizerOptions(lr=0.03, kind="sgd")
    given = {"iterations": 60, "degrade": 40, "every": 10, "interval": 5, "sigmas": (1.0,), "critic": sgd, "student": sgd}
    options = DisBackOptions(**{**given, "critic_weight": "eps", "critic_mean": 0.0, "critic_std": 0.5, **options})
    x = torch.zeros(8, 1, dtype=F64)
    method = DisBack(Ingredients(teacher, (1,), x), options, student=Affine(3.0, 0.4))
    return Loop(method, TensorSource(x), LoopOptions(options.iterations, 128), quiet=True), teacher


def test_the_path_leads_from_the_teacher_to_the_student():
    loop, teacher = gaussian_run()
    run(loop, 40)
    method = loop.method
    path, nodes = method.path, []
    assert path.node(0) is teacher
    for i in range(5):
        node = path.node(i)
        nodes.append((float(node.mean.detach()), float(node.log_std.detach()), node.loss(3.0, 0.4), node.loss(0.0, 1.0)))
    assert nodes[0][:2] == (0.0, 0.0) and len(path.weights) == 4
    on_student, on_teacher = [n[2] for n in nodes], [n[3] for n in nodes]
    assert on_student == sorted(on_student, reverse=True) and on_teacher == sorted(on_teacher)
    assert on_student[-1] < 0.7 * on_student[0]
    assert same(trained_weights(method.host.critic), path.weights[-1])  # D_F starts as the last node
    assert float(method.student.mean.detach()) == 3.0  # and the student is where it was


def test_degrading_is_gradient_descent_on_the_critics_loss():
    loop, _ = gaussian_run()
    copy, student = Normal(0.0, 1.0), Affine(3.0, 0.4)
    for k in range(20):
        (at,) = loop.batches(k)
        x = student(loop.method.normal(at, "z"), None).detach()
        t = torch.exp(0.5 * torch.special.ndtri(at.noise.uniform("critic time").clamp(1e-12, 1 - 1e-12)))
        x_t = x + t[:, None] * loop.method.normal(at, "critic noise")
        loss = ((copy(x_t, t) - x).square()[:, 0] / t**2).mean()
        copy.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in copy.parameters():
                p -= 0.03 * p.grad
    run(loop, 20)
    assert loop.method.losses[-1] == pytest.approx(float(loss.detach()), rel=1e-12)
    node = loop.method.recorded[1]
    assert float(node["mean"]) == pytest.approx(copy.mean.item(), rel=1e-12) and copy.mean.item() > 0.2
    assert float(node["log_std"]) == pytest.approx(copy.log_std.item(), rel=1e-12)


def test_targets_come_backwards_and_end_at_the_teacher():
    loop, teacher = gaussian_run()
    run(loop, 40)
    target = loop.method.host.rule.target
    means = [float(target(step).mean) for step in range(40, 60)]
    path = [float(w["mean"]) for w in loop.method.path.weights]
    assert means == [m for m in (path[2], path[1], path[0], 0.0) for _ in range(5)]
    assert target(55) is teacher is target(10_000)
    forward, _ = gaussian_run(targets="forward")
    run(forward, 40)
    got = [float(forward.method.target(s).mean) for s in (40, 45, 50, 55)]
    assert got == [path[0], path[1], path[2], 0.0]


# -- reductions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["dmd", "sid", "sim"])
def test_one_node_or_the_teacher_alone_is_the_host_with_a_warm_critic(host, tiny):
    plain = run(tiny.loop(tiny.make(host, iterations=12, student_after=4)), 8)
    wanted = tiny.weights(plain)
    for options in ({"nodes": 1}, {"targets": "teacher"}):
        loop = run(tiny.loop(tiny.make("disback", host=host, **{**PATH, **options})), 8)
        got = tiny.weights(loop)
        assert all(torch.equal(value, got[key]) for key, value in wanted.items())
    loop = run(tiny.loop(tiny.make("disback", host=host, **PATH)), 8)
    assert same(wanted, tiny.weights(run(tiny.loop(tiny.make("disback", host=host, **PATH)), 4)), "student.") is False
    assert not same({k: v for k, v in wanted.items() if k.startswith("student.")}, tiny.weights(loop))


def test_stage_one_leaves_the_student_alone(tiny):
    method = tiny.make("disback", **PATH)
    before = {n: p.clone() for n, p in method.student.named_parameters()}
    loop = run(tiny.loop(method), 4)
    assert all(torch.equal(p, before[n]) for n, p in method.student.named_parameters())
    run(loop, 1)
    assert not all(torch.equal(p, before[n]) for n, p in method.student.named_parameters())


def test_options_reach_the_host(tiny):
    method = tiny.make("disback", host="sid", host_options={"alpha": 1.0, "weight": "none"}, guidance=2.0, **PATH)
    assert (method.host.options.alpha, method.host.rule.weight, method.host.rule.guidance) == (1.0, "none", 2.0)
    assert method.host.options.student_after == 4 and method.draws == 2


@pytest.mark.parametrize("host", ["dmd", "sid", "sim", "swiftbrush"])
def test_every_host_pulls_towards_the_node_that_is_due(host, tiny, monkeypatch):
    method = tiny.make("disback", host=host, **PATH)
    loop, asked = run(tiny.loop(method), 4), []
    node = method.path.node
    monkeypatch.setattr(method.path, "node", lambda i: (asked.append(i), node(i))[1])
    run(loop, 8)
    assert asked == [3, 3, 2, 2, 1, 1, 0, 0]


def test_two_pieces_of_a_batch_train_like_the_whole(tiny):
    options = {**PATH, "nodes": 2, "spacing": "loss", "gan_weight": 0.1, "gan_on": "critic", "iterations": 9}
    whole, split = (tiny.loop(tiny.make("disback", **options), micro_batches=n) for n in (1, 2))
    a, b = tiny.weights(run(whole, 6)), tiny.weights(run(split, 6))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("at", [2, 4, 7])
@pytest.mark.parametrize(
    "options", [{}, {"critic_rank": 2, "host": "sid"}, {"record": "path"}], ids=["state", "adapters", "folder"]
)
def test_resuming_is_bitwise(at, options, tiny, tmp_path):
    if "record" in options:
        options = {"record": str(tmp_path / "path")}
    whole = run(tiny.loop(tiny.make("disback", **PATH, **options)), 9)
    first = run(tiny.loop(tiny.make("disback", **PATH, **options), tmp_path), at)
    first.save()
    torch.manual_seed(5)
    second = tiny.loop(tiny.make("disback", **PATH, **options), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    run(second, 9 - at)
    a, b = tiny.weights(whole), tiny.weights(second)
    assert a.keys() == b.keys() and same(a, b)
    assert second.method.target.index(second.step) == whole.method.target.index(whole.step) == 1
    for one, other in zip(whole.method.path.weights, second.method.path.weights, strict=True):
        assert same(one, other)


def test_a_path_of_adapters_is_their_factors_alone(tiny):
    loop = run(tiny.loop(tiny.make("disback", critic_rank=2, **PATH)), 5)
    method = loop.method
    assert all(name.endswith((".A", ".B")) or "freq" in name for name in method.path.weights[0])
    base = dict(method.host.critic.named_parameters())
    held = [n for n, p in method.path.holder.named_parameters() if p is base[n]]
    assert held and all(not base[n].requires_grad for n in held)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["ict", "gaussian-score"])
def test_a_host_that_is_no_score_distillation(host, tiny):
    with pytest.raises(LimbeckError, match=f"{host} is no score distillation, whose teacher could be another"):
        tiny.make("disback", host=host, **PATH)


def test_an_unknown_option_of_the_host(tiny):
    with pytest.raises(LimbeckError, match="unknown name in host_options of dmd 'normalizer': did you mean 'normaliser'"):
        tiny.make("disback", host_options={"normalizer": "none"}, **PATH)


def test_intervals_that_leave_the_teacher_no_time(tiny):
    with pytest.raises(
        LimbeckError, match="the true teacher would be used for 2 iterations only, after 3 others of interval=3 "
    ):
        tiny.make("disback", **{**PATH, "interval": 3, "iterations": 15})
    tiny.make("disback", **{**PATH, "interval": 3, "iterations": 16})
    tiny.make("disback", **{**PATH, "interval": 3, "targets": "teacher"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"student_after": 3}, "student_after=3: the student is frozen for the degrade=80 iterations"),
        ({"degrade": 75}, "degrade=75 must be a multiple of every=10"),
        ({"degrade": 0}, "degrade=0 must be a multiple of every=10"),
        ({"interval": 0}, "interval=0 at least 1"),
        ({"nodes": 9}, r"nodes=9 must lie in 1..8, the copies that are recorded"),
        ({"path": "a", "record": "b"}, "record=b has nothing to write where the path is read from a"),
    ],
)
def test_impossible_options(given, message):
    with pytest.raises(LimbeckError, match=message):
        DisBackOptions(**given)


def test_a_host_that_does_not_wait(tiny, monkeypatch):
    method = tiny.make("disback", **PATH)
    monkeypatch.setattr(method.host, "step", tiny.make("dmd").step)
    with pytest.raises(LimbeckError, match="dmd trains its student at step 0, while its path is made until step 4"):
        tiny.loop(method).iterate()


def test_presets_survive_being_written_down():
    for preset in PRESETS.values():
        assert options_from_dict(DisBackOptions, options_to_dict(preset)) == preset
    other = DisBackOptions(host_options={"alpha": 1.0})
    assert options_from_dict(DisBackOptions, options_to_dict(other)) == other
    assert PRESETS["paper-sdxl"].degrade * 5 == 1000 and PRESETS["paper-sdxl"].ema == EmaOptions("constant", 0.9999)
