"""DMD2 beside NVIDIA's modelopt.torch.fastgen on the same networks: time and memory of one update of student and critic each.

    python benchmarks/dmd2.py [--rounds 15] [--json FILE]

Needs modelopt, whose dependencies are installed by name so that it moves no pin:

    pip install --no-deps nvidia-modelopt==0.47.0 omegaconf pulp nvidia-ml-py && pip install pydantic regex rich

One thread, float32, batches of 8 images 3 x 32 x 32, rectified flow, one-step students, AdamW, gradients clipped at 10, averaged
students, no adversary; freed memory is kept for the next cycle, as by our loop, for all arms. The arms take turns; a figure is
the median CPU time of a cycle (all threads' process time), a ratio the median over rounds. Memory is the peak of live tensor
bytes in two cycles: weights, averages, optimizers, gradients, graphs.

Before that both go through three cycles in float64 with the same noise and times. Exits with 1 where losses or weights differ
by more than 1e-6. A target of speed or memory that is missed is printed as missed.
"""

import argparse
import copy
import gc
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from limbeck.denoisers import Preconditioned
from limbeck.methods.generators.dmd import DMD, DMDOptions
from limbeck.methods.generators.generator import Ingredients
from limbeck.networks import UNet
from limbeck.networks.checkpointing import checkpoint_blocks
from limbeck.noise import RectifiedFlow
from limbeck.training import Batch, EmaOptions, Loop, LoopOptions, OptimizerOptions, TensorSource
from limbeck.training.allocator import keep_freed_memory
from limbeck.training.live import peak_bytes

try:
    import modelopt.torch.fastgen as fastgen
except ImportError:
    sys.exit(
        f"modelopt is not installed; its row cannot be measured. {(__doc__ or '').split('Needs modelopt')[1].split('One')[0]}"
    )

BATCH, SHAPE, LR, CLIP, DECAY = 8, (3, 32, 32), 1e-4, 10.0, 0.9999
TOP = 1023 / 1024  # the student's time; multiples of 1/1024 are exact in float32, which modelopt counts times in
EQUAL = 1e-6


class Network(nn.Module):
    """A network as both sides call it: velocity (B, ...) of (x, 1000 t)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, hidden_states: Tensor, timestep: Tensor, cond: Any = None) -> Tensor:
        out = self.network(hidden_states, timestep)
        return out if isinstance(out, Tensor) else out.sample


def diffusers_unet() -> nn.Module:
    """diffusers' own U-Net, small."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=16,
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "diffusers UNet2DModel": diffusers_unet,
    "limbeck UNet": lambda: UNet(SHAPE, channels=48, multipliers=(1, 2, 2), attention=(16,)),
}


def trio(make: Callable[[], nn.Module], dtype: torch.dtype) -> list[nn.Module]:
    """Teacher, student and critic, no two alike and no layer at zero, so that every loss has something to say."""
    torch.manual_seed(0)
    first = Network(make()).to(dtype)
    made = [first, copy.deepcopy(first), copy.deepcopy(first)]
    with torch.no_grad():
        for network in made:
            for p in network.parameters():
                p.add_(0.02 * torch.randn_like(p))
    made[0].requires_grad_(False).eval()
    return made


# -- modelopt: its losses in the loop of its own documentation ------------------------------------------------------------


class Modelopt:
    """``fused``: AdamW as Limbeck's, or (false) as torch makes it by default."""

    def __init__(self, made: list[nn.Module], latents: Tensor, fused: bool):
        teacher, self.student, critic = made
        config = fastgen.DMDConfig(
            num_train_timesteps=1000, fake_score_pred_type="x0",
            sample_t_cfg=fastgen.SampleTimestepConfig(time_dist_type="uniform", max_t=TOP),
            ema=fastgen.EMAConfig(decay=DECAY, fsdp2=False, mode="local_shard", dtype=None),
        )  # fmt: skip
        self.pipeline = fastgen.DMDPipeline(self.student, teacher, critic, config)
        self.pipeline.ema.load_state_dict({})  # type: ignore[union-attr]  # it averages from the start, not from the first update
        self.latents, self.networks = latents, (self.student, critic)
        self.optimizers = [torch.optim.AdamW(n.parameters(), LR, fused=fused or None) for n in self.networks]
        self.losses: list[tuple[float, float]] = []

    def cycle(self) -> None:
        """One update of the student and one of the critic."""
        found = []
        for loss, network, optimizer in zip(
            (self.pipeline.compute_student_loss, self.pipeline.compute_fake_score_loss),
            self.networks,
            self.optimizers,
            strict=True,
        ):
            optimizer.zero_grad()
            total = loss(self.latents, torch.randn_like(self.latents))["total"]
            total.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            if network is self.student:
                self.pipeline.update_ema()
            found.append(float(total.detach()))
        self.losses.append((found[0], found[1]))

    def held(self) -> Iterator[Tensor]:
        """What lives between two cycles, but for the teacher."""
        assert self.pipeline.ema is not None
        yield from self.pipeline.ema.state_dict().values()
        yield from _trained(self.networks, self.optimizers)


# -- Limbeck --------------------------------------------------------------------------------------------------------------


class Regenerated(DMD):
    """DMD whose critic learns of samples that the student makes anew, as modelopt's does."""

    def step(self, batch: Batch) -> Any:
        yield from self.student_update(batch)
        with torch.no_grad():
            sample = self.producer(self, batch, 0)
        yield from self.critic_update(batch, sample)


class Limbeck:
    """``kind``: who makes the critic's samples; ``options``: of DMD, beside those of modelopt's mathematics."""

    def __init__(self, made: list[nn.Module], latents: Tensor, kind: type[DMD] = DMD, **options: Any):
        teacher, student, critic = (Preconditioned(n, RectifiedFlow(), "velocity", noise_input="thousand") for n in made)
        rate = OptimizerOptions(LR, "adamw", (0.9, 0.999), weight_decay=0.01, clip=CLIP)
        chosen = DMDOptions(
            iterations=10_000, batch=len(latents), student=rate, critic=rate, ema=EmaOptions("constant", DECAY),
            sigmas=(TOP / (1 - TOP),), score_low=0.001 / 0.999, score_high=TOP / (1 - TOP), score_law="uniform", critic_law="score",
            critic_weight="x0", **options,
        )  # fmt: skip
        parts = Ingredients(teacher, tuple(latents.shape[1:]), latents)
        self.method = kind(parts, chosen, student=student, critic=critic)
        self.loop = Loop(self.method, TensorSource(latents), LoopOptions(chosen.iterations, len(latents)), quiet=True)
        self.networks = student, critic

    def cycle(self) -> None:
        """One update of the student and one of the critic."""
        self.loop.iterate()

    def held(self) -> Iterator[Tensor]:
        """What lives between two cycles, but for the teacher."""
        yield from self.method.roles["student"].best.parameters()
        yield from _trained(self.networks, [t.optimizer for t in self.loop.trained.values()])


def _trained(networks: Any, optimizers: Any) -> Iterator[Tensor]:
    for p in (p for network in networks for p in network.parameters()):
        yield from (p, p.grad) if p.grad is not None else (p,)
    for optimizer in optimizers:
        yield from (v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


# -- equality -------------------------------------------------------------------------------------------------------------


def differences(make: Callable[[], nn.Module], cycles: int = 3) -> dict[str, float]:
    """Relative differences of losses and of all weights after some cycles in float64 on the same noise and times."""
    made = trio(make, torch.float64)
    latents = torch.randn(2, *SHAPE, dtype=torch.float64)
    theirs = Modelopt(copy.deepcopy(made), latents, fused=True)
    ours = Limbeck(made, latents, Regenerated)
    draws = [torch.randn_like(latents) for _ in range(4 * cycles)]  # z, eps of the student; z, eps of the critic
    times = [torch.randint(1, 1024, (2,)) / 1024 for _ in range(2 * cycles)]

    noise, t = deque(draws), deque(times)
    theirs.pipeline.sample_timesteps = lambda *_, **__: t.popleft()
    with mock.patch.object(torch, "randn_like", lambda _: noise.popleft()):
        for _ in range(cycles):
            theirs.cycle()

    own, at, found = deque(draws), deque(times), []
    method = ours.method
    method.normal = lambda batch, stream: own.popleft()  # type: ignore[method-assign]
    method.score_time = method.critic_time = lambda batch, sample: at.popleft().double()  # type: ignore[method-assign]
    pulled = method.pulled

    def seen(sample: Any, pull: Any) -> Tensor:
        found.append(float(0.5 * pull.gradient.square().mean()))  # modelopt's loss, which has the gradient of ours
        return pulled(sample, pull)

    method.pulled = seen  # type: ignore[method-assign]
    critic = [ours.loop.iterate()["loss/critic"] for _ in range(cycles)]
    gaps = {"student's loss": [(a, b) for a, (b, _) in zip(found, theirs.losses, strict=True)]}
    gaps["critic's loss"] = [(a, b) for a, (_, b) in zip(critic, theirs.losses, strict=True)]
    report = {name: max(abs(a - b) / abs(b) for a, b in pairs) for name, pairs in gaps.items()}
    for name, mine, other in zip(("student", "critic"), ours.networks, theirs.networks, strict=True):
        pairs = zip(mine.parameters(), other.parameters(), strict=True)
        report[f"{name}'s weights"] = max(float((a - b).detach().abs().max()) for a, b in pairs)
    average = theirs.pipeline.ema.state_dict().values()  # type: ignore[union-attr]
    pairs = zip(method.roles["student"].best.parameters(), average, strict=True)
    report["average"] = max(float((a - b).detach().abs().max()) for a, b in pairs)
    return report


# -- cost -----------------------------------------------------------------------------------------------------------------


def seconds(engine: Any) -> float:
    """CPU seconds of a cycle."""
    start = time.process_time()
    engine.cycle()
    return time.process_time() - start


def peak(engine: Any) -> float:
    """MiB of live tensors at the worst moment of two cycles."""
    gc.collect()
    return peak_bytes(lambda: [engine.cycle() for _ in range(2)], engine.held()) / 2**20


class Target:
    """A ratio that is to be reached, and whether it was."""

    def __init__(self, statement: str, measured: float, bound: float):
        self.statement, self.measured, self.bound, self.reached = statement, measured, bound, measured <= bound

    def __str__(self) -> str:
        return (
            f"{'reached' if self.reached else 'NOT REACHED':<12} {self.statement}: {self.measured:.3f} (at most {self.bound:g})"
        )


def arms(name: str) -> dict[str, Any]:
    """Every arm with networks, optimizers and averages of its own, from the same weights."""
    latents = torch.randn(BATCH, *SHAPE)

    def made(checkpointed: bool = False) -> list[nn.Module]:
        networks = trio(NETWORKS[name], torch.float32)
        for network in networks[1:] if checkpointed else []:
            checkpoint_blocks(network)
        return networks

    return {
        "modelopt": Modelopt(made(), latents, fused=False),
        "modelopt, fused AdamW": Modelopt(made(), latents, fused=True),
        "(a) the same mathematics": Limbeck(made(), latents, Regenerated),
        "(b) samples reused": Limbeck(made(), latents),
        "(c) share_draws": Limbeck(made(), latents, share_draws=True),
        "(d) as (a), checkpointed": Limbeck(made(True), latents, Regenerated),
    }


def measure(name: str, rounds: int) -> tuple[list[dict[str, Any]], list[Target]]:
    """Rows and targets on one network."""
    engines = arms(name)
    for engine in engines.values():
        engine.cycle()
    times: dict[str, list[float]] = {arm: [] for arm in engines}
    for _ in range(rounds):
        for arm, engine in engines.items():
            times[arm].append(seconds(engine))
    memory = {arm: peak(engine) for arm, engine in engines.items()}

    def ratio(arm: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(times[arm], times[to], strict=True))

    a, d, plain, fused = "(a) the same mathematics", "(d) as (a), checkpointed", "modelopt", "modelopt, fused AdamW"
    targets = [
        Target("(a) time / modelopt's, both with fused AdamW", ratio(a, fused), 1.02),
        Target("(a) time / modelopt's, each with its default AdamW", ratio(a, plain), 0.98),
        Target("(b) time / modelopt's, both with fused AdamW", ratio("(b) samples reused", fused), 0.90),
        Target("(c) time / modelopt's, both with fused AdamW", ratio("(c) share_draws", fused), 0.82),
        Target("(a) memory / modelopt's", memory[a] / memory[plain], 0.97),
        Target("(d) memory / modelopt's", memory[d] / memory[plain], 0.72),
        Target("(d) time / modelopt's", ratio(d, plain), 1.2),
    ]
    rows = [
        {
            "network": name, "arm": arm, "ms": 1e3 * statistics.median(times[arm]), "MiB": memory[arm],
            "time/modelopt": ratio(arm, plain), "time/fused": ratio(arm, fused), "memory/modelopt": memory[arm] / memory[plain],
        }
        for arm in engines
    ]  # fmt: skip
    return rows, targets


def main() -> int:
    parser = argparse.ArgumentParser(description="DMD2 beside modelopt's on the same networks.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    equality = {name: differences(NETWORKS[name]) for name in given.networks}
    for name, found in equality.items():
        print(f"{name}, 3 cycles in float64: " + ", ".join(f"{what} {gap:.1e}" for what, gap in found.items()))
    if not all(gap <= EQUAL for found in equality.values() for gap in found.values()):
        print(f"the two do not compute the same: a difference is above {EQUAL:g}", file=sys.stderr)
        return 1
    rows, targets = [], {}
    for name in given.networks:
        found, targets[name] = measure(name, given.rounds)
        rows += found
        size = sum(p.numel() for p in NETWORKS[name]().parameters())
        print(f"\n{name}, {size / 1e6:.2f} million weights, {given.rounds} rounds, one thread")
        print(f"{'':<26} {'CPU ms':>8} {'/modelopt':>10} {'/fused':>8} {'MiB':>8} {'/modelopt':>10}")
        for row in found:
            print(
                f"{row['arm']:<26} {row['ms']:>8.1f} {row['time/modelopt']:>10.3f} {row['time/fused']:>8.3f} "
                f"{row['MiB']:>8.1f} {row['memory/modelopt']:>10.3f}"
            )
        print(*targets[name], sep="\n", flush=True)
    if given.json is not None:
        facts = {
            "torch": torch.__version__, "equality": equality, "rows": rows,
            "targets": {name: [vars(t) for t in found] for name, found in targets.items()},
        }  # fmt: skip
        given.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
