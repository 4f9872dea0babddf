"""Sample the digits' teacher with fewer network calls: the noisiest part of the way in closed form.

The threes are asked for, so the statistics are those of the threes; how far to jump is measured, not guessed.
    python examples/teleport.py
"""

import torch

from limbeck.denoisers import GaussianDenoiser
from limbeck.noise import karras_grid
from limbeck.samplers import Teleported, choose_skip, heun
from limbeck.tasks import build_task, load_digits


def main() -> None:
    teacher = build_task("digits").teacher
    images, labels = load_digits()
    threes = images[labels == 3]
    gaussian = GaussianDenoiser.from_data(threes, teacher.process)

    times = karras_grid(18)  # the sampler's noise levels, 80 ... 0.002
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        cond = {"label": torch.full((len(threes),), 3)}
        skip = choose_skip(gaussian, teacher, threes, times, tol=1e-3, cond=cond, generator=generator)

        x = 80 * torch.randn(64, 1, 8, 8, generator=generator)
        cond = {"label": torch.full((64,), 3)}
        full = heun(teacher, x, times, cond)
        short = Teleported(heun, gaussian, skip)(teacher, x, times, cond)
        plain = heun(teacher, x, karras_grid(18 - skip), cond)

    calls, fewer = 2 * 18 - 1, 2 * (18 - skip) - 1
    print(f"jump from sigma 80 to {times[skip]:.3g}: {fewer} network calls instead of {calls} ({1 - fewer / calls:.0%} saved)")
    print(f"mean difference of a pixel, same noise, images in [-1, 1]: {(short - full).abs().mean():.4f}")
    print(f"the same solver with {fewer} calls and no jump:            {(plain - full).abs().mean():.4f}")


if __name__ == "__main__":
    main()
