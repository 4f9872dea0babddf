import warnings

import pytest
import torch
from sklearn.datasets import load_digits

from limbeck.denoisers import ClassifierFree, FiniteSetDenoiser, GaussianDenoiser, Reconditioned
from limbeck.errors import LimbeckError
from limbeck.noise import DDPM, VE, VP, RectifiedFlow, karras_grid, linear_grid
from limbeck.samplers import (
    Teleported,
    ancestral,
    choose_skip,
    ddim,
    dpm_solver_pp_2m,
    generator_noise,
    heun,
    stochastic_edm,
    teleport,
    unipc,
)


@pytest.fixture(scope="module")
def digits():
    """The digits, their own optimal denoiser, and the Gaussian of their mean and covariance."""
    images = torch.from_numpy(load_digits().data / 8 - 1)
    return images, FiniteSetDenoiser(images, VE()), GaussianDenoiser.from_data(images, VE())


@pytest.fixture(scope="module")
def runs(digits):
    """RMSE to the reference of teleported runs with k of 18 nodes left out, and of plain Heun with 18 - k nodes."""
    _, teacher, gaussian = digits
    z = 80 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference, times = heun(teacher, z, karras_grid(65)), karras_grid(18)

    def rmse(x):
        return (x - reference).square().mean().sqrt().item()

    jumped = {k: rmse(Teleported(heun, gaussian, k)(teacher, z, times)) for k in (0, 5, 7, 11)}
    return jumped, {k: rmse(heun(teacher, z, karras_grid(18 - k))) for k in (7, 11)}


def test_digits_keep_their_accuracy_at_two_fifths_fewer_calls(runs):
    """40 % of the calls left out cost nothing; plain Heun with as few calls is clearly worse."""
    jumped, plain = runs
    assert jumped[5] <= 1.02 * jumped[0]
    assert jumped[7] <= 1.1 * jumped[0]
    assert jumped[7] <= 0.75 * plain[7]


def test_digits_show_where_the_gaussian_ends(runs):
    jumped, plain = runs
    assert jumped[11] > 1.1 * plain[11]


def test_the_rule_finds_the_digits_node(digits):
    images, teacher, gaussian = digits
    g = torch.Generator().manual_seed(0)
    assert choose_skip(gaussian, teacher, images[::8], karras_grid(18), tol=1e-4, generator=g) in (6, 7)
    assert choose_skip(gaussian, teacher, images[::8], karras_grid(18), tol=1e-3, generator=g) in (7, 8)


def test_the_reference_sees_the_condition_and_the_gaussian_does_not(digits):
    images, labels = digits[0][:600], torch.from_numpy(load_digits().target[:600])
    teacher = FiniteSetDenoiser(images, VE(), labels=labels)
    threes, times = images[labels == 3], karras_grid(18)
    cond = {"label": torch.full((len(threes),), 3)}
    skips = [
        choose_skip(
            GaussianDenoiser.from_data(data, VE()), teacher, threes, times, 1e-3, cond, torch.Generator().manual_seed(0)
        )
        for data in (threes, images)
    ]
    assert skips[0] > skips[1] + 1, "the class's own statistics reach further than everyone's"


@pytest.mark.parametrize("n", [18, 40])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_dropping_nodes_is_a_karras_grid_of_the_rest(n, k, exact_gaussian, normal):
    times = karras_grid(n)
    x = 80 * normal(2, 4)
    _, remaining, jump = teleport(exact_gaussian(VE()), x, times, k)
    torch.testing.assert_close(remaining, karras_grid(n - k, 0.002, times[k].item()), rtol=1e-12, atol=0)
    assert (jump.skip, jump.sigma_from, jump.sigma_to) == (k, 80.0, times[k].item()) and jump.explained_variance is None


@pytest.mark.parametrize("solver", [ddim, heun, dpm_solver_pp_2m, unipc])
def test_the_solver_goes_on_unchanged_from_the_exact_state(solver, process, exact_gaussian, normal):
    gaussian = exact_gaussian(process)
    times = process.time_of(karras_grid(12, 0.05, 20.0))
    x = process.s(times[0]) * normal(8, 4)
    there, remaining, _ = teleport(gaussian, x, times, 10)
    torch.testing.assert_close(there, gaussian.flow_map(x, times[:1].expand(8), times[10:11].expand(8)))
    assert torch.equal(Teleported(solver, gaussian, 10)(gaussian, x, times), solver(gaussian, there, remaining))


@pytest.mark.parametrize("solver", [dpm_solver_pp_2m, unipc])
def test_multistep_solvers_start_anew_where_they_land(solver, process, exact_gaussian, wobbly, normal):
    """Nothing from before the jump is remembered: the first step there is of first order, the next of second."""
    denoiser, times = wobbly(process, 4), process.time_of(karras_grid(12, 0.05, 20.0))
    x = process.s(times[0]) * normal(8, 4)
    there, remaining, _ = teleport(exact_gaussian(process), x, times, 5)
    jump = Teleported(solver, exact_gaussian(process), 5)
    assert torch.equal(jump(denoiser, x, times), solver(denoiser, there, times[5:]))
    first = solver(denoiser, there, times[5:7], final=False)
    torch.testing.assert_close(first, ddim(denoiser, there, times[5:7], final=False), rtol=1e-13, atol=1e-13)
    both = [f(denoiser, there, remaining[:3], final=False) for f in (solver, ddim)]
    assert not torch.allclose(*both)


def test_no_jump_is_the_solver_itself(exact_gaussian, normal):
    gaussian, x, times = exact_gaussian(VE()), 80 * normal(2, 4), karras_grid(5)
    assert torch.equal(Teleported(heun, gaussian, 0)(gaussian, x, times), heun(gaussian, x, times))


def test_the_node_may_be_given_as_a_noise_level(exact_gaussian, normal):
    process = VP()
    gaussian, times, x = exact_gaussian(process), process.time_of(karras_grid(18, 0.01, 80.0)), normal(2, 4).float()
    there, remaining, jump = teleport(gaussian, x, times, sigma=5.5)
    assert there.dtype == torch.float32 and not there.requires_grad
    assert process.sigma(times)[jump.skip] <= 5.5 < process.sigma(times)[jump.skip - 1]
    assert len(remaining) == 18 - jump.skip
    teleport(gaussian, x, times, sigma=process.sigma(times)[4].item())


def test_the_rule_stops_before_the_first_bad_node_and_leaves_two(exact_gaussian):
    process = RectifiedFlow()
    gaussian, times = exact_gaussian(process), linear_grid(6)
    data = gaussian.mean + gaussian.eigenvalues.sqrt() * torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).double()
    assert choose_skip(gaussian, gaussian, data, times) == 4

    class Shifted:
        null = None

        def __init__(self):
            self.process = process

        def __call__(self, x_t, t, cond=None):
            return gaussian(x_t, t) + (10.0 if 0.4 < t[0] < 0.6 else 0.0)

    assert choose_skip(gaussian, Shifted(), data, times) == 2
    _, remaining, jump = teleport(gaussian, data, times, reference=Shifted(), data=data)
    assert jump.skip == 2 and len(remaining) == 4 and jump.explained_variance == pytest.approx(1.0)


def test_warnings(exact_gaussian, normal):
    gaussian, times, x = exact_gaussian(VE()), karras_grid(18), 80 * normal(8, 4)

    class Conditional:
        process, null = gaussian.process, {}

        def __call__(self, x_t, t, cond=None):
            return gaussian(x_t, t)

    jump = Teleported(heun, gaussian, 3)
    guided = Reconditioned(ClassifierFree(Conditional(), 4.0), lambda cond: cond)
    with pytest.warns(UserWarning, match="guided with w = 4"):
        jump(guided, x, times)
    for solver, options in [(stochastic_edm, {}), (ancestral, {}), (ddim, {"eta": 0.5})]:
        with pytest.warns(UserWarning, match="teleportation is deterministic"):
            Teleported(solver, gaussian, 3)(gaussian, x, times, noise=generator_noise(x), **options)
    other = gaussian.rescaled(1.0, 3.0)
    with pytest.warns(UserWarning, match=r"explains -?\d\.\d+ < 0.99 of the score at sigma = 1.*another data set"):
        teleport(other, x, times, sigma=2.0, reference=gaussian, data=gaussian.mean + 0.3 * normal(8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jump(ClassifierFree(Conditional(), 1.0), x, times)
        teleport(gaussian, x, times, sigma=2.0, reference=gaussian, data=normal(8, 4))


def test_statistics_of_another_range_are_named(digits):
    images, _, gaussian = digits
    x, times = 80 * torch.ones_like(images[:2]), karras_grid(18)
    wrong = gaussian.rescaled(0.5, 0.5)
    with pytest.raises(LimbeckError, match=r"statistics are of data in \[0, 1\], but these data are in \[-1, 1\]"):
        teleport(wrong, x, times, 3, data=images)
    repaired, *_ = teleport(wrong.rescaled(2, -1), x, times, 3, data=images)
    torch.testing.assert_close(repaired, teleport(gaussian, x, times, 3)[0])


def test_errors(exact_gaussian, normal):
    gaussian, times, x = exact_gaussian(VE()), karras_grid(18), 80 * normal(2, 4)
    for sigma in (80.0, 100.0, 0.002, 0.001):
        with pytest.raises(LimbeckError, match=r"between 0.002 and 80.*not"):
            teleport(gaussian, x, times, sigma=sigma)
    for skip in (17, 18, -1):
        with pytest.raises(LimbeckError, match=f"cannot skip {skip} of 18 nodes.*at most 16"):
            teleport(gaussian, x, times, skip)
    with pytest.raises(LimbeckError, match=r"knows samples of shape \(4,\), but x_from has shape \(2, 5\)"):
        teleport(gaussian, 80 * normal(2, 5), times, 3)
    with pytest.raises(LimbeckError, match="not both"):
        teleport(gaussian, x, times, 3, sigma=5.0)
    with pytest.raises(LimbeckError, match=r"needs reference .* and data"):
        teleport(gaussian, x, times, reference=gaussian)
    with pytest.raises(LimbeckError, match=r"Gaussian lives in VE.*denoiser in DDPM"):
        Teleported(heun, gaussian, 3)(exact_gaussian(DDPM()), x, times)
