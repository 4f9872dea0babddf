"""The analytic head against a dense walk along its rays and closed forms; what makes it a fair test object."""

import math

import pytest
import torch

from limbeck.denoisers import FiniteSetDenoiser
from limbeck.errors import LimbeckError
from limbeck.noise import VE
from limbeck.scenes import Head, head_library, heads, orbit, render_head, turntable
from limbeck.scenes.head import trace

PARTS = [((0.0, 0.0, 0.0), None), ((0.55, 0.0, -0.02), (0.12, 0.08, 0.1))]
PARTS += [((-0.05, side * 0.5, 0.05), (0.1, 0.12, 0.18)) for side in (1, -1)]


def test_distances_are_those_of_a_walk_along_the_ray():
    head = Head()
    origins, directions = (x.reshape(-1, 3) for x in orbit(torch.tensor([40.0]).double(), 20.0, 2.0, 45.0, 16, 16).rays())
    _, hit, distance = trace(head, origins, directions)
    t = torch.linspace(0.5, 3.5, 1501, dtype=torch.float64)
    points = origins[:, None] + t[:, None] * directions[:, None]
    inside = torch.zeros(points.shape[:2], dtype=torch.bool)
    for centre, radii in PARTS:
        scaled = (points - torch.tensor(centre)) / torch.tensor(radii or head.radii)
        inside |= scaled.square().sum(-1) <= 1
    reached, first = inside.any(1), t[inside.double().argmax(1)]
    missed = reached != hit[:, 0]
    assert int(missed.sum()) <= 1  # a ray that grazes
    both = reached & hit[:, 0]
    assert 50 < int(both.sum()) < 250
    assert float((distance[both, 0] - first[both]).abs().max()) <= 0.002 + 1e-9


def test_the_silhouette_is_that_of_an_ellipsoid():
    # seen from above, in parallel rays: the skull's ellipse, the nose and the ears beyond it
    view = render_head(Head(), orbit(torch.zeros(1).double(), 90.0, 2.0, width=128, height=128), extent=2.0, samples=3)
    area = float(view.opacity.sum()) * (2 / 128) ** 2
    x, y = torch.meshgrid(*2 * [torch.linspace(-1, 1, 801, dtype=torch.float64)], indexing="ij")
    covered = torch.zeros_like(x, dtype=torch.bool)
    for (cx, cy, _), radii in PARTS:
        a, b, _ = radii or Head().radii
        covered |= ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 <= 1
    assert area == pytest.approx(float(covered.double().mean()) * 4, rel=5e-3)
    assert area > math.pi * 0.55 * 0.5


def colour_at(azimuth, elevation):
    """Of the ray from outside to the skull's middle."""
    camera = orbit(torch.tensor([azimuth]).double(), elevation, 3.0)
    _, hit, _ = found = trace(Head(), camera.position, -camera.c2w[:, :3, 2])
    assert bool(hit)
    return tuple(found[0][0].tolist())


def test_what_is_where():
    assert colour_at(0.0, 0.0) == pytest.approx(Head().skin)
    assert colour_at(180.0, 0.0) == pytest.approx(Head().hair)
    assert colour_at(90.0, 5.0) == pytest.approx(Head().left_ear)
    assert colour_at(-90.0, 5.0) == pytest.approx(Head().right_ear)
    view = render_head(Head(), turntable(1, width=64, height=64), samples=1).image[0]
    red = (view[0] > 0.4) & (view[1] < -0.7)
    dark = (view[0] < -0.8) & (view[2] < -0.7)
    rows, columns = red.nonzero().double().mean(0).tolist(), dark[:32].nonzero().double()
    assert rows[0] > 32 and abs(rows[1] - 31.5) < 1 and len(columns) > 0  # the mouth is below and in the middle
    assert float(columns[:, 1].min()) < 31.5 < float(columns[:, 1].max())  # a pupil on each side


def test_all_views_of_all_heads_differ_also_from_mirror_images():
    library = head_library(4, turntable(24, width=16, height=16, fovy=40.0)).flatten(0, 1)
    assert library.shape == (96, 3, 16, 16) and float(library.min()) >= -1 and float(library.max()) <= 1
    flat = library.flatten(1)
    distance = torch.cdist(flat, flat) + 9 * torch.eye(96)
    assert float(distance.min()) > 0.5
    assert float(torch.cdist(library.flip(-1).flatten(1), flat).min()) > 0.5


def test_finer_pixels_average_to_the_coarse_ones():
    cameras = turntable(2, width=8, height=8)
    coarse = render_head(Head(), cameras, samples=4)
    fine = render_head(Head(), cameras.resized(32, 32), samples=1)
    for one, other in zip(coarse, fine, strict=True):
        torch.testing.assert_close(one, torch.nn.functional.avg_pool2d(other, 4), rtol=0, atol=1e-5)


def test_the_background_is_where_the_head_is_not():
    white, black = (render_head(Head(), turntable(1, width=16, height=16), background=b) for b in (1.0, -1.0))
    torch.testing.assert_close(white.image - black.image, (2 * (1 - white.opacity)).expand(-1, 3, -1, -1))


def test_the_library_is_an_exact_teacher():
    library = head_library(2, turntable(6, width=12, height=12)).flatten(0, 1)
    teacher = FiniteSetDenoiser(library, VE())
    noise = torch.randn(library.shape, generator=torch.Generator().manual_seed(0))
    found = teacher(library + 0.05 * noise, torch.full((12,), 0.05, dtype=torch.float64))
    torch.testing.assert_close(found, library, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heads(0), "0 heads: give at least 1"),
        (lambda: Head(radii=(1.0, 0.0, 1.0)), r"radii=\(1.0, 0.0, 1.0\): a head needs three positive ones"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
