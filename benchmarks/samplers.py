"""Our samplers beside diffusers' schedulers: the same numbers, and what each costs per step beside the network.

    python benchmarks/samplers.py [--steps 20] [--rounds 30]

One eps network that costs next to nothing drives both, on the table of Stable Diffusion; 4 latents 4 x 64 x 64, float32, one
thread, turn by turn. Overhead: median CPU time of sampling less that of the network's calls alone, per call. Both are asked from
outside, as a user would: diffusers' schedulers in their own loop, ours with the network in ``Preconditioned``. Equality is
checked in float64, their tables replaced by ours in float64; exits with 1 where results differ by more than 1e-8 (1e-4 for
the two schedulers that compute in float32 whatever they are given).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Preconditioned
from limbeck.noise import DDPM, ddpm_grid
from limbeck.samplers import Rollout, ddim, dpm_solver_pp_2m, euler, generator_noise, heun, unipc

TABLE = DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (4, 4, 64, 64)
EQUAL = {"Euler": 1e-4, "DPM-Solver++(2M)": 1e-4}  # else 1e-8


class Cheap(nn.Module):
    """eps of (x_t, t), nonlinear in both."""

    calls = 0

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.calls += 1
        return torch.sin(x + t.to(x).reshape(-1, 1, 1, 1) / 1000)


class Boundary:
    """A consistency function as LCM's scheduler makes it of a network's x0."""

    def __init__(self, denoiser: Preconditioned, scheduler: Any):
        self.denoiser, self.scheduler, self.process, self.null = denoiser, scheduler, denoiser.process, None

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        c_skip, c_out = self.scheduler.get_scalings_for_boundary_condition_discrete(t[0].long())
        return c_skip * x_t + c_out * self.denoiser(x_t, t)


def prepared(scheduler: Any, n: int) -> Any:
    """The scheduler at its start, its tables ours in float64 (they agree to float32 rounding)."""
    scheduler.set_timesteps(n)
    scheduler.alphas_cumprod, scheduler.one, scheduler.final_alpha_cumprod = TABLE.table, torch.tensor(1.0), torch.tensor(1.0)
    if hasattr(scheduler, "sigmas"):
        ours = torch.cat([TABLE.sigma(ddpm_grid(n)), torch.zeros(1, dtype=torch.float64)])
        if len(scheduler.sigmas) != len(ours):  # Heun's second calls
            ours = torch.cat([ours[:1], ours[1:-1].repeat_interleave(2), ours[-1:]])
        scheduler.sigmas = ours
    return scheduler


def theirs(scheduler: Any, network: nn.Module, x: Tensor) -> Tensor:
    """The loop of diffusers' own pipelines."""
    given = {"generator": torch.Generator().manual_seed(1)} if type(scheduler).__name__ == "LCMScheduler" else {}
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(x_t, t.expand(len(x))), t, x, **given).prev_sample
    return x


def pairs(n: int) -> dict[str, tuple[Any, Callable[[Preconditioned, Tensor, Any], Tensor]]]:
    """By name: diffusers' scheduler, and our sampler of (denoiser, x, scheduler)."""
    import diffusers

    times = ddpm_grid(n)
    how: dict[str, Any] = {**BETAS, "timestep_spacing": "trailing"}

    def lcm(denoiser: Preconditioned, x: Tensor, scheduler: Any) -> Tensor:
        rollout = Rollout(TABLE, scheduler.timesteps.double(), start="unit")
        return rollout(Boundary(denoiser, scheduler), x, noise=generator_noise(x, torch.Generator().manual_seed(1))).x

    return {
        "DDIM": (diffusers.DDIMScheduler(**how, clip_sample=False), lambda d, x, _: ddim(d, x, times)),
        "Euler": (diffusers.EulerDiscreteScheduler(**how), lambda d, x, _: euler(d, x, times)),
        "Heun": (diffusers.HeunDiscreteScheduler(**how), lambda d, x, _: heun(d, x, times)),
        "DPM-Solver++(2M)": (diffusers.DPMSolverMultistepScheduler(**how), lambda d, x, _: dpm_solver_pp_2m(d, x, times)),
        "UniPC": (diffusers.UniPCMultistepScheduler(**how), lambda d, x, _: unipc(d, x, times)),
        "LCM rollout": (diffusers.LCMScheduler(**BETAS, clip_sample=False), lcm),
    }  # fmt: skip


def exploding(scheduler: Any) -> bool:
    """Are its samples x_t / a?"""
    return type(scheduler).__name__ in ("EulerDiscreteScheduler", "HeunDiscreteScheduler")


def cpu_ms(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description="Samplers beside diffusers' schedulers.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(1)
    network = Cheap()
    denoiser = Preconditioned(network, TABLE, "eps")
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = statistics.median(cpu_ms(lambda: network(x.float(), torch.zeros(len(x)))) for _ in range(100))
    print(f"{given.steps} steps, {SHAPE}; a call of the network {one:.2f} ms; overhead in ms per call\n")
    print(f"{'':<18} {'calls':>6} {'diffusers':>10} {'limbeck':>8} {'ratio':>6} {'difference':>11}")
    unequal = []
    for name, (scheduler, ours) in pairs(given.steps).items():
        scale = float(TABLE.a(ddpm_grid(given.steps)[0])) if exploding(scheduler) else 1.0
        prepared(scheduler, given.steps)
        difference = float((ours(denoiser, x, scheduler) - theirs(scheduler, network, x / scale)).abs().max())
        if not difference <= EQUAL.get(name, 1e-8):
            unequal.append(name)
        small, spent = x.float(), {"theirs": [], "ours": []}  # type: ignore[var-annotated]
        before = network.calls
        ours(denoiser, small, prepared(scheduler, given.steps))
        calls = network.calls - before
        for _ in range(given.rounds):
            prepared(scheduler, given.steps)
            spent["ours"].append(cpu_ms(lambda: ours(denoiser, small, scheduler)))  # noqa: B023
            spent["theirs"].append(cpu_ms(lambda: theirs(scheduler, network, small / scale)))  # noqa: B023
        other, mine = (statistics.median(spent[who]) / calls - one for who in ("theirs", "ours"))
        print(f"{name:<18} {calls:>6} {other:>10.3f} {mine:>8.3f} {mine / other:>6.2f} {difference:>11.1e}", flush=True)
    if unequal:
        print(f"not equal: {', '.join(unequal)}", file=sys.stderr)
    return bool(unequal)


if __name__ == "__main__":
    sys.exit(main())
