"""SFD: its two streams, the conditions that teacher and critic are told, its fixed point, its reductions, and bad input."""

import math
import sys
import types
import warnings

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.methods import find
from limbeck.methods.generators.forgetting import Forgetting, forgetting_figures, labels_to_forget, prompts_to_forget
from limbeck.methods.generators.sfd import PRESETS, SFDOptions
from limbeck.noise import VE
from limbeck.rules import Sample, ScoreIdentity, surrogate
from limbeck.training import Loop, LoopOptions, TensorSource
from limbeck.training.checkpoints import load
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
FORGET = {"forget": ("0=2",)}


def moved(tiny, parts=None, name="sfd", **options):
    method = tiny.make(name, parts, **options)
    torch.manual_seed(11)
    for p in method.critic.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    return method


def test_teacher_and_critic_are_told_what_they_are_to_be_told(tiny, monkeypatch):
    for told in ("forbidden", "safe"):
        parts = tiny.ingredients()
        method = moved(tiny, parts, critic_told=told, **FORGET)
        teacher, critic, student = (tiny.spy(m, monkeypatch) for m in (parts.teacher, method.critic, method.student))
        assert [y.roles for y in tiny.yields(method, tiny.batch(method))] == ["critic", "student"] and method.draws == 4
        labels = lambda calls: [cond["label"].tolist() for _, _, cond in calls]  # noqa: E731
        forbidden, safe = 6 * [0], 6 * [2]
        kept = [labels(student)[i] for i in (0, 2)]
        assert all(set(labels) <= {1, 2} for labels in kept)  # the data's zeros became other classes
        assert labels(student)[1::2] == [forbidden, forbidden]
        seen = safe if told == "safe" else forbidden
        assert labels(critic) == [kept[0], seen, kept[1], seen]  # own loss, then inside the student's
        assert labels(teacher) == [kept[1], safe]


def test_the_losses_are_the_weighted_streams(tiny):
    options = {"remain_weight": 2.0, "forget_weight": 0.3, "critic_remain_weight": 3.0, "critic_forget_weight": 0.5}
    method = moved(tiny, **options, **FORGET)
    at = tiny.batch(method)
    critic, student = tiny.yields(method, at)
    one = [critic.loss, student.loss]
    alone = {}
    for stream, off in (("remain", "forget"), ("forget", "remain")):
        only = {f"{off}_weight": 0.0, f"critic_{off}_weight": 0.0}
        method.options = options_from_dict(SFDOptions, {**options_to_dict(method.options), **options, **only})
        alone[stream] = [y.loss for y in tiny.yields(method, at)]
    for i in range(2):
        torch.testing.assert_close(one[i], alone["remain"][i] + alone["forget"][i], rtol=1e-12, atol=1e-14)
    unit = moved(tiny, forget_weight=0.0, critic_forget_weight=0.0, **FORGET)
    unit.draws = method.draws
    torch.testing.assert_close(alone["remain"][0], 3.0 * next(unit.step(at)).loss, rtol=1e-12, atol=1e-14)


def test_the_students_forget_term_is_the_rule_between_two_conditions(tiny):
    parts = tiny.ingredients()
    method = moved(tiny, parts, remain_weight=0.0, forget_weight=1.0, alpha=1.2, **FORGET)
    at = tiny.batch(method)
    update = tiny.yields(method, at)[1]
    params = [p for p in method.student.parameters() if p.requires_grad]
    got = torch.autograd.grad(update.loss, params, allow_unused=True)
    part = at.draw(3)
    bad, safe = ({"label": torch.full((6,), c)} for c in (0, 2))
    x = method.student(2.5 * method.normal(part, "z"), torch.full((6,), 2.5, dtype=F64), bad)
    t, eps = method.score_times(part.noise.uniform("score time")), method.normal(part, "score noise")
    x_t = x + t[:, None] * eps
    teacher, critic = parts.teacher(x_t, t, safe), method.critic(x_t, t, bad)
    w = 1 / (x - teacher).detach().abs().mean(1, keepdim=True)
    loss = w * (teacher - critic) * ((teacher - x) - 1.2 * (teacher - critic))
    expected = torch.autograd.grad(loss.sum() / x.numel(), params, allow_unused=True)
    assert max(float(g.abs().max()) for g in got if g is not None) > 1e-3
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert {"forget gap", "forget critic_lag", "forget diversity"} == set(update.logs)


class Classes(nn.Module):
    """The exact denoiser of one Gaussian per class, N(mean_c, std_c^2 I): the critic that would be learned."""

    process, null = VE(), None

    def __init__(self, means, std):
        super().__init__()
        self.means = nn.Parameter(torch.tensor(means, dtype=F64))
        self.log_std = nn.Parameter(torch.full((len(means), 1), std, dtype=F64).log())

    def forward(self, x_t, t, cond=None):
        mean, variance = self.means[cond["label"]], (2 * self.log_std[cond["label"]]).exp()
        return mean + variance / (variance + t[:, None] ** 2) * (x_t - mean)


def test_the_fixed_point_of_gaussian_classes():
    means = [[1.0, 0.0], [-0.5, 1.0], [0.0, -1.0]]
    teacher = Classes(means, 0.5).requires_grad_(False)
    student = Classes([[0.3, 0.3], [-0.2, 0.1], [0.5, -0.5]], 0.8)
    rule = ScoreIdentity(teacher, student, alpha=1.2)
    optimizer, steps = torch.optim.Adam(student.parameters()), 100
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(3).repeat_interleave(32)
    goal = torch.where(label == 0, 2, label)  # a 2 wherever a 0 is asked for
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - k / steps)
        z, eps = (torch.randn(96, 2, generator=generator, dtype=F64) for _ in range(2))
        t = 0.1 + 1.9 * torch.rand(96, generator=generator, dtype=F64)
        x = student.means[label] + student.log_std[label].exp() * z
        pull = rule(Sample(x, {"label": label}, goal={"label": goal}), t, eps)
        optimizer.zero_grad()
        surrogate(x, pull.gradient).backward()
        optimizer.step()
    wanted = teacher.means[torch.tensor([2, 1, 2])]
    assert float((student.means - wanted).abs().max().detach()) < 0.05
    assert float((student.log_std.exp() - 0.5).abs().max().detach()) < 0.05


NOTHING = {"forget": (), "forget_weight": 0.0, "critic_forget_weight": 0.0}


def test_without_forgetting_it_is_sid_bit_for_bit(tiny):
    same = {"alpha": 1.1, "sigmas": (5.0, 1.0)}
    sfd, sid = tiny.loop(tiny.make("sfd", **same, **NOTHING)), tiny.loop(tiny.make("sid", **same))
    for _ in range(4):
        sfd.iterate(), sid.iterate()
    a, b = tiny.weights(sfd), tiny.weights(sid)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_alpha_one_without_weight_is_sims_squared_distance(tiny):
    sid = moved(tiny, rule="sid", alpha=1.0, weight="none", **FORGET)
    sim = moved(tiny, rule="sim", distance="l2", weight="none", **FORGET)
    at = tiny.batch(sid)
    one, other = (tiny.yields(m, at)[1].loss for m in (sid, sim))
    torch.testing.assert_close(2 * one, other, rtol=1e-12, atol=1e-14)


def test_a_goal_that_is_the_condition_changes_nothing(tiny):
    method = moved(tiny, **FORGET)
    at = tiny.batch(method).draw(1)
    sample = method.produce(at, 0).detach()
    t, eps = method.score_time(at, sample), method.normal(at, "score noise")
    same = Sample(sample.x, sample.cond, goal=sample.cond)
    assert torch.equal(method.rule(sample, t, eps).gradient, method.rule(same, t, eps).gradient)


def test_guidance_may_lead_away_from_a_negative_condition(tiny, monkeypatch):
    scales = {"guidance": 2.0, "critic_guidance": 3.0, "critic_training_guidance": 4.0}
    for places in (("teacher",), ("critic",), ("teacher", "critic", "critic_training")):
        parts = tiny.ingredients()
        method = moved(tiny, parts, negative_label=0, negative_of=places, forget_weight=0.0, critic_forget_weight=0.0, **scales)
        teacher, critic = tiny.spy(parts.teacher, monkeypatch), tiny.spy(method.critic, monkeypatch)
        tiny.yields(method, tiny.batch(method))
        base = [set(cond["label"].tolist()) for _, _, cond in (teacher[0], critic[2], critic[0])]  # what guidance leaves from
        for name, labels in zip(("teacher", "critic", "critic_training"), base, strict=True):
            assert labels == ({0} if name in places else {3})
        assert len(teacher) == 2 and len(critic) == 4


def test_conditions_are_all_the_data_that_it_needs(tiny):
    method = tiny.make("sfd", tiny.ingredients(images=False), **FORGET)
    Loop(method, TensorSource(None, {"label": torch.arange(3)}), LoopOptions(2, 6), quiet=True).train()


def test_two_pieces_of_a_batch_train_like_the_whole_and_resuming_is_bitwise(tiny, tmp_path):
    options = {"forget": ("0=random",), "critic_steps": 2, "sigmas": (5.0, 1.0)}
    whole, split, first = (
        tiny.loop(tiny.make("sfd", **options), folder, micro_batches=n) for folder, n in ((None, 1), (None, 2), (tmp_path, 1))
    )
    for _ in range(4):
        whole.iterate(), split.iterate()
    for _ in range(2):
        first.iterate()
    first.save()
    second = tiny.loop(tiny.make("sfd", **options), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(2):
        second.iterate()
    a, b, c = (tiny.weights(each) for each in (whole, split, second))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-10, atol=1e-10, msg=key)
        assert torch.equal(a[key], c[key]), key


def test_two_stages_start_from_a_student_and_its_critic(tiny):
    first = moved(tiny, name="sid")
    cls, _, _ = find("sfd").load()
    second = cls(tiny.ingredients(), SFDOptions(**FORGET), student=first.student, critic=first.critic)
    assert second.student is first.student and second.critic is first.critic


def test_the_forget_terms_may_begin_at_all_noise_levels(tiny, monkeypatch):
    wide = {"forget_warmup": 0.5, "iterations": 8, "forget_low": 30.0, "forget_high": 60.0, "forget_weight": 1.0}
    method = moved(tiny, **wide, **FORGET)
    calls = tiny.spy(method.critic, monkeypatch)
    for step, warming in ((0, True), (3, True), (4, False)):
        calls.clear()
        tiny.yields(method, tiny.batch(method, step))
        for i, (_, t, _) in enumerate(calls):
            assert bool((t >= 30).all()) == (warming and i in (1, 3))


def test_everything_but_one_and_several_with_overrides_of_their_own(tiny):
    but = labels_to_forget(("*=8",), 10)
    assert but.forbidden["label"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9] and set(but.goals["label"].tolist()) == {8}
    assert but.remain.tolist() == [8]
    several = labels_to_forget(("3=8", "5=random", "7=1"), 10)
    method = moved(tiny, **FORGET)
    at = tiny.batch(method, size=3000)
    rows = several.rows(at)
    asked, goal = several.asked(rows)["label"], several.goal(at, rows)["label"]
    assert set(goal[asked == 3].tolist()) == {8} and set(goal[asked == 7].tolist()) == {1}
    assert set(goal[asked == 5].tolist()) == {0, 1, 2, 4, 6, 8, 9}
    assert several.remain.tolist() == [0, 1, 2, 4, 6, 8, 9]
    kept = labels_to_forget(("0=2",), 3, remain=[1]).kept(at)["label"]
    assert set(kept.tolist()) == {1}


def test_random_overrides_are_uniform(tiny):
    random = labels_to_forget(("3=random",), 10)
    at = tiny.batch(moved(tiny, **FORGET), size=9000)
    goal = random.goal(at, random.rows(at))["label"]
    counts = torch.bincount(goal, minlength=10)
    assert int(counts[3]) == 0
    others = torch.cat([counts[:3], counts[4:]]).double()
    chi_square = float(((others - 1000) ** 2 / 1000).sum())
    assert chi_square < 26.1  # 99.9 % of its law with 8 degrees of freedom


def test_a_judge_chooses_among_the_safe_labels(tiny, monkeypatch):
    seen = []

    def judge(x):
        seen.append(x)
        return torch.stack([torch.full((len(x),), 9.0), x[:, 0], x[:, 1]], 1)  # the forbidden class always looks likeliest

    module = types.ModuleType("mine")
    module.judge = judge
    monkeypatch.setitem(sys.modules, "mine", module)
    method = moved(tiny, forget=("0=judged",), judge="mine:judge")
    at = tiny.batch(method).draw(3)
    rows = method.forgetting.rows(at)
    part_cond = method.forgetting.asked(rows)
    sample = Sample(torch.randn(6, 2, dtype=F64), part_cond)
    goal = method.told(at, rows, sample).goal["label"]
    t, eps = method.score_time(at, sample), method.normal(at, "score noise")
    answer = method.critic(sample.x + t[:, None] * eps, t, part_cond)
    assert torch.equal(seen[0], answer) and torch.equal(goal, 1 + (answer[:, 1] > answer[:, 0]).long())
    drawn = labels_to_forget(("0=sampled",), 3)
    many = tiny.batch(method, size=20_000)
    logits = torch.tensor([5.0, 0.0, 1.0]).expand(20_000, 3)
    share = (drawn.goal(many, drawn.rows(many), lambda: logits)["label"] == 2).double().mean()
    assert float(share) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.01)
    tiny.loop(method).iterate()


def encode(prompts):
    return {"text": torch.tensor([[float(len(p))] for p in prompts])}


def test_prompts_are_rows_too(tiny):
    pairs = {"a photo of Brad Pitt": "a photo of a middle aged man", "brad pitt smiling": "a man smiling"}
    made = prompts_to_forget(pairs, ["Brad Pitt"], encode, ["a cat on a pit"])
    at = tiny.batch(moved(tiny, **FORGET), size=8)
    rows = made.rows(at)
    assert torch.equal(made.asked(rows)["text"], encode(list(pairs))["text"][rows])
    assert torch.equal(made.goal(at, rows)["text"], encode(list(pairs.values()))["text"][rows])
    assert made.kept(at) is at.cond
    table = Forgetting({"label": torch.tensor([0])}, {"label": torch.tensor([2])}, ("fixed",))
    parts, (cls, _, _) = tiny.ingredients(), find("sfd").load()
    given, named = cls(parts, SFDOptions(), forgetting=table), cls(parts, SFDOptions(**FORGET))
    part = tiny.batch(named).draw(1)
    for method in (given, named):
        told = method.told(part, method.forgetting.rows(part), Sample(torch.zeros(6, 2), {"label": torch.zeros(6)}))
        assert told.goal["label"].tolist() == 6 * [2]


@pytest.mark.parametrize(
    ("pairs", "remain", "message"),
    [
        ({"brad pitt": "BRAD  Pitt, older"}, [], "override 'BRAD  Pitt, older' still holds the concept 'brad pitt'"),
        ({"brad pitt": "a man"}, ["a bust of brad-pitt"], "remaining prompt 'a bust of brad-pitt' still holds the concept"),
        ({"a dog": "A dog!"}, [], "prompt 'a dog' is to be forgotten and cannot be its own override"),
        ({}, [], "name the prompts to forget"),
    ],
)
def test_bad_prompts(pairs, remain, message):
    with pytest.raises(LimbeckError, match=message):
        prompts_to_forget(pairs, ["brad pitt"], encode, remain)
    prompts_to_forget({"brad pitt": "a man in pittsburgh"}, ["pitt"], encode)  # words, not parts of them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forget": ()}, "SFD forgets what you name: give forget, e.g. 3=8"),
        ({"forget": ("0",)}, "'0' does not say what to forget: write CLASS=OVERRIDE"),
        ({"forget": ("0=0",)}, "class 0 is to be forgotten and cannot be its own override"),
        ({"forget": ("0=1", "1=2")}, "the override 1 of the class 0 is to be forgotten too"),
        ({"forget": ("0=2",), "remain": (0, 1)}, "the class 0 is to be forgotten and kept"),
        ({"forget": ("3=1",)}, "3 is the null class: to forget or replace it would destroy guidance"),
        ({"forget": ("0=3",)}, "3 is the null class"),
        ({"forget": ("7=1",)}, "there is no class 7; there are 0 to 2"),
        ({"forget": ("0=2",), "remain": (9,)}, "there is no class 9"),
        ({"forget": ("0=random", "1=random", "2=random")}, "all classes are to be forgotten"),
        ({"forget": ("0=judged",)}, "judged and sampled overrides need a classifier; give judge"),
        ({"forget": ("0=2",), "gan_weight": 0.1}, "SFD has no adversarial term; set gan_weight to 0"),
        ({"forget": ("0=2",), "forget_weight": -1.0}, "cannot be negative"),
        (
            {"forget": ("0=2",), "remain_weight": 0.0, "forget_weight": 0.0},
            "one of the student's two and of the critic's must be",
        ),
        ({"forget": ("0=2",), "negative_label": 0}, r"acts through guidance, but the scales of \('teacher',\) are 1"),
        ({"forget": ("0=2",), "negative_of": ("critics",)}, "unknown place of the negative condition 'critics'"),
        ({"forget": ("0=2",), "distance": "l3", "rule": "sim"}, "unknown score distance 'l3'"),
    ],
)
def test_bad_options(options, message, tiny):
    with pytest.raises(LimbeckError, match=message):
        tiny.make("sfd", **options)


def test_an_unconditional_teacher(tiny):
    with pytest.raises(LimbeckError, match="SFD needs a conditional teacher"):
        tiny.make("sfd", tiny.ingredients(classes=0), **FORGET)


def test_nothing_to_keep_is_said(tiny):
    with pytest.warns(UserWarning, match="the quality of all else is unprotected"):
        method = tiny.make("sfd", remain=(), **FORGET)
    assert [set(y.logs) for y in tiny.yields(method, tiny.batch(method))][1] == {
        "forget gap", "forget critic_lag", "forget diversity",
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.make("sfd", **FORGET)


def test_what_a_judge_sees():
    forgetting = labels_to_forget(("0=2", "1=random"), 4)
    asked = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    shown = torch.tensor([2, 2, 3, 0, 3, 1, 2, 2])
    judge = lambda x: torch.nn.functional.one_hot(x.long(), 4).double()  # noqa: E731
    real = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 2])
    figures = forgetting_figures(shown, asked, forgetting, judge, real)
    assert figures == {"unlearning": 4 / 6, "override": 0.5, "remain accuracy": 0.5, "judge error": 0.25}
    with pytest.raises(LimbeckError, match="unlearning accuracy is a classifier's judgement of the samples: give one"):
        forgetting_figures(shown, asked, forgetting, None, real)


def test_presets_survive_being_written_down():
    for preset in PRESETS.values():
        assert options_from_dict(SFDOptions, options_to_dict(preset)) == preset
    paper = PRESETS["paper-cifar10"]
    assert (paper.alpha, paper.forget_weight, paper.critic_forget_weight) == (1.2, 0.01, 0.01)
    assert paper.student.clip_value == pytest.approx(1 / 3072)
