"""PSO: its losses and gradients written out, what a round is, special cases, the shared reference, resume, and bad input."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from limbeck.errors import LimbeckError
from limbeck.methods.generators.pso import PRESETS, PSO, PSOOptions
from limbeck.noise import DDPM, VE, RectifiedFlow
from limbeck.training import Batch, EmaOptions, Loop, LoopOptions, OptimizerOptions, TensorSource
from limbeck.training.checkpoints import load
from limbeck.training.diagnostics import Watch
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
SIGMAS = (5.0, 1.0, 0.2)
ADAM = OptimizerOptions(lr=1e-2, warmup=2, clip=1.0)


def height(x, cond=None):
    return x[:, 1]


def pso(tiny, start=None, parts=None, moved=0.0, **options):
    """PSO on the tiny teacher as the few-step student; ``moved``: noise on its adapters, so that it is not its reference."""
    parts = tiny.ingredients() if parts is None else parts
    parts = replace(parts, start=tiny.teacher(seed=1) if start is None else start, rewards={"height": height})
    torch.manual_seed(3)
    given = {"iterations": 8, "student": ADAM, "sigmas": SIGMAS, "reward": "height", "rank": 2, **options}
    method = PSO(parts, PSOOptions(**given))
    generator = torch.Generator().manual_seed(5)
    for p in method.student.parameters():
        if p.requires_grad and moved:
            p.data.add_(moved * torch.randn(p.shape, generator=generator, dtype=F64))
    return method


def trained(method):
    return [p for p in method.student.parameters() if p.requires_grad]


# -- the reference ----------------------------------------------------------------------------------------------------


def test_the_reference_is_the_student_without_adapters_at_no_memory(tiny):
    start = tiny.teacher(seed=1)
    method = pso(tiny, start)
    own = {id(p) for p in trained(method)}
    shared = [p for p in method.student.parameters() if id(p) not in own]
    assert method.reference is start and {id(p) for p in shared} == {id(p) for p in start.parameters()}
    assert {p.data_ptr() for p in shared} == {p.data_ptr() for p in start.parameters()}
    before = [p.clone() for p in start.parameters()]
    for _ in range(2):
        tiny.loop(method).iterate()
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(start.parameters(), before, strict=True))
    assert not any(p.requires_grad for p in start.parameters())


def test_all_weights_are_trained_only_with_a_reference_of_its_own(tiny):
    for form in ("online", "offline"):
        with pytest.raises(LimbeckError, match="rank=0 trains all weights.*give rank >= 1.*or reference_copy=True"):
            pso(tiny, rank=0, form=form)
    start = tiny.teacher(seed=1)
    method = pso(tiny, start, rank=0, reference_copy=True)
    assert method.reference is start and not {id(p) for p in start.parameters()} & {id(p) for p in method.student.parameters()}
    before = [p.clone() for p in start.parameters()]
    tiny.loop(method).iterate()
    assert all(torch.equal(p, b) for p, b in zip(start.parameters(), before, strict=True))
    pso(tiny, rank=0, form="customisation")  # compares with no reference


# -- online -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["renoise", "ancestral"])
def test_at_the_start_the_loss_is_log_two_and_its_gradient_the_formula(kind, tiny):
    method = pso(tiny, sampler=kind, clip="symmetric", beta=7.0)
    at = tiny.batch(method)
    updates = []

    def apply(update):
        updates.append((update.loss.detach(), torch.autograd.grad(update.loss, trained(method), allow_unused=True)))

    found = tiny.yields(method, at, apply)
    states, cond, reward = method.trajectories(at)
    n = at.size
    sign = torch.sign(reward[:n] - reward[n:])
    order = at.noise.uniform("order", (2,)).argsort(1)
    assert len(updates) == 2 and type(found[0]).__name__ == "Total"
    for j, (loss, got) in enumerate(updates):
        assert float(loss) == pytest.approx(math.log(2), abs=1e-12)
        rho = []
        for side in range(2):
            x_t, x_u = (torch.stack([states[order[i, j] + d, i + side * n] for i in range(n)]) for d in (0, 1))
            t, u = method.times[order[:, j]], method.times[order[:, j] + 1]
            labels = {"label": cond["label"][:n]}
            x0 = method.student(x_t, t, labels)
            mean, sd = (x0, u) if kind == "renoise" else method.process.posterior(x_t, x0, t, u)
            rho.append(Normal(mean, sd[:, None]).log_prob(x_u).mean(1))
        difference = (sign * (rho[0] - rho[1])).mean()
        expected = torch.autograd.grad(-7.0 / 2 * difference, trained(method), allow_unused=True)
        assert max(float(g.abs().max()) for g in got if g is not None) > 1e-3
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_a_round_is_one_update_per_transition_and_each_pair_has_an_order_of_its_own(tiny, monkeypatch):
    method = pso(tiny, sigmas=(5.0, 2.0, 1.0, 0.2))
    at = tiny.batch(method)
    seen, student = [], tiny.spy(method.student, monkeypatch)
    found = tiny.yields(method, at, lambda update: seen.append(student[-1][1]))
    assert [getattr(y, "roles", "total") for y in found] == ["total", "student", "student", "student"]
    times = torch.stack([t[: at.size] for t in seen], 1)  # (B, 3)
    assert all(torch.equal(a, b) for t in seen for a, b in [t.chunk(2)])  # both of a pair at one step
    assert times.sort(1, descending=True).values.tolist() == [[5.0, 2.0, 1.0]] * at.size  # 0.2, the last, is left out
    assert len({tuple(row) for row in times.tolist()}) > 1
    assert {"reward", "ties", "kl", "drift", "clipped"} == set(found[1].logs)


def test_all_steps_in_one_update_are_the_mean_of_the_updates(tiny):
    one, several = (pso(tiny, accumulate=a, moved=0.3) for a in (True, False))
    at = tiny.batch(one)
    losses = [y.loss for y in tiny.yields(several, at)[1:]]
    (update,) = tiny.yields(one, at)[1:]
    torch.testing.assert_close(update.loss, torch.stack(losses).mean(), rtol=1e-12, atol=0)


def test_only_the_levels_asked_for_are_trained(tiny, monkeypatch):
    method = pso(tiny, trained=(1.0,))
    at = tiny.batch(method)
    seen, student = [], tiny.spy(method.student, monkeypatch)
    tiny.yields(method, at, lambda update: seen.append(student[-1][1]))
    assert len(seen) == 1 and set(seen[0].tolist()) == {1.0}


def test_the_two_trajectories_share_the_condition_and_no_noise(tiny):
    method = pso(tiny)
    at = tiny.batch(method)
    states, cond, _ = method.trajectories(at)
    a, b = states.chunk(2, 1)
    assert not torch.isclose(a, b).any() and torch.equal(*cond["label"].chunk(2))
    for part in (a, b):
        assert not torch.isclose(part[:, :-1], part[:, 1:]).any()  # nor do two samples of a batch
    x = method.sampler(ema=False)(method.normal(at, "z first"), at.cond, lambda i: method.normal(at, f"renoise {i} first"))
    last = method.student(a[-1], method.times[-1:].expand(at.size), at.cond)
    torch.testing.assert_close(x, last, rtol=1e-12, atol=1e-13)


def test_online_on_a_many_step_model_is_d3po(tiny):
    """D3PO (arXiv 2311.13231): -log sigmoid(beta log ratio of the winner - beta log ratio of the loser), step by step."""
    sigmas = (8.0, 5.0, 3.0, 1.5, 0.7, 0.3, 0.1)
    method = pso(tiny, sigmas=sigmas, sampler="ancestral", moved=0.2, beta=0.1)
    at, n = tiny.batch(method), 6
    found = tiny.yields(method, at)[1:]
    states, cond, reward = method.trajectories(at)
    order = at.noise.uniform("order", (6,)).argsort(1)
    losses = torch.zeros(6, n, dtype=F64)
    for k in range(6):
        t, u = (torch.full((n,), s, dtype=F64) for s in (sigmas[k], sigmas[k + 1]))
        logs = []
        for rows in (slice(0, n), slice(n, 2 * n)):
            x_t, x_u = states[k, rows], states[k + 1, rows]
            answers = (m(x_t, t, {"label": cond["label"][rows]}) for m in (method.student, method.reference))
            policy, reference = (
                Normal(mean, sd[:, None]).log_prob(x_u).mean(1)
                for mean, sd in (method.process.posterior(x_t, x0, t, u) for x0 in answers)
            )
            logs.append(policy - reference)
        won = torch.where(reward[:n] > reward[n:], logs[0] - logs[1], logs[1] - logs[0])
        losses[k] = -torch.log(torch.sigmoid(0.1 * won))
    for j, update in enumerate(found):
        expected = torch.stack([losses[order[i, j], i] for i in range(n)]).mean()
        torch.testing.assert_close(update.loss, expected, rtol=1e-10, atol=0)
    assert float(losses.detach().std()) > 1e-3


def test_ratios_compare_weights_and_not_dropout_masks(tiny):
    method = pso(tiny, tiny.teacher(dropout=0.5, seed=1))
    loop = tiny.loop(method)  # puts the student into training mode
    assert method.student.training
    at = loop.batches(0)[0]
    _, update = tiny.yields(method, at)[:2]
    assert float(update.loss.detach()) == pytest.approx(math.log(2), abs=1e-12) and float(update.logs["kl"]) == 0.0


def test_ties_have_no_gradient_and_are_counted(tiny):
    method = pso(tiny, moved=0.3)
    method.reward = lambda x, cond: (torch.arange(len(x)) % 6 < 2).double() * torch.arange(len(x))  # pairs 0 and 1 differ
    at = tiny.batch(method)
    losses = []
    _, update, *_ = tiny.yields(method, at, lambda y: losses.append(y.loss))
    assert float(update.logs["ties"]) == pytest.approx(4 / 6)
    held = torch.autograd.grad(losses[0], trained(method), retain_graph=True)
    method.reward = lambda x, cond: torch.zeros(len(x), dtype=F64)
    tied = tiny.yields(method, at)[1]  # fewer than 10 pairs: not yet an error
    assert float(tied.loss.detach()) == pytest.approx(math.log(2)) and float(tied.logs["ties"]) == 1.0
    assert float(tied.logs["kl"]) != 0.0  # where the reward has saturated the monitor still sees
    none = torch.autograd.grad(tied.loss, trained(method))
    assert all(float(g.abs().max()) == 0 for g in none) and any(float(g.abs().max()) > 0 for g in held)


def test_the_online_form_raises_the_reward(tiny):
    method = pso(tiny, beta=1.0, iterations=15)
    loop = tiny.loop(method, batch=32)
    rewards = [loop.iterate()["reward"] for _ in range(15)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3


# -- offline and customisation ----------------------------------------------------------------------------------------


def errors(denoiser, x, t, eps, cond):
    a, s = denoiser.process.a(t)[:, None], denoiser.process.s(t)[:, None]
    x_t = a * x + s * eps
    return ((x_t - a * denoiser(x_t, t, cond)) / s - eps).square().mean(1)  # of the noise


def test_the_offline_loss_written_out(tiny):
    method = pso(tiny, form="offline", moved=0.2, weight="eps", kappa=0.3, beta=4.0)
    at = tiny.batch(method)
    (update,) = tiny.yields(method, at)
    loser = method.chain(method.reference, method.normal(at, "z"), at.cond, noise=lambda i: method.normal(at, f"renoise {i}")).x
    t, eps = method.times[at.noise.randint("time", 0, 3)], method.normal(at, "noise")
    d = [[errors(m, x, t, eps, at.cond) for x in (at.x, loser)] for m in (method.student, method.reference)]
    margin = (d[1][0] - 0.3 * d[1][1]) - (d[0][0] - 0.3 * d[0][1])
    torch.testing.assert_close(update.loss, -torch.log(torch.sigmoid(4.0 * margin)).mean(), rtol=1e-10, atol=0)
    assert set(t.tolist()) <= set(SIGMAS) and len(set(t.tolist())) > 1


def labelled(tiny):
    x, cond = tiny.data()
    worse = x.flip(0) + 0.5
    return x, {**cond, "loser": worse}


def test_labelled_pairs_at_all_times_are_diffusion_dpo(tiny):
    """Diffusion-DPO (arXiv 2311.12908), Eq. 14: beta times how much less the noise of the winner than the loser's is missed."""
    x, cond = labelled(tiny)
    process = DDPM()
    parts = replace(tiny.ingredients(tiny.teacher(process=process)), cond=cond)
    options = {"form": "offline", "pairs": "labelled", "times": "all", "weight": "eps", "beta": 0.7, "moved": 0.2}
    method = pso(tiny, tiny.teacher(process=process, seed=1), parts, **options)
    at = Batch(TensorSource(x, cond), 0, 0, torch.arange(6), torch.device("cpu"), 6)
    (update,) = tiny.yields(method, at)
    t, eps = 999 * at.noise.uniform("time"), method.normal(at, "noise")
    labels = {"label": at.cond["label"]}
    w, l = ([errors(m, x, t, eps, labels) for m in (method.student, method.reference)] for x in (at.x, at.cond["loser"]))
    inside = -0.7 * ((w[0] - w[1]) - (l[0] - l[1]))
    torch.testing.assert_close(update.loss, -torch.log(torch.sigmoid(inside)).mean(), rtol=1e-9, atol=0)
    assert float(inside.detach().std()) > 1e-3


def test_labelled_pairs_without_losers(tiny):
    with pytest.raises(LimbeckError, match="pairs='labelled' needs the condition 'loser'"):
        pso(tiny, form="offline", pairs="labelled")


def test_the_customisation_loss_written_out(tiny):
    method = pso(tiny, form="customisation", moved=0.2, weight="eps", kappa=0.3, prior=0.5, beta=4.0, num_negatives=5)
    at = tiny.batch(method)
    (update,) = tiny.yields(method, at)
    i = at.noise.randint("negative", 0, 5)
    t, eps = method.times[at.noise.randint("time", 0, 3)], method.normal(at, "noise")
    d_w = errors(method.student, at.x, t, eps, at.cond)
    d_l = errors(method.student, method.negatives[i], t, eps, {"label": (torch.arange(5) % 3)[i]})
    expected = torch.relu(1 - 4.0 * -(d_w - 0.3 * d_l)) + 0.5 * d_l
    torch.testing.assert_close(update.loss, expected.mean(), rtol=1e-10, atol=0)


def test_negatives_are_drawn_once_or_refreshed(tiny):
    once, often = (pso(tiny, form="customisation", num_negatives=7, refresh=r) for r in (0, 2))
    first = once.negatives.clone()
    assert first.shape == (7, 2) and torch.equal(first, often.negatives)
    a, b = tiny.loop(once), tiny.loop(often)
    seen = []
    for _ in range(4):
        a.iterate(), b.iterate()
        seen.append(often.negatives.clone())
    assert torch.equal(once.negatives, first)
    assert torch.equal(seen[0], first) and torch.equal(seen[1], seen[2])
    assert not torch.isclose(seen[1], first).any() and not torch.isclose(seen[3], seen[1]).any()


# -- what every generator must do --------------------------------------------------------------------------------------

VARIANTS = {
    "online": {"moved": 0.1},
    "ppo, ancestral, all weights, average": {
        "sampler": "ancestral", "clip": "ppo", "rank": 0, "reference_copy": True, "ema": EmaOptions("inverse", 0.05),
    },
    "accumulated, tcd": {"accumulate": True, "sampler": "tcd", "eta": 0.5},
    "offline": {"form": "offline"},
    "customisation": {"form": "customisation", "refresh": 2},
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def test_two_pieces_of_a_batch_train_like_the_whole(variant, tiny):
    whole, split = tiny.loop(pso(tiny, **variant)), tiny.loop(pso(tiny, **variant), micro_batches=2)
    before = tiny.weights(whole)
    for _ in range(3):
        whole.iterate(), split.iterate()
    a, b = tiny.weights(whole), tiny.weights(split)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-9, atol=1e-9, msg=key)
    assert max(float((a[k] - before[k]).abs().max()) for k in before if k.startswith("student.")) > 1e-3


def test_resuming_is_bitwise(variant, tiny, tmp_path):
    whole, first = tiny.loop(pso(tiny, **variant)), tiny.loop(pso(tiny, **variant), tmp_path)
    for _ in range(5):
        whole.iterate()
    for _ in range(3):
        first.iterate()
    first.save()
    torch.manual_seed(123)
    second = tiny.loop(pso(tiny, **variant), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(2):
        second.iterate()
    a, b = tiny.weights(whole), tiny.weights(second)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_flow_student_keeps_its_own_times(tiny):
    method = pso(tiny, tiny.teacher(process=RectifiedFlow(), seed=1), sigmas=(9.0, 1.0))
    torch.testing.assert_close(method.times, torch.tensor([0.9, 0.5], dtype=F64))
    tiny.loop(method).iterate()


def test_the_sampler_takes_fewer_steps_and_the_average(tiny):
    assert pso(tiny).roles["student"].ema is None
    method = pso(tiny, sampler="ancestral", moved=0.2, ema=EmaOptions("constant", 0.5))
    z, cond = torch.randn(4, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0])}
    one = method.sampler(ema=False, steps=1)(z, cond)
    t = torch.full((4,), 5.0, dtype=F64)
    assert torch.equal(one, method.student(5.0 * z, t, cond)) and not one.requires_grad
    averaged = method.sampler(steps=1)(z, cond)  # no iteration yet: the average has not moved from the reference
    assert torch.equal(averaged, method.reference(5.0 * z, t, cond)) and not torch.isclose(one, averaged).any()


def test_guidance_is_part_of_the_policy_and_warned_of(tiny):
    start = tiny.teacher(seed=1)
    with pytest.warns(UserWarning, match="guidance=2 on a model that was already guided: that is guiding twice; use 1"):
        method = pso(tiny, start, guidance=2.0)
    _, update, *_ = tiny.yields(method, tiny.batch(method))
    assert float(update.loss.detach()) == pytest.approx(math.log(2), abs=1e-12)
    start.trained_guidance = 7.5
    with pytest.warns(UserWarning, match="a model that was distilled at guidance 7.5"):
        pso(tiny, start, guidance=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pso(tiny, start)


def test_the_drift_alarm_speaks_when_the_bound_is_passed():
    watch = Watch()
    said = [line for step in range(40) for line in watch(step, {"drift": 3.0 if step > 5 else 0.0})]
    assert len(said) == 1 and "the student has left its reference" in said[0] and "raise beta" in said[0]
    watch = Watch()
    assert not [line for step in range(200) for line in watch(step, {"drift": 0.9, "ties": 0.5})]
    watch = Watch()
    said = [line for step in range(200) for line in watch(step, {"ties": 0.95})]
    assert len(said) == 1 and "the same for both samples" in said[0]


# -- bad input --------------------------------------------------------------------------------------------------------


def test_without_a_few_step_student(tiny):
    torch.manual_seed(0)
    with pytest.raises(
        LimbeckError, match=r"was given none: name its run with `limbeck distill pso --from-run RUN`, or give from_run="
    ):
        PSO(tiny.ingredients(), PSOOptions())


@pytest.mark.parametrize("options", [{"sampler": "ddim", "eta": 0.0}, {"sampler": "tcd", "eta": 0.0}, {"sigmas": (2.0,)}])
def test_deterministic_samplers(options, tiny):
    with pytest.raises(LimbeckError, match="transition at step 0 has zero variance; online PSO needs a stochastic sampler"):
        pso(tiny, **options)
    tiny.loop(pso(tiny, form="offline", **options)).iterate()  # as the message says


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda x, cond: x.mean(), r"the reward 'height' gave \(\) for 12 samples; it must give one number each, \(12,\)"),
        (lambda x, cond: x, r"gave \(12, 2\) for 12 samples"),
        (lambda x, cond: 1.0, r"gave float for 12 samples"),
        (lambda x, cond: x[:, 0] * torch.nan, r"the value of .height. for 12 of 12 samples of the role .reward. is nan"),
    ],
)
def test_rewards_that_rank_nothing(reward, message, tiny):
    method = pso(tiny)
    method.reward = reward
    with pytest.raises(LimbeckError, match=message):
        next(method.step(tiny.batch(method)))


def test_a_constant_reward(tiny):
    method = pso(tiny)
    method.reward = lambda x, cond: torch.zeros(len(x))
    loop = Loop(method, TensorSource(*tiny.data()), LoopOptions(4, 12, micro_batches=2), quiet=True)
    with pytest.raises(LimbeckError, match="'height' is the same for both samples of 12 of 12 pairs: ties have no gradient"):
        loop.iterate()


def test_an_unknown_reward(tiny):
    with pytest.raises(LimbeckError, match="unknown reward 'hight': did you mean 'height'"):
        pso(tiny, reward="hight")


def test_times_that_are_not_the_samplers(tiny):
    with pytest.raises(LimbeckError, match=r"the trained noise levels \[0.7\] are not among \[5.0, 1.0, 0.2\]"):
        pso(tiny, trained=(1.0, 0.7))
    with pytest.raises(LimbeckError, match=r"the step from 0.2, the last of \[5.0, 1.0, 0.2\], has no density"):
        pso(tiny, trained=(0.2,))
    pso(tiny, trained=(0.2,), form="offline")
    parts = replace(tiny.ingredients(), start_sigmas=(5.0, 1.0, 0.2))
    with pytest.raises(LimbeckError, match=r"the sampler's noise levels \[0.7\] are not among \[5.0, 1.0, 0.2\]"):
        pso(tiny, parts=parts, sigmas=(5.0, 0.7))
    assert pso(tiny, parts=parts, sigmas=()).chain.times == (5.0, 1.0, 0.2)
    assert pso(tiny, parts=parts, sigmas=(5.0, 1.0)).chain.times == (5.0, 1.0)


def test_targets_are_needed_offline(tiny):
    for form in ("offline", "customisation"):
        with pytest.raises(LimbeckError, match=f"the form '{form}' learns from target images"):
            pso(tiny, parts=tiny.ingredients(images=False), form=form)


def test_options_out_of_range():
    with pytest.raises(LimbeckError, match="beta=0 and drift_bound=0.1 must be positive"):
        PSOOptions(beta=0.0)


def test_presets_survive_being_written_down_and_have_the_papers_times():
    for preset in PRESETS.values():
        assert options_from_dict(PSOOptions, options_to_dict(preset)) == preset
    sdxl = DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012)
    times = sdxl.time_of(torch.tensor(PRESETS["paper-dmd2"].sigmas, dtype=F64))
    torch.testing.assert_close(times, torch.tensor([999.0, 749, 499, 249], dtype=F64), rtol=0, atol=0.05)
    assert float(times[0]) <= sdxl.t_max
    assert PRESETS["paper-turbo"].rank == 32 and PRESETS["paper-customisation"].beta == 5.0


def test_adapters_on_named_layers_alone(tiny):
    method = pso(tiny, layers=("outer",))
    assert all(".outer." in n for n, p in method.student.named_parameters() if p.requires_grad)
    assert isinstance(method.process, VE) and isinstance(method.student, nn.Module)
