"""What every closed form must satisfy: its predictions, density, Jacobian and covariance are those of one posterior."""

import pytest
import torch

from limbeck.denoisers import (
    ClosedForm,
    FiniteSetDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    Preconditioned,
    check_denoiser,
    null_cond,
    predict,
)
from limbeck.errors import ConversionError, LimbeckError
from limbeck.noise import DDPM, VE, VP, RectifiedFlow, TrigFlow

D, B = 4, 6
PROCESSES = {"vp": VP(), "ve": VE(), "flow": RectifiedFlow(shift=2.0), "trig": TrigFlow(0.5), "ddpm": DDPM()}
TARGETS = ["x0", "eps", "v", "velocity", "score"]
LABELS = torch.tensor([0, 1, 2, 0, 1])


def orthonormal(k: int, d: int, r: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(k, d, d, generator=generator, dtype=torch.float64)).Q[..., :r]


def build(kind: str, process) -> ClosedForm:
    g = torch.Generator().manual_seed(3)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    k, weights = 5, torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
    if kind == "gaussian":
        return GaussianDenoiser(rand(2, 2) - 0.5, orthonormal(1, D, D, g)[0], rand(D), 0.0, process)
    if kind == "gaussian-low-rank":
        return GaussianDenoiser(rand(2, 2) - 0.5, orthonormal(1, D, 2, g)[0], rand(2), 0.05, process)
    means = 2 * rand(k, 2, 2) - 1
    if kind == "mixture-isotropic":
        return MixtureDenoiser(weights, means, 0.02 + 0.1 * rand(k), process, labels=LABELS)
    if kind == "mixture-full":
        return MixtureDenoiser(weights, means, 0.0, process, orthonormal(k, D, D, g), 0.01 + rand(k, D) / 4, LABELS)
    if kind == "mixture-low-rank":
        return MixtureDenoiser(weights, means, 0.03, process, orthonormal(k, D, 2, g), rand(k, 2) / 2, LABELS)
    return FiniteSetDenoiser(means, process, weights, 0.2 if kind == "finite-bandwidth" else 0.0, LABELS)


KINDS = [
    "gaussian",
    "gaussian-low-rank",
    "mixture-isotropic",
    "mixture-full",
    "mixture-low-rank",
    "finite",
    "finite-bandwidth",
]


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


@pytest.fixture(params=KINDS)
def closed(request, process):
    return build(request.param, process)


def batch(denoiser, sigmas=(0.05, 0.3, 0.6, 1.0, 2.0, 8.0)):
    """x_t (B, 2, 2) at these noise-to-signal ratios, with t and a condition where there is one."""
    g = torch.Generator().manual_seed(5)
    t = denoiser.process.time_of(torch.tensor(sigmas, dtype=torch.float64))
    cond = {"label": torch.tensor([0, 1, 2, 3, 1, 0])} if denoiser.null else None
    if isinstance(denoiser, GaussianDenoiser):
        x0 = denoiser.sample(B, g, torch.float64)
    else:
        x0 = denoiser.sample(B, cond, g, torch.float64)
    return denoiser.process.add_noise(x0, torch.randn(x0.shape, generator=g, dtype=torch.float64), t), t, cond


def jacobian(f, x):
    """(B, d, d) of a function that treats every sample by itself."""
    rows = torch.func.jacrev(lambda z: f(z).sum(0))(x)  # (2, 2, B, 2, 2)
    return rows.reshape(D, len(x), D).transpose(0, 1)


@pytest.mark.parametrize("source", ["x0", "score"])
def test_predictions_agree_by_the_process_s_conversions(closed, source):
    x, t, cond = batch(closed)
    known = closed.predict(x, t, source, cond)
    for target in TARGETS:
        answer = closed.predict(x, t, target, cond)
        expected = closed.process.convert(known, x, t, source, target)
        torch.testing.assert_close(answer, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
        method = closed if target == "x0" else getattr(closed, target)
        assert torch.equal(method(x, t, cond), answer)
        assert torch.equal(predict(closed, x, t, target, cond), answer)


def test_score_is_the_gradient_of_log_prob(closed):
    x, t, cond = batch(closed)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(closed.log_prob(x, t, cond).sum(), x)
    torch.testing.assert_close(closed.score(x, t, cond), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", TARGETS)
def test_jvp_is_forward_mode_and_symmetric(closed, target):
    x, t, cond = batch(closed)
    v, w = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product = closed.jvp(x, t, v, cond, target)
    _, expected = torch.func.jvp(lambda z: closed.predict(z, t, target, cond), (x,), (v,))
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    x.requires_grad_()
    (vjp,) = torch.autograd.grad(closed.predict(x, t, target, cond), x, v)
    torch.testing.assert_close(vjp, product, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    torch.testing.assert_close((product * w).sum(), (closed.jvp(x, t, w, cond, target) * v).sum())


def test_jacobian_is_the_posterior_covariance_times_a_over_s2(closed):
    x, t, cond = batch(closed)
    a, s = closed.process.a(t), closed.process.s(t)
    covariance = closed.posterior_covariance(x, t, cond)
    expected = jacobian(lambda z: closed(z, t, cond), x)
    torch.testing.assert_close((a / s**2)[:, None, None] * covariance, expected, rtol=1e-9, atol=1e-9)


def test_posterior_covariance_is_psd_and_its_product_is_the_dense_one(closed):
    x, t, cond = batch(closed)
    covariance = closed.posterior_covariance(x, t, cond)
    assert torch.allclose(covariance, covariance.mT, atol=1e-15)
    assert bool((torch.linalg.eigvalsh(covariance) >= -1e-15).all())
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = (covariance @ v.reshape(B, D, 1)).reshape(x.shape)
    torch.testing.assert_close(closed.covariance_times(x, t, v, cond), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("target", ["x0", "velocity", "score"])
def test_divergence_is_the_trace_of_the_jacobian(closed, target):
    x, t, cond = batch(closed)
    expected = jacobian(lambda z: closed.predict(z, t, target, cond), x).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(closed.divergence(x, t, cond, target), expected, rtol=1e-9, atol=1e-9)


def test_the_denoised_mean_is_the_mean_of_the_data(closed):
    # E[D(x_t)] = E[x_0], whatever the noise: within 4 standard errors of 4,000 draws
    g, n = torch.Generator().manual_seed(0), 4000
    x0 = closed.sample(n, generator=g, dtype=torch.float64)
    if isinstance(closed, GaussianDenoiser):
        mean = closed.mean
    else:
        points = closed.means if isinstance(closed, MixtureDenoiser) else closed.bank
        mean = (torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)[:, None] * points.reshape(5, D)).sum(0)
    for sigma in (0.2, 1.0, 5.0):
        t = closed.process.time_of(torch.full((n,), sigma, dtype=torch.float64))
        x_t = closed.process.add_noise(x0, torch.randn(x0.shape, generator=g, dtype=torch.float64), t)
        denoised = closed(x_t, t).reshape(n, D)
        assert bool(((denoised.mean(0) - mean).abs() < 4 * denoised.std(0) / n**0.5).all())


@pytest.mark.parametrize("kind", KINDS)
def test_change_of_density_along_the_flow_is_the_divergence(kind):
    # d log p_t(x(t)) / dt = -div velocity, by a central difference along the flow
    closed = build(kind, VP())
    x, t, cond = batch(closed)
    h, velocity = 1e-5, closed.velocity(x, t, cond)
    ahead, behind = (closed.log_prob(x + e * velocity.reshape(x.shape), t + e, cond) for e in (h, -h))
    expected = -closed.divergence(x, t, cond)
    torch.testing.assert_close((ahead - behind) / (2 * h), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_defined_without_any_signal(kind):
    # At a = 0 the posterior is the prior, and nothing divides by a
    closed = build(kind, RectifiedFlow())
    x = torch.randn(B, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.ones(B, dtype=torch.float64)
    torch.testing.assert_close(closed(x, t), closed(0 * x, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(closed.eps(x, t), x)
    torch.testing.assert_close(closed.velocity(x, t), x - closed(x, t))
    torch.testing.assert_close(closed.posterior_covariance(x, t), closed.posterior_covariance(0 * x, t))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_chunks_answer_as_together(kind):
    closed = build(kind, VE())
    x, t, cond = batch(closed)
    v = torch.ones_like(x)

    def answers():
        return [
            closed(x, t, cond),
            closed.score(x.float(), t, cond),
            closed.jvp(x, t, v, cond),
            closed.divergence(x, t, cond),
            closed.posterior_covariance(x, t, cond),
            closed.log_prob(x, t, cond),
        ]

    whole = answers()
    closed._rows = 4
    for one, other in zip(whole, answers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_in_the_dtype_of_the_input(kind, dtype):
    closed = build(kind, VP())
    x, t, cond = batch(closed)
    low = x.to(dtype)
    for target in TARGETS:
        answer = closed.predict(low, t, target, cond)
        expected = closed.predict(low.double(), t, target, cond)
        assert answer.dtype == dtype and closed.log_prob(low, t, cond).dtype == dtype
        bound = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(answer.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_meets_the_protocol(kind):
    closed = build(kind, VP())
    x = torch.rand(3, 2, 2)
    check_denoiser(closed, x, gradients=True)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    assert torch.equal(closed(x, t, null_cond(closed, 3)), closed(x, t))
    assert torch.equal(closed(x, torch.tensor(0.5)), closed(x, t))
    assert not list(closed.parameters())
    copied = build(kind, VP())
    for buffer in copied.buffers():
        buffer.zero_()
    copied.load_state_dict(closed.state_dict())
    assert torch.equal(copied(x, t), closed(x, t))


@pytest.mark.parametrize("kind", ["gaussian", "mixture-low-rank", "finite"])
def test_twice_differentiable_in_x_and_once_in_t(kind):
    closed = build(kind, VP())
    x, t, cond = batch(closed, (0.3, 0.4, 0.6, 1.0, 2.0, 3.0))
    assert torch.autograd.gradgradcheck(lambda z: closed(z, t, cond), x.requires_grad_())
    assert torch.autograd.gradcheck(lambda u: closed(x.detach(), u, cond), t.requires_grad_())


def test_other_denoisers_are_converted_by_their_process():
    class Zero(torch.nn.Module):
        def forward(self, x, c_noise, cond):
            return 0 * x

    net, x = Preconditioned(Zero(), VE(), "x0"), torch.randn(2, 3, dtype=torch.float64)
    t = torch.tensor([0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(predict(net, x, t, "score"), -x / t[:, None] ** 2)
    with pytest.raises(ConversionError, match=r"cannot divide by s"):
        predict(net, x, 1e-5 * t, "score")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_named(kind):
    closed = build(kind, VP())
    x, t = torch.zeros(2, 2, 2), torch.full((2,), 0.5, dtype=torch.float64)
    with pytest.raises(LimbeckError, match=r"samples of shape \(2, 2\), but x_t has shape \(2, 4\)"):
        closed(x.reshape(2, 4), t)
    with pytest.raises(LimbeckError, match=r"samples of shape \(2, 2\), but v has shape"):
        closed.jvp(x, t, x[:, 0])
    with pytest.raises(LimbeckError, match=r"one time per sample is needed: t has shape \(3,\) for 2 samples"):
        closed(x, torch.zeros(3))
    with pytest.raises(LimbeckError, match=r"unknown prediction type 'scor': did you mean 'score'"):
        closed.predict(x, t, "scor")
    with pytest.raises(LimbeckError, match=r"unconditional" if kind.startswith("gaussian") else "unknown condition 'text'"):
        closed(x, t, {"text": torch.zeros(2)})


def test_permuted_channels_and_too_large_covariances_are_named():
    closed = GaussianDenoiser(torch.zeros(3, 8, 8), torch.zeros(192, 0), torch.zeros(0), 1.0, VE())
    t = torch.ones(1, dtype=torch.float64)
    with pytest.raises(LimbeckError, match=r"permute its dimensions"):
        closed(torch.zeros(1, 8, 8, 3), t)
    with pytest.raises(LimbeckError, match=r"use covariance_times"):
        closed.posterior_covariance(torch.zeros(8000, 3, 8, 8), t.expand(8000))


@pytest.mark.parametrize(
    ("known", "given", "factor"),
    [
        ((0, 1), (-1, 1), r"2 x \+ -1 .*4 eigenvalues"),
        ((0, 255), (0, 1), r"0.00392157 x \+ 0"),
        ((-1, 1), (0, 1), r"0.5 x \+ 0.5"),
    ],
)
def test_range_of_the_statistics_is_compared_with_the_data_s(known, given, factor):
    low, high = known
    data = torch.linspace(low, high, 60).reshape(10, 6)
    closed = GaussianDenoiser.from_data(data, VE())
    closed.check_range(data)
    with pytest.raises(LimbeckError, match=factor):
        closed.check_range(torch.linspace(*given, 12).reshape(2, 6))
    with pytest.raises(LimbeckError, match=r"was not made from data"):
        build("gaussian", VE()).check_range(data)
