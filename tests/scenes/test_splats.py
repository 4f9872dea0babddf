"""Splats by themselves: harmonics against scipy, rotations, covariances, beginnings, and bad input."""

import math

import pytest
import torch
from scipy.special import sph_harm_y

from limbeck.errors import LimbeckError
from limbeck.scenes import Splats, ball, check_splats, sh_basis, splats_from_points
from limbeck.scenes.splats import colours, covariance_roots, nearest_distances, rotations

G = torch.Generator().manual_seed(0)
DIRECTIONS = torch.nn.functional.normalize(torch.randn(40, 3, generator=G, dtype=torch.float64), dim=1)


def real_harmonics(directions, degree):
    """sqrt(2) (-1)^m Im or Re of scipy's Y_l^|m|, which carries the Condon-Shortley phase once more."""
    x, y, z = directions.T
    theta, phi = torch.acos(z), torch.atan2(y, x)
    columns = []
    for l in range(degree + 1):
        for m in range(-l, l + 1):
            Y = torch.from_numpy(sph_harm_y(l, abs(m), theta.numpy(), phi.numpy()))
            columns.append(Y.real if m == 0 else math.sqrt(2) * (Y.imag if m < 0 else Y.real))
    return torch.stack(columns, 1)


def test_harmonics_are_scipys():
    torch.testing.assert_close(sh_basis(DIRECTIONS, 3), real_harmonics(DIRECTIONS, 3), rtol=0, atol=1e-13)
    assert torch.equal(sh_basis(DIRECTIONS, 1), sh_basis(DIRECTIONS, 3)[:, :4])


def test_quaternions_turn_as_products_do():
    q = torch.randn(5, 4, generator=G, dtype=torch.float64)
    w, v = q[:, :1] / q.norm(dim=1, keepdim=True), q[:, 1:] / q.norm(dim=1, keepdim=True)
    p = torch.randn(5, 3, generator=G, dtype=torch.float64)
    # q p q* = p + 2 w (v x p) + 2 v x (v x p)
    expected = p + 2 * w * torch.linalg.cross(v, p) + 2 * torch.linalg.cross(v, torch.linalg.cross(v, p))
    torch.testing.assert_close((rotations(q) @ p[..., None])[..., 0], expected, rtol=0, atol=1e-13)


def test_covariances_have_the_scales_as_axes():
    splats = splats_from_points(torch.randn(4, 3, generator=G, dtype=torch.float64))
    splats = splats._replace(
        log_scales=torch.tensor([[0.1, -1.0, 0.5]]).double().repeat(4, 1),
        quaternions=torch.randn(4, 4, generator=G, dtype=torch.float64),
    )
    M = covariance_roots(splats)
    found = torch.linalg.eigvalsh(M @ M.mT)
    torch.testing.assert_close(found, torch.tensor([[-2.0, 0.2, 1.0]]).double().exp().expand(4, 3), rtol=1e-12, atol=0)


def test_points_become_round_splats_of_their_colour():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [0, 0, 3]], dtype=torch.float64)
    colour = torch.rand(5, 3, generator=G, dtype=torch.float64)
    splats = splats_from_points(points, colour, degree=2, opacity=0.2)
    assert float(splats.log_scales[0, 0].exp()) == pytest.approx((1 + 2 + 3) / 3)
    assert float(splats.log_scales[3, 0].exp()) == pytest.approx((0 + 3 + math.sqrt(10)) / 3)
    torch.testing.assert_close(torch.sigmoid(splats.logits), torch.full((5,), 0.2).double())
    torch.testing.assert_close(colours(splats, DIRECTIONS[:5]), colour)
    assert splats.degree == 2
    two = splats_from_points(points[[0, 0]], least_scale=0.01)
    assert two.log_scales.exp().tolist() == [pytest.approx([0.01] * 3)] * 2


def test_neighbours_in_blocks(monkeypatch):
    points = torch.rand(50, 3, generator=G, dtype=torch.float64)
    expected = torch.cdist(points, points).topk(4, largest=False).values[:, 1:].mean(1)
    monkeypatch.setattr("limbeck.scenes.splats._ROWS", 7)
    torch.testing.assert_close(nearest_distances(points), expected, rtol=1e-7, atol=0)


def test_the_ball_is_filled_evenly():
    u = torch.rand(4000, 3, generator=G, dtype=torch.float64)
    points = ball(u, 2.0)
    inside = (points.norm(dim=1) / 2) ** 3
    torch.testing.assert_close(inside, u[:, 0], rtol=0, atol=1e-12)
    covariance = points.T @ points / len(points)
    torch.testing.assert_close(covariance, torch.eye(3).double() * 4 / 5, rtol=0, atol=0.05)


def test_colours_are_cut_at_black_and_fewer_harmonics_may_be_active():
    splats = splats_from_points(torch.rand(40, 3, generator=G, dtype=torch.float64), 0.5, degree=3)
    splats = splats._replace(sh0=torch.randn(40, 1, 3, generator=G).double(), shN=torch.randn(40, 15, 3, generator=G).double())
    raw = torch.einsum("nk,nkc->nc", real_harmonics(DIRECTIONS, 3)[:, :9], splats.harmonics[:, :9]) + 0.5
    torch.testing.assert_close(colours(splats, DIRECTIONS, 2), raw.clamp(min=0), rtol=0, atol=1e-12)
    assert float(raw.min()) < 0


GOOD = splats_from_points(torch.rand(4, 3, generator=G))


def broken(name, index, value):
    x = getattr(GOOD, name).clone()
    x[index] = value
    return GOOD._replace(**{name: x})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_splats(broken("means", (2, 1), math.nan)), "splat 2 has means that are not finite"),
        (lambda: check_splats(broken("log_scales", (1, 0), math.inf)), "splat 1 has log_scales that are not finite"),
        (lambda: check_splats(broken("quaternions", 3, 0.0)), "splat 3 has a quaternion of length 0"),
        (lambda: check_splats(GOOD._replace(logits=torch.zeros(3))), r"splats do not fit: .*logits \(3,\).* expected \(N, 3\)"),
        (lambda: check_splats(GOOD._replace(shN=torch.zeros(4, 4, 3))), "5 spherical-harmonic coefficients per channel"),
        (lambda: sh_basis(DIRECTIONS, 4), "spherical harmonics of degree 4: splats have 0 to 3"),
        (
            lambda: colours(GOOD, DIRECTIONS[:4].float(), 1),
            "degree=1 is asked for, but these splats have harmonics of degree 0",
        ),
        (lambda: splats_from_points(torch.zeros(1, 3)), r"points of shape \(1, 3\)"),
        (lambda: splats_from_points(torch.zeros(3, 3), opacity=1.0), "opacity=1: it must lie between 0 and 1"),
        (lambda: splats_from_points(torch.zeros(3, 3), degree=4), "degree=4: splats have harmonics of degree 0 to 3"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()


def test_no_splats_are_splats():
    check_splats(Splats(*(x[:0] for x in GOOD)))
