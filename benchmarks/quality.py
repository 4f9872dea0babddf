"""Time to quality on the digits: CPU seconds of training until a one-step student is within 1.25 times its teacher's Frechet
distance.

    python benchmarks/quality.py [--seeds 3] [--cap 60] [--arms dmd sid ...] [--json FILE]

Students are judged every 25 iterations (7,188 samples, averaged weights); judging is not counted. An arm that has not arrived
after ``--cap`` seconds has "not reached"; its median counts it as the cap or more. One thread.

Two arms are NVIDIA modelopt's DMD2 losses (see dmd2.py for how to install it) in a plain loop on the same teacher, student and
critic networks: modelopt wants rectified flow, so the digits' denoiser is asked at the same signal-to-noise ratio, in x0. They
have our learning rates and schedules, optimizer, clipping, batch, average and one critic update per student update. "own times":
its defaults, noise times shifted by 5 up to t = 0.999, where the student starts. "our levels": student and scores at the noise
levels of our DMD, and the critic's loss in the velocity. What stays unfair: our options were chosen on these digits, its were
not, and it has no option for a critic's law of its own.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.claims.generators.digits import digits_task
from limbeck.denoisers import in_process
from limbeck.methods import find
from limbeck.methods.generators.dmd import DMDOptions
from limbeck.methods.generators.generator import make_method, trained_copy
from limbeck.noise import RectifiedFlow
from limbeck.training import Batch, Loop, LoopOptions, Role
from limbeck.training.allocator import keep_freed_memory

RATIO, EVERY, TARGET = 1.25, 25, 0.5
FLOW = RectifiedFlow()
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "dmd": ("dmd", {}),
    "dmd, share_draws": ("dmd", {"share_draws": True, "critic_law": "score"}),
    "sid": ("sid", {}),
    "sim": ("sim", {}),
    "sid, half as long": ("sid", {"iterations": 600}),
    "sim, half as long": ("sim", {"iterations": 600}),
}
THEIRS = ("modelopt, own times", "modelopt, our levels")
Training = Iterator[Callable[..., Tensor]]  # one iteration at a time; gives the student's sampler


def ours(arm: str, seed: int) -> Training:
    """A method of the library with its recommended options."""
    name, change = OURS[arm]
    task = digits_task()
    cls, _, presets = find(name).load()
    options = replace(presets["recommended"], **change)
    method = make_method(cls, options, task, seed)
    loop = Loop(method, task.source, LoopOptions(options.iterations, options.batch, seed=seed), quiet=True)
    for _ in range(options.iterations):
        loop.iterate()
        yield method.sampler()


class InFlow(nn.Module):
    """The digits' denoiser as modelopt calls a network: x0 of (x_t, t of rectified flow, labels)."""

    def __init__(self, denoiser: Any):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return in_process(self.denoiser, FLOW)(hidden_states, timestep.double(), {"label": encoder_hidden_states})


def theirs(arm: str, seed: int) -> Training:
    """modelopt's losses in a plain loop."""
    import modelopt.torch.fastgen as fastgen

    task, o = digits_task(), DMDOptions()
    level = o.sigmas[0] / (1 + o.sigmas[0])  # the time of rectified flow at our student's noise level

    class OurLevels(fastgen.DMDPipeline):
        """The student starts at our noise level, below the highest time of the scores."""

        def _build_student_input(self, latents: Tensor, noise: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return level * noise, torch.full((len(noise),), level)

    own = arm == THEIRS[0]
    low, high = (sigma / (1 + sigma) for sigma in (o.score_low, o.score_high))
    law = {} if own else {"time_dist_type": "uniform", "min_t": low, "max_t": high}
    times = fastgen.SampleTimestepConfig(**law)
    config = fastgen.DMDConfig(pred_type="x0", fake_score_pred_type="x0" if own else "flow", sample_t_cfg=times)
    torch.manual_seed(seed)
    teacher, student, critic = (InFlow(trained_copy(task.teacher)) for _ in range(3))
    teacher.requires_grad_(False).eval()
    pipeline = (fastgen.DMDPipeline if own else OurLevels)(student, teacher, critic, config)
    role = Role(student, o.student, o.ema)
    start = times.max_t if own else level

    @torch.no_grad()
    def sampler(z: Tensor, cond: Any, noise: Any = None) -> Tensor:
        return role.best(start * z, torch.full((len(z),), start), cond["label"])

    updates = [
        (network, loss, options, torch.optim.Adam(network.parameters(), options.lr, options.betas, fused=True))
        for network, loss, options in (
            (student, pipeline.compute_student_loss, o.student), (critic, pipeline.compute_fake_score_loss, o.critic),
        )
    ]  # fmt: skip
    for step in range(10 * o.iterations):
        batch = Batch(task.source, seed, step, step * o.batch + torch.arange(o.batch), torch.device("cpu"))
        assert batch.x is not None and batch.cond is not None
        for network, loss, options, optimizer in updates:
            optimizer.zero_grad()
            loss(batch.x, torch.randn_like(batch.x), batch.cond["label"])["total"].backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), options.clip)
            optimizer.param_groups[0]["lr"] = options.lr_at(min(step, o.iterations), o.iterations)
            optimizer.step()
        role.update_ema(step + 1)
        yield sampler


def run(training: Training, goal: float, cap: float) -> dict[str, float]:
    """CPU seconds and iterations until the goal (inf: not reached), and the best distance on the way."""
    task, seconds, best, iterations = digits_task(), 0.0, math.inf, 0
    while seconds < cap:
        start = time.process_time()
        sampler = next(training, None)
        seconds += time.process_time() - start
        if sampler is None:
            break
        iterations += 1
        if iterations % EVERY == 0:
            best = min(best, task.evaluator(sampler, 1)["frechet"])
            if best <= goal:
                return {"seconds": seconds, "iterations": iterations, "best": best}
    return {"seconds": math.inf, "iterations": iterations, "best": best}


def shown(seconds: float) -> str:
    """Seconds, or that there are none."""
    return f"{seconds:.1f}" if math.isfinite(seconds) else "not reached"


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds until a one-step student is as good as 1.25 times its teacher.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cap", type=float, default=60.0, help="CPU seconds per arm and seed")
    parser.add_argument("--arms", nargs="+", choices=[*OURS, *THEIRS], default=[*OURS, *THEIRS])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    task = digits_task()
    teacher = task.judged_teacher(task.teacher_nodes)["frechet"]
    goal = RATIO * teacher
    print(f"teacher {teacher:.3f} at {2 * task.teacher_nodes - 1} calls; goal {goal:.3f} at one call; {given.seeds} seeds")
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in given.arms}
    for seed in range(given.seeds):  # the arms take turns, so that a busy machine slows them all
        for arm, found in rows.items():
            found.append(run((theirs if arm in THEIRS else ours)(arm, seed), goal, given.cap))
            print(f"{arm}, seed {seed}: {shown(found[-1]['seconds'])}", file=sys.stderr, flush=True)
    print(f"{'':<22} {'median s':>12} {'iterations':>11} {'best':>7}   seconds of each seed")
    for arm, found in rows.items():
        s, i, best = (median(r[name] for r in found) for name in ("seconds", "iterations", "best"))
        print(f"{arm:<22} {shown(s):>12} {i:>11.0f} {best:>7.3f}   {', '.join(shown(r['seconds']) for r in found)}")
    medians = {arm: median(r["seconds"] for r in found) for arm, found in rows.items()}
    mine = min((s for arm, s in medians.items() if arm in OURS), default=math.inf)
    other = min((min(s, given.cap) for arm, s in medians.items() if arm in THEIRS), default=math.nan)
    ratio = mine / other
    print(
        f"{'reached' if ratio <= TARGET else 'NOT REACHED':<12} our best / modelopt's best (or the cap): {ratio:.3f} (at most {TARGET})"
    )
    if given.json is not None:
        facts = {"teacher": teacher, "goal": goal, "cap": given.cap, "arms": rows, "ratio": ratio}
        given.json.write_text(json.dumps(facts, indent=2).replace("Infinity", "null").replace("NaN", "null") + "\n")


if __name__ == "__main__":
    main()
