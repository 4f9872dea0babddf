"""Teleportation for diffusers: stock schedulers and stock pipelines that start at one of their own later nodes.

In a loop of your own, a scheduler is read, not wrapped:

    scheduler.set_timesteps(25)
    latents = scheduler.init_noise_sigma * torch.randn(shape)
    latents, timesteps, jump = teleport_scheduler(scheduler, gaussian, latents, skip=6)
    for t in timesteps: ...                       # the pipeline's own loop, scheduler.step and all

A pipeline as it is, within a context:

    with teleported(pipeline, gaussian, skip=6):
        images = pipeline(prompt, num_inference_steps=25).images      # 19 network calls
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, Denoiser, GaussianDenoiser, in_process
from limbeck.errors import LimbeckError
from limbeck.interop.schedulers import kind_of, scheduler_nodes
from limbeck.noise import Process
from limbeck.samplers import Jump, teleport

NO_FRESH_NOISE = "teleportation is deterministic: the nodes it leaves out receive no fresh noise"


def teleport_scheduler(
    scheduler: Any,
    gaussian: GaussianDenoiser,
    latents: Tensor,
    skip: int | None = None,
    tol: float = 1e-3,
    *,
    sigma: float | None = None,
    reference: Denoiser | None = None,
    data: Tensor | None = None,
    cond: Cond | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Jump]:
    """Start a diffusers scheduler at a later node: (latents there, the timesteps that remain, what was done).

    ``scheduler`` with its timesteps set and no step taken; ``latents`` (B, ...) at the first of them, in its own scaling
    (init_noise_sigma times noise); ``gaussian`` the statistics of what is sampled (pixels, or the autoencoder's latents), in
    any process. The node is chosen as in :func:`teleport`; ``sigma`` is s / a. The scheduler's begin index is set, so that
    its own loop over the returned timesteps goes on from there, multistep methods from order 1 as at any start.

    Warns before schedulers that add noise. Guidance is not seen here: with it, give statistics of guided samples or of the
    class. Raises LimbeckError as :func:`scheduler_nodes` and :func:`teleport` do.
    """
    process, times = scheduler_nodes(scheduler)
    if kind_of(scheduler).fresh:
        warnings.warn(NO_FRESH_NOISE, stacklevel=2)
    seen = None if reference is None else in_process(reference, process)
    choice = {"sigma": sigma, "reference": seen, "data": data, "cond": cond, "generator": generator}
    there, _, jump = teleport(gaussian.moved_to(process), latents, times, skip, tol, **choice)  # type: ignore[arg-type]
    begin = jump.skip * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return there, scheduler.timesteps[begin:], jump


@contextmanager
def teleported(pipeline: Any, gaussian: GaussianDenoiser, skip: int) -> Iterator[list[Jump]]:
    """Within this context a stock pipeline leaves out the first ``skip`` of its steps; yields the jumps as they are made.

    ``pipeline``: any diffusers pipeline with a scheduler that can start midway, which makes its latents by
    ``prepare_latents`` or hands them to its network as they are. ``gaussian``: the statistics of its latents in the shape in
    which its loop holds them (packed, where it packs them), in any process; of guided samples, where it guides. The pipeline's
    scheduler object is exchanged for a copy, and put back. The result is that of :func:`teleport_scheduler` and the
    scheduler's own loop.

    Warns before schedulers that add noise.
    Raises LimbeckError for a pipeline without a scheduler or network, a scheduler that cannot, and, at the first step, a
    pipeline that steps other latents than those that were found.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    network = next((m for m in (getattr(pipeline, n, None) for n in ("unet", "transformer")) if m is not None), None)
    if scheduler is None or network is None:
        raise LimbeckError(f"a {type(pipeline).__name__} has no scheduler with a unet or transformer; there is nothing to skip")
    if not kind_of(scheduler).starts:
        scheduler_nodes(scheduler)  # raises: says which can
    if kind_of(scheduler).fresh:
        warnings.warn(NO_FRESH_NOISE, stacklevel=3)
    jumps: list[Jump] = []
    start = _Start(gaussian, skip, jumps)
    pipeline.scheduler = start.watched(scheduler)
    prepare, own = getattr(pipeline, "prepare_latents", None), vars(pipeline).get("prepare_latents")
    if prepare is not None:
        pipeline.prepare_latents = lambda *args, **options: start.prepared(prepare(*args, **options))
    hook = network.register_forward_pre_hook(start.called, with_kwargs=True)
    try:
        yield jumps
    finally:
        hook.remove()
        if own is not None:
            pipeline.prepare_latents = own
        elif prepare is not None:
            del pipeline.prepare_latents  # the class has its own
        pipeline.scheduler = scheduler


class _Start:
    """Brings the latents of a pipeline and the nodes of its scheduler together, whichever comes first, once per call."""

    def __init__(self, gaussian: GaussianDenoiser, skip: int, jumps: list[Jump]):
        self.gaussian, self.skip, self.jumps = gaussian, skip, jumps
        self.process: Process | None = None
        self.times = torch.empty(0)
        self.rescaled = 1.0  # a scheduler without its first nodes may state a smaller first scale of its latents
        self.latents: Tensor | None = None  # prepared, still at the first node
        self.there: Tensor | None = None  # the same storage, carried to the later node; None once the loop runs
        self.waiting = False  # timesteps are set, and no step was taken

    def watched(self, scheduler: Any) -> Any:
        """A copy of the scheduler whose timesteps begin at the later node."""
        copied = copy.deepcopy(scheduler)
        set_timesteps, step = copied.set_timesteps, copied.step

        @wraps(set_timesteps)  # pipelines look at the arguments that these methods take
        def shortened(*args: Any, **options: Any) -> None:
            set_timesteps(*args, **options)
            self.process, self.times = scheduler_nodes(copied)
            before, begin = float(getattr(copied, "init_noise_sigma", 1.0)), self.skip * copied.order
            copied.timesteps = copied.timesteps[begin:]
            if hasattr(copied, "sigmas"):
                copied.sigmas = copied.sigmas[begin:]
            self.rescaled = before / float(getattr(copied, "init_noise_sigma", 1.0))
            self.waiting, self.there = True, None
            if self.latents is not None:
                self.jump(self.latents)

        @wraps(step)
        def checked(answer: Any, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
            if self.waiting and (self.there is None or self.there.data_ptr() != sample.data_ptr()):
                raise LimbeckError(
                    "this pipeline steps other latents than it prepared or shows its network, so they cannot be carried to a "
                    "later node; use teleport_scheduler in a loop of your own"
                )
            self.waiting, self.there = False, None
            return step(answer, timestep, sample, *args, **options)

        copied.set_timesteps, copied.step = shortened, checked
        return copied

    def prepared(self, made: Any) -> Any:
        """What ``prepare_latents`` returned, with latents of our own in place of its: theirs may be the caller's."""
        latents = (made[0] if isinstance(made, tuple) else made).clone()
        if self.waiting:
            self.jump(latents if self.rescaled == 1 else latents.mul_(self.rescaled))
        else:
            self.latents = latents
        return (latents, *made[1:]) if isinstance(made, tuple) else latents

    def called(self, network: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """The network's first call: latents that nobody prepared are what it sees."""
        if self.waiting and self.there is None:
            self.jump(args[0] if args else next(options[n] for n in ("sample", "hidden_states") if n in options))

    @torch.no_grad()
    def jump(self, latents: Tensor) -> None:
        assert self.process is not None
        there, _, jump = teleport(self.gaussian.moved_to(self.process), latents, self.times, self.skip)
        latents.copy_(there)
        self.there, self.latents = latents, None
        self.jumps.append(jump)
