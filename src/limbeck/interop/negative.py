"""Negative prompts inside the cross-attention of diffusers' models: NASA and NAG, as in :mod:`limbeck.networks.negative`.

(1) Z+- = softmax(Q K+-^T / sqrt(d)) V+-, what goes into ``to_out`` when a layer is called with c+ and with c-
(2) Z = Z+ - alpha Z-  (NASA), or the normalised extrapolation of NAG

The layer's own processor computes both: its norms of queries and keys, fused projections, adapters and attention backend are
those of the stock model, and its image prompts (IP-Adapter) enter Z+ alone. Layers are hooked, no processor is exchanged, so
whatever is installed meanwhile stays in force.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.networks.negative import check_negative, steered
from limbeck.networks.negative import negative_prompt as negative_of_ours

ARGUMENTS = ("hidden_states", "encoder_hidden_states", "attention_mask")  # of every cross-attention, in this order


def _pixart(model: Any, text: Tensor) -> Tensor:
    return text if model.caption_projection is None else model.caption_projection(text)


def _unet(model: Any, text: Tensor) -> Tensor:
    return model.encoder_hid_proj(text) if model.config.encoder_hid_dim_type == "text_proj" else text


TEXTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "UNet2DConditionModel": _unet,
    "PixArtTransformer2DModel": _pixart,
    "SanaTransformer2DModel": lambda model, text: model.caption_norm(model.caption_projection(text)),
    "WanTransformer3DModel": lambda model, text: model.condition_embedder.text_embedder(text),
}
"""By class name: from a model's argument ``encoder_hidden_states`` to what its cross-attention sees (others: the same)."""


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

    ``module``: a diffusers model, whatever holds one (a :class:`DiffusersNetwork`, a denoiser), or a network of
    :mod:`limbeck.networks`. ``context``: the negative prompt as the text encoder made it, (M, C') or one per sample
    (B, M, C'); a model's own projection of texts is applied to it. The other arguments are those of
    :func:`limbeck.networks.negative_prompt`; ``mask`` is that of the negative prompt alone. A stock pipeline that guides
    calls its network with two halves: one negative prompt then steers both, one per sample needs 2 B.
    Gradients flow through Z-; with activation checkpointing, keep the context open until the backward pass.

    Raises LimbeckError as there, and for models that attend to text and image jointly (SD3, Flux): their Z- would hold
    attention of the image to itself.
    """
    layers = cross_attentions(module)
    if not layers:
        with negative_of_ours(module, context, alpha, mode=mode, phi=phi, tau=tau, mask=mask):
            yield
        return
    model, project = _texts(module)
    with torch.no_grad():
        seen = context if model is None else project(model, context)
    widths = {name: _text_width(layer) for name, layer in layers.items()}
    _, mask = check_negative(widths, seen, alpha, mode, mask)
    context = context[None] if context.ndim == 2 else context
    negative = _Negative(lambda: context if model is None else project(model, context), mask)

    def steer(plus: Tensor, minus: Tensor) -> Tensor:
        return steered(plus, minus, alpha, mode, phi, tau)

    with ExitStack() as stack:
        if model is not None:
            stack.callback(model.register_forward_pre_hook(negative.renew).remove)
        for layer in layers.values():
            hooks = _Steering(negative, steer)
            stack.callback(layer.register_forward_pre_hook(hooks.before, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(hooks.after, always_call=True).remove)
        yield


def cross_attentions(module: nn.Module) -> dict[str, Any]:
    """The cross-attention layers of diffusers' models inside ``module``, by name; {} where there are none.

    Raises LimbeckError for layers that attend to text and image at once.
    """
    found: dict[str, Any] = {}
    for name, layer in module.named_modules():
        if not (hasattr(layer, "to_k") and hasattr(layer, "to_out") and hasattr(layer, "set_processor")):
            continue
        if getattr(layer, "added_kv_proj_dim", None) is not None:
            raise LimbeckError(
                f"{name!r} of the {type(module).__name__} attends to text and image jointly, so Z- would hold attention of the "
                "image to itself; negative prompts need a model with a cross-attention to its text alone (SD 1.5, SDXL, "
                "PixArt, SANA, Wan). Guide the outputs instead: limbeck.denoisers.ClassifierFree(denoiser, w, negative=...)"
            )
        if getattr(layer, "is_cross_attention", False):
            found[name] = layer
    return found


def _texts(module: nn.Module) -> tuple[Any, Callable[[Any, Tensor], Tensor]]:
    """The model inside ``module`` that projects its texts, and how; (None, _) where nobody does."""
    for inner in module.modules():
        for cls in type(inner).__mro__:
            if cls.__name__ in TEXTS:
                return inner, TEXTS[cls.__name__]
    return None, lambda model, text: text


def _text_width(layer: Any) -> int:
    return (layer.to_kv if getattr(layer, "fused_projections", False) else layer.to_k).in_features


class _Negative:
    """The negative prompt as the layers see it, projected once per call of the model."""

    def __init__(self, made: Callable[[], Tensor], mask: Tensor | None):
        self.made, self.mask = made, mask
        self.current: Tensor | None = None  # None: no model is running, a layer is called by itself

    def renew(self, *_: Any) -> None:
        self.current = self.made()

    def like(self, layer: Any, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """(context, attention_mask) for a layer that is called with ``text`` (B, M', C')."""
        context = self.made() if self.current is None else self.current
        if len(context) not in (1, len(text)):
            raise LimbeckError(f"{len(context)} negative prompts do not fit {len(text)} samples: give one, or one per sample")
        context = context.to(text).expand(len(text), -1, -1)
        if self.mask is None:
            return context, None
        mask = self.mask.to(text.device).expand(len(text), -1)[:, None]
        if hasattr(layer, "_default_processor_cls"):  # attention of a model's own: its mask meets (B, heads, L, M) as it is
            return context, mask[:, None]
        return context, torch.zeros_like(mask, dtype=text.dtype).masked_fill(~mask, torch.finfo(text.dtype).min)


class _Steering:
    """The hooks of one layer: Z- before its forward, its subtraction on the way into ``to_out``."""

    def __init__(self, negative: _Negative, steer: Callable[[Tensor, Tensor], Tensor]):
        self.negative, self.steer = negative, steer
        self.hook: Any = None

    def before(self, layer: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        given = dict(zip(ARGUMENTS, args, strict=False)) | dict(options)
        text = given.get("encoder_hidden_states")
        if text is None:
            return  # called as self-attention
        pictures = isinstance(text, tuple)  # an image prompt beside the text
        context, mask = self.negative.like(layer, text[0] if pictures else text)
        given |= {"encoder_hidden_states": (context, *text[1:]) if pictures else context, "attention_mask": mask}
        minus: list[Tensor] = []
        look = layer.to_out[0].register_forward_pre_hook(lambda _, z: minus.append(z[0]), prepend=True)
        try:
            with _no_pictures(layer.processor):
                layer.forward(*(given.pop(name) for name in ARGUMENTS), *args[len(ARGUMENTS) :], **given)
        finally:
            look.remove()
        out = layer.to_out[0]
        self.hook = out.register_forward_pre_hook(lambda _, z: (self.steer(z[0], minus[0]), *z[1:]))

    def after(self, *_: Any) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None


@contextmanager
def _no_pictures(processor: Any) -> Iterator[None]:
    """Image prompts of an IP-Adapter's processor at scale 0."""
    scale = getattr(processor, "scale", None)
    if not isinstance(scale, list):
        yield
        return
    processor.scale = [0.0] * len(scale)
    try:
        yield
    finally:
        processor.scale = scale
