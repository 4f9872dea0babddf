"""What is distilled: a task brings the teacher, the data, the conditions, and how students are judged."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import ClassifierFree, Cond, Denoiser, save_student
from limbeck.errors import LimbeckError
from limbeck.metrics import bootstrap_floor, frechet_distance
from limbeck.networks import merged
from limbeck.noise import karras_grid
from limbeck.samplers import heun
from limbeck.tasks.contract import Figures, Picture, student_of
from limbeck.training import Keyed, TensorSource
from limbeck.training.failure import NotFinite

Sampler = Callable[..., Tensor]  # (z standard normal (B, ...), cond, fresh noise of step i) -> x
Reward = Callable[[Tensor, Cond | None], Tensor]  # samples (B, ...) and their conditions -> (B,), higher is better
PICTURED = 10  # columns of the sample grids
EVALUATION_SEED = 2**31 - 1  # evaluation noise is its own stream, the same for every model


@dataclass(frozen=True)
class Evaluator:
    """Judges samplers by ``count`` samples against the real data.

    ``features`` (N, ...) -> (N, D); ``real`` the data; ``cond`` the conditions of the samples asked for, ``count`` rows;
    ``accuracy`` (x, cond) -> share of samples that show their condition (None: not known).
    """

    features: Callable[[Tensor], Tensor]
    real: Tensor
    count: int
    cond: Cond | None = None
    accuracy: Callable[[Tensor, Cond], float] | None = None
    chunk: int = 1024
    extra: Callable[[Tensor, Cond | None], Figures] | None = None
    """More figures of samples x and their conditions."""
    clamp: float | None = 1.0
    """Images are judged in [-clamp, clamp], as they would be saved (None: as they are)."""
    decode: Callable[[Tensor], Tensor] | None = None
    """Samples of latents as the images that are judged and looked at; ``accuracy`` and ``extra`` see these (None: themselves)."""
    images: Tensor | None = None
    """What the samples are judged against, where ``real`` are latents (None: ``real``)."""

    @cached_property
    def reference(self) -> Tensor:
        """The features of the real data."""
        return self._features(self.real if self.images is None else self.images)

    def seen(self, x: Tensor) -> Tensor:
        """Samples as the images that are judged, in [-clamp, clamp]."""
        x = x if self.decode is None else self.decode(x)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)

    def shown(self, x: Tensor) -> Tensor:
        """Samples as pictures (N, C, H, W) to look at: of videos the first, the middle and the last frame, side by side."""
        return side_by_side_frames(x if self.decode is None else self.decode(x))

    def _features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.features(part.to(self.real.device)) for part in x.split(self.chunk)])

    @torch.no_grad()
    def sample(self, sampler: Sampler, count: int | None = None, seed: int = EVALUATION_SEED) -> Tensor:
        """``count`` samples (None: all), noise keyed by sample."""
        count = self.count if count is None else count
        parts = []
        for index in torch.arange(count).split(self.chunk):
            keyed = Keyed(seed, 0, index, self.real.device)
            z = keyed.normal("z", tuple(self.real.shape[1:]), self.real.dtype)
            cond = None
            if self.cond is not None:
                cond = {name: value[index.to(value.device)].to(self.real.device) for name, value in self.cond.items()}
            noise = lambda i, keyed=keyed, z=z: keyed.normal(f"renoise {i}", tuple(z.shape[1:]), z.dtype)  # noqa: E731
            parts.append(sampler(z, cond, noise))
        return torch.cat(parts)

    def pictures(self, columns: int, rows: int, sampler: Sampler | None = None) -> Tensor:
        """rows x columns images, row by row, a column a class where there are labels: real ones, or a sampler's."""
        count, real = rows * columns, self.real if self.images is None else self.images
        if self.cond is None or "label" not in self.cond:
            count = min(count, self.count)
            return side_by_side_frames(real[:count]) if sampler is None else self.shown(self.sample(sampler, count))
        labels = self.cond["label"]
        classes = labels.unique()
        members = [(labels == classes[i % len(classes)]).nonzero()[:, 0] for i in range(columns)]
        index = torch.stack([m[torch.arange(rows) % len(m)] for m in members], 1).flatten()
        if sampler is None:
            return side_by_side_frames(real[index.to(real.device) % len(real)])
        cond = {name: value[index] for name, value in self.cond.items()}
        return self.shown(replace(self, cond=cond, count=count).sample(sampler))

    def __call__(self, sampler: Sampler, nfe: int) -> Figures:
        """nfe, frechet, accuracy (nan where not known), images per second and the extra figures of a sampler."""
        start = time.perf_counter()
        x = self.sample(sampler)
        seconds = time.perf_counter() - start
        return {"nfe": nfe, **self.judge(x, self.cond), "images_per_second": self.count / seconds}

    def judge(self, x: Tensor, cond: Cond | None = None) -> Figures:
        """frechet, accuracy and the extra figures of samples x (N, ...) that were asked for with ``cond``."""
        x = self.seen(x)
        accuracy = float("nan") if self.accuracy is None or cond is None else self.accuracy(x, cond)
        figures = {"frechet": float(frechet_distance(self._features(x), self.reference)), "accuracy": accuracy}
        return figures if self.extra is None else {**figures, **self.extra(x, cond)}

    def noise_floor(self, repeats: int = 20) -> float:
        """Median Frechet distance of as many real images, drawn with replacement: what a perfect model would get."""
        copies = max(self.count // len(self.real), 1)
        labels = None if self.cond is None or "label" not in self.cond else self.cond["label"][: len(self.real)]
        return bootstrap_floor(self.reference, frechet_distance, repeats, 0, labels=labels, copies=copies)


def scored(reward: Reward, name: str, x: Tensor, cond: Cond | None = None) -> Tensor:
    """The rewards (B,) of samples x (B, ...). Raises LimbeckError where they are not one finite number per sample."""
    value = reward(x, cond)
    if not isinstance(value, Tensor) or tuple(value.shape) != (len(x),):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise LimbeckError(f"the reward {name!r} gave {got} for {len(x)} samples; it must give one number each, ({len(x)},)")
    if bad := value[~torch.isfinite(value)].tolist():
        raise NotFinite("reward", f"value of {name!r} for {len(bad)} of {len(x)} samples", bad[0])
    return value.double()


@dataclass(frozen=True)
class Task:
    """``teacher`` a denoiser module; ``source`` the training data; ``network`` makes new networks of the teacher's kind."""

    name: str
    teacher: Any
    source: TensorSource
    shape: tuple[int, ...]
    evaluator: Evaluator
    sigma_data: float
    network: Callable[[], nn.Module]
    teacher_nodes: int = 18
    """Nodes of the teacher's Heun sampler: 2 n - 1 network calls."""
    sigmas: tuple[float, float] = (0.002, 80.0)
    """The noise levels that the teacher's sampler goes through, lowest and highest."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What there is to say about the teacher: where it came from, how long it took."""
    start: Any = None
    """What students and critics start as copies of (None: the teacher): a network near a teacher that has none, or the
    student of another run; ``start_sigmas`` are the noise levels at which that student samples."""
    start_sigmas: tuple[float, ...] | None = None
    rewards: dict[str, Reward] = field(default_factory=dict)
    """What preference methods may maximise, by name."""
    negatives: Tensor | None = None
    """Texts (N, M, C') that methods with negative prompts are trained to avoid."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method options that suit the task better than the method's own defaults, by method."""
    teacher_times: Callable[[int], Tensor] | None = None
    """The nodes of the teacher's sampler by their number, in the process's own time (None: Karras levels within ``sigmas``)."""
    teacher_guidance: float = 1.0
    """w of the teacher where it samples; not 1, every node is two network calls."""

    best: str = "frechet"

    def watched(self, method: Any) -> Figures:
        """Frechet distance and accuracy of the student, what is known of them."""
        figures = self.evaluator(method.sampler(), len(method.times))
        return {name: figures[name] for name in ("frechet", "accuracy") if figures[name] == figures[name]}

    def judged(self, method: Any) -> dict[str, Any]:
        """Teacher, teacher with the student's number of calls, student, and what a perfect model would get."""
        nfe = len(method.times)
        return {
            "teacher": self.judged_teacher(self.teacher_nodes),
            "teacher_at_student_nfe": self.judged_teacher((nfe + 1) // 2),  # Heun with n nodes costs 2 n - 1 calls
            "student": self.evaluator(method.sampler(), nfe),
            "noise_floor": self.evaluator.noise_floor(),
        }

    def album(self, method: Any) -> dict[str, Picture]:
        """Real images, and those of the teacher, of the teacher with as few calls as the student, and of the student."""
        samplers: dict[str, tuple[str, Sampler | None]] = {
            "real": ("Real", None),
            "teacher": ("Teacher", self.teacher_sampler(self.teacher_nodes)),
            "teacher_at_student_nfe": ("Teacher, as few calls", self.teacher_sampler((len(method.times) + 1) // 2)),
            "student": ("Student", method.sampler()),
        }
        return {n: Picture(self.pictures(PICTURED, s), PICTURED, title) for n, (title, s) in samplers.items()}

    def leave(self, folder: Path, method: Any, about: Mapping[str, Any]) -> None:
        """student.safetensors and student.json."""
        save_student(folder / "student", merged(student_of(method)), {**about, "times": method.times.tolist()})

    def exports(self) -> Mapping[str, Callable[[Any, Path], None]]:
        """None of its own: denoisers go to pipelines and programs (:mod:`limbeck.runs.exporting`)."""
        return {}

    def judged_teacher(self, nodes: int) -> Figures:
        """The teacher's figures under Heun's method with ``nodes`` noise levels."""
        return self.evaluator(self.teacher_sampler(nodes), (2 * nodes - 1) * (1 if self.teacher_guidance == 1 else 2))

    def pictures(self, columns: int, sampler: Sampler | None = None, rows: int = 8) -> Tensor:
        """rows x columns images to look at, a column a class where there are labels: real ones, or a sampler's."""
        return self.evaluator.pictures(columns, rows, sampler)

    def teacher_sampler(self, nodes: int) -> Sampler:
        """The teacher under Heun's method with ``nodes`` noise levels (1: one call at the highest)."""
        denoiser = self.teacher if self.teacher_guidance == 1 else ClassifierFree(self.teacher, self.teacher_guidance)
        if self.teacher_times is None:
            return heun_sampler(denoiser, nodes, *self.sigmas)
        return sampler_at(denoiser, self.teacher_times(nodes))


def heun_sampler(denoiser: Denoiser, nodes: int, low: float, high: float) -> Sampler:
    """A denoiser under Heun's method on ``nodes`` Karras noise levels of sigma, in any process: 2 nodes - 1 calls."""
    return sampler_at(denoiser, denoiser.process.time_of(karras_grid(nodes, low, high)))


def sampler_at(denoiser: Denoiser, times: Tensor) -> Sampler:
    """A denoiser under Heun's method from noise of the first of ``times`` on: 2 len(times) - 1 calls."""
    process = denoiser.process

    @torch.no_grad()
    def sample(z: Tensor, cond: Cond | None = None, noise: Callable[[int], Tensor] | None = None) -> Tensor:
        return heun(denoiser, process.s(times[:1]).to(z) * z, times, cond)

    return sample


def side_by_side_frames(x: Tensor) -> Tensor:
    """Pictures as they are; of videos (N, C, F, H, W) the first, the middle and the last frame beside one another."""
    if x.ndim != 5:
        return x
    return torch.cat([x[:, :, i] for i in sorted({0, x.shape[2] // 2, x.shape[2] - 1})], -1)
