"""gsplat: its own torch functions as oracles of projection and harmonics, and the call of its kernels (which need CUDA)."""

import inspect
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import Cameras, Splats, project, render, sh_basis
from limbeck.scenes.cameras import check_rigid
from limbeck.scenes.conventions import from_convention
from limbeck.scenes.harmonics import C0
from limbeck.scenes.splats import covariance_roots
from limbeck.scenes.splatting import _by_gsplat

needs_gsplat = pytest.mark.skipif(find_spec("gsplat") is None, reason="gsplat is not installed")


@needs_gsplat
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_projection_is_gsplats(shift, cloud, three_cameras):
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    splats, cameras = cloud(200, spread=4.0), three_cameras()
    cameras = Cameras(cameras.c2w, cameras.focal, cameras.centre + shift, cameras.width, cameras.height)
    M = covariance_roots(splats)
    theirs, _ = _quat_scale_to_covar_preci(splats.quaternions, splats.log_scales.exp())
    torch.testing.assert_close(M @ M.mT, theirs, rtol=1e-12, atol=1e-14)
    radii, means, depths, conics, ratio = _fully_fused_projection(
        splats.means, theirs, cameras.view, cameras.intrinsics, cameras.width, cameras.height, calc_compensations=True
    )
    plane = project(splats, cameras)
    ahead = depths > 0.01
    assert bool(ahead.any()) and not bool(ahead.all())
    torch.testing.assert_close(plane.means[ahead], means[ahead], rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(plane.depth[ahead], depths[ahead], rtol=1e-12, atol=1e-12)
    xx, xy, yy = plane.covariances[ahead].unbind(-1)
    conic = torch.stack([yy, -xy, xx], -1) / (xx * yy - xy * xy)[:, None]
    torch.testing.assert_close(conic, conics[ahead], rtol=1e-8, atol=1e-12)
    antialiased = (project(splats, cameras, antialiased=True).log_opacity - plane.log_opacity).exp()
    torch.testing.assert_close(antialiased[ahead], ratio[ahead].clamp(min=1e-6), rtol=1e-6, atol=1e-9)
    assert not bool((plane.visible & (depths <= 0.01)).any())
    assert not bool((render(splats, cameras).visible & (radii == 0).any(-1)).any())  # its boxes hold all that is seen


@needs_gsplat
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_are_gsplats(degree):
    from gsplat.cuda._torch_impl import _spherical_harmonics

    g = torch.Generator().manual_seed(0)
    directions = torch.randn(50, 3, generator=g, dtype=torch.float64)
    coefficients = torch.randn(50, 16, 3, generator=g, dtype=torch.float64)
    basis = sh_basis(torch.nn.functional.normalize(directions, dim=1), degree)
    found = torch.einsum("nk,nkc->nc", basis, coefficients[:, : basis.shape[1]])
    torch.testing.assert_close(found, _spherical_harmonics(degree, directions, coefficients), rtol=0, atol=1e-6)


def stand_in(means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d, sh_degree, packed,
             render_mode, rasterize_mode):  # fmt: skip
    """What gsplat's rasterization answers to these arguments, by the torch renderer: (C, H, W, 4), (C, H, W, 1), info."""
    assert (eps2d, packed, render_mode) == (0.3, False, "RGB+D") and means.dtype == torch.float32
    c2w = from_convention(viewmats, "colmap")
    check_rigid(c2w)
    cameras = Cameras(c2w, torch.stack([Ks[:, 0, 0], Ks[:, 1, 1]], 1), Ks[:, :2, 2], width, height)
    splats = Splats(means, scales.log(), quats, torch.logit(opacities), colors[:, :1], colors[:, 1:])
    p = render(splats, cameras, 0.0, sh_degree, near_plane, rasterize_mode == "antialiased", backend="torch")
    drawn = torch.cat([p.rgb, p.depth], 1).movedim(1, -1)
    return drawn, p.opacity.movedim(1, -1), {"means2d": p.means, "radii": p.visible[..., None].int().expand(-1, -1, 2)}


@pytest.mark.parametrize("antialiased", [False, True])
def test_the_call_of_gsplat_says_the_same(antialiased, cloud, three_cameras, monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=stand_in))
    leaves = [Splats(*(x.requires_grad_() for x in cloud(40, degree=1, dtype=torch.float32))) for _ in range(2)]
    cameras = three_cameras()
    expected = render(leaves[0], cameras, 0.3, 1, antialiased=antialiased, backend="torch")
    found = _by_gsplat(leaves[1], cameras, 0.3, 1, 0.01, antialiased)
    for name in ("rgb", "opacity", "depth"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-4)
    assert torch.equal(found.visible, expected.visible)
    for picture in (expected, found):
        picture.rgb.square().sum().backward()
    torch.testing.assert_close(found.screen_gradients(), expected.screen_gradients(), rtol=1e-2, atol=1e-2, check_dtype=False)


@needs_gsplat
def test_gsplat_takes_these_arguments():
    from gsplat.rendering import rasterization

    theirs = inspect.signature(rasterization).parameters
    assert list(theirs)[:9] == list(inspect.signature(stand_in).parameters)[:9]
    assert set(inspect.signature(stand_in).parameters) <= set(theirs)


def test_choosing_gsplat(cloud, three_cameras, monkeypatch):
    auto = render(cloud(3), three_cameras())
    assert torch.equal(auto.rgb, render(cloud(3), three_cameras(), backend="torch").rgb)
    monkeypatch.setattr("limbeck.scenes.splatting.find_spec", lambda name: None)
    with pytest.raises(LimbeckError, match=r"backend=\"gsplat\" needs gsplat: pip install 'limbeck\[gsplat\]'"):
        render(cloud(3), three_cameras(), backend="gsplat")
    monkeypatch.setattr("limbeck.scenes.splatting.find_spec", lambda name: object())
    with pytest.raises(LimbeckError, match="gsplat works on CUDA alone, but the splats are on cpu"):
        render(cloud(3), three_cameras(), backend="gsplat")
    assert pytest.approx((4 * torch.pi) ** -0.5) == C0
