"""What a scene is to those who train it: a module that cameras look at; and splats as one."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.scenes.cameras import Cameras
from limbeck.scenes.splats import LEARNING_RATES, Splats, check_splats
from limbeck.scenes.splatting import Rendered, render


@runtime_checkable
class Seen(Protocol):
    """What B cameras see of a scene: ``rgb`` (B, 3, H, W) in [0, 1], ``opacity`` and ``depth`` (B, 1, H, W), and ``image``, rgb in
    the library's [-1, 1]. Depth is summed over the weights: divide by the opacity for its mean.
    """

    @property
    def rgb(self) -> Tensor: ...
    @property
    def opacity(self) -> Tensor: ...
    @property
    def depth(self) -> Tensor: ...
    @property
    def image(self) -> Tensor: ...


@runtime_checkable
class Scene(Protocol):
    """A module whose parameters are the scene; differentiable in them. ``background``: a grey in [0, 1], (3,), (B, 3) or (B, 3, H, W)."""

    def __call__(self, cameras: Cameras, background: Tensor | float = 0.0) -> Seen: ...


class SplatScene(nn.Module):
    """Gaussian splats whose six tensors are parameters by the names of :class:`limbeck.scenes.splats.Splats`.

    ``options``: those of :func:`limbeck.scenes.splatting.render`. ``rates``: what each parameter's learning rate is multiplied
    with (:class:`limbeck.training.Role`), so that the opacities' is the role's own; ``extent``: the scene's radius.
    """

    def __init__(self, splats: Splats, extent: float = 1.0, **options: Any):
        super().__init__()
        check_splats(splats)
        if not extent > 0:
            raise LimbeckError(f"extent={extent:g}: the radius of a scene is positive")
        self.options = options
        own = LEARNING_RATES["logits"]
        self.rates = {name: rate / own * (extent if name == "means" else 1.0) for name, rate in LEARNING_RATES.items()}
        for name, value in splats._asdict().items():
            setattr(self, name, nn.Parameter(value.detach().clone()))

    @property
    def splats(self) -> Splats:
        """The parameters as splats."""
        return Splats(**{name: getattr(self, name) for name in Splats._fields})

    def forward(self, cameras: Cameras, background: Tensor | float = 0.0) -> Rendered:
        return render(self.splats, cameras, background, **self.options)

    @torch.no_grad()
    def detached(self) -> Splats:
        """Copies of the parameters, to be written or drawn."""
        return Splats(*(x.detach().clone() for x in self.splats))
