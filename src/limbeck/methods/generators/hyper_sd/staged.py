"""A student that is trained in stages: what each of them ended with is kept, and each can be sampled."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import ClassifierFree, Cond
from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import Generator, Ingredients, check_guidance, trained_copy
from limbeck.methods.generators.hyper_sd.options import HyperSDOptions, Stage
from limbeck.methods.generators.hyper_sd.segments import positions, trailing
from limbeck.samplers import Chain, Rollout, ddim, tcd
from limbeck.training import Role, placed


class Staged(Generator):
    """The student, its average theta^-, its positions, and a frozen copy of what every stage but the last ended with.

    The copies hold what is learned and share the rest: adapters are kept on one base. They are part of the state.
    """

    def __init__(self, parts: Ingredients, options: HyperSDOptions):
        o = self.options = options
        student = trained_copy(parts.begin, o.rank, o.alpha, o.adapt)
        self.path = positions(o.schedule, student.process, o.sigma_low, o.sigma_high)
        self.first = o.first if "score" in o.then else 1.0
        times = self.path(trailing(o.sampling_steps, self.first))
        super().__init__(parts, (), student, times=times, renoise="ode", begin=o.begin)
        anew = tuple(s.start for s in o.stages[1:]) if o.reset_optimizer else ()
        self.roles = {
            "teacher": Role(parts.teacher),
            "student": Role(self.student, replace(o.student, anew=anew), o.ema),
        }
        self.ends = [self._frozen_copy() for _ in o.stages[:-1]]
        self.roles |= {f"after {s.name}": Role(end) for s, end in zip(o.stages, self.ends, strict=False)}

    def begin(self, z: Tensor, position: float) -> Tensor:
        """The first input at a position, from standard normal numbers."""
        s = self.process.s(self.path(torch.tensor(position, dtype=torch.float64))).item()
        return z if self.options.begin == "unit" else s * z

    @property
    def average(self) -> Any:
        """theta^-: the denoiser of the targets, and what samples."""
        return self.roles["student"].best

    def stage(self, name: str | int) -> Any:
        """What the stage of that name (4, "reward") ended with, as a denoiser; until it has ended, what the run began with."""
        names = [s.name for s in self.options.stages]
        if str(name) not in names:
            raise LimbeckError(f"there is no stage {str(name)!r}; this run's stages are {', '.join(names)}")
        return [*self.ends, self.average][names.index(str(name))]

    @torch.no_grad()
    def finish(self, step: int) -> None:
        """At a stage's end: keep theta^- as it will be after this iteration, and begin the next one's with theta."""
        stage, role = self.options.at(step), self.roles["student"]
        if step != stage.end - 1 or stage.index == len(self.ends):
            return
        assert role.ema_options is not None
        decay = role.ema_options.decay(step + 1)
        for end, average, weight in zip(
            *(self._learned(m) for m in (self.ends[stage.index], self.average, self.student)), strict=True
        ):
            end.copy_(average).lerp_(weight, 1 - decay)
            if self.options.reset_target:
                average.copy_(weight)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": p for i, end in enumerate(self.ends) for name, p in zip(self._names, self._learned(end), strict=True)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.state().items():
                p.copy_(placed(state[name], p))

    def _frozen_copy(self) -> Any:
        held = {id(p): p for p in self.student.parameters() if not p.requires_grad}
        return copy.deepcopy(self.student, held).requires_grad_(False).eval()

    @property
    def _names(self) -> list[str]:
        return [name for name, p in self.student.named_parameters() if p.requires_grad]

    def _learned(self, module: Any) -> Iterator[Tensor]:
        return (module.get_parameter(name) for name in self._names)

    @property
    def sampling(self) -> Rollout | Chain:
        o = self.options
        if o.eta == 0:
            return self.rollout
        if o.schedule != "time":
            raise LimbeckError(
                f"with eta = {o.eta:g} the jumps end at positions of the schedule {o.schedule!r}, which samplers elsewhere do not "
                "know; train with schedule 'time', or sample with eta 0"
            )
        return Chain(self.process, tuple(self.times.tolist()), "tcd", o.eta)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sampler(
        self,
        ema: bool = True,
        steps: int | None = None,
        *,
        stage: str | int | None = None,
        eta: float | None = None,
        guidance: float = 1.0,
        spacing: str = "trailing",
    ) -> Callable[..., Tensor]:
        """The student as (z, cond, fresh noise of step i) -> x, in ``steps`` steps, or a stage's model (None: the last one).

        ``steps``: None: the options' own, or a stage's k. ``eta``: gamma of TCD (None: the options'). Warns where nothing has
        learned the jumps that are asked for, and where the student is guided a second time.
        """
        o = self.options
        denoiser: Any = self.student if not ema and stage is None else self.average if stage is None else self.stage(stage)
        of = o.stages[-1] if stage is None else next(s for s in o.stages if s.name == str(stage))
        steps = (o.sampling_steps if stage is None else of.segments) if steps is None else steps
        eta = o.eta if eta is None else eta
        _check_sampling(o, of, steps, eta, guidance, spacing)
        if guidance != 1:
            check_guidance(denoiser, guidance)
            denoiser = ClassifierFree(denoiser, guidance)
        places = trailing(steps, self.first if of.kind == "score" else 1.0)
        times = self.path(places)
        below = None if o.schedule == "time" else self.path((1 - eta) * places[1:])

        @torch.no_grad()
        def sample(z: Tensor, cond: Cond | None = None, noise: Callable[[int], Tensor] | None = None) -> Tensor:
            x = self.begin(z, float(places[0]))
            if eta == 0:
                return ddim(denoiser, x, times, cond)
            return tcd(denoiser, x, times, cond, eta=eta, noise=noise, below=below)

        return sample


def _check_sampling(o: HyperSDOptions, stage: Stage, steps: int, eta: float, guidance: float, spacing: str) -> None:
    k = stage.segments
    if spacing != "trailing":
        raise LimbeckError(f"{spacing} spacing does not begin at the noisiest time, where all is noise; use trailing")
    if steps < 1:
        raise LimbeckError(f"steps={steps}: sampling needs at least one step; this model was made for {k}")
    if steps < k:
        warnings.warn(
            f"{steps} steps of a model with k={k} segments jump over borders, which nothing has learned", stacklevel=3
        )
    elif o.target == "border" and (eta > 0 or steps != k):
        asked = f"eta={eta:g}" if eta > 0 else f"{steps} steps"
        warnings.warn(f"{asked}, but with target='border' the model has only learned to reach the {k} borders", stacklevel=3)
    if guidance > 1 and not o.keep_guidance:
        warnings.warn(
            f"guidance {guidance:g} on a student that needs none: it is applied a second time; distil with keep_guidance=True",
            stacklevel=3,
        )
