"""Self-distilled kernel ridge regression against repeated fits of scikit-learn, its limit, its theory, and every bad input."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.kernel_ridge import KernelRidge

from limbeck.errors import LimbeckError
from limbeck.methods.recognition.self_distillation import KernelSelfDistiller, estimate_alpha, mix_targets, rbf_kernel

GAMMA, LAM = 0.3, 0.05
ALPHAS = (0.3, 0.7, 0.0, 1.0, 0.45)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y, XV, YV = normal(30, 3), normal(30, 2, seed=1), normal(17, 3, seed=2), normal(17, 2, seed=3)


def fitted(y=Y, lam=LAM, clip=(0.0, 1.0), x=X):
    return KernelSelfDistiller(rbf_kernel(GAMMA), lam, clip).fit(x, y)


def ridge(y, lam=LAM):
    return KernelRidge(alpha=lam, kernel="rbf", gamma=GAMMA).fit(X.numpy(), np.asarray(y))


def close(found, expected, atol):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=atol)


def test_every_round_is_a_ridge_regression_of_the_mixed_target():
    model, last = fitted(), Y.numpy()
    for tau in range(len(ALPHAS) + 1):
        target = last if tau == 0 else mix_targets(Y, torch.as_tensor(last), ALPHAS[tau - 1]).numpy()
        oracle = ridge(target)
        last = oracle.predict(X.numpy())
        close(model.predict(X, ALPHAS[:tau]), last, 1e-10)
        close(model.predict(XV, ALPHAS[:tau]), oracle.predict(XV.numpy()), 1e-10)


def test_the_recursion_is_the_unrolled_sum():
    model, tau = fitted(), len(ALPHAS) + 1
    a, alpha = model.values / (model.values + LAM), dict(enumerate(ALPHAS, start=2))

    def left(i):
        return float(np.prod([1 - alpha[j] for j in range(i, tau + 1)]))

    expected = left(2) * a**tau + sum(alpha[i] * left(i + 1) * a ** (tau - i + 1) for i in range(2, tau + 1))
    close(model.spectrum(ALPHAS), expected, 1e-14)
    b = 0.4 * a * (1 - (0.6 * a) ** 5) / (1 - 0.6 * a) + 0.6**5 * a**6  # one alpha, six rounds
    close(model.spectrum(5 * (0.4,)), b, 1e-14)
    close(model.vectors @ (model.spectrum(ALPHAS)[:, None] * (model.vectors.T @ Y)), model.predict(X, ALPHAS), 1e-12)


def test_the_limit_is_ridge_regression_with_lam_over_alpha():
    model = fitted()
    close(model.predict(XV, 200 * (0.3,)), ridge(Y, LAM / 0.3).predict(XV.numpy()), 1e-8)
    close(model.limit(XV, 0.3), ridge(Y, LAM / 0.3).predict(XV.numpy()), 1e-10)
    close(model.spectrum(200 * (0.3,)), model.limit_spectrum(0.3), 1e-14)
    assert float(model.limit(XV, 0.0).abs().max()) == 0 == float(model.limit_spectrum(0.0).max())


def test_labels_alone_change_nothing_and_none_decay():
    model = fitted()
    assert torch.equal(model.predict(XV, 7 * (1.0,)), model.predict(XV))
    a = model.values / (model.values + LAM)
    for tau in (1, 2, 5):
        close(model.spectrum((tau - 1) * (0.0,)), a**tau, 1e-15)


def ratios(model, alphas):
    """Of each weight to the one of the next smaller eigenvalue; what is all but 0 is rounding and left out."""
    b = model.spectrum(alphas)[model.values > 1e-6 * model.values.max()]
    return b[1:] / b[:-1]


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_every_later_round_and_the_limit_are_sparser_than_the_first(alpha):
    model = fitted()
    rounds = [ratios(model, tau * (alpha,)) for tau in range(8)]
    for later in rounds[1:]:
        assert bool((later > rounds[0]).all())
    kept = model.values[model.values > 1e-6 * model.values.max()]
    if alpha == 0:
        assert all(bool((after > before).all()) for before, after in itertools.pairwise(rounds))
    else:
        limit = alpha * kept / (alpha * kept + LAM)
        assert bool((limit[1:] / limit[:-1] > rounds[0]).all())
        # with labels the ratios need not grow from round to round: for small eigenvalues they overshoot in round 2
        assert float((rounds[2] / rounds[1]).min()) < 0.995


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_fit_recedes_but_not_beyond_the_limit(alpha):
    model = fitted()
    misfits = [float((Y - model.predict(X, tau * (alpha,))).norm()) for tau in range(8)]
    limit = float((Y - model.limit(X, alpha)).norm())
    assert misfits == sorted(misfits) and misfits[1] > misfits[0] + 1e-3 and misfits[-1] <= limit
    assert alpha == 0 or misfits[-1] < float((Y - model.predict(X, 7 * (0.0,))).norm()) - 1e-3  # labels dampen it


def test_a_round_is_linear_in_alpha_and_its_best_is_a_least_squares():
    model, before = fitted(clip=None), (0.6,)
    s, t = model.predict(XV), model.predict(XV, (*before, 0.0))
    close(model.predict(XV, (*before, -0.7)), -0.7 * s + 1.7 * t, 1e-12)

    def error(alpha):
        return float((model.predict(XV, (*before, alpha)) - YV).square().sum())

    best = model.optimal_alpha(XV, YV, before)
    assert best == pytest.approx(minimize_scalar(error).x, abs=1e-6)
    grid = np.linspace(best - 1.003, best + 1, 2001)
    assert abs(grid[np.argmin([error(a) for a in grid])] - best) <= (grid[1] - grid[0]) / 2 + 1e-12
    held = fitted().optimal_alpha(XV, YV, before)
    assert held == min(max(best, 0.0), 1.0) and not 0 <= best <= 1  # so that the clip matters here


def test_greedy_alphas_are_chosen_one_after_the_other():
    model = fitted(clip=None)
    a, b, c = model.greedy_alphas(XV, YV, 3)
    assert (a, b, c) == (model.optimal_alpha(XV, YV), model.optimal_alpha(XV, YV, (a,)), model.optimal_alpha(XV, YV, (a, b)))


def test_one_column_is_a_vector_and_duplicates_are_fine():
    twice = torch.cat([X, X])
    model, flat = fitted(torch.cat([Y, Y]), x=twice), fitted(torch.cat([Y[:, 0], Y[:, 0]]), x=twice)
    assert flat.predict(XV, (0.2,)).shape == (17,)
    close(flat.predict(XV, (0.2,)), model.predict(XV, (0.2,))[:, 0], 1e-12)
    close(flat.limit(XV, 0.2), model.limit(XV, 0.2)[:, 0], 1e-12)
    assert isinstance(flat.optimal_alpha(XV, YV[:, 0]), float)


def test_without_a_penalty_where_the_kernel_can_be_inverted():
    apart = torch.arange(5, dtype=torch.float64)[:, None] * 5
    close(fitted(Y[:5], 0.0, x=apart).predict(apart, (0.5,)), Y[:5], 1e-12)


def kernel(matrix):
    return lambda a, b: torch.tensor(matrix, dtype=torch.float64)


TWO = torch.tensor([[0.0], [1.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fitted().predict(XV, (0.5, 1.2)), r"alpha=1.2 lies outside \[0, 1\]; use clip=None to allow extrapolation"),
        (lambda: fitted().limit(XV, -0.1), "alpha=-0.1 lies outside"),
        (lambda: KernelSelfDistiller(rbf_kernel(1.0), -0.1), "lam=-0.1 penalises the norm"),
        (lambda: fitted(torch.cat([Y, Y]), 0.0, x=torch.cat([X, X])), "lam=0 needs a kernel .* smallest eigenvalue is"),
        (lambda: KernelSelfDistiller(kernel([[1.0, 0.5], [0.4, 1]]), 0.1).fit(TWO, TWO), "not symmetric"),
        (
            lambda: KernelSelfDistiller(kernel([[1.0, 2], [2, 1]]), 0.1).fit(TWO, TWO),
            "not positive semidefinite: .* eigenvalue is -1,",
        ),
        (lambda: fitted(Y[:-1]), r"x \(30, 3\) and y \(29, 2\) must be"),
        (lambda: fitted().optimal_alpha(XV, YV[:, 0]), r"must have one shape, not \(17, 2\), \(17, 2\), \(17,\)"),
        (lambda: estimate_alpha(Y, Y, Y), "the round changes nothing"),
        (lambda: mix_targets(Y, YV, 0.5), "must have one shape: give classes one-hot"),
        (lambda: rbf_kernel(0.0), "gamma=0 must be positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()


def test_a_validation_set_that_is_the_training_set_is_noticed():
    with pytest.warns(UserWarning, match="chosen on the training set"):
        fitted().optimal_alpha(X, Y)
