"""Models of diffusers as raw networks F(x, timestep, cond), by class: how each is called is a table (conventions)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.interop.conventions import convention_of, spread_layers


class DiffusersNetwork(nn.Module):
    """A diffusers model as a raw network: x (B, ...), the scheduler's timestep (B,), conditions by name -> like x.

    x has the layout of the model's latents: (B, C, H, W) for images, also of Flux and QwenImage, which are packed inside;
    (B, C, F, H, W) for Wan, (B, F, C, H, W) for CogVideoX. Conditions are batch-first. x and conditions of floating point
    go to the model in its own dtype. Learned variances (a second half of channels) are left out.

    ``null``: what stands for "no condition" in one sample, by name (None: what the class itself has, if anything). ``fixed``:
    conditions of one sample that are the same for all, like a guidance embedding; conditions given win over them.
    Raises LimbeckError for classes that are not known, conditions that are missing, unknown or of another batch, and an x
    that the model cannot take.
    """

    def __init__(self, model: nn.Module, null: Cond | None = None, fixed: Cond | None = None):
        super().__init__()
        self.model: Any = model
        self.convention = convention_of(model)
        null = self.convention.null(model) if null is None else null
        self._null, self._fixed = self._kept("null", null or {}), self._kept("fixed", fixed or {})
        self._has_null = null is not None
        part: Any
        for part in model.modules():
            if hasattr(part, "dropout_prob"):
                part.dropout_prob = 0.0  # DiT in train mode would drop labels, each block others: who trains drops them

    def _kept(self, prefix: str, values: Cond) -> tuple[str, ...]:
        self._check_names(values)
        for name, value in values.items():  # buffers move with the module, and belong to no state dict
            self.register_buffer(f"{prefix}_{name}", value, persistent=False)
        return tuple(values)

    @property
    def null(self) -> Mapping[str, Tensor] | None:
        """What stands for "no condition" in one sample."""
        return {name: getattr(self, f"null_{name}") for name in self._null} if self._has_null else None

    @property
    def fixed(self) -> Mapping[str, Tensor]:
        """What every sample is told, one sample's."""
        return {name: getattr(self, f"fixed_{name}") for name in self._fixed}

    @property
    def wrapped(self) -> nn.Module:
        """The model itself, whose names its weights have on disk."""
        return self.model

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """The layers that a discriminator reads by default: a U-Net's middle, three blocks over a transformer's depth."""
        return tuple(f"model.{name}" for name in spread_layers(self.model, self.convention.layers))

    def forward(self, x: Tensor, timestep: Tensor, cond: Cond | None = None) -> Tensor:
        self._check_shape(x)
        given = self._all(cond, x)
        dtype = self.model.dtype
        own = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
        answer = self.convention.call(self.model, x.to(dtype), timestep, own)
        channel = self.convention.axes.index("C")
        mean = answer.narrow(channel, 0, min(x.shape[channel], answer.shape[channel]))
        if mean.shape != x.shape:
            raise LimbeckError(
                f"the {self._name} answered {tuple(answer.shape)} for x {tuple(x.shape)}; one that takes more channels than it "
                "answers (an image to start from, a mask) needs a module of your own around it: docs/diffusers.md has an example"
            )
        return mean.to(x.dtype)

    @property
    def _name(self) -> str:
        return type(self.model).__name__

    def _all(self, cond: Cond | None, x: Tensor) -> dict[str, Tensor]:
        """The conditions of a batch: those given (or the null condition), and the fixed ones."""
        batch: Any = x.shape[0]  # a symbol under torch.export
        kept = dict(self.fixed)
        kept |= (self.null or {}) if cond is None else {}
        given = {name: value.expand(batch, *value.shape) for name, value in kept.items()} | dict(cond or {})
        self._check_names(given)
        if missing := [name for name in self.convention.needs if name not in given]:
            raise LimbeckError(
                f"a {self._name} needs the conditions {', '.join(self.convention.needs)}; missing: {', '.join(missing)} (what is "
                "the same for all samples: DiffusersNetwork(model, fixed={name: one sample's tensor}))"
            )
        if wrong := [f"{name} has {value.shape[0]}" for name, value in given.items() if value.shape[0] != batch]:
            raise LimbeckError(f"conditions are batch-first, and the batch is {batch}: {', '.join(wrong)}")
        return given

    def _check_names(self, cond: Cond) -> None:
        known = (*self.convention.needs, *self.convention.takes)
        if strange := [name for name in cond if name not in known]:
            raise LimbeckError(f"this {self._name} takes the conditions {', '.join(known) or 'none'}; not {', '.join(strange)}")

    def _check_shape(self, x: Tensor) -> None:
        axes, sides = self.convention.axes, self.convention.sides(self.model)
        sizes, channels = dict(zip(axes, x.shape, strict=False)), self.model.config.in_channels // self.convention.packs
        fits = x.ndim == len(axes) and sizes["C"] == channels
        if not fits or any(sizes[axis] % sides.get(axis, 1) for axis in axes):
            said = [f"C = {channels}", *(f"{axis} a multiple of {n}" for axis, n in sides.items() if axis in axes and n > 1)]
            raise LimbeckError(
                f"a {self._name} takes x ({', '.join(axes)}) with {', '.join(said)}; this one is {tuple(x.shape)}"
            )
