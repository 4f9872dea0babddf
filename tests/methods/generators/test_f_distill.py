"""f-distill: the weights of its pull, the reduction to DMD, resume, its levels, and bad input."""

import math
import warnings

import pytest
import torch
from torch import nn

from limbeck.denoisers import MixtureDenoiser
from limbeck.errors import LimbeckError
from limbeck.methods import find
from limbeck.methods.generators.dmd import DMDOptions
from limbeck.methods.generators.f_distill import PRESETS, FDistillOptions
from limbeck.noise import VE, RectifiedFlow
from limbeck.rules import DistributionMatching, Sample
from limbeck.training.checkpoints import load
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64


@pytest.fixture
def make(tiny):
    def made(name="f-distill", parts=None, **options):
        fast = {"discriminator": tiny.make("dmd").options.discriminator, "batch": 160, "gan_weight": 0.1}
        return tiny.make(name, parts, **{**fast, **options})

    return made


@pytest.mark.parametrize("law", ["karras", "uniform", "critic"])
@pytest.mark.parametrize("process", [VE(), RectifiedFlow()], ids=["ve", "flow"])
def test_places_in_the_law_of_times_are_its_uniform_numbers(law, process, make, tiny):
    method = make(parts=tiny.ingredients(tiny.teacher(process=process)), score_law=law)
    u = torch.linspace(0, 1, 11, dtype=F64)
    torch.testing.assert_close(method.place(method.score_times(u)), u, rtol=0, atol=1 / 4096)


# -- the room ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["js", "kl", "neyman"])
def test_the_students_loss_carries_the_weights(name, make, tiny):
    parts = tiny.ingredients()
    method = make(parts=parts, divergence=name, ratio_bins=2, ratio_ema=0.5, gan_after=1)
    nn.init.normal_(method.critic.network.output.weight)
    for head in method.adversary.heads.logits:
        nn.init.normal_(head.weight)
    at = tiny.batch(method)
    first, second, update = tiny.yields(method, at)[:3]
    x = method.produce(at, 0).x
    u, eps = at.noise.uniform("score time"), method.normal(at, "score noise")
    t = method.score_times(u)
    x_t = (x + t[:, None] * eps).detach()
    logits = method.adversary.logits(x_t, t, at.cond).detach().mean(1)
    r = logits.clamp(-10, 10).exp().clamp(0.1, 20)
    for b in (0, 1):
        inside = (u * 2).long() == b
        if inside.any():
            r[inside] = r[inside] / (0.5 + 0.5 * r[inside].mean() + 1e-6)
    h = {"js": r / (1 + r), "kl": r, "neyman": 2 / r}[name]
    h = h / (h.mean() + 1e-6)
    teacher = parts.teacher(x_t, t, at.cond)
    pull = h[:, None] * (method.critic(x_t, t, at.cond) - teacher) / ((x - teacher).abs().mean(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(update.loss, (x * pull.detach()).mean(), rtol=1e-9, atol=1e-12)
    assert float(h.std()) > 1e-3 and {"ratio", "weight_rms", "gap"} <= set(update.logs)
    method.finish(0)
    torch.testing.assert_close(method.ratios.mean, 0.5 + 0.5 * first.value[0] / first.value[1], rtol=1e-12, atol=0)
    assert float(second.value[1]) == 6


def test_the_ratio_is_asked_at_the_very_points_of_the_score_difference(make, tiny, monkeypatch):
    parts = tiny.ingredients()
    method = make(parts=parts)
    calls = tiny.spy(parts.teacher, monkeypatch)
    tiny.yields(method, tiny.batch(method))
    ratio, score, gan = calls[:3]
    for other in (score, gan):
        assert all(torch.equal(a, b) for a, b in zip(ratio[:2], other[:2], strict=True))


def test_reverse_kl_is_dmd_bit_for_bit(make, tiny):
    shared = {"gan_time": "shared", "gan_weight": 0.1, "gan_r1": 0.5, "critic_steps": 2, "sigmas": (5.0, 1.0)}
    dmd, rkl = (tiny.loop(make(name, **shared, **o)) for name, o in (("dmd", {}), ("f-distill", {"divergence": "rkl"})))
    for _ in range(4):
        dmd.iterate()
        rkl.iterate()
    a, b = tiny.weights(dmd), tiny.weights(rkl)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    js = tiny.loop(make(**shared))
    for _ in range(4):
        js.iterate()
    assert not all(torch.equal(v, tiny.weights(js)[key]) for key, v in b.items() if key.startswith("student."))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_two_pieces_of_a_batch_train_like_the_whole(ema, make, tiny):
    options = {"ratio_ema": ema, "critic_steps": 2, "gan_on": "critic"}
    whole, split = tiny.loop(make(**options)), tiny.loop(make(**options), micro_batches=2)
    for _ in range(4):
        whole.iterate()
        split.iterate()
    a, b = tiny.weights(whole), tiny.weights(split)
    assert "method.ratio_bins" in a
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-10, atol=1e-10, msg=key)
    assert float((a["method.ratio_bins"] - 1).abs().max()) > 1e-3


def test_resuming_is_bitwise(make, tiny, tmp_path):
    whole, first = tiny.loop(make()), tiny.loop(make(), tmp_path)
    for _ in range(6):
        whole.iterate()
    for _ in range(3):
        first.iterate()
    first.save()
    second = tiny.loop(make(), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(3):
        second.iterate()
    a, b = tiny.weights(whole), tiny.weights(second)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_several_steps_train_on_what_the_sampler_sees(make, tiny, monkeypatch):
    method = make(sigmas=(5.0, 1.0, 0.2))
    at = tiny.batch(method)
    calls = tiny.spy(method.student, monkeypatch)
    sample = method.producer(method, at, 0)
    trained, k = list(calls), len(calls) - 1
    calls.clear()
    got = method.sampler(ema=False, steps=k + 1)(method.normal(at, "z"), at.cond, lambda i: method.normal(at, f"renoise {i}"))
    assert torch.equal(got, sample.x)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(trained, calls, strict=True))


# -- times and the weight of the first DMD ----------------------------------------------------------------------------


def test_the_weight_of_the_first_dmd():
    # Eq. 7 and 8: w a (S_F - S_T) with w = s^2 / a CS / ||x - D_T||_1, here in a process whose a is not 1
    flow = RectifiedFlow()
    one, other = (MixtureDenoiser(torch.ones(1, dtype=F64), torch.full((1, 3), m, dtype=F64), 0.2, flow) for m in (0.3, -0.2))
    torch.manual_seed(0)
    x, e, t = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64), torch.linspace(0.1, 0.9, 5, dtype=F64)
    a, s = flow.a(t)[:, None], flow.s(t)[:, None]
    x_t = a * x + s * e
    w = s**2 / a * 3 / ((x - one(x_t, t)).abs().sum(1, keepdim=True) + 3e-6)
    got = DistributionMatching(one, other, normaliser="dmd1")(Sample(x), t, e).gradient
    torch.testing.assert_close(got, w * a * (other.score(x_t, t) - one.score(x_t, t)), rtol=1e-10, atol=1e-12)


def test_times_over_the_whole_schedule(make, tiny):
    u = torch.linspace(0, 1, 1000, dtype=F64)
    method = make("dmd", critic_law="process")
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    torch.testing.assert_close(method.critic_times(u), (low + (high - low) * u) ** 7, rtol=1e-10, atol=0)
    flow = tiny.ingredients(tiny.teacher(process=RectifiedFlow()))
    method = make("dmd", flow, critic_law="process", score_law="uniform", score_low=0.25, score_high=4.0)
    process = method.process
    torch.testing.assert_close(method.critic_times(u), process.t_min + (process.t_max - process.t_min) * u)
    torch.testing.assert_close(method.score_times(u), 0.2 + 0.6 * u)  # sigma = t / (1 - t)
    with pytest.raises(LimbeckError, match="sigma = inf, where this process ends; set score_law to uniform"):
        make("dmd", flow, critic_law="process")


# -- bad input --------------------------------------------------------------------------------------------------------


def test_an_unknown_divergence(make):
    with pytest.raises(LimbeckError, match="unknown divergence 'jss': .*Allowed: jf, js, kl, neyman, rkl, sf, sh"):
        make(divergence="jss")


def test_a_ratio_without_discriminator_or_images(make, tiny):
    with pytest.raises(LimbeckError, match="gan_weight=0: the ratio needs the discriminator"):
        make(gan_weight=0.0)
    with pytest.raises(LimbeckError, match=r"needs real \(or teacher-sampled\) images for the ratio; .*dmd or sid"):
        make(parts=tiny.ingredients(images=False))
    assert make(divergence="rkl", gan_weight=0.0, parts=tiny.ingredients(images=False)).adversary is None


@pytest.mark.parametrize("option", ["critic_guidance", "critic_training_guidance"])
def test_a_guided_critic(option, make):
    with pytest.raises(LimbeckError, match=f"the critic of f-distill is not guided: .*{option}=2"):
        make(**{option: 2.0})
    with pytest.raises(LimbeckError, match="a random guidance is the teacher's"):
        make(guidance_high=2.0)
    make(guidance_high=2.0, guidance_random="teacher")


def test_bins_with_too_few_samples(make):
    with pytest.warns(UserWarning, match=r"a batch of 8 puts 0.8 samples into each of 10 time bins: with ratio_ema=0 .*160"):
        make(batch=8, ratio_ema=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(batch=8)
        make(batch=160, ratio_ema=0.0)
        make(batch=32, ratio_ema=0.0, ratio_bins=2)
        make(batch=8, ratio_ema=0.0, divergence="rkl")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_stop_the_run(value, make, tiny):
    method = make()
    loop = tiny.loop(method)
    loop.iterate()
    method.adversary.heads.logits[0].bias.data.fill_(value)
    with pytest.raises(LimbeckError, match=r"the logit of \d+ of \d+ samples of the role 'discriminator' is (nan|inf)"):
        loop.iterate()


def test_a_layer_or_a_head_that_does_not_fit(make):
    with pytest.raises(LimbeckError, match=r"no layer 'network.block.0': there are network.blocks.0"):
        make(gan_features=("network.block.0",))
    heads = make().adversary.heads
    name, (width,) = next(iter(heads.shapes.items()))
    features = {n: torch.zeros(2, *s, dtype=F64) for n, s in heads.shapes.items()}
    with pytest.raises(LimbeckError, match=rf"found \({width + 1},\) per sample, expected \({width},\)"):
        heads({**features, name: torch.zeros(2, width + 1, dtype=F64)})


def test_presets_survive_being_written_down():
    for preset in PRESETS.values():
        assert options_from_dict(FDistillOptions, options_to_dict(preset)) == preset
    cifar, imagenet, sd = (PRESETS[f"paper-{name}"] for name in ("cifar10", "imagenet64", "sd15"))
    assert [p.divergence for p in (cifar, imagenet, sd)] == ["kl", "js", "js"]
    assert [p.gan_weight for p in (cifar, imagenet, sd)] == [1e-3, 3e-3, 1e-3]
    assert [p.ratio_ema for p in (cifar, imagenet, sd)] == [0.0, 0.5, 0.0]
    assert sd.guidance == 1.75 and cifar.student.lr == 1e-4 and imagenet.student.lr == 2e-6
    assert find("fdistill").id == find("F_Distill").id == "f-distill"
    assert set(options_to_dict(DMDOptions())) < set(options_to_dict(FDistillOptions()))
