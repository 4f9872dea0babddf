"""Every Gaussian at every pixel: the splat renderer's equations as plainly as they can be written, and scenes to try them on."""

import pytest
import torch

from limbeck.scenes import Mesh, Splats, orbit
from limbeck.scenes.splats import rotations


def _render_dense(splats, cameras, background=0.0, near=0.01):
    """(rgb (B, 3, H, W), opacity (B, H, W), depth (B, H, W)) in the dtype of the splats, colours without harmonics."""
    M = rotations(splats.quaternions) @ torch.diag_embed(splats.log_scales.exp())
    sigma = M @ M.mT
    opacity = torch.sigmoid(splats.logits)
    colour = (0.28209479177387814 * splats.sh0[:, 0] + 0.5).clamp(min=0)
    H, W = cameras.height, cameras.width
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).to(splats.means)
    pictures = []
    for w2c, (fx, fy), (cx, cy) in zip(cameras.view, cameras.focal, cameras.centre, strict=True):
        m = splats.means @ w2c[:3, :3].T + w2c[:3, 3]
        ahead = (m[:, 2] > near).nonzero()[:, 0]
        ahead = ahead[m[ahead, 2].argsort(stable=True)]
        m, S, o, c = m[ahead], w2c[:3, :3] @ sigma[ahead] @ w2c[:3, :3].T, opacity[ahead], colour[ahead]
        z = m[:, 2]
        u = torch.minimum(torch.maximum(m[:, 0] / z, (-cx - 0.15 * W) / fx), (W - cx + 0.15 * W) / fx)
        v = torch.minimum(torch.maximum(m[:, 1] / z, (-cy - 0.15 * H) / fy), (H - cy + 0.15 * H) / fy)
        zero = torch.zeros_like(z)
        J = torch.stack([torch.stack([fx / z, zero, -fx * u / z], -1), torch.stack([zero, fy / z, -fy * v / z], -1)], 1)
        S = J @ S @ J.mT + 0.3 * torch.eye(2).to(S)
        mean = torch.stack([fx * m[:, 0] / z + cx, fy * m[:, 1] / z + cy], 1)
        dx, dy = (pixels - mean[:, None]).unbind(-1)
        (a, b), (_, e) = torch.linalg.inv(S).permute(1, 2, 0)[..., None]
        q = a * dx * dx + 2 * b * dx * dy + e * dy * dy
        alpha = (o[:, None] * torch.exp(-q / 2)).clamp(max=0.99)
        alpha = torch.where(alpha >= 1 / 255, alpha, 0)
        T = torch.cat([torch.ones_like(alpha[:1]), torch.cumprod(1 - alpha, 0)])
        weight = T[:-1] * alpha
        rgb = weight.T @ c + T[-1][:, None] * background
        pictures.append(torch.cat([rgb, 1 - T[-1][:, None], (weight.T @ z)[:, None]], 1).T.reshape(5, H, W))
    picture = torch.stack(pictures)
    return picture[:, :3], picture[:, 3], picture[:, 4]


def _cloud(N=60, seed=0, degree=0, size=0.12, spread=0.8, dtype=torch.float64):
    """Random anisotropic splats about the origin, some of them too faint or too opaque to be seen as they are."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    splats = Splats(
        spread * normal(N, 3) / 2,
        torch.log(torch.tensor(size)) + 0.5 * normal(N, 3),
        normal(N, 4),
        3 * normal(N),
        normal(N, 1, 3),
        normal(N, (degree + 1) ** 2 - 1, 3),
    )
    return Splats(*(x.to(dtype) for x in splats))


def _three_cameras(size=24, dtype=torch.float64, **options):
    azimuth = torch.tensor([10.0, 130.0, -100.0], dtype=dtype)
    return orbit(azimuth, 15.0, 2.0, 50.0, width=size + 5, height=size, **options)


def _box_mesh(half=(1.0, 1.0, 1.0), centre=(0.0, 0.0, 0.0)):
    """Twelve triangles, counterclockwise from outside; vertex 4 i + 2 j + k is at the end i, j, k along x, y, z."""
    vertices = torch.cartesian_prod(*3 * [torch.tensor([-1.0, 1.0], dtype=torch.float64)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))])
    return Mesh(vertices * torch.tensor(half).double() + torch.tensor(centre).double(), faces)


def _torus_mesh(n, R=0.6, r=0.25):
    """n x n quadrangles around z, each of two triangles; its vertices lie on the torus."""
    turn = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    u, v = torch.meshgrid(turn, turn, indexing="ij")
    ring = R + r * v.cos()
    vertices = torch.stack([ring * u.cos(), ring * u.sin(), r * v.sin()], -1).reshape(-1, 3)
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    a, b, c, d = (((i + x) % n * n + (j + y) % n).reshape(-1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)))
    return Mesh(vertices, torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)]))


@pytest.fixture(scope="session")
def box_mesh():
    return _box_mesh


@pytest.fixture(scope="session")
def torus_mesh():
    return _torus_mesh


@pytest.fixture(scope="session")
def render_dense():
    return _render_dense


@pytest.fixture(scope="session")
def cloud():
    return _cloud


@pytest.fixture(scope="session")
def three_cameras():
    return _three_cameras
