"""Tiny random models of diffusers, one per way of being called, with an input and conditions for each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.interop import DiffusersNetwork

PATCHES = {"num_attention_heads": 2, "sample_size": 8, "patch_size": 2, "in_channels": 4}
UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4}
WITH_TEXT = UNET | {
    "in_channels": 4, "out_channels": 4, "cross_attention_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
JOINT = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 8, "num_layers": 2}


@dataclass
class Case:
    """A model with an input of two samples: ``cond`` holds shapes per sample (of normal numbers) or tensors."""

    model: nn.Module
    shape: tuple[int, ...]
    cond: dict[str, Any] = field(default_factory=dict)
    scheduler: Callable[[], Any] = lambda: _diffusers("DDPMScheduler")()
    fixed: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        torch.manual_seed(1)
        self.x, self.t = torch.randn(2, *self.shape), torch.tensor([801.0, 23.0])
        self.null = {n: v[0].clone() if isinstance(v, Tensor) else torch.randn(v) for n, v in self.cond.items()}
        self.cond = {n: v if isinstance(v, Tensor) else torch.randn(2, *v) for n, v in self.cond.items()}

    @property
    def network(self) -> DiffusersNetwork:
        """A network around a copy of the model."""
        return DiffusersNetwork(copy.deepcopy(self.model), self.null, self.fixed)


def _diffusers(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _made(name: str, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    return _diffusers(name)(**config).eval()


def _flow() -> Any:
    return _diffusers("FlowMatchEulerDiscreteScheduler")()


def _v() -> Any:
    return _diffusers("CogVideoXDDIMScheduler")(prediction_type="v_prediction")


MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
LABEL = torch.tensor([3, 7])


def _unet(**more: Any) -> nn.Module:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return _made("UNet2DModel", **UNET, **blocks, **more)


def _sdxl() -> Case:
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 60}
    model = _made("UNet2DConditionModel", **WITH_TEXT, **more, use_linear_projection=True, time_cond_proj_dim=6)
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).expand(2, 6)
    cond = {"encoder_hidden_states": (4, 8), "text_embeds": (12,), "time_ids": sizes, "timestep_cond": (6,)}
    return Case(model, (4, 8, 8), cond, lambda: _diffusers("DDIMScheduler")())


def _pixart(alpha: bool) -> Case:
    sizes = {"cross_attention_dim": 24, "caption_channels": 8, "out_channels": 8, "num_layers": 4, "attention_head_dim": 12}
    model = _made("PixArtTransformer2DModel", **PATCHES | sizes | {"sample_size": 128 if alpha else 8})
    cond: dict[str, Any] = {"encoder_hidden_states": (4, 8), "encoder_attention_mask": MASK}
    fixed = {"resolution": torch.tensor([64.0, 64.0]), "aspect_ratio": torch.tensor([1.0])} if alpha else {}
    return Case(model, (4, 8, 8), cond, lambda: _diffusers("DPMSolverMultistepScheduler")(), fixed)


def _sana(guided: bool) -> Case:
    sizes = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16, "num_layers": 2}
    more = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"} if guided else {"timestep_scale": 0.5}
    more |= {"attention_head_dim": 8, "caption_channels": 8, "patch_size": 1, "out_channels": 4}
    model = _made("SanaTransformer2DModel", **PATCHES | sizes | more)
    cond = {"encoder_hidden_states": (4, 8), "encoder_attention_mask": MASK}
    return Case(model, (4, 8, 8), cond, _flow, {"guidance": torch.tensor(4.5)} if guided else {})


def _flux() -> Case:
    more = {"in_channels": 16, "num_single_layers": 2, "pooled_projection_dim": 12, "axes_dims_rope": (2, 2, 4)}
    model = _made("FluxTransformer2DModel", **JOINT, **more, guidance_embeds=True)
    cond = {"encoder_hidden_states": (4, 8), "pooled_projections": (12,)}
    return Case(model, (4, 8, 12), cond, _flow, {"guidance": torch.tensor(3.5)})


def _cogvideox(patch_t: int | None, rotary: bool) -> Case:
    sizes = {"attention_head_dim": 16, "time_embed_dim": 8, "text_embed_dim": 8, "num_layers": 2, "max_text_seq_length": 4}
    place = {"sample_width": 12, "sample_height": 8, "sample_frames": 13, "use_rotary_positional_embeddings": rotary}
    more = {"num_attention_heads": 2, "in_channels": 4, "out_channels": 4, "patch_size_t": patch_t, "patch_bias": not patch_t}
    model = _made("CogVideoXTransformer3DModel", **sizes, **place, **more)
    return Case(model, (4, 4, 8, 12), {"encoder_hidden_states": (4, 8)}, _v)


def _wan() -> Case:
    sizes = {"attention_head_dim": 12, "text_dim": 8, "freq_dim": 16, "ffn_dim": 16, "num_layers": 2, "num_attention_heads": 2}
    model = _made("WanTransformer3DModel", **sizes, in_channels=4, out_channels=4)
    return Case(model, (4, 3, 4, 8), {"encoder_hidden_states": (4, 8)}, _flow)


CASES: dict[str, Callable[[], Case]] = {
    "ddpm": lambda: Case(_unet(in_channels=3, out_channels=3), (3, 8, 8)),
    "unet": lambda: Case(_unet(in_channels=3, out_channels=3, num_class_embeds=10), (3, 8, 8), {"label": LABEL}),
    "sd15": lambda: Case(_made("UNet2DConditionModel", **WITH_TEXT), (4, 8, 8), {"encoder_hidden_states": (4, 8)}),
    "sd21": lambda: Case(
        _made("UNet2DConditionModel", **WITH_TEXT, use_linear_projection=True),
        (4, 8, 8),
        {"encoder_hidden_states": (4, 8)},
        lambda: _diffusers("DDIMScheduler")(prediction_type="v_prediction"),
    ),
    "sdxl": _sdxl,
    "dit": lambda: Case(
        _made("DiTTransformer2DModel", **PATCHES, attention_head_dim=8, out_channels=8, num_layers=4, num_embeds_ada_norm=10),
        (4, 8, 8),
        {"label": LABEL},
    ),
    "pixart-alpha": lambda: _pixart(True),
    "pixart-sigma": lambda: _pixart(False),
    "sd3": lambda: Case(
        _made(
            "SD3Transformer2DModel", **PATCHES | JOINT, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
            pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        (4, 8, 12),
        {"encoder_hidden_states": (4, 8), "pooled_projections": (12,)},
        _flow,
    ),
    "flux": _flux,
    "qwen": lambda: Case(
        _made("QwenImageTransformer2DModel", **JOINT, in_channels=16, out_channels=4, axes_dims_rope=(2, 2, 4)),
        (4, 8, 12),
        {"encoder_hidden_states": (4, 8), "encoder_hidden_states_mask": MASK.bool()},
        _flow,
    ),
    "sana": lambda: _sana(False),
    "sana-sprint": lambda: _sana(True),
    "wan": _wan,
    "cogvideox": lambda: _cogvideox(None, True),
    "cogvideox-1.5": lambda: _cogvideox(2, True),
    "cogvideox-2b": lambda: _cogvideox(None, False),
}  # fmt: skip
_kept = cache(lambda name: CASES[name]())


@pytest.fixture(params=CASES)
def case(request) -> Case:
    """Every case in turn; its model is shared, so tests change copies only."""
    return _kept(request.param)


@pytest.fixture
def tiny() -> Callable[[str], Case]:
    """A case by its name."""
    return _kept


@pytest.fixture
def made_unet() -> Callable[..., nn.Module]:
    """A U-Net of two levels, with more arguments of yours."""
    return _unet


@pytest.fixture
def normal():
    return lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
