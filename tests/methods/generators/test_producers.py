"""Producers are the same whoever made them and whatever rule follows: any system is a producer, a rule and two networks."""

from dataclasses import replace

import pytest
import torch

from limbeck.denoisers import load_denoiser, save_student
from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import trained_copy
from limbeck.methods.generators.phased_dmd import PhaseCritics, critic_above, student_experts
from limbeck.methods.generators.producers import Phases, Segments, clean_time, counted_denoiser, uniform_steps, whole_chain
from limbeck.methods.generators.score import ScoreDistillation, ScoreOptions
from limbeck.noise import DDPM, VE, VP, CosineVP, RectifiedFlow, TrigFlow
from limbeck.rules import ScoreIdentity
from limbeck.samplers import Rollout, ddim

F64 = torch.float64
TIMES = (5.0, 1.6, 0.5, 0.17)
OPTIONS = ScoreOptions(iterations=8, sigmas=TIMES, renoise="ode")


class Composed(ScoreDistillation):
    """Score identity on a producer."""

    def __init__(self, parts, producer, student, critic, teacher=None):
        super().__init__(parts, OPTIONS, student=student, critic=critic, producer=producer)
        self.rule = ScoreIdentity(teacher or parts.teacher, self.critic, alpha=1.0)


def on_segments(tiny, counts=(4,)):
    parts = tiny.ingredients()
    segments = Segments({K: Rollout(VE(), TIMES[:K], "ode") for K in counts})
    student, critic = (counted_denoiser(trained_copy(parts.teacher), values) for values in segments.values)
    return Composed(parts, segments, student, critic, segments.teacher(parts.teacher))


def on_phases(tiny):
    parts = tiny.ingredients()
    phases = Phases(Rollout(VE(), TIMES, "ode"), (2, 4), 8)
    student = student_experts(phases.boundaries, [trained_copy(parts.teacher) for _ in range(2)])
    return Composed(parts, phases, student, PhaseCritics([critic_above(parts.teacher, 0.0, 0, None) for _ in range(2)]))


@pytest.mark.parametrize("made", [on_segments, lambda tiny: on_segments(tiny, (1, 2, 4)), on_phases])
def test_score_identity_on_segments_and_phases(made, tiny):
    method = made(tiny)
    loop = tiny.loop(method)
    for _ in range(8):
        figures = loop.iterate()
    assert figures["grad_norm/student"] > 0
    z, cond = torch.randn(4, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0])}
    told = {**cond, "steps": torch.full((4,), 4)} if len(getattr(method.producer, "rollouts", ())) > 1 else cond
    torch.testing.assert_close(method.sampler(ema=False)(z, cond), ddim(method.student, 5.0 * z, TIMES, told).detach())


def test_uniform_steps_and_the_whole_chain(tiny):
    for options, producer in (({}, uniform_steps), ({"match": "final"}, whole_chain)):
        method = tiny.make("dmd", sigmas=(5.0, 1.0), **options)
        assert method.producer is producer
        at = tiny.batch(method)
        k = at.noise.shared_randint("step", 0, 2, call=3) if producer is uniform_steps else None
        assert torch.equal(producer(method, at, 3).x, method.produce(at, k).x)


@pytest.mark.parametrize(
    "process", [VE(), VP(), CosineVP(), RectifiedFlow(3.0), TrigFlow(), DDPM()], ids=lambda p: type(p).__name__
)
def test_no_noise_is_left_at_the_clean_time(process):
    clean, t = torch.tensor([clean_time(process)], dtype=F64), process.time_of(torch.tensor([1.3], dtype=F64))
    assert float(process.a(clean)) == 1.0 and float(process.s(clean)) == 0.0
    a, s = process.transition(clean, t)
    torch.testing.assert_close(torch.cat([a, s]), torch.cat([process.a(t), process.s(t)]), rtol=1e-12, atol=0)


def test_a_student_that_is_told_k_is_saved_with_what_it_knows(tiny, tmp_path):
    method = on_segments(tiny, (1, 2, 4))
    torch.nn.init.normal_(method.student.network.conditioning.tables["steps"].weight)
    again, _ = load_denoiser(save_student(tmp_path / "student", method.student, {}))
    x, t = torch.randn(3, 2, dtype=F64), torch.tensor([0.2, 1.0, 3.0], dtype=F64)
    told = {"label": torch.tensor([0, 1, 2]), "steps": torch.tensor([1, 4, 2])}
    torch.testing.assert_close(again.double()(x, t, told), method.student(x, t, told), rtol=1e-5, atol=1e-6)


def test_paths_that_are_not_deterministic(tiny):
    fresh = Rollout(VE(), TIMES, "fresh")
    with pytest.raises(LimbeckError, match=r"segments belong to a deterministic trajectory \(eta = 0\)"):
        Segments({4: fresh})
    with pytest.raises(LimbeckError, match="phases belong to a deterministic trajectory"):
        Phases(fresh, (2, 4), 8)
    with pytest.raises(LimbeckError, match="randmid=-0.1 is a share of a segment"):
        Segments({4: replace(fresh, renoise="ode")}, randmid=-0.1)
