"""How each class of diffusers models is called, as its stock pipeline calls it: a table, and a few lines per family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError

Call = Callable[[Any, Tensor, Tensor, Cond], Tensor]  # (model, x (B, ...), timestep (B,), conditions) -> its answer
Sides = Callable[[Any], Mapping[str, int]]  # (model) -> what these axes of x must be multiples of


@dataclass(frozen=True)
class Convention:
    """How a class of models is called.

    ``call``: from x and conditions in the model's dtype to its answer, laid out like x but for a second half of channels.
    ``needs`` names the conditions that it cannot do without, ``takes`` those that it may get, ``when`` those that it needs
    exactly if the model itself says so. ``axes``: the layout of x; ``sides``: what its axes must be multiples of;
    ``packs``: how many places of x make one channel inside. ``layers``: the names of the layers whose outputs are features,
    blocks in order of depth, {} their number. ``null``: what the class itself has for "no condition", of one sample.
    """

    call: Call
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    when: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    layers: tuple[str, ...] = ("transformer_blocks.{}",)
    axes: str = "BCHW"
    sides: Sides = lambda model: {}
    packs: int = 1
    null: Callable[[Any], Cond | None] = lambda model: None


def _unet(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    return model(x, timestep, cond.get("label"), return_dict=False)[0]


def _unet_with_text(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    text, label, guidance = cond["encoder_hidden_states"], cond.get("label"), cond.get("timestep_cond")
    added = {name: cond[name] for name in ("text_embeds", "time_ids") if name in cond}  # SDXL
    mask = cond.get("encoder_attention_mask")
    call = {"added_cond_kwargs": added or None, "encoder_attention_mask": mask, "return_dict": False}
    return model(x, timestep, text, label, guidance, **call)[0]


def _dit(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    if x.shape[2] != x.shape[3]:
        raise LimbeckError(f"a {type(model).__name__} takes squares, not {x.shape[2]} x {x.shape[3]}")
    return model(x, timestep, cond["label"], return_dict=False)[0]


def _pixart(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    added = {name: cond.get(name) for name in ("resolution", "aspect_ratio")}
    mask = cond.get("encoder_attention_mask")
    return model(x, cond["encoder_hidden_states"], timestep, added, encoder_attention_mask=mask, return_dict=False)[0]


def _sd3(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    return model(x, cond["encoder_hidden_states"], cond["pooled_projections"], timestep, return_dict=False)[0]


def _flux(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    text, h, w = cond["encoder_hidden_states"], x.shape[2] // 2, x.shape[3] // 2
    places = torch.cartesian_prod(torch.arange(h, device=x.device), torch.arange(w, device=x.device)).to(x)
    tokens = model(
        packed(x),
        text,
        cond["pooled_projections"],
        timestep / 1000,
        img_ids=F.pad(places, (1, 0)),
        txt_ids=x.new_zeros(text.shape[1], 3),
        guidance=cond.get("guidance"),
        return_dict=False,
    )[0]
    return unpacked(tokens, h, w)


def _qwen(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    h, w = x.shape[2] // 2, x.shape[3] // 2
    mask, shapes = cond.get("encoder_hidden_states_mask"), [[(1, h, w)]] * len(x)
    text = cond["encoder_hidden_states"]
    return unpacked(model(packed(x), text, mask, timestep / 1000, img_shapes=shapes, return_dict=False)[0], h, w)


def _sana(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    scale, guidance = model.config.timestep_scale, cond.get("guidance")
    if guidance is not None:
        guidance = guidance * model.config.guidance_embeds_scale
    text, mask = cond["encoder_hidden_states"], cond.get("encoder_attention_mask")
    return model(x, text, timestep * scale, guidance=guidance, encoder_attention_mask=mask, return_dict=False)[0]


def _wan(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    text, image = cond["encoder_hidden_states"], cond.get("encoder_hidden_states_image")
    return model(x, timestep, text, image, return_dict=False)[0]


def _cogvideox(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    turns = _cogvideox_rotary(model, x) if model.config.use_rotary_positional_embeddings else None
    return model(x, cond["encoder_hidden_states"], timestep, image_rotary_emb=turns, return_dict=False)[0]


def _cogvideox_rotary(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    from diffusers.models import embeddings
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    rotary: Any = embeddings.get_3d_rotary_pos_embed
    config, frames, patch = model.config, x.shape[1], model.config.patch_size
    grid, base = (x.shape[3] // patch, x.shape[4] // patch), (config.sample_height // patch, config.sample_width // patch)
    if config.patch_size_t is None:  # CogVideoX 1.0
        crop = get_resize_crop_region_for_grid(grid, base[1], base[0])
        return rotary(config.attention_head_dim, crop, grid, frames, device=x.device)
    cut = {"grid_type": "slice", "max_size": base}  # CogVideoX 1.5
    return rotary(config.attention_head_dim, None, grid, frames // config.patch_size_t, device=x.device, **cut)


def packed(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 W/2, 4 C): squares of 2 x 2 places as tokens, row by row."""
    squares = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, H/2, 2, W/2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, h: int, w: int) -> Tensor:
    """(B, h w, 4 C) -> (B, C, 2 h, 2 w), the inverse of :func:`packed`."""
    squares = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (h, w))  # (B, h, w, C, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _halved(model: Any) -> Mapping[str, int]:
    factor = 2 ** sum(getattr(block, "downsamplers", None) is not None for block in model.down_blocks)
    return {"H": factor, "W": factor}


def _patched(model: Any) -> Mapping[str, int]:
    size = model.config.patch_size
    if isinstance(size, int):
        return {"F": getattr(model.config, "patch_size_t", None) or 1, "H": size, "W": size}
    return dict(zip("FHW", size, strict=True))


def _has_classes(model: Any) -> bool:
    return model.class_embedding is not None


def _is_sdxl(model: Any) -> bool:
    return model.config.addition_embed_type == "text_time"


def _tells_guidance(model: Any) -> bool:
    return model.config.time_cond_proj_dim is not None


def _starts_from_images(model: Any) -> bool:
    return model.config.image_dim is not None


def _has_sizes(model: Any) -> bool:
    return model.use_additional_conditions


def _has_guidance(model: Any) -> bool:
    return model.config.guidance_embeds


def _twice(model: Any) -> Mapping[str, int]:
    return {"H": 2, "W": 2}


TEXT = ("encoder_hidden_states",)
POOLED = (*TEXT, "pooled_projections")
GUIDANCE = {"guidance": _has_guidance}
# Where a block answers text before image tokens, what its first norm puts out is the image's; single blocks of Flux mix both.
CONVENTIONS: dict[str, Convention] = {
    "UNet2DModel": Convention(_unet, when={"label": _has_classes}, layers=("mid_block",), sides=_halved),
    "UNet2DConditionModel": Convention(
        _unet_with_text,
        TEXT,
        ("encoder_attention_mask",),
        {"label": _has_classes, "text_embeds": _is_sdxl, "time_ids": _is_sdxl, "timestep_cond": _tells_guidance},
        layers=("mid_block",),
    ),
    "DiTTransformer2DModel": Convention(
        _dit, ("label",), sides=_patched, null=lambda model: {"label": torch.tensor(model.config.num_embeds_ada_norm)}
    ),
    "PixArtTransformer2DModel": Convention(
        _pixart, TEXT, ("encoder_attention_mask",), {"resolution": _has_sizes, "aspect_ratio": _has_sizes}, sides=_patched
    ),
    "SD3Transformer2DModel": Convention(_sd3, POOLED, layers=("transformer_blocks.{}.norm1",), sides=_patched),
    "FluxTransformer2DModel": Convention(
        _flux,
        POOLED,
        when=GUIDANCE,
        layers=("transformer_blocks.{}.norm1", "single_transformer_blocks.{}.norm"),
        sides=_twice,
        packs=4,
    ),
    "QwenImageTransformer2DModel": Convention(
        _qwen,
        TEXT,
        ("encoder_hidden_states_mask",),
        layers=("transformer_blocks.{}.img_norm1",),
        sides=_twice,
        packs=4,
    ),
    "SanaTransformer2DModel": Convention(_sana, TEXT, ("encoder_attention_mask",), GUIDANCE, sides=_patched),
    "WanTransformer3DModel": Convention(
        _wan,
        TEXT,
        when={"encoder_hidden_states_image": _starts_from_images},
        layers=("blocks.{}",),
        axes="BCFHW",
        sides=_patched,
    ),
    "CogVideoXTransformer3DModel": Convention(_cogvideox, TEXT, axes="BFCHW", sides=_patched),
}
"""By class name. Conditions have the names of the model's own arguments, but for ``label`` (class_labels)."""


def convention_of(model: nn.Module) -> Convention:
    """How a model is called, ``when`` resolved. Raises LimbeckError where its class is not known, and says what to write."""
    for kind in type(model).__mro__:
        if kind.__name__ in CONVENTIONS:
            found = CONVENTIONS[kind.__name__]
            extra = tuple(name for name, has in found.when.items() if has(model))
            return replace(found, needs=(*found.needs, *extra), when={})
    raise LimbeckError(
        f"how to call a {type(model).__name__} is not known; known are {', '.join(CONVENTIONS)}. Wrap it in a module of your own "
        "with `null` (a mapping, or None) and `forward(x, timestep, cond)` that returns a tensor like x, and give that to "
        "limbeck.interop.diffusers_denoiser(network, scheduler); docs/diffusers.md has one of ten lines"
    )


def spread_layers(model: nn.Module, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The layers of these names that a model has, or three of them spread over the depth where there are more."""
    names = []
    for pattern in patterns:
        owner, numbered, _ = pattern.partition(".{}")
        found = getattr(model, owner)
        names += [pattern.format(i) for i in range(len(found))] if numbered else [pattern] * (found is not None)
    return tuple(names[i] for i in sorted({len(names) * part // 4 for part in (1, 2, 3)})) if names else ()
