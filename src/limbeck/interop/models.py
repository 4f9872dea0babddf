"""Models of diffusers as raw networks F(x, timestep, cond), by class: how each is called is a table.

A model whose class is not here is wrapped by ten lines of your own: a module with ``null`` and
``forward(x, timestep, cond) -> like x`` that calls it, given to :class:`limbeck.denoisers.Preconditioned`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.networks.taps import first_tensor

Call = Callable[[Any, Tensor, Tensor, Cond], Any]  # (model, x (B, ...), timestep (B,), conditions) -> its answer


@dataclass(frozen=True)
class Convention:
    """How a class of models is called: ``call``, and the names of the conditions that it needs and of those that it may get."""

    call: Call
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


def _unet(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Any:
    return model(x, timestep, cond.get("label"))


def _unet_with_text(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Any:
    added = {name: cond[name] for name in ("text_embeds", "time_ids") if name in cond}  # SDXL
    return model(x, timestep, cond["encoder_hidden_states"], cond.get("label"), added_cond_kwargs=added or None)


def _dit(model: Any, x: Tensor, timestep: Tensor, cond: Cond) -> Any:
    return model(x, timestep, cond["label"])


CONVENTIONS: dict[str, Convention] = {
    "UNet2DModel": Convention(_unet, (), ("label",)),
    "UNet2DConditionModel": Convention(_unet_with_text, ("encoder_hidden_states",), ("label", "text_embeds", "time_ids")),
    "DiTTransformer2DModel": Convention(_dit, ("label",)),
}
"""By class name. Conditions have the names of the model's own arguments, but for ``label`` (class_labels)."""


class DiffusersNetwork(nn.Module):
    """A diffusers model as a raw network: x (B, ...), the scheduler's timestep (B,), conditions by name -> like x.

    ``null``: what stands for "no condition" in one sample, by name (None: the model has no such thing). ``fixed``: conditions
    of one sample that are the same for all, like a guidance embedding; conditions given win over them. Learned variances
    (a second half of channels) are left out. Raises LimbeckError for classes that are not known, missing conditions and
    unknown ones.
    """

    def __init__(self, model: nn.Module, null: Cond | None = None, fixed: Cond | None = None):
        super().__init__()
        self.model, self.convention = model, convention_of(model)
        self._null, self._fixed = self._kept("null", null or {}), self._kept("fixed", fixed or {})
        self._has_null = null is not None

    def _kept(self, prefix: str, values: Cond) -> tuple[str, ...]:
        for name, value in values.items():  # buffers move with the module, and belong to no state dict
            self.register_buffer(f"{prefix}_{name}", value, persistent=False)
        return tuple(values)

    @property
    def null(self) -> Mapping[str, Tensor] | None:
        """What stands for "no condition" in one sample."""
        return {name: getattr(self, f"null_{name}") for name in self._null} if self._has_null else None

    def forward(self, x: Tensor, timestep: Tensor, cond: Cond | None = None) -> Tensor:
        given = dict(cond or {})
        for name in self._fixed:
            value = getattr(self, f"fixed_{name}")
            given.setdefault(name, value.expand(len(x), *value.shape))
        known = (*self.convention.needs, *self.convention.takes)
        missing, strange = [n for n in self.convention.needs if n not in given], [n for n in given if n not in known]
        if missing or strange:
            raise LimbeckError(
                f"a {type(self.model).__name__} takes the conditions {', '.join(known) or 'none'}; "
                + (f"missing: {', '.join(missing)}" if missing else f"not {', '.join(strange)}")
            )
        answer = first_tensor(self.convention.call(self.model, x, timestep, given))
        if answer is None or answer.shape[0] != x.shape[0] or answer.shape[2:] != x.shape[2:]:
            got = None if answer is None else tuple(answer.shape)
            raise LimbeckError(f"the {type(self.model).__name__} answered {got} for x {tuple(x.shape)}")
        return answer[:, : x.shape[1]]


def convention_of(model: nn.Module) -> Convention:
    """How a model is called. Raises LimbeckError where its class is not known, and says how to write an adapter."""
    for kind in type(model).__mro__:
        if kind.__name__ in CONVENTIONS:
            return CONVENTIONS[kind.__name__]
    raise LimbeckError(
        f"how to call a {type(model).__name__} is not known; known are {', '.join(CONVENTIONS)}. Wrap it in a module of your own "
        "with `null` (a mapping, or None) and `forward(x, timestep, cond)` that returns a tensor like x, and give that to "
        "limbeck.denoisers.Preconditioned(network, process, prediction)"
    )
