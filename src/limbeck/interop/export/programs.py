"""A student as one program from noise to sample: torch.export and ONNX. All coefficients are constants in it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import NOISE_INPUTS, SCALINGS, Cond, Preconditioned, Rescaled
from limbeck.errors import LimbeckError, missing_extra
from limbeck.interop.export.steps import Steps
from limbeck.networks import merged
from limbeck.samplers import Experts

OPSET = 20


@dataclass(frozen=True)
class Call:
    """One call D(x, t) = skip x + out F(in x, c_noise) of network number ``network``, and x_next = signal D + carry x + fresh n."""

    network: int
    skip: float
    out: float
    scale_in: float
    c_noise: float
    signal: float = 1.0
    carry: float = 0.0
    fresh: float = 0.0


class Unrolled(nn.Module):
    """(z, conditions in the order of ``names``, fresh noise of the steps after the first) -> x, the steps written out."""

    def __init__(self, networks: Sequence[nn.Module], calls: Sequence[Call], begin: float, names: Sequence[str]):
        super().__init__()
        self.networks, self.calls, self.begin, self.names = nn.ModuleList(networks), tuple(calls), begin, tuple(names)
        self.noises = sum(call.fresh != 0 for call in self.calls)

    def forward(self, z: Tensor, *more: Tensor) -> Tensor:
        cond = dict(zip(self.names, more, strict=False)) or None
        noises = iter(more[len(self.names) :])
        x = self.begin * z
        for call in self.calls:
            c_noise = torch.full_like(x.flatten(1)[:, 0], call.c_noise)
            answer = self.networks[call.network](call.scale_in * x, c_noise, cond)
            clean = call.skip * x + call.out * answer
            x = call.signal * clean + call.carry * x if call.carry else call.signal * clean
            if call.fresh:
                x = x + call.fresh * next(noises)
        return x


def unrolled(student: Any, steps: Steps, names: Sequence[str] = ()) -> Unrolled:
    """A student and its steps as one module, in eval mode; ``names``: the conditions that it is given.

    ``student``: a :class:`limbeck.denoisers.Preconditioned`, or experts of them. Raises LimbeckError for other denoisers and
    for noise that is neither fresh, fixed nor that of the ODE.
    """
    if steps.kind not in ("fresh", "ode", "fixed"):
        raise LimbeckError(
            f"steps of the kind {steps.kind!r} are not written out as a program; sample with one step, fresh or ode"
        )
    if steps.kind == "fixed" and steps.K > 1:
        raise LimbeckError("a program does not keep the first noise (renoise 'fixed'); train with renoise 'fresh' or 'ode'")
    process, networks, calls = steps.process, list[nn.Module](), list[Call]()
    times = torch.tensor(steps.times, dtype=torch.float64)
    a, s = process.a(times).tolist(), process.s(times).tolist()
    for i, t in enumerate(times):
        denoiser = plain(student, t)
        if not any(denoiser.network is network for network in networks):
            networks.append(denoiser.network)
        number = next(n for n, network in enumerate(networks) if network is denoiser.network)
        last = i == steps.K - 1
        between: dict[str, float] = {}
        if not last and steps.kind == "ode":  # n = (x - a D) / s
            ratio = s[i + 1] / s[i]
            between = {"signal": a[i + 1] - a[i] * ratio, "carry": ratio}
        elif not last:
            between = {"signal": a[i + 1], "fresh": steps.noise_scale * s[i + 1]}
        calls.append(Call(number, *coefficients(denoiser, t), **between))
    begin = steps.noise_scale * (1.0 if steps.start == "unit" else s[0])
    return Unrolled(networks, calls, begin, names).eval()


def plain(student: Any, t: Tensor) -> Preconditioned:
    """The preconditioned network that answers at a time, adapters merged. Raises LimbeckError for other denoisers."""
    if isinstance(student, Experts):
        student = student.experts[int(student.index(t[None]))][2]
    if isinstance(student, Rescaled):
        raise LimbeckError("the student works in another range of data than its network; export a network of data in [-1, 1]")
    if not isinstance(student, Preconditioned):
        raise LimbeckError(
            f"the student is a {type(student).__name__}, not a preconditioned network (limbeck.denoisers.Preconditioned)"
        )
    return student


def coefficients(denoiser: Preconditioned, t: Tensor) -> tuple[float, float, float, float]:
    """(skip, out, in, c_noise) of a denoiser at a time, from float64."""
    process, sd, at = denoiser.process, denoiser.sigma_data, t[None]
    c_noise = float(NOISE_INPUTS[denoiser.noise_input](process, at, sd))
    if denoiser.prediction in SCALINGS:
        skip, out, scale_in = (float(c) for c in SCALINGS[denoiser.prediction](process, at, sd))
        return skip, out, scale_in, c_noise
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    skip = float(process.convert(zero, one, at, denoiser.prediction, "x0"))  # linear in both
    return skip, float(process.convert(one, zero, at, denoiser.prediction, "x0")), 1.0, c_noise


def example_inputs(shape: Sequence[int], module: Unrolled, cond: Cond | None, batch: int = 3) -> tuple[Tensor, ...]:
    """Inputs to trace with: z and fresh noise (batch, *shape), conditions from rows of ``cond``."""
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(batch, *shape, generator=generator) for _ in range(1 + module.noises)]
    rows = torch.arange(batch)
    return (z[0], *(cond[name][rows % len(cond[name])] for name in module.names if cond), *z[1:])


def input_names(module: Unrolled) -> list[str]:
    """z, the conditions, noise_1, ..."""
    return ["z", *module.names, *(f"noise_{i + 1}" for i in range(module.noises))]


@torch.no_grad()
def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The torch.export program, for a batch of any size (of up to 63 with the U-Nets of diffusers). Raises LimbeckError where the
    network cannot be traced."""
    try:
        return _traced(module, inputs, None)
    except Exception as first:
        if "max=63" not in str(first):  # the U-Nets of diffusers upsample batches from 64 on by another branch
            raise _untraceable(module, first) from first
    try:
        return _traced(module, inputs, 63)
    except Exception as error:  # torch raises whatever the network happens to cause
        raise _untraceable(module, error) from error


def _traced(module: nn.Module, inputs: tuple[Tensor, ...], most: int | None) -> Any:
    size = torch.export.Dim("batch", min=1, max=most)
    more = [tuple({0: size} for _ in inputs[1:])] if len(inputs) > 1 else []  # none given, none described
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, inputs, dynamic_shapes=({0: size}, *more))


def _untraceable(module: nn.Module, error: Exception) -> LimbeckError:
    network = module.networks[0] if isinstance(module, Unrolled) else module
    return LimbeckError(
        f"torch.export cannot trace the {type(network).__name__}: {str(error).splitlines()[0][:200]}; export the weights "
        "(student.safetensors in the run) instead"
    )


def write_program(path: Path, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Write PATH.pt2, and compare it with the student on another batch size. Raises LimbeckError where they differ."""
    program = exported(module, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    fewer = tuple(value[:2] for value in inputs)
    _compare(path, module(*fewer), torch.export.load(path).module()(*fewer))


def write_onnx(path: Path, module: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], output: str = "x") -> None:
    """Write PATH.onnx (opset 20), and compare it with the student in onnxruntime on another batch size. ``names``: of the inputs.

    Raises LimbeckError where they differ, or where a package is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise missing_extra("onnx", "ONNX needs onnx, onnxscript and onnxruntime") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            exported(module, inputs),
            inputs,
            input_names=list(names),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    fewer = tuple(value[:2] for value in inputs)
    (found,) = session.run(None, {n: v.numpy() for n, v in zip(names, fewer, strict=True)})
    _compare(path, module(*fewer), torch.from_numpy(found))


def _compare(path: Path, ours: Tensor, theirs: Tensor) -> None:
    worst = float((ours.detach() - theirs.detach()).abs().max())
    if not worst <= 1e-4 * max(1.0, float(ours.detach().abs().max())):
        path.unlink()
        raise LimbeckError(
            f"the program in {path} differs from the student by {worst:.1e}; it was removed; "
            "take the weights instead, student.safetensors in the run"
        )


__all__ = [
    "OPSET",
    "Unrolled",
    "example_inputs",
    "exported",
    "input_names",
    "merged",
    "unrolled",
    "write_onnx",
    "write_program",
]
