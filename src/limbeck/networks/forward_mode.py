"""Networks under forward-mode differentiation: attention that can be differentiated, in a network's own modules or anywhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from limbeck.networks.attention import Attention, Processor, attend
from limbeck.networks.attention_jvp import attention_jvp


def dual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    kernel: str = "tiled",
) -> Tensor:
    """torch's attention where nothing carries a tangent; under forward-mode differentiation, :func:`attention_jvp`.

    Shapes and ``mask`` as there. For ``torch.func.jvp`` and for ``torch.autograd.forward_ad``, one level deep.
    """
    duals = [forward_ad.unpack_dual(x) for x in (q, k, v)]
    if all(dual.tangent is None for dual in duals):
        shared = q.shape[-3] != k.shape[-3]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=shared)
    O, tO = attention_jvp(
        *(dual.primal for dual in duals),
        *(dual.tangent for dual in duals),
        mask=mask,
        scale=scale,
        causal=causal,
        kernel=kernel,
    )  # type: ignore[misc]
    return forward_ad.make_dual(O, tO)


class ForwardMode(TorchFunctionMode):
    """Within this context the functions of any network that forward mode fails in are replaced by ones that it does not.

    torch's scaled_dot_product_attention becomes :func:`dual_attention` (calls with dropout, a mask of numbers or an unusual
    layout go to torch), and group_norm works on float32 copies in memory order (its tangent would come in another dtype than
    its answer). ``kernel``: as :func:`attention_jvp` has it; "math" leaves attention to torch.
    """

    def __init__(self, kernel: str = "tiled"):
        super().__init__()
        self.kernel = kernel

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.group_norm:
            x = args[0].contiguous()
            return func(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x, *args[1:], **given)
        if func is F.scaled_dot_product_attention and self.kernel != "math":
            call = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | given
            q, k, v, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
            known = mask is None or mask.dtype == torch.bool
            alike = q.ndim == k.ndim >= 3 and q.shape[:-3] == k.shape[:-3]
            if known and alike and not call.get("dropout_p", 0.0):
                causal = bool(call.get("is_causal", False))
                return dual_attention(q, k, v, mask, call.get("scale"), causal, self.kernel)
        return func(*args, **given)


def attend_forward_mode(kernel: str = "tiled", processor: Processor = attend) -> Processor:
    """A processor for :class:`Attention` that computes what ``processor`` does and has a forward-mode derivative.

    >>> processors = dict.fromkeys(attentions(network), attend_forward_mode())
    >>> with exchange_processors(network, processors):
    ...     torch.func.jvp(network, primals, tangents)
    """

    def within(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
        with ForwardMode(kernel):
            return processor(attention, x, context)

    return within
