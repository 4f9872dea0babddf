"""Negative prompts inside cross-attention: what a text must not say is subtracted from what its pixels attend to.

(1) Z+- = softmax(Q K+-^T / sqrt(d)) V+-, Q from the stream, K+- and V+- from c+ and c- by the same projections
(2) Z = Z+ - alpha Z-                                                             NASA (SNOOPI, arXiv 2412.02687)
(3) Z~ = Z+ + phi (Z+ - Z-), no longer than tau |Z+|_1;  Z = alpha Z~ + (1 - alpha) Z+      NAG (arXiv 2505.21179)

Z then goes through the layer's output projection, whose bias enters once. Self-attention is left alone, and so is what a
network knows of the text otherwise (a pooled embedding): token embeddings alone are touched. The query comes from a stream
that is steered already, so the layers compound. Of a network that attends to text and image jointly, Z+ and Z- would hold
attention of the image to itself: there, only the text's share of Z- may be subtracted, which these layers do not give.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, unknown
from limbeck.networks.attention import Attention, Processor, attended, attentions, exchange_processors

LARGEST = 1.5  # beyond it the negative prompt was found to dominate


class Negative:
    """The processor ``inner`` with the negative context (1, M, C') or (B, M, C') of (2) or (3) beside its own.

    ``inner`` runs once, on the positive context; what it sends through the output projection is steered on the way. So a
    processor that adds to the projected answer keeps its share, and negatives nest: each is subtracted in turn. See
    :func:`negative_prompt` for the other arguments, which are checked there.
    """

    def __init__(
        self,
        inner: Processor,
        context: Tensor,
        alpha: float | Tensor,
        mode: str = "nasa",
        phi: float = 4.0,
        tau: float = 2.5,
        mask: Tensor | None = None,
    ):
        self.inner, self.context, self.mask = inner, context, mask
        self.alpha, self.mode, self.phi, self.tau = alpha, mode, phi, tau

    def __call__(self, attention: Attention, x: Tensor, context: Tensor) -> Tensor:
        if len(self.context) not in (1, len(x)):
            raise LimbeckError(f"{len(self.context)} negative prompts do not fit {len(x)} samples: give one, or one per sample")
        negative = self.context.to(context).expand(len(x), -1, -1)
        mask = None if self.mask is None else self.mask.expand(len(x), -1)
        z_minus = attended(attention, x, negative, mask)  # (1)
        # the first hook: whoever looks at the projection's input sees what goes in
        hook = attention.output.register_forward_pre_hook(lambda _, z: self.steer(z[0], z_minus), prepend=True)
        try:
            return self.inner(attention, x, context)
        finally:
            hook.remove()

    def steer(self, plus: Tensor, minus: Tensor) -> Tensor:
        """Z of (2) or (3), like Z+ (B, L, C)."""
        return steered(plus, minus, self.alpha, self.mode, self.phi, self.tau)


def steered(
    plus: Tensor, minus: Tensor, alpha: float | Tensor, mode: str = "nasa", phi: float = 4.0, tau: float = 2.5
) -> Tensor:
    """Z of (2) or (3) from Z+ and Z- (B, L, C), like Z+; alpha one number or (B,)."""
    alpha = alpha.to(plus).reshape(-1, 1, 1) if isinstance(alpha, Tensor) else alpha
    if mode == "nasa":
        return plus - alpha * minus  # (2)
    far = plus + phi * (plus - minus)  # (3)
    norm, most = far.abs().sum(-1, keepdim=True), tau * plus.abs().sum(-1, keepdim=True)
    far = far * torch.where(norm > most, most / norm.clamp(min=torch.finfo(norm.dtype).tiny), 1.0)  # 0 / 0 is no limit
    return alpha * far + (1 - alpha) * plus


@contextmanager
def negative_prompt(
    module: nn.Module,
    context: Tensor,
    alpha: float | Tensor,
    *,
    mode: str = "nasa",
    phi: float = 4.0,
    tau: float = 2.5,
    mask: Tensor | None = None,
) -> Iterator[None]:
    """Within this context every cross-attention inside ``module`` subtracts the negative prompt.

    ``context``: its tokens (M, C'), or one per sample (B, M, C'), of any length. ``alpha``: one number or one per sample
    (B,); 0 changes nothing; of "nag" it is the blend, in [0, 1]. ``mode``: nasa (2) or nag (3), whose ``phi`` and ``tau`` are.
    ``mask``: (M,) or (B, M) bool, True for the tokens that count (that of the positive prompt:
    :func:`limbeck.networks.masked`). Processors that are installed stay in force, and are in place again afterwards.
    Gradients flow through Z-; with activation checkpointing, keep the context open until the backward pass.

    Raises LimbeckError for a module without cross-attention, another width than the text's, a negative alpha, a mask that
    leaves nothing; warns of an alpha above 1.5.
    """
    table = {name: a for name, a in attentions(module).items() if a.cross}
    if not table:
        raise LimbeckError(
            f"a {type(module).__name__} has no cross-attention to a text, so a negative prompt can say nothing to it: use a "
            "network built with text=(tokens, width)"
        )
    widths = {name: attention.key.weight.shape[1] for name, attention in table.items()}
    context, mask = check_negative(widths, context, alpha, mode, mask)
    steering = {name: Negative(a.processor, context, alpha, mode, phi, tau, mask) for name, a in table.items()}
    with exchange_processors(module, steering):
        yield


def check_negative(
    widths: Mapping[str, int], context: Tensor, alpha: float | Tensor, mode: str, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(context (B or 1, M, C'), mask (B or 1, M)) for texts of the widths C' that layers have by name; or the error."""
    if mode not in ("nasa", "nag"):
        raise unknown("mode of a negative prompt", mode, ("nasa", "nag"))
    context = context[None] if context.ndim == 2 else context
    for name, width in widths.items():
        if context.ndim != 3 or context.shape[2] != width:
            raise LimbeckError(
                f"the negative prompt has shape {tuple(context.shape)}, but the text of {name!r} has the width {width}: encode "
                "both prompts with one encoder, to (tokens, width) or (samples, tokens, width)"
            )
    _check_alpha(torch.as_tensor(alpha), mode)
    if mask is not None:
        mask = (mask[None] if mask.ndim == 1 else mask).bool()
        if mask.shape[-1] != context.shape[1] or not bool(mask.any(1).all()):
            raise LimbeckError(
                f"a mask of shape {tuple(mask.shape)} does not fit {context.shape[1]} tokens of the negative prompt, or leaves "
                "none of them: give True for each token that counts, at least one per prompt"
            )
    return context, mask


def _check_alpha(alpha: Tensor, mode: str) -> None:
    if not bool((alpha >= 0).all()):
        raise LimbeckError(
            f"alpha is {alpha.min().item():g}: a negative prompt is subtracted with alpha >= 0; 0 switches it off"
        )
    if mode == "nag" and bool((alpha > 1).any()):
        raise LimbeckError(f"alpha is {alpha.max().item():g}: in mode 'nag' it is a blend in [0, 1]; phi is the strength")
    if bool((alpha > LARGEST).any()):
        warnings.warn(
            f"alpha is {alpha.max().item():g}: above {LARGEST:g} the negative prompt was found to dominate the picture",
            stacklevel=5,
        )
