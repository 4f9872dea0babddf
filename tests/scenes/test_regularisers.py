"""Regularisers by their values on cases known by hand."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import (
    binary_entropy,
    depth_variance,
    eikonal,
    gradient,
    mean_scale,
    opaqueness,
    orientation,
    sparsity,
    total_variation,
)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_orientation_counts_what_faces_away():
    weights = (
        torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64).reshape(1, 1, 1, 3).expand(1, 1, 2, 3).clone().requires_grad_()
    )
    away, towards = [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]
    normals = torch.tensor([[away, towards, away], [[0.0, 1, 0], [0.6, 0.8, 0], away]], dtype=torch.float64)[None, None]
    normals = normals.clone().requires_grad_()
    directions = torch.tensor(away, dtype=torch.float64).expand(1, 1, 2, 3)
    value = orientation(weights, normals, directions, torch.tensor([[[[0.75, 0.75]]]]))
    assert value.item() == pytest.approx((0.5 * 1 + 0.25 * 0.36) / 2)
    value.backward()
    assert weights.grad is None and normals.grad[0, 0, 0, 0].tolist() == pytest.approx([0.5, 0, 0])
    one_empty = orientation(weights, normals, directions, torch.tensor([[[[0.75, 0.0]]]]))
    assert one_empty.item() == pytest.approx(2 * value.item())


def test_opacities():
    o = torch.tensor([[[[0.0, 0.5], [1.0, 0.2]]]], dtype=torch.float64, requires_grad=True)
    assert sparsity(o).item() == pytest.approx(sum(math.sqrt(x * x + 0.01) for x in (0, 0.5, 1, 0.2)) / 4)
    h = lambda p: -p * math.log(p) - (1 - p) * math.log(1 - p)  # noqa: E731
    assert opaqueness(o).item() == pytest.approx((2 * h(1e-3) + h(0.5) + h(0.2)) / 4)
    for penalty in (sparsity, opaqueness):
        (g,) = torch.autograd.grad(penalty(o), o)
        assert bool(g.isfinite().all())
    (g,) = torch.autograd.grad(opaqueness(o), o)
    assert float(g[0, 0, 1, 1]) == pytest.approx((math.log(0.8 / 0.2)) / 4)  # both sides of the cross-entropy move


def test_entropy_is_in_bits():
    assert binary_entropy(torch.full((2, 3), 0.5)).item() == pytest.approx(1)
    assert binary_entropy(torch.tensor([0.25, 1.0, 0.0])).item() == pytest.approx((0.8112781 + 2 * 1.81e-4) / 3, abs=1e-5)


def test_depth_variance_of_what_is_opaque():
    variance = torch.tensor([[[[1.0, 3.0], [100.0, 5.0]]]], requires_grad=True)
    opacity = torch.tensor([[[[0.9, 0.6], [0.5, 1.0]]]])
    assert depth_variance(variance, opacity).item() == pytest.approx(3)
    assert depth_variance(variance, 0 * opacity).item() == 0


def test_eikonal_and_scale():
    assert eikonal(torch.tensor([[3.0, 4, 0], [0, 1, 0]])).item() == pytest.approx(8)
    sphere = gradient(lambda p: p.norm(dim=-1) - 0.3, uniform(50, 3) + 0.1)
    assert eikonal(sphere).item() == pytest.approx(0, abs=1e-25)
    assert mean_scale(torch.log(torch.tensor([[0.1, 0.2, 0.3]]))).item() == pytest.approx(0.2)


def test_total_variation_of_a_ramp():
    x = torch.arange(4.0).expand(1, 2, 3, 4)  # 1 per column, 0 per row
    y = 3 * torch.arange(3.0)[:, None].expand(1, 2, 3, 4)
    assert total_variation(x).item() == 1 and total_variation(x + y).item() == 10
    assert total_variation(x + y, 1).item() == 4 and total_variation(torch.ones(1, 1, 2, 2)).item() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: total_variation(torch.zeros(1, 3, 1, 5)), r"an image of shape \(1, 3, 1, 5\): total variation takes"),
        (lambda: total_variation(torch.zeros(1, 3, 5, 5), 3), "power=3: total variation is of absolute differences, 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
