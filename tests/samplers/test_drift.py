import torch

from limbeck.noise import ResShift
from limbeck.samplers import Undrifted, ddim, heun

PROCESS = ResShift()


class Known:
    """The denoiser of one known image, which must be shown states with their drift."""

    process, null = PROCESS, None

    def __init__(self, x0, y, eps):
        self.x0, self.y, self.eps = x0, y, eps

    def __call__(self, x_t, t, cond=None):
        torch.testing.assert_close(x_t, PROCESS.add_noise(self.x0, self.eps, t, self.y), rtol=1e-10, atol=1e-10)
        return self.x0


def test_solvers_follow_the_process_towards_y(normal):
    x0, y, eps = (normal(3, 6, seed=seed) for seed in range(3))
    times = torch.tensor([14.0, 9.0, 4.0, 1.0], dtype=torch.float64)
    denoiser = Undrifted(Known(x0, y, eps), y)
    t, t_to = times[:1].expand(3), times[-1:].expand(3)
    start = PROCESS.add_noise(x0, eps, t, y) - PROCESS.d(times[0]) * y
    for solver in (ddim, heun):
        end = solver(denoiser, start, times, final=False) + PROCESS.d(times[-1]) * y
        torch.testing.assert_close(end, PROCESS.add_noise(x0, eps, t_to, y), rtol=1e-10, atol=1e-10)
        assert torch.equal(solver(denoiser, start, times), x0)


def test_the_driftless_process_keeps_all_else():
    inner, t = Undrifted(Known(None, None, None), torch.zeros(1)).process, torch.linspace(1, 14, 5, dtype=torch.float64)
    assert (inner.t_min, inner.t_max) == (PROCESS.t_min, PROCESS.t_max)
    for name in ("a", "s", "da", "ds", "sigma"):
        assert torch.equal(getattr(inner, name)(t), getattr(PROCESS, name)(t))
    torch.testing.assert_close(inner.time_of(inner.sigma(t)), t)
    assert not inner.d(t).any()
