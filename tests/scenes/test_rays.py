"""Samples along rays and their weights against closed forms, quadrature and finite differences."""

import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.scenes import (
    ball_range,
    blurred,
    box_range,
    importance,
    merged,
    neus_thickness,
    ray_weights,
    stratified,
    volsdf_density,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


def rays(count=2000, seed=0):
    """From anywhere within 2 of the origin, in all directions: some start inside, some miss."""
    g = seeded(seed)
    origins = 4 * torch.rand(count, 3, generator=g, dtype=torch.float64) - 2
    return origins, F.normalize(torch.randn(count, 3, generator=g, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("kind", ["box", "ball"])
def test_ranges_are_where_points_on_the_ray_are_inside(kind):
    radius = 0.9
    o, d = rays()
    near, far = {"box": box_range, "ball": ball_range}[kind](o, d, radius)
    t = torch.linspace(0, 6, 1201, dtype=torch.float64)
    points = o[:, None] + t[:, None] * d[:, None]
    size = points.abs().amax(-1) if kind == "box" else points.norm(dim=-1)
    inside = size < radius
    found = (t > near[:, None]) & (t < far[:, None])
    clear = ((t - near[:, None]).abs() > 1e-9) & ((t - far[:, None]).abs() > 1e-9) & ((size - radius).abs() > 1e-9)
    assert torch.equal(inside[clear], found[clear])
    missing = ~inside.any(1)
    assert 500 < int(missing.sum()) < 1800
    assert int((o.abs().amax(-1) < radius).sum()) > 50  # start inside
    long = far - near > 0.01
    assert not bool((missing & long).any()) and bool((near[far == 0] == 0).all())


def test_rays_along_the_axes_and_on_the_faces():
    o = torch.tensor([[3.0, 0, 0], [3.0, 1.5, 0], [3.0, 0.2, 0.3], [0.0, 0, 0], [-3.0, 0, 0], [0.0, 3.0, 0.0]])
    d = torch.tensor([[-1.0, 0, 0], [-1.0, 0, 0], [-1.0, 0, 0], [0, 0, -1.0], [-1.0, 0, 0], [0.0, -1.0, -0.0]])
    near, far = box_range(o, d)
    torch.testing.assert_close(torch.stack([near, far]), torch.tensor([[2.0, 0, 2, 0, 0, 2], [4.0, 0, 4, 1, 0, 4]]))
    near, far = ball_range(o, d)
    chord = math.sqrt(1 - 0.13)
    expected = torch.tensor([[2.0, 0, 3 - chord, 0, 0, 2], [4.0, 0, 3 + chord, 1, 0, 4]])
    torch.testing.assert_close(torch.stack([near, far]), expected)


def test_strata_tile_the_range_and_hold_one_sample_each():
    near, far = torch.tensor([0.5, 0.0], dtype=torch.float64), torch.tensor([2.5, 0.0], dtype=torch.float64)
    t, delta = stratified(near, far, 8, uniform(2, 8))
    assert torch.equal(((t[0] - 0.5) / 0.25).floor(), torch.arange(8).double())
    torch.testing.assert_close(delta.sum(-1), far - near)
    assert not bool(t[1].any()) and not bool(delta[1].any())
    torch.testing.assert_close(stratified(near, far, 8).t[0], 0.5 + 0.25 * (torch.arange(8).double() + 0.5))


def test_weights_are_those_of_the_products():
    alpha = uniform(50, 12) * 0.9
    weights, opacity = ray_weights(-torch.log1p(-alpha))
    T = torch.cat([torch.ones(50, 1, dtype=torch.float64), torch.cumprod(1 - alpha, -1)], -1)
    torch.testing.assert_close(weights, T[:, :-1] * alpha, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(opacity, weights.sum(-1), rtol=1e-13, atol=1e-15)


def test_weights_and_their_gradients_stay_exact_where_products_underflow():
    thickness = torch.tensor([1e-30, 0.0, 200.0, 1e4, 1.0], requires_grad=True)
    weights, opacity = ray_weights(thickness)
    assert weights.tolist() == pytest.approx([1e-30, 0, 1, 0, 0]) and opacity.item() == 1
    # dw_i/dtau_j = T_i exp(-tau_i) where i = j, -w_i where j < i, and 0 behind
    found = torch.autograd.functional.jacobian(lambda x: ray_weights(x)[0], thickness)
    expected = torch.zeros(5, 5)
    expected[0, 0] = expected[1, 1] = 1
    expected[2, :2] = -1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-20)


def test_gradients_of_the_weights_are_those_of_finite_differences():
    thickness = (3 * uniform(3, 6)).requires_grad_()
    assert torch.autograd.gradcheck(ray_weights, (thickness,), rtol=1e-6, atol=1e-9)


def test_importance_samples_have_the_piecewise_constant_density():
    # the inverse CDF by quadrature on a fine grid: F(t) = integral of (w + 1e-5) / sum up to t
    near, far = torch.tensor([1.0, 0.2], dtype=torch.float64), torch.tensor([3.0, 0.7], dtype=torch.float64)
    weights = torch.stack([uniform(7), torch.tensor([0, 0, 0.5, 0, 0, 0.1, 0], dtype=torch.float64)])
    count, u = 40, uniform(2, 40, seed=1)
    t = importance(near, far, weights, count, u)
    assert bool((t.diff(dim=-1) >= 0).all())
    fine = 70_000
    for ray in range(2):
        grid = near[ray] + (far - near)[ray] * (torch.arange(fine).double() + 0.5) / fine
        density = (weights[ray] + 1e-5).repeat_interleave(fine // 7)
        mass = torch.stack([density[grid < x].sum() for x in t[ray]]) / density.sum()
        torch.testing.assert_close(mass, (torch.arange(count) + u[ray]) / count, rtol=0, atol=1e-4)
    where_it_is = ((t[1] - 0.2) / 0.5 * 7).floor()
    assert set(where_it_is.tolist()) <= {2.0, 5.0} and int((where_it_is == 2).sum()) in (33, 34)


def test_importance_samples_without_weights_are_stratified_and_carry_no_gradient():
    near, far = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    weights = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    u = uniform(3, 10)
    t = importance(near, far, weights, 10, u)
    torch.testing.assert_close(t, stratified(near, far, 10, u).t, rtol=0, atol=1e-12)
    assert not t.requires_grad
    assert not bool(importance(near, near, weights, 4).any())  # rays that miss


def test_blurred_weights_reach_one_piece_further():
    weights = torch.tensor([0.0, 0, 4, 0, 0, 1, 3])
    assert blurred(weights).tolist() == [0, 2, 4, 2, 0.5, 2, 3]


def test_merged_samples_tile_the_range_in_order():
    near, far = torch.tensor([1.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    coarse, fine = stratified(near, far, 6).t, importance(near, far, uniform(1, 6), 5, uniform(1, 5))
    t, delta = merged(near, far, coarse, fine)
    assert t.shape == (1, 11) and bool((t.diff(dim=-1) >= 0).all()) and bool((delta >= 0).all())
    assert float(delta.sum()) == pytest.approx(2, abs=1e-14)
    edges = 1 + F.pad(delta.cumsum(-1), (1, 0))
    assert bool((edges[:, :-1] <= t).all() and (t <= edges[:, 1:]).all())
    torch.testing.assert_close(merged(near, far, coarse).delta, stratified(near, far, 6).delta)


def test_neus_is_its_formula_and_stays_finite_where_that_underflows():
    before, after, k = 2 * uniform(200) - 1, 2 * uniform(200, seed=1) - 1, 9.0
    tau = neus_thickness(before, after, k)
    phi, then = torch.sigmoid(k * before), torch.sigmoid(k * after)
    torch.testing.assert_close(1 - torch.exp(-tau), ((phi - then) / phi).clamp(0, 1), rtol=1e-12, atol=1e-14)
    deep = torch.tensor([-40.0, -41.0, 1.0], requires_grad=True)
    far = neus_thickness(deep[:2], deep[1:], 100.0)  # 0 / 0 in float32 as it is written
    assert far.tolist() == pytest.approx([100.0, 0.0])
    far.sum().backward()
    assert deep.grad.tolist() == pytest.approx([100.0, -100.0, 0.0])


def test_neus_thickness_adds_up_along_a_ray():
    # going in only: the pieces' thickness is that of the whole, however it is cut
    s = torch.linspace(0.8, -0.6, 33, dtype=torch.float64)
    whole = neus_thickness(s[0], s[-1], 20.0)
    torch.testing.assert_close(neus_thickness(s[:-1], s[1:], 20.0).sum(), whole, rtol=1e-13, atol=0)
    assert float(1 - torch.exp(-neus_thickness(s[0], s[-1], 1000.0))) == pytest.approx(1)


def test_volsdf_is_its_formula_and_tends_to_the_surface():
    s = 2 * uniform(200) - 1
    k = 12.0
    formula = k * (0.5 + 0.5 * torch.sign(s) * (torch.exp(-k * s.abs()) - 1))
    torch.testing.assert_close(volsdf_density(s, k), formula, rtol=1e-12, atol=1e-14)
    inside, at, outside = (float(volsdf_density(torch.tensor(x).double(), k)) for x in (-9.0, 0.0, 9.0))
    assert (inside, at) == pytest.approx((k, k / 2)) and 0 < outside < 1e-40  # the formula as written gives 0 here
    # a plane met head on from far: all of k s passes before s = 0 but a share; light left at the surface is exp(-1/2)
    t = torch.linspace(5, 0, 200_001, dtype=torch.float64)
    assert float(volsdf_density((t[1:] + t[:-1]) / 2, k).sum() * 5 / 200_000) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: box_range(x, x, 0.0), "radius=0: a box or ball to look into needs a positive one"),
        (lambda x: ball_range(x, x, -1.0), "radius=-1: a box or ball"),
        (lambda x: stratified(x, x, 0), "0 samples per ray: take at least 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call(torch.ones(3))
