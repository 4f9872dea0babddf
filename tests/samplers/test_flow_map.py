import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.noise import VE, RectifiedFlow
from limbeck.samplers import solve


def ends(process, low=0.01, high=30.0):
    return (process.time_of(torch.tensor(sigma, dtype=torch.float64)).item() for sigma in (low, high))


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_equals_the_exact_flow_map(direction, process, exact_gaussian, normal):
    gaussian, (t_from, t_to) = exact_gaussian(process), ends(process)
    if direction == "backward":
        t_from, t_to = t_to, t_from
    start, end = (torch.full((8,), t, dtype=torch.float64) for t in (t_from, t_to))
    x = process.add_noise(gaussian.mean + gaussian.eigenvalues.sqrt() * normal(8, 4), normal(8, 4, seed=1), start)
    expected = gaussian.flow_map(x, start, end)
    found = solve(gaussian, x, t_from, t_to)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7 * expected.abs().max().item())
    loose = (solve(gaussian, x, t_from, t_to, rtol=1e-4) - expected).norm()
    assert (found - expected).norm() < loose / 100


def test_every_sample_has_its_own_times(process, wobbly, normal):
    denoiser, x = wobbly(process), normal(3, 6)
    start = process.time_of(torch.tensor([5.0, 2.0, 0.1], dtype=torch.float64))
    end = process.time_of(torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64))
    together = solve(denoiser, x, start, end, rtol=1e-9)
    alone = torch.cat([solve(denoiser, x[i : i + 1], start[i].item(), end[i].item()) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(solve(denoiser, together, end, start, rtol=1e-9), x, rtol=1e-5, atol=1e-5)


def test_equals_scipy(wobbly, normal):
    integrate = pytest.importorskip("scipy.integrate")
    process, x = RectifiedFlow(), normal(2, 6)
    denoiser, condition = wobbly(process), {"shift": normal(2, 1, seed=4)}

    def velocity(t, flat):
        x_t, time = torch.from_numpy(flat).reshape(2, 6), torch.full((2,), t, dtype=torch.float64)
        return process.convert(denoiser(x_t, time, condition), x_t, time, "x0", "velocity").flatten().numpy()

    theirs = integrate.solve_ivp(velocity, (1.0, 0.01), x.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    torch.testing.assert_close(
        solve(denoiser, x, 1.0, 0.01, condition).flatten(), torch.from_numpy(theirs), rtol=1e-6, atol=1e-7
    )


def test_maps_compose_and_keep_the_dtype(wobbly, normal):
    denoiser, x = wobbly(VE()), 40 * normal(2, 3, 6)
    middle = solve(denoiser, solve(denoiser, x, 40.0, 1.0), 1.0, 0.01)
    torch.testing.assert_close(middle, solve(denoiser, x, 40.0, 0.01), rtol=1e-6, atol=1e-7)
    single = solve(denoiser, x.float(), 40.0, 0.01, rtol=1e-4)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), middle, rtol=1e-3, atol=1e-3)


def test_errors(wobbly, normal):
    with pytest.raises(LimbeckError, match="no noise is left"):
        solve(wobbly(RectifiedFlow()), normal(2, 6), 1.0, 0.0)
    with pytest.raises(LimbeckError, match=r"within 3 steps .* raise rtol or max_steps"):
        solve(wobbly(VE()), normal(2, 6), 80.0, 0.01, max_steps=3)
