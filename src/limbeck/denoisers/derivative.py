"""The derivative of a network along a path, in forward mode or by differences: the one owner of torch.func.jvp."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.errors import LimbeckError, unknown
from limbeck.networks import Conditioning, ForwardMode, RngCapture
from limbeck.networks.attention_jvp import KERNELS
from limbeck.noise import spread

Form = Literal["full", "semi", "discrete"]
Path = Callable[[Tensor, Tensor], Tensor]
HALF = (torch.bfloat16, torch.float16)


@torch.no_grad()
def derivative(
    function: Path,
    x: Tensor,
    t: Tensor,
    velocity: Tensor,
    scale: Tensor | float = 1.0,
    *,
    network: nn.Module,
    form: str = "full",
    h: float = 1e-4,
    attention: str = "tiled",
    rng: RngCapture | None = None,
) -> tuple[Tensor, Tensor]:
    """(F(x, t), scale dF/dt) along dx/dt = velocity, without gradient; both in the shape of x.

    ``function`` (x (B, ...), t (B,) float64) -> F; ``network`` is the module inside it, whose layers errors name.
    ``scale``: a number or (B,); it goes into the tangents, so that nothing large is multiplied with something small.
    ``form``: "full", one Jacobian-vector product. "semi": the product in x alone, and in time the difference
    (cos h F(x, t) - F(x, t - h)) / sin h. "discrete": that difference with x moved too, to cos h x - sin h velocity, the
    exact step of a spherical path (TrigFlow's); no forward mode at all. h is at most t / 2.
    ``attention``: "tiled", "triton" or "math" (torch's own, L x L memory). ``rng``: the random state under which every call
    of F runs, that its dropout is that of another call. Forward mode costs about three calls of F, a difference one more.

    Raises LimbeckError where the network has a layer without forward mode, is compiled, or has active dropout without
    ``rng``; warns where half precision spoils it: in the time embedding, or a difference over a small h.
    """
    if form not in get_args(Form):
        raise unknown("form of the derivative", form, get_args(Form))
    if attention not in (*KERNELS, "math"):
        raise unknown("attention", attention, (*KERNELS, "math"))
    if rng is None and any(_active_dropout(m) for m in network.modules()):
        raise LimbeckError(
            "dropout is active in the network that is to be differentiated: give the random state of the call it belongs to "
            "(rng=RngCapture()), or put the network in eval mode"
        )
    _check_precision(network, form, h)
    scale = torch.as_tensor(scale, dtype=torch.float64, device=x.device).expand(len(x))
    fixed = rng.replay if rng is not None else nullcontext
    if form == "discrete":
        with fixed():
            F = function(x, t)
    else:
        _check_forward_mode(network)
        along_time = scale if form == "full" else torch.zeros_like(scale)
        with fixed():
            F, dF = _jvp(function, network, (x, t.double()), (spread(scale, x) * velocity, along_time), attention)
        if form == "full":
            return F, dF
    step = torch.minimum(torch.full_like(t, h, dtype=torch.float64), t.double() / 2)
    before = x
    if form == "discrete":
        dF, before = torch.zeros_like(F), spread(step.cos(), x) * x - spread(step.sin(), x) * velocity
    with fixed():
        earlier = function(before, t - step)
    return F, dF + spread(scale / step.sin(), x) * (spread(step.cos(), x) * F - earlier)


def _jvp(
    function: Path, network: nn.Module, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...], attention: str
) -> tuple[Tensor, Tensor]:
    with sdpa_kernel(SDPBackend.MATH), ForwardMode(attention):
        try:
            value, derived = torch.func.jvp(function, primals, tangents)[:2]
            return value, derived
        except (NotImplementedError, RuntimeError) as error:
            if not any(word in str(error) for word in ("forward AD", "jvp", "setup_context")):
                raise
            reason = str(error).splitlines()[0]
            with _entered(network) as stack:
                try:
                    torch.func.jvp(function, primals, tangents)
                except (NotImplementedError, RuntimeError):
                    name = stack[-1] if stack else "what surrounds the network"
        raise LimbeckError(
            f"{name} has no forward-mode derivative ({reason}); replace what it computes by operations that have one, or take "
            "the derivative by differences (jvp='discrete')"
        )


@contextmanager
def _entered(network: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that have been entered and not left, innermost last."""
    stack: list[str] = []
    handles = []
    for name, module in network.named_modules():
        said = f"the module {name!r} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda *_, said=said: stack.append(said)))
        handles.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _check_forward_mode(network: nn.Module) -> None:
    compiled = [m for m in network.modules() if hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None]
    if compiled or torch.compiler.is_compiling():
        raise LimbeckError(
            "forward mode does not go through torch.compile: give the network as it was before compiling, compile what is "
            "outside the derivative, or take the derivative by differences (jvp='discrete')"
        )


def _check_precision(network: nn.Module, form: str, h: float) -> None:
    half = any(getattr(m, "compute_dtype", None) in HALF for m in network.modules())
    if not half and not any(p.dtype in HALF for p in network.parameters()):
        return
    if form != "full" and h < 1e-2:
        warnings.warn(
            f"a difference over h={h:g} is smaller than what half precision rounds; use float32, a larger h, or jvp='full'",
            stacklevel=4,
        )
    embeddings = [m for m in network.modules() if isinstance(m, Conditioning)]
    if not embeddings or any(p.dtype in HALF for m in embeddings for p in m.parameters()):
        warnings.warn(
            "the time embedding runs in half precision, in which a derivative in time is mostly rounding error; keep these "
            "layers in float32 (limbeck.networks do so under compute_dtype), or use float32",
            stacklevel=4,
        )


def _active_dropout(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    share = getattr(module, "dropout", 0.0)  # the library's own networks
    return isinstance(share, float) and share > 0
