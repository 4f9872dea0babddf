"""Pictures of Gaussian splats from cameras, in torch or by gsplat's CUDA kernels behind the same call (arXiv 2308.04079)."""

from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError, unknown
from limbeck.scenes.cameras import Cameras
from limbeck.scenes.compositing import LEAST, MAX_PAIRS, Plane, composite, over
from limbeck.scenes.splats import Splats, check_splats, colours, covariance_roots

BACKENDS = ("auto", "torch", "gsplat")
LOW_PASS = 0.3  # pixels^2, added to each projected covariance
MARGIN = 0.3  # of half the image: beyond it the local affine map is that of the border


class Rendered(NamedTuple):
    """B pictures of H x W pixels in the dtype of the splats.

    ``rgb`` (B, 3, H, W) in [0, 1] unless harmonics or background exceed it; ``opacity`` (B, 1, H, W); ``depth`` (B, 1, H, W), the sum
    of weight times depth along the camera's axis (divide by the opacity for its mean); ``means`` (B, N, 2) in pixels, which
    keep their gradient; ``visible`` (B, N), which splats reach a pixel.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    means: Tensor
    visible: Tensor

    @property
    def image(self) -> Tensor:
        """rgb from [0, 1] to the library's [-1, 1], (B, 3, H, W)."""
        return 2 * self.rgb - 1

    def screen_gradients(self) -> Tensor:
        """After backward: norms of the loss's gradient in the projected means, (B, N), 0 where a splat is not seen.

        In normalised device coordinates (the image is 2 wide and 2 high), as the thresholds of the paper are; gradients in
        pixels are smaller by W / 2 and H / 2.
        """
        if self.means.grad is None:
            raise LimbeckError("there are no screen-space gradients yet: call backward() on a loss of this picture first")
        H, W = self.rgb.shape[-2:]
        return (self.means.grad * self.means.grad.new_tensor([W / 2, H / 2])).norm(dim=-1)


def render(
    splats: Splats,
    cameras: Cameras,
    background: Tensor | float = 0.0,
    degree: int | None = None,
    near: float = 0.01,
    antialiased: bool = False,
    max_pairs: int = MAX_PAIRS,
    backend: str = "auto",
) -> Rendered:
    """The splats seen by B cameras; differentiable in the splats.

    ``background``: a number, (3,), (B, 3) or (B, 3, H, W); ``degree`` of the active harmonics (default: all); ``near``: splats closer
    to the camera's plane are left out; ``antialiased``: opacities shrink as the low-pass widens a splat (Mip-Splatting);
    ``max_pairs``: as many (splat, pixel) pairs are remembered for gradients, where there are more they are found again.
    ``backend``: "torch" works in float64 on CPU and CUDA, "gsplat" on CUDA; "auto" takes gsplat for CUDA tensors where it is
    installed. Raises LimbeckError for degenerate splats (see :func:`limbeck.scenes.splats.check_splats`) and backends that
    cannot work.
    """
    check_splats(splats)
    degree = splats.degree if degree is None else degree
    if _chosen(backend, splats) == "gsplat":
        return _by_gsplat(splats, cameras, background, degree, near, antialiased)
    plane = project(splats, cameras, degree, near, antialiased)
    if plane.means.requires_grad:
        plane.means.retain_grad()
    sums, visible = composite(plane, cameras.width, cameras.height, max_pairs)
    sums = sums.to(splats.means.dtype)
    return _rendered(sums[:, :3], sums[:, 4:], sums[:, 3:4], plane.means, visible, background)


def project(
    splats: Splats, cameras: Cameras, degree: int | None = None, near: float = 0.01, antialiased: bool = False
) -> Plane:
    """The splats in the images of B cameras, in float64; features are red, green, blue and depth.

    With OpenCV axes m = W mu + t: mean (f_x x / z + c_x, f_y y / z + c_y), covariance J W Sigma W^T J^T + 0.3 I, where J is the
    derivative of that map at m (at the border of the image widened by 30 % where m lies beyond it).
    """
    splats, cameras = Splats(*(x.double() for x in splats)), cameras.to(splats.means.device).to(torch.float64)
    view = cameras.view
    local = splats.means @ view[:, :3, :3].mT + view[:, None, :3, 3]
    ahead = local[..., 2] > near
    x, y, z = torch.where(ahead[..., None], local, local.new_tensor([0.0, 0.0, 1.0])).unbind(-1)
    (fx, fy), (cx, cy) = cameras.focal[..., None].unbind(1), cameras.centre[..., None].unbind(1)
    u, v = x / z, y / z
    means = torch.stack([fx * u + cx, fy * v + cy], -1)
    W, H = cameras.width, cameras.height
    u = torch.clamp(u, (-cx - MARGIN * W / 2) / fx, (W - cx + MARGIN * W / 2) / fx)
    v = torch.clamp(v, (-cy - MARGIN * H / 2) / fy, (H - cy + MARGIN * H / 2) / fy)
    R = view[:, None, :3, :3]
    across = (fx / z)[..., None] * (R[..., 0, :] - u[..., None] * R[..., 2, :])
    down = (fy / z)[..., None] * (R[..., 1, :] - v[..., None] * R[..., 2, :])
    across, down = (torch.stack([across, down], -2) @ covariance_roots(splats)).unbind(-2)
    xx, xy, yy = (across * across).sum(-1), (across * down).sum(-1), (down * down).sum(-1)
    log_opacity = F.logsigmoid(splats.logits).expand_as(xx)
    wide_x, wide_y = xx + LOW_PASS, yy + LOW_PASS
    left = wide_x - xy * xy / wide_y  # the variance within a row: det / S_yy
    proper = ahead & left.isfinite() & (left > 0)
    if antialiased:
        ratio = ((xx * yy - xy * xy) / (wide_x * wide_y - xy * xy)).clamp(min=1e-12)
        log_opacity = log_opacity + ratio.log() / 2
    colour = colours(splats, F.normalize(splats.means - cameras.position[:, None], dim=-1), degree)
    return Plane(
        means,
        torch.stack([wide_x, xy, wide_y], -1),
        log_opacity,
        z,
        torch.cat([colour, z[..., None]], -1),
        proper & (log_opacity.exp() >= LEAST),
    )


def _rendered(
    rgb: Tensor, opacity: Tensor, depth: Tensor, means: Tensor, visible: Tensor, background: Tensor | float
) -> Rendered:
    return Rendered(over(rgb, opacity, background), opacity, depth, means, visible)


def _chosen(backend: str, splats: Splats) -> str:
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if backend == "auto":
        return "gsplat" if splats.means.is_cuda and find_spec("gsplat") else "torch"
    if backend == "gsplat":
        if find_spec("gsplat") is None:
            raise LimbeckError("""backend="gsplat" needs gsplat: pip install 'limbeck[gsplat]', or choose backend="torch\"""")
        if not splats.means.is_cuda:
            raise LimbeckError(
                f'gsplat works on CUDA alone, but the splats are on {splats.means.device}: choose backend="torch"'
            )
    return backend


def _by_gsplat(
    splats: Splats, cameras: Cameras, background: Tensor | float, degree: int, near: float, antialiased: bool
) -> Rendered:
    """gsplat's rasterization of the same splats in float32; it stops at a transmittance of 1e-4 and lets alpha reach 0.999."""
    import gsplat

    device = splats.means.device
    cameras = cameras.to(device).to(torch.float32)
    s = Splats(*(x.float() for x in splats))
    drawn, opacity, info = gsplat.rasterization(
        s.means, s.quaternions, s.log_scales.exp(), torch.sigmoid(s.logits), s.harmonics, cameras.view, cameras.intrinsics,
        cameras.width, cameras.height, near_plane=near, eps2d=LOW_PASS, sh_degree=degree, packed=False, render_mode="RGB+D",
        rasterize_mode="antialiased" if antialiased else "classic",
    )  # fmt: skip
    means: Any = info["means2d"]
    if means.requires_grad:
        means.retain_grad()
    images = torch.cat([drawn, opacity], -1).movedim(-1, 1).to(splats.means.dtype)
    return _rendered(images[:, :3], images[:, 4:], images[:, 3:4], means, (info["radii"] > 0).all(-1), background)
