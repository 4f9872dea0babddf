"""SNOOPI: one random scale in both scores, negative prompts in training and after it, and bad input."""

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned, guided, null_cond
from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import Ingredients
from limbeck.methods.generators.snoopi import PRESETS, SNOOPI, SNOOPIOptions, negative_sampler
from limbeck.methods.generators.swiftbrush import ClampedReward
from limbeck.networks import DiT, adapters, attentions, negative_prompt
from limbeck.noise import VE
from limbeck.rules import DistributionMatching, Sample
from limbeck.training import Batch, Loop, LoopOptions, OptimizerOptions, TensorSource
from limbeck.training.checkpoints import load
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
FAST = OptimizerOptions(lr=1e-2, warmup=2, decay="cosine", clip=1.0)
FASTER = OptimizerOptions(lr=2e-2, warmup=2, decay="cosine", clip=1.0)
SHAPE, SIZE = (1, 4, 4), 8


def draw(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def text_teacher(**options):
    torch.manual_seed(0)
    network = DiT(SHAPE, width=8, blocks=1, heads=2, embedding=8, **{"text": (2, 3), **options})
    made = Preconditioned(network, VE(), "edm", 0.5).double()
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made.requires_grad_(False).eval()


def parts_of(teacher=None, negatives=True):
    texts = draw(5, 3, 3, seed=4) if negatives else None
    cond = {"text": draw(SIZE, 2, 3)}
    return Ingredients(teacher or text_teacher(), SHAPE, draw(SIZE, *SHAPE), cond, sigma_data=0.5, negatives=texts)


def snoopi(parts=None, **options):
    given = {"iterations": 8, "student": FAST, "critic": FASTER, "critic_rank": 2, "rewards": (), **options}
    torch.manual_seed(3)
    return SNOOPI(parts or parts_of(), SNOOPIOptions(**given))


def source():
    return TensorSource(None, {"text": draw(SIZE, 2, 3)})


def batch(method, step=0, size=6):
    index = step * method.draws * size + torch.arange(size)
    return Batch(source(), 0, step, index, torch.device("cpu"), size)


def loop(method, folder=None, **options):
    return Loop(method, source(), LoopOptions(8, 6, log_every=1, **options), folder=folder, quiet=True)


def stir(method):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, layer in adapters(method.critic):
            layer.B.copy_(0.3 * torch.randn(layer.B.shape, generator=generator, dtype=F64))
    return method


def seen_texts(module, monkeypatch):
    texts, forward = [], module.forward
    monkeypatch.setattr(module, "forward", lambda x, t, cond=None: (texts.append(cond["text"]), forward(x, t, cond))[1])
    return texts


# -- the random scale -------------------------------------------------------------------------------------------------


def test_kappa_is_one_number_per_sample_and_the_same_in_both_scores():
    method = stir(snoopi(kappa=(0.5, 4.0)))
    at = batch(method)
    rule = method.guided_rule(at)
    kappa = rule.guidance
    assert kappa.shape == (6,) and rule.critic_guidance is kappa and len(kappa.unique()) == 6
    assert 0.5 <= float(kappa.min()) < float(kappa.max()) <= 4.0
    sample = method.produce(at, 0)
    t, eps = method.score_time(at, sample), method.normal(at, "score noise")
    pull = rule(sample, t, eps)
    x_t = sample.x.detach() + t[:, None, None, None] * eps
    sides = [guided(d, x_t, t, at.cond, kappa) for d in (method.critic, method.teacher)]
    torch.testing.assert_close(pull.gradient, t[:, None, None, None] * (sides[0] - sides[1]), rtol=1e-10, atol=1e-12)


def test_kappa_is_uniform_and_may_be_drawn_per_batch():
    method = snoopi(kappa=(0.5, 2.5))
    kappa = torch.cat([method.guided_rule(batch(method, step)).guidance for step in range(200)])
    counts = torch.histc(kappa, 8, 0.5, 2.5)
    assert counts.sum() == 1200 and (counts - 150).abs().max() < 45  # 4 standard deviations
    method = snoopi(kappa=(0.5, 2.5), kappa_per="batch")
    values = {method.guided_rule(batch(method, step)).guidance for step in range(20)}
    assert len(values) == 20 and all(isinstance(v, float) and 0.5 <= v <= 2.5 for v in values)


@pytest.mark.parametrize("of", ["both", "teacher", "critic", "neither"])
def test_ablations_leave_the_other_scale_fixed(of):
    method = snoopi(kappa=(0.5, 4.0), kappa_of=of, guidance=3.0, critic_guidance=3.0)
    rule = method.guided_rule(batch(method))
    assert isinstance(rule.guidance, torch.Tensor) == (of in ("both", "teacher"))
    assert isinstance(rule.critic_guidance, torch.Tensor) == (of in ("both", "critic"))
    assert {3.0} >= {w for w in (rule.guidance, rule.critic_guidance) if isinstance(w, float)}
    assert (method.rule.guidance, method.rule.critic_guidance) == (3.0, 3.0)  # what a batch draws is its own


def test_a_scale_of_one_is_plain_score_distillation():
    found = []
    for options in ({"kappa": (1.0, 1.0)}, {"kappa_of": "neither", "guidance": 1.0, "critic_guidance": 1.0}):
        run = loop(snoopi(**options))
        for _ in range(3):
            run.iterate()
        found.append(dict(run.method.student.named_parameters()))
    for name, p in found[0].items():
        torch.testing.assert_close(p, found[1][name], rtol=1e-9, atol=1e-12)


def test_a_scale_of_one_asks_for_no_null_condition(tiny):
    options = {"critic": FASTER, "critic_rank": 2, "guidance": 1.0, "critic_guidance": 1.0}
    unconditional = tiny.ingredients(classes=0)
    method = tiny.make("snoopi", unconditional, kappa=(1.0, 1.0), **options)
    assert [y.roles for y in tiny.yields(method, tiny.batch(method, classes=0))] == ["student", "critic"]
    with pytest.raises(LimbeckError, match=r"guidance 0.5 needs a null condition, which the teacher does not have; use 1"):
        tiny.make("snoopi", unconditional, kappa=(0.5, 1.0), **options)


def test_equal_scales_leave_the_teachers_law_alone_and_unequal_ones_do_not(classes):
    z, e, t, labels = classes.design()
    teacher, critic = classes.denoiser(), classes.denoiser()
    sample = Sample(z @ classes.factor.T + classes.means[labels], {"label": labels})
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        one, other = (0.5 + 3.5 * torch.rand(len(t), generator=generator, dtype=F64) for _ in range(2))

        def pull(w, v):
            return DistributionMatching(teacher, critic, guidance=w, critic_guidance=v, normaliser="vsd")(sample, t, e).gradient

        assert float(pull(one, one).abs().max()) == 0.0
        assert min(float(pull(*pair).abs().mean()) for pair in ((one, other), (one, 2.25), (2.25, one))) > 1e-3


# -- negative prompts -------------------------------------------------------------------------------------------------


def test_nasa_t_steers_the_student_and_the_teacher_and_never_the_critic(monkeypatch):
    parts = parts_of()
    method = stir(snoopi(parts, alpha=1.0, critic_null=0.0))
    at = batch(method)
    teacher, critic = (seen_texts(m, monkeypatch) for m in (parts.teacher, method.critic))
    update = next(steps := method.step(at))
    negative, null = method.negative(at), null_cond(parts.teacher, 6)["text"]
    assert len({tuple(n.flatten().tolist()) for n in negative}) > 1
    assert len(teacher) == 2 and torch.equal(teacher[0], negative) and torch.equal(teacher[1], at.cond["text"])
    assert len(critic) == 2 and torch.equal(critic[0], null) and torch.equal(critic[1], at.cond["text"])
    alpha = at.noise.shared_uniform("alpha")
    with negative_prompt(method.student, negative, alpha):
        x = method.produce(at, 0).x
    assert 0 < alpha < 1 and not torch.allclose(x, method.produce(at, 0).x)
    gradient = torch.autograd.grad(update.loss, method.student.network.output.weight, retain_graph=True)[0]
    assert float(gradient.abs().max()) > 1e-6
    next(steps)
    assert torch.equal(critic[2], at.cond["text"])  # and what it learns are the student's very samples
    assert all(a.processor.__name__ == "attend" for a in attentions(method.student).values())


def test_the_critic_learns_the_steered_samples(monkeypatch):
    method = snoopi(alpha=1.0, critic_null=0.0)
    at = batch(method)
    with negative_prompt(method.student, method.negative(at), at.noise.shared_uniform("alpha")), torch.no_grad():
        x = method.produce(at, 0).x
    inputs, forward = [], method.critic.forward
    monkeypatch.setattr(method.critic, "forward", lambda x_t, t, cond=None: (inputs.append((x_t, t)), forward(x_t, t, cond))[1])
    list(method.step(at))
    x_t, t = inputs[-1]
    torch.testing.assert_close(x_t, x + t[:, None, None, None] * method.normal(at, "critic noise"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "teacher", "critic"), [("none", False, False), ("teacher", True, False), ("both", True, True)]
)
def test_where_negatives_enter_is_an_option(scores, teacher, critic):
    method = snoopi(alpha=1.0, negative_scores=scores)
    rule = method.guided_rule(batch(method))
    assert (rule.negative is not None, rule.critic_negative is not None) == (teacher, critic)
    assert method.rule.negative is None


def test_alpha_is_uniform_over_iterations_and_the_same_in_a_batch(monkeypatch):
    import limbeck.methods.generators.snoopi as room

    method, alphas = snoopi(alpha=0.6), []
    real = room.negative_prompt
    monkeypatch.setattr(room, "negative_prompt", lambda m, c, alpha, **o: (alphas.append(alpha), real(m, c, alpha, **o))[1])
    for step in range(60):
        method.producer(method, batch(method, step, 2), 0)
    assert all(isinstance(a, float) and 0 <= a < 0.6 for a in alphas) and min(alphas) < 0.1 and max(alphas) > 0.5


def test_a_trained_student_without_a_negative_prompt_is_called_like_any_other():
    method = snoopi(alpha=1.0)
    loop(method).iterate()
    z, cond = draw(4, *SHAPE), {"text": draw(4, 2, 3)}
    plain = method.sampler()(z, cond)
    assert torch.equal(negative_sampler(method)(z, cond), plain)
    expected = method.roles["student"].best(2.5 * z, torch.full((4,), 2.5, dtype=F64), cond)
    assert torch.equal(plain, expected)


def test_nasa_after_training_steers_any_student_and_can_guide_its_outputs():
    method, negative = snoopi(), draw(3, 3, seed=9)
    z, cond = draw(4, *SHAPE), {"text": draw(4, 2, 3)}
    student, t = method.roles["student"].best, torch.full((4,), 2.5, dtype=F64)
    plain = method.sampler()(z, cond)
    with negative_prompt(student, negative, 0.5):
        expected = student(2.5 * z, t, cond)
    assert torch.equal(negative_sampler(method, negative, 0.5)(z, cond), expected)
    assert (expected - plain).abs().max() > 1e-3
    other = student(2.5 * z, t, {"text": negative.expand(4, 3, 3)})
    blended = negative_sampler(method, negative, guidance=1.5)(z, cond)
    torch.testing.assert_close(blended, other + 1.5 * (plain - other), rtol=1e-10, atol=1e-12)
    nag = negative_sampler(method, negative, 0.5, mode="nag", phi=3.0)(z, cond)
    assert (nag - expected).abs().max() > 1e-3 and torch.equal(method.sampler()(z, cond), plain)
    few = snoopi(sigmas=(2.5, 1.0))
    fresh = lambda i: draw(4, *SHAPE, seed=30 + i)  # noqa: E731
    steered, bare = negative_sampler(few, negative, 0.5)(z, cond, fresh), few.sampler()(z, cond, fresh)
    assert (steered - bare).abs().max() > 1e-3
    assert torch.equal(negative_sampler(few, negative, 0.5, steps=1)(z, cond), expected)


@pytest.mark.parametrize("options", [{"alpha": 1.0}, {"kappa_per": "batch"}, {"alpha": 0.5, "mode": "nag", "critic_steps": 2}])
def test_resuming_is_bitwise_and_pieces_train_like_the_whole(options, tmp_path):
    whole, first, split = loop(snoopi(**options)), loop(snoopi(**options), tmp_path), loop(snoopi(**options), micro_batches=2)
    for k in range(3):
        for run in (whole, split, *([first] if k < 2 else [])):
            run.iterate()
    first.save()
    second = loop(snoopi(**options), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    second.iterate()
    tensors = [run.state()[0] for run in (whole, second, split)]
    for group in ("student", "student.ema", "student.optimizer", "critic", "critic.optimizer"):
        for name, value in tensors[0][group].items():
            assert torch.equal(value, tensors[1][group][name]), name
            torch.testing.assert_close(value, tensors[2][group][name], rtol=1e-9, atol=1e-9)


# -- options and bad input --------------------------------------------------------------------------------------------


def test_presets_hold_the_papers_table_and_survive_a_round_trip():
    sd, pixart = PRESETS["paper-sd21"], PRESETS["paper-pixart-alpha"]
    assert (sd.iterations, sd.batch, sd.kappa, sd.critic_rank, sd.adapter_alpha) == (40_000, 64, (0.5, 4.0), 64, 128.0)
    assert (pixart.iterations, pixart.batch, pixart.kappa, pixart.alpha) == (50_000, 32, (0.5, 3.0), 0.0)
    assert PRESETS["paper-sd15"].iterations == 60_000 and PRESETS["paper-pixart-alpha-nasa-t"].alpha == 1.0
    assert sd.rewards == (ClampedReward("clip", 0.1, 0.37),) and sd.student.kind == "adamw"
    for options in PRESETS.values():
        assert options_from_dict(SNOOPIOptions, options_to_dict(options)) == options


def test_bad_input():
    for kappa in ((3.0, 1.0), (-0.5, 1.0)):
        with pytest.raises(LimbeckError, match=r"kappa needs 0 <= k_min <= k_max, not U\(" + f"{kappa[0]:g}, {kappa[1]:g}"):
            snoopi(kappa=kappa)
    with pytest.raises(LimbeckError, match="guidance_high=3: SNOOPI's random scale is called kappa"):
        snoopi(guidance_high=3.0)
    with pytest.raises(LimbeckError, match="alpha=-1: negative prompts are subtracted with alpha >= 0"):
        snoopi(alpha=-1.0)
    with pytest.raises(LimbeckError, match="but the task brings none: give it negatives"):
        snoopi(parts_of(negatives=False), alpha=1.0)
    with pytest.raises(LimbeckError, match="has no cross-attention to a text"):
        labelled = Ingredients(text_teacher(text=None, classes=2), SHAPE, draw(2, *SHAPE), negatives=draw(5, 3, 3))
        snoopi(labelled, alpha=1.0)
    with pytest.raises(LimbeckError, match="the text of 'network.blocks.0.cross' has the width 4"):
        snoopi(parts_of(text_teacher(text=(2, 4))), alpha=1.0)
    with pytest.warns(UserWarning, match=r"alpha is 1.6: above 1.5"):
        snoopi(alpha=1.6)


def test_negative_prompts_without_effect_and_blends_of_outputs_are_warned_of():
    method, negative = snoopi(), draw(3, 3, seed=9)
    with pytest.warns(UserWarning, match="the negative prompt is ignored: alpha is 0"):
        negative_sampler(method, negative)
    with pytest.warns(UserWarning, match="guidance 1.5 of a one-step generator's outputs blends two images"):
        negative_sampler(method, negative, 0.5, guidance=1.5)
    with pytest.raises(LimbeckError, match="the text of 'network.blocks.0.cross' has the width 3"):
        negative_sampler(method, draw(3, 4), 0.5)(draw(2, *SHAPE), {"text": draw(2, 2, 3)})
