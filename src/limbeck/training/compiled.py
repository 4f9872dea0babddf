"""torch.compile for the networks of a method, only where it computes what they compute without: outputs and all gradients.

A compiled network may answer right and still have wrong gradients (on the CPU, torch 2.13's compiler gave zeros for most tensors of
a U-Net unless told ``layout_optimization=False``). So each is compared, on the questions of a first iteration, before it trains.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from limbeck.errors import LimbeckError
from limbeck.training.method import Batch, Method, Update
from limbeck.training.rng import restore_rng, rng_state

TOLERANCE = 1e-4  # largest difference of a tensor, in norm, as a share of its own
LITTLE = 1e-6  # share of the largest gradient below which a gradient is rounding error and is measured by this share
TRIED = 10  # iterations in which a method should have updated its student
LEAVE_OUT = "leave out compile"


@dataclass(frozen=True)
class Question:
    """One call of a network: what it was given, and what gradients were asked for."""

    inputs: tuple[Any, ...]
    named: dict[str, Any]
    grad: bool
    """Was gradient mode on?"""
    input_grad: bool
    """Did the first input require a gradient?"""
    trained: frozenset[str]
    """Names of the parameters that required one."""


def compile_roles(method: Method, batches: Iterable[Batch], **how: Any) -> list[str]:
    """Compile the networks of all roles in place, their parameters under the names they had; returns the names of these roles.

    ``batches``: those of the first iterations, which are gone through without any update until the student would have one, to see
    what each network is asked. Networks that nobody asks, and averages, stay as they are. ``how``: as torch.compile takes it
    (None given: its own compiler, on the CPU without layout optimization). Raises LimbeckError, and compiles nothing, where a
    network is asked for forward-mode derivatives or run under autocast, where hooks read or change its layers, where
    torch.compile fails, and where a compiled network differs from itself.
    """
    found = {name: networks(role.module) for name, role in method.roles.items()}
    names = {id(n): name for name, several in found.items() for n in several}
    every = {id(n): n for several in found.values() for n in several}
    if "discriminator" in method.roles:
        raise LimbeckError(f"a discriminator reads the layers of a network, which a compiled one has none of; {LEAVE_OUT}")
    state, done = rng_state(), []
    try:
        for key, questions in recorded(method, batches, list(every.values())).items():
            network = every[key]
            done.append(network)
            compile_checked(network, questions, f"the network of the role {names[key]!r}", **how)
    except LimbeckError:
        for network in done:
            restore(network)
        raise
    finally:
        restore_rng(state)
    return list(dict.fromkeys(names[id(n)] for n in done))


def networks(module: nn.Module) -> list[nn.Module]:
    """The networks inside a denoiser: what its wrappers call ``network``, the outermost of these; none: the module itself."""
    inner: list[Any] = [m.network for m in module.modules() if isinstance(getattr(m, "network", None), nn.Module)]
    inside = {id(part) for n in inner for part in n.modules() if part is not n}
    outermost: dict[int, nn.Module] = {id(n): n for n in inner if id(n) not in inside}
    return list(outermost.values()) or [module]


def recorded(method: Method, batches: Iterable[Batch], watched: list[nn.Module]) -> dict[int, list[Question]]:
    """By the id of each network that is asked, one question for every set of gradients that is wanted of it."""
    found: dict[int, dict[Any, Question]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = inputs[0]
        what = type(module).__name__
        if forward_ad.unpack_dual(x).tangent is not None:
            raise LimbeckError(
                f"{type(method).__name__} takes forward-mode derivatives of {what}, which cannot be compiled; {LEAVE_OUT}"
            )
        if torch.is_autocast_enabled(x.device.type):
            raise LimbeckError(
                f"in bfloat16 rounding hides what a compiler does wrong; take float32 for {what}, or {LEAVE_OUT}"
            )
        if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules() if m is not module):
            raise LimbeckError(f"hooks read or change the layers of {what}, which a compiled one does not call; {LEAVE_OUT}")
        trained = frozenset(n for n, p in module.named_parameters() if p.requires_grad)
        mode = torch.is_grad_enabled(), x.requires_grad, trained
        found.setdefault(id(module), {}).setdefault(mode, Question(_detached(inputs), _detached(named), *mode))

    handles = [n.register_forward_pre_hook(note, with_kwargs=True) for n in watched]
    try:
        for batch in batches:
            if any("student" in roles for roles in _gone_through(method, batch)):
                break
    finally:
        for handle in handles:
            handle.remove()
    return {key: list(questions.values()) for key, questions in found.items()}


def compile_checked(network: nn.Module, questions: Iterable[Question], what: str, **how: Any) -> None:
    """Compile a network in place if it then answers these questions as before. Raises LimbeckError that names the tensor that
    differs most; the network is then as it was."""
    questions = list(questions)
    before = [outcome(network, q) for q in questions]
    if not how and next(network.parameters()).device.type == "cpu":
        how = {"options": {"layout_optimization": False}}
    try:
        network.compile(**how)
        after = [outcome(network, q) for q in questions]
    except Exception as error:  # compilers fail in ways of their own
        restore(network)
        reason = next(iter(str(error).splitlines()), "")
        raise LimbeckError(f"{what} cannot be compiled ({type(error).__name__}: {reason}); {LEAVE_OUT}") from error
    for one, other in zip(before, after, strict=True):
        gaps = differences(one, other)
        name = max(gaps, key=lambda n: gaps[n])
        if gaps[name] > TOLERANCE:
            restore(network)
            wrong = sum(gap > TOLERANCE for gap in gaps.values())
            raise LimbeckError(
                f"{what} is not compiled: {wrong} of {len(gaps)} tensors differ by more than {TOLERANCE:g} from what it computes "
                f"without, {name} most ({gaps[name]:.2g} of its size); {LEAVE_OUT}"
            )


def restore(network: nn.Module) -> None:
    """Undo :meth:`torch.nn.Module.compile`, for which torch has no call."""
    network._compiled_call_impl = None


def outcome(network: nn.Module, q: Question) -> dict[str, Tensor]:
    """The answer to a question, and every gradient that was wanted, for one fixed random direction of the answer."""
    params = dict(network.named_parameters())
    held = {name: p.requires_grad for name, p in params.items()}
    x = _detached(q.inputs[0]).requires_grad_(q.input_grad)
    torch.manual_seed(0)  # dropout
    try:
        for name, p in params.items():
            p.requires_grad_(name in q.trained)
        with torch.set_grad_enabled(q.grad):
            out = network(x, *_detached(q.inputs[1:]), **_detached(q.named))
            out = out if isinstance(out, Tensor) else out[0]
            wanted = {"its input": x} if q.input_grad else {}
            wanted |= {name: params[name] for name in sorted(q.trained)}
            if not (q.grad and wanted and out.requires_grad):
                return {"its answer": out.detach()}
            direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
            grads = torch.autograd.grad((out * direction).sum(), list(wanted.values()), allow_unused=True)
    finally:
        for name, p in params.items():
            p.requires_grad_(held[name])
    pairs = zip(wanted.items(), grads, strict=True)
    of = {f"the gradient of {name}": torch.zeros_like(v) if g is None else g for (name, v), g in pairs}
    return {"its answer": out.detach(), **of}


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """How far each tensor of the other lies from that of the one, as a share of its norm (not a number: infinitely far)."""
    norms = {name: float(value.double().norm()) for name, value in one.items()}
    floor = LITTLE * max((size for name, size in norms.items() if name != "its answer"), default=0.0)
    found = {}
    for name, value in one.items():
        gap = float((value.double() - other[name].double()).norm()) / max(norms[name], floor, 1e-30)
        found[name] = gap if gap == gap else float("inf")
    return found


def _gone_through(method: Method, batch: Batch) -> list[str | tuple[str, ...]]:
    """The roles that an iteration would update; none is updated."""
    steps, reply = method.step(batch), None
    roles: list[str | tuple[str, ...]] = []
    while True:
        try:
            y = steps.send(reply)
        except StopIteration:
            return roles
        reply = None
        if isinstance(y, Update):
            roles.append(y.roles)
        else:
            reply = y.value.detach()


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: _detached(v) for name, v in value.items()}
    return type(value)(_detached(v) for v in value) if isinstance(value, (tuple, list)) else value
