"""share_draws: one answer of the critic gives exactly the loss and the pull that two would, and what it cannot go with."""

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.methods.generators.sharing import AskedOnce
from limbeck.rules import ScoreIdentity
from limbeck.training import Update
from limbeck.training.checkpoints import load

F64 = torch.float64
SHARED = {"share_draws": True, "critic_law": "score"}
GAN = {"gan_weight": 0.5}
SEGMENTS = {"producer": "segments", "sigmas": (5.0, 1.6, 0.5)}
PHASES = {"producer": "phases", "sigmas": (5.0, 0.5)}


def rough(method):
    """The critic unlike the teacher, so that there is a pull."""
    torch.manual_seed(5)
    for p in method.critic.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.3)
    return method


def updates(found):
    return [y for y in found if isinstance(y, Update)]


def gradients(update, module):
    trained = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(update.loss, trained, allow_unused=True, retain_graph=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dmd", {}),
        ("dmd", {"guidance": 2.0}),
        ("dmd", {"sigmas": (5.0, 1.0)}),
        ("dmd", {"student_rank": 2, "critic_rank": 2}),
        ("dmd", {**GAN, "gan_on": "teacher"}),
        ("dmd", {**GAN, "gan_on": "critic"}),
        ("f-distill", {"divergence": "js", "ratio_ema": 0.9}),
        ("tdm", {"counts": (3,)}),
        ("tdm", {"counts": (2, 3), "critic_target": "exact"}),
        ("phased-dmd", {}),
        ("compose", SEGMENTS),
        ("compose", PHASES),
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_two_separate_questions(name, options, tiny):
    method = rough(tiny.make(name, **SHARED, **options))
    apart = copy.deepcopy(method)
    at = tiny.batch(method, size=60)
    got = updates(tiny.yields(method, at))

    # the same t and eps, but the pull asks without gradient and the critic's loss asks again
    apart.options = copy.copy(apart.options)
    object.__setattr__(apart.options, "share_draws", False)
    apart.critic_time = apart.score_time
    normal = apart.normal
    apart.normal = lambda batch, stream: normal(batch, "score noise" if stream == "critic noise" else stream)
    expected = updates(tiny.yields(apart, at))

    assert [y.roles for y in got] == [y.roles for y in expected]
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.loss, other.loss) and float(one.loss.detach().abs()) > 0
        assert all(float(one.logs[k]) == float(other.logs[k]) for k in other.logs) and one.logs.keys() == other.logs.keys()
        module, its = (m.student if one.roles == "student" else m.critic for m in (method, apart))
        for g, e in zip(gradients(one, module), gradients(other, its), strict=True):
            assert torch.equal(g, e)


def test_a_cycle_asks_student_teacher_and_critic_once(tiny, monkeypatch):
    counts = {}
    for shared in (False, True):
        parts = tiny.ingredients()
        method = tiny.make("dmd", parts, share_draws=shared, critic_law="score")
        calls = [tiny.spy(m, monkeypatch) for m in (method.student, parts.teacher, method.critic)]
        tiny.yields(method, tiny.batch(method))
        counts[shared] = [len(c) for c in calls]
    assert counts == {False: [1, 1, 2], True: [1, 1, 1]}


def test_each_loss_trains_its_own_role_alone(tiny):
    method = rough(tiny.make("dmd", **SHARED))
    for update in tiny.yields(method, tiny.batch(method)):
        update.loss.backward()
        touched = {n for n in ("student", "critic") if any(p.grad is not None for p in getattr(method, n).parameters())}
        assert touched == {update.roles}
        method.student.zero_grad(set_to_none=True), method.critic.zero_grad(set_to_none=True)


@pytest.mark.parametrize("options", [{}, {**GAN, "gan_on": "critic"}], ids=str)
def test_micro_batches_give_the_gradient_of_the_batch(options, tiny):
    found = []
    for pieces in (1, 3):
        loop = tiny.loop(rough(tiny.make("dmd", **SHARED, **options)), micro_batches=pieces)
        for _ in range(3):
            loop.iterate()
        found.append(tiny.weights(loop))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_a_resumed_run_is_the_run_bit_for_bit(tiny, tmp_path):
    whole = tiny.loop(tiny.make("dmd", **SHARED, **GAN), checkpoint_every=100)
    whole.train()
    half = tiny.loop(tiny.make("dmd", **SHARED, **GAN), tmp_path)
    for _ in range(4):
        half.watch(half.step, half.iterate())
    half.save()
    again = tiny.loop(tiny.make("dmd", **SHARED, **GAN))
    again.restore(load(tmp_path / "checkpoints"))
    again.train()
    assert all(torch.equal(value, tiny.weights(again)[name]) for name, value in tiny.weights(whole).items())


def test_while_the_student_waits_the_critic_learns_from_draws_of_its_own(tiny):
    method = tiny.make("dmd", **SHARED, student_after=1)
    assert [y.roles for y in tiny.yields(method, tiny.batch(method))] == ["critic"]
    assert [y.roles for y in tiny.yields(method, tiny.batch(method, 1))] == ["student", "critic"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dmd", {"critic_law": "lognormal"}, "score_law='karras' and critic_law='lognormal' are two laws of t"),
        ("dmd", {"critic_steps": 3}, "critic_steps=3"),
        ("dmd", {"critic_guidance": 2.0}, "critic_guidance=2"),
        ("dmd", {"critic_training_guidance": 1.5}, "critic_training_guidance=1.5"),
        ("dmd", {"guidance_high": 2.0}, "set guidance_random to 'teacher'"),
        ("dmd", {"critic_drop": 0.1}, r"critic_drop=0\.1"),
        ("sid", {}, "updates its critic before the student"),
        ("sim", {}, "updates its critic before the student"),
        ("tdm", {"divergence": "fisher"}, "divergence='fisher' differentiates through the critic; take 'kl'"),
        ("swiftbrush", {}, "prompts are dropped for the critic's own loss"),
        ("compose", {"rule": "sid"}, "updates its critic before the student"),
        ("compose", {"strategy": "long_short"}, "critic_guidance=1.5"),
    ],
)
def test_what_one_answer_cannot_serve_is_named(name, options, said, tiny):
    with pytest.raises(LimbeckError, match=said) as found:
        tiny.make(name, **{**SHARED, **options})
    assert "or leave share_draws off" in str(found.value)


def test_a_law_that_is_the_critics_serves_both(tiny):
    assert tiny.make("dmd", share_draws=True, score_law="critic").options.share_draws
    assert tiny.make("dmd", **SHARED, guidance_high=2.0, guidance_random="teacher").options.share_draws


def test_a_rule_of_ones_own_must_ask_the_critic(tiny):
    method = tiny.make("dmd", **SHARED)
    method.rule = ScoreIdentity(method.teacher, method.critic)
    with pytest.raises(LimbeckError, match="ScoreIdentity is none"):
        next(method.step(tiny.batch(method)))


def test_another_question_is_refused(tiny):
    once = AskedOnce(tiny.teacher())
    x, t, cond = torch.ones(2, 2, dtype=F64), torch.ones(2, dtype=F64), {"label": torch.tensor([0, 1])}
    assert torch.equal(once(x, t, cond), once(x.clone(), t, cond))
    for other in ((x + 1, t), (x, 2 * t)):
        with pytest.raises(LimbeckError, match="asks at another noised sample"):
            once(*other, cond)
