"""The Gaussian denoiser against dense matrices, scipy's densities and scipy's solutions of the probability-flow ODE."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal

from limbeck.denoisers import GaussianDenoiser, Moments, in_process
from limbeck.errors import LimbeckError
from limbeck.noise import VE, VP, CosineVP, RectifiedFlow, TrigFlow

PROCESSES = {
    "vp": (VP(), 1.0, 1e-3),
    "ve": (VE(), 80.0, 0.002),
    "flow": (RectifiedFlow(), 1.0, 0.0),
    "shifted-flow": (RectifiedFlow(shift=3.0), 1.0, 0.01),
    "trig": (TrigFlow(0.5), np.pi / 2, 0.0),
    "cosine": (CosineVP(), 0.99, 1e-3),
}
D = 5


@pytest.fixture(params=PROCESSES)
def case(request):
    return PROCESSES[request.param]


def covariance(d=D, seed=0):
    root = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / d


def gaussian(process, rank=None):
    mean = torch.linspace(-1, 1, D, dtype=torch.float64)
    return GaussianDenoiser.from_covariance(mean, covariance(), process, rank)


def dense(closed):
    rest = torch.eye(closed.dim, dtype=torch.float64) - closed.U @ closed.U.T
    return closed.U * closed.eigenvalues @ closed.U.T + closed.kappa * rest


@pytest.mark.parametrize("rank", [0, 2, 4, None])
def test_everything_equals_the_dense_formulas(case, rank):
    process = case[0]
    closed = gaussian(process, rank)
    sigma = dense(closed)
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for level in (0.02, 0.5, 3.0):
        t = process.time_of(torch.full((7,), level, dtype=torch.float64))
        a, s = process.a(t)[0], process.s(t)[0]
        total = a**2 * sigma + s**2 * torch.eye(D, dtype=torch.float64)
        q = x - a * closed.mean
        solved = torch.linalg.solve(total, q.T).T
        torch.testing.assert_close(closed.score(x, t), -solved)
        torch.testing.assert_close(closed(x, t), closed.mean + a * solved @ sigma)
        posterior = sigma - a**2 * sigma @ torch.linalg.solve(total, sigma)
        torch.testing.assert_close(closed.posterior_covariance(x, t), posterior.expand(7, D, D))
        log_prob = multivariate_normal((a * closed.mean).numpy(), total.numpy()).logpdf(x.numpy())
        torch.testing.assert_close(closed.log_prob(x, t), torch.as_tensor(log_prob))


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_with_remainder_equals_the_same_covariance_in_full_rank(case, rank):
    process, high, low = case
    closed = gaussian(process, rank)
    full = GaussianDenoiser.from_covariance(closed.mean, dense(closed), process)
    assert full.U.shape[1] == D and closed.U.shape[1] == rank
    x = 3 * torch.randn(6, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.linspace(max(low, 0.01), high, 6, dtype=torch.float64)
    for target in ("x0", "score", "velocity"):
        torch.testing.assert_close(closed.predict(x, t, target), full.predict(x, t, target), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(closed.log_prob(x, t), full.log_prob(x, t))
    torch.testing.assert_close(closed.flow_map(x, high, low), full.flow_map(x, high, low), rtol=1e-9, atol=1e-10)


def test_remainder_is_the_mean_of_the_discarded_eigenvalues():
    eigenvalues = torch.linalg.eigvalsh(covariance()).flip(0)
    assert gaussian(VE(), 2).kappa == pytest.approx(eigenvalues[2:].mean().item())
    assert gaussian(VE()).kappa == 0
    torch.testing.assert_close(gaussian(VE(), 2).eigenvalues, eigenvalues[:2])


@pytest.mark.parametrize("rank", [2, None])
def test_flow_map_solves_the_probability_flow_ode(case, rank):
    process, high, low = case
    closed = gaussian(process, rank)
    x = torch.randn(3, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * float(
        process.s(torch.tensor(high))
    )

    def velocity(t, y):
        return closed.velocity(torch.as_tensor(y).reshape(3, D), torch.tensor(t)).numpy().ravel()

    end = max(low, 1e-3)
    solved = solve_ivp(velocity, (high, end), x.numpy().ravel(), method="RK45", rtol=1e-9, atol=1e-10)
    exact = closed.flow_map(x, high, end)
    torch.testing.assert_close(exact.ravel(), torch.as_tensor(solved.y[:, -1]), rtol=1e-6, atol=1e-6)


def test_flow_map_composes_inverts_and_moves_with_the_velocity(case):
    process, high, low = case
    closed = gaussian(process, 3)
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    between = torch.linspace(0.3, 0.6, 4, dtype=torch.float64) * high
    there = closed.flow_map(x, high, low)
    torch.testing.assert_close(closed.flow_map(closed.flow_map(x, high, between), between, low), there, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(closed.flow_map(there, low, high), x, rtol=1e-9, atol=1e-9)
    x_t, speed = torch.func.jvp(lambda t: closed.flow_map(x, high, t), (between,), (torch.ones_like(between),))
    torch.testing.assert_close(speed, closed.velocity(x_t, between), rtol=1e-9, atol=1e-9)


def test_likelihood_changes_along_the_flow_by_the_ratio_of_volumes(case):
    process, high, _ = case
    closed = gaussian(process)
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    between = torch.full((4,), 0.4 * high, dtype=torch.float64)
    _, change = torch.linalg.slogdet(
        torch.func.vmap(torch.func.jacrev(lambda z: closed.flow_map(z[None], high, between[:1])[0]))(x)
    )
    torch.testing.assert_close(
        closed.log_prob(closed.flow_map(x, high, between), between) + change, closed.log_prob(x, torch.tensor(high))
    )


def test_teleported_samples_have_the_data_s_covariance(case):
    process, high, low = case
    closed, n, g = gaussian(process, 3), 20000, torch.Generator().manual_seed(4)
    noisy = process.add_noise(
        closed.sample(n, g, torch.float64), torch.randn(n, D, generator=g, dtype=torch.float64), torch.tensor(high)
    )
    x = closed.flow_map(noisy, high, low)
    a, s = process.a(torch.tensor(low)), process.s(torch.tensor(low))
    expected = a**2 * dense(closed) + s**2 * torch.eye(D, dtype=torch.float64)
    variance = expected.diagonal()
    error = ((expected**2 + variance[:, None] * variance) / n).sqrt()
    assert bool(((x.T.cov() - expected).abs() < 3 * error).all())
    assert bool(((x.mean(0) - a * closed.mean).abs() < 3 * (variance / n).sqrt()).all())


def test_samples_have_the_mean_and_covariance(case):
    closed, n = gaussian(case[0], 2), 20000
    x = closed.sample(n, torch.Generator().manual_seed(0), torch.float64)
    expected = dense(closed)
    variance = expected.diagonal()
    assert bool(((x.T.cov() - expected).abs() < 4 * ((expected**2 + variance[:, None] * variance) / n).sqrt()).all())
    assert bool(((x.mean(0) - closed.mean).abs() < 4 * (variance / n).sqrt()).all())
    assert torch.equal(x[:3].float(), closed.sample(n, torch.Generator().manual_seed(0))[:3])


@pytest.mark.parametrize("rank", [None, 4])
def test_from_data_is_numpy_s_covariance(rank):
    x = torch.rand(200, 2, 3, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    closed = GaussianDenoiser.from_data(x, VE(), rank)
    cov = np.cov(x.double().reshape(200, 12).numpy(), rowvar=False)
    values = np.linalg.eigvalsh(cov)[::-1]
    np.testing.assert_allclose(closed.eigenvalues.numpy(), values[: rank or 12], rtol=1e-10)
    assert closed.kappa == pytest.approx(values[4:].mean() if rank else 0.0)
    assert float(dense(closed).trace()) == pytest.approx(np.trace(cov))  # the remainder keeps the total variance
    assert closed.shape == (2, 3, 2) and closed.count == 200
    assert closed.data_range == (float(x.min()), float(x.max()))


def test_fewer_samples_than_dimensions():
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    closed = GaussianDenoiser.from_data(x, VE())
    assert closed.U.shape == (20, 5) and closed.kappa == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(dense(closed), x.T.cov())


@pytest.mark.parametrize("rank", [None, 5])
def test_high_dimensions_by_subspace_iteration(rank):
    g = torch.Generator().manual_seed(0)
    n, d = 40, 8200
    x = torch.randn(n, 8, generator=g) * torch.arange(8, 0, -1) @ torch.randn(8, d, generator=g) / d**0.5
    x = x + 0.1 * torch.randn(n, d, generator=g) / d**0.5
    closed = GaussianDenoiser.from_data(x, VE(), rank)
    centred = x.double() - x.double().mean(0)
    exact = torch.linalg.svdvals(centred) ** 2 / (n - 1)
    r = rank or n - 1
    torch.testing.assert_close(closed.eigenvalues, exact[:r], rtol=1e-6, atol=1e-12)
    kappa = (exact.sum() - exact[:r].sum()) / (d - r) if rank else 0.0
    assert closed.kappa == pytest.approx(float(kappa), rel=1e-6, abs=1e-12)
    # on the samples themselves the covariance acts as the exact one
    small = closed.normals.transform(centred, centred @ closed.U, closed.eigenvalues, torch.tensor(closed.kappa))
    assert rank or torch.allclose(small, centred @ centred.T @ centred / (n - 1), atol=1e-8)


def test_rescaled_statistics_are_those_of_the_rescaled_data():
    x = torch.rand(100, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = GaussianDenoiser.from_data(x, VE(), 3).rescaled(2, -1)
    direct = GaussianDenoiser.from_data(2 * x - 1, VE(), 3)
    moved.check_range(2 * x - 1)
    torch.testing.assert_close(moved.mean, direct.mean)
    torch.testing.assert_close(dense(moved), dense(direct))
    assert moved.data_range == pytest.approx(direct.data_range)


def test_the_same_gaussian_in_another_process():
    ve = gaussian(VE())
    moved, t = ve.moved_to(RectifiedFlow()), torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(moved(x, t), in_process(ve, RectifiedFlow())(x, t))
    assert moved.process == RectifiedFlow() and moved.data_range == ve.data_range and moved.count == ve.count


def test_singular_data_at_the_smallest_noise():
    # constant pixels have eigenvalue 0: exact down to s = 1e-4, where 1 / s^2 is 1e8
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1, 1, 1, 1, 0, 0])
    closed = GaussianDenoiser.from_data(x, VE())
    t = torch.full((50,), 1e-4, dtype=torch.float64)
    torch.testing.assert_close(closed(x, t), x, rtol=0, atol=1e-6)
    score = torch.linalg.solve(x.T.cov() + 1e-8 * torch.eye(6, dtype=torch.float64), (closed.mean - x).T).T
    torch.testing.assert_close(closed.score(x, t), score, rtol=1e-6, atol=1e-6)


def test_bad_statistics_are_named():
    mean, cov, x = torch.zeros(D), covariance(), torch.randn(4, D)
    with pytest.raises(LimbeckError, match=r"rank 4 is not possible with dimension 5 and 4 samples \(n - 1 = 3\)"):
        GaussianDenoiser.from_data(x, VE(), rank=4)
    with pytest.raises(LimbeckError, match=r"rank 6 is not possible with dimension 5; choose 0 <= rank <= 5"):
        GaussianDenoiser.from_covariance(mean, cov, VE(), rank=6)
    with pytest.raises(LimbeckError, match=r"at least 2 samples, not 1"):
        GaussianDenoiser.from_data(x[:1], VE())
    with pytest.raises(LimbeckError, match=r"smallest eigenvalue is -0.5"):
        GaussianDenoiser(mean, torch.eye(D), torch.tensor([1, 1, 1, 1, -0.5]), 0.0, VE())
    with pytest.raises(LimbeckError, match=r"not a covariance: its smallest eigenvalue"):
        GaussianDenoiser.from_covariance(mean, cov - torch.eye(D), VE())
    assert gaussian(VE()).eigenvalues.min() >= 0
    tiny = GaussianDenoiser(mean, torch.eye(D), torch.tensor([1, 1, 1, 1, -1e-9]), 0.0, VE())
    assert tiny.eigenvalues.min() == 0
    with pytest.raises(LimbeckError, match=r"NaN"):
        GaussianDenoiser(mean, torch.eye(D), torch.full((D,), torch.nan), 0.0, VE())
    with pytest.raises(LimbeckError, match=r"NaN"):
        GaussianDenoiser.from_data(x.fill_(torch.nan), VE())
    with pytest.raises(LimbeckError, match=r"kappa is a variance and cannot be negative: -1"):
        GaussianDenoiser(mean, torch.eye(D), torch.ones(D), -1.0, VE())
    with pytest.raises(LimbeckError, match=r"not symmetric"):
        GaussianDenoiser.from_covariance(mean, cov + torch.triu(torch.ones(D, D), 1), VE())
    with pytest.raises(LimbeckError, match=r"needs a covariance \(5, 5\), not \(4, 4\)"):
        GaussianDenoiser.from_covariance(mean, cov[:4, :4], VE())
    with pytest.raises(LimbeckError, match=r"not orthonormal"):
        GaussianDenoiser(mean, torch.ones(D, 2), torch.ones(2), 0.0, VE())
    with pytest.raises(LimbeckError, match=r"mean \(d,\), U \(d, r\) and eigenvalues \(r,\)"):
        GaussianDenoiser(mean, torch.eye(D), torch.ones(2), 0.0, VE())
    with pytest.raises(LimbeckError, match=r"a mean of 5 numbers does not fit samples of shape \(2, 2\)"):
        GaussianDenoiser(mean, torch.eye(D), torch.ones(D), 0.0, VE(), shape=(2, 2))
    point = GaussianDenoiser(mean, torch.zeros(D, 0), torch.zeros(0), 0.0, VE())
    with pytest.raises(LimbeckError, match=r"cannot leave noiseless samples"):
        point.flow_map(torch.zeros(1, D), 0.0, 1.0)


@pytest.mark.parametrize("dense_scatter", [True, False])
def test_moments_in_pieces_and_at_once_are_numpy_s(dense_scatter):
    x = torch.randn(500, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1000
    flat = x.reshape(500, 6).numpy()
    for pieces in ([500], [1, 99, 0, 250, 150], [1] * 500):
        moments = Moments(dense_scatter)
        for batch in x.split(pieces):
            moments.add(batch)
        assert (moments.count, moments.shape) == (500, (3, 2))
        assert (moments.low, moments.high) == (flat.min(), flat.max())
        np.testing.assert_allclose(moments.mean.numpy(), flat.mean(0), rtol=1e-13)
        assert moments.total_variance == pytest.approx(flat.var(0, ddof=1).sum(), rel=1e-11)
        if dense_scatter:
            np.testing.assert_allclose(moments.covariance.numpy(), np.cov(flat, rowvar=False), rtol=1e-9, atol=1e-11)


def test_moments_refuse_what_does_not_fit():
    moments = Moments()
    moments.add(torch.zeros(1, 3))
    with pytest.raises(LimbeckError, match=r"at least 2 samples, not 1"):
        _ = moments.covariance
    with pytest.raises(LimbeckError, match=r"samples of shape \(2,\), earlier ones \(3,\)"):
        moments.add(torch.zeros(1, 2))
    with pytest.raises(LimbeckError, match=r"batch after 1 samples: the data hold NaN"):
        moments.add(torch.full((1, 3), torch.nan))
