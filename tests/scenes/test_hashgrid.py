"""Hash grids against grid_sample, a plain loop over vertices, and finite differences."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.scenes import HashField, HashGrid, VolumeScene, contracted, gradient, gradient_by_differences, orbit
from limbeck.scenes import hashgrid as module

ALL = {"log2_size": 14}


def points(*shape, seed=0):
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(*args, **options):
    """A hash grid whose rows are normal."""
    grid = HashGrid(*args, **options).double()
    with torch.no_grad():
        grid.table.normal_(generator=torch.Generator().manual_seed(3))
    return grid


def test_levels_grow_from_the_coarsest_to_the_finest():
    assert HashGrid(16, 2, 4).resolutions[0] == 16 and HashGrid(16, 2, 4).resolutions[-1] == 4096
    assert HashGrid(16, 2, 4, 16, 2048).resolutions == [int(16 * 128 ** (level / 15) + 1e-6) for level in range(16)]
    assert HashGrid(1, 2, 4, 7, 7).resolutions == [7]
    grid = HashGrid(3, 2, 9, 3, 12)
    assert grid.resolutions == [3, 6, 12] and grid.dense == 2 and len(grid.table) == 64 + 343 + 512
    start = grid.table.detach()
    assert float(start.abs().max()) <= 1e-4 and float(start.std()) == pytest.approx(1e-4 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dense_level_is_grid_sample(dtype):
    grid = filled(1, 3, 14, 9, 9).to(dtype)
    at = points(400).to(dtype)
    at[:2] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    volume = grid.table.reshape(1, 10, 10, 10, 3).movedim(-1, 1)
    expected = F.grid_sample(volume, (2 * at - 1)[None, None, None], align_corners=True)[0, :, 0, 0].T
    torch.testing.assert_close(grid(at), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_every_level_is_a_plain_loop_over_its_vertices(interpolation):
    grid = filled(3, 2, 7, 3, 40, interpolation=interpolation)
    assert grid.dense == 1
    at = points(20)
    code = grid(at)
    first = 0
    for level, N in enumerate(grid.resolutions):
        for p, found in zip(at, code[:, 2 * level : 2 * level + 2], strict=True):
            low = (p * N).floor().long()
            share = p * N - low
            share = share if interpolation == "linear" else 3 * share**2 - 2 * share**3
            total = torch.zeros(2, dtype=torch.float64)
            for corner in itertools.product((0, 1), repeat=3):
                x, y, z = (int(a) + b for a, b in zip(low, corner, strict=True))
                row = x + y * 4 + z * 16 if level == 0 else (x ^ (y * 2654435761) ^ (z * 805459861)) % 128
                weight = torch.where(torch.tensor(corner) == 1, share, 1 - share).prod()
                total += weight * grid.table.detach()[first + row]
            torch.testing.assert_close(found.detach(), total, rtol=0, atol=1e-13)
        first += 64 if level == 0 else 128


def test_no_vertices_of_a_dense_level_collide_and_those_of_others_share_rows():
    for log2_size, dense in ((10, True), (8, False)):
        grid = HashGrid(1, 1, log2_size, 9, 9).double()
        with torch.no_grad():
            grid.table[:, 0] = torch.arange(len(grid.table))
        axis = torch.arange(10, dtype=torch.float64) / 9
        rows = grid(torch.cartesian_prod(axis, axis, axis)).round().long().flatten()
        assert len(rows.unique()) == 1000 if dense else len(rows.unique()) <= 256


def test_collisions_add_up_their_gradients():
    grid = filled(1, 1, 4, 20, 20)
    grid(points(500)).sum().backward()
    assert grid.table.grad.shape == (16, 1) and float(grid.table.grad.sum()) == pytest.approx(500)


def test_levels_come_in_by_and_by():
    grid = filled(4, 2, 8, 3, 30)
    at = points(10)
    whole = grid(at)
    for k in (1, 2, 4):
        grid.active = k
        code = grid(at)
        torch.testing.assert_close(code[:, : 2 * k], whole[:, : 2 * k], rtol=0, atol=1e-14)
        assert not bool(code[:, 2 * k :].any())


def test_gradients_are_those_of_finite_differences_twice():
    grid = filled(2, 2, 4, 1, 5)
    at = points(3).requires_grad_()
    run = lambda p, table: torch.func.functional_call(grid, {"table": table}, (p,))  # noqa: E731
    table = grid.table.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (at, table), rtol=1e-6, atol=1e-7)
    assert torch.autograd.gradgradcheck(run, (at, table), rtol=1e-5, atol=1e-6)


def test_smoothstep_has_no_kinks():
    kinks = {}
    for interpolation in module.INTERPOLATIONS:
        grid = filled(1, 1, 14, 8, 8, interpolation=interpolation)
        sides = torch.tensor([[0.5 - 1e-9, 0.3, 0.3], [0.5 + 1e-9, 0.3, 0.3]], dtype=torch.float64)
        slopes = gradient(lambda p, g=grid: g(p)[:, 0], sides)
        kinks[interpolation] = (slopes[1] - slopes[0]).norm().item()
    assert kinks["linear"] > 1 and kinks["smoothstep"] < 1e-5


def test_blocks_of_points_change_nothing(monkeypatch):
    grid, at = filled(3, 2, 7, 3, 40), points(5, 7)
    whole = grid(at)
    monkeypatch.setattr(module, "BLOCK", 8)
    torch.testing.assert_close(grid(at), whole, rtol=0, atol=1e-14)
    assert whole.shape == (5, 7, 6)


def test_contraction_keeps_the_ball_and_bounds_space():
    x = torch.tensor([[0.3, -0.4, 0.5], [0.0, 3.0, 4.0], [1e9, 0, 0], [0, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([[0.3, -0.4, 0.5], [0.0, 1.08, 1.44], [2.0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(contracted(x), expected, rtol=1e-8, atol=0)
    r = torch.tensor([[1 - 1e-7, 0, 0], [1 + 1e-7, 0, 0]], dtype=torch.float64)
    slopes = gradient(lambda p: contracted(p)[:, 0], r)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("unbounded", [False, True])
def test_a_field_starts_as_its_blob_and_its_normals_are_analytic(unbounded):
    torch.manual_seed(0)
    field = HashField(filled(4, 2, 10, 3, 12, interpolation="smoothstep"), 16, radius=1.5, unbounded=unbounded).double()
    at = (3 * points(1, 30) - 1.5) * (3 if unbounded else 1)
    density, colour = field(at)
    assert density.shape == (1, 30) and colour.shape == (1, 3, 30)
    exact = gradient(lambda p: field(p)[0], at)
    near = gradient_by_differences(lambda p: field(p)[0], at, 1e-6)
    close = torch.isclose(exact, near, rtol=1e-4, atol=1e-6).all(-1)
    assert float(close.double().mean()) > 0.95  # a step may cross a kink of ReLU
    with torch.no_grad():
        field.network[-1].weight.zero_(), field.network[-1].bias.zero_()
    torch.testing.assert_close(field(at)[0], 4 * F.softplus(4 * (1 - at.norm(dim=-1) / 0.7)))
    assert bool((field(at)[1] == 0.5).all())


def test_points_beyond_the_grid_are_on_its_nearest_face_and_space_is_contracted_into_it():
    grid = filled(2, 2, 10, 3, 12)
    beyond = 3 * points(20) - 1
    torch.testing.assert_close(grid(beyond), grid(beyond.clamp(0, 1)), rtol=0, atol=1e-14)
    torch.manual_seed(0)
    field = HashField(grid, 8, radius=1.5, unbounded=True, kind="none").double()
    at = 30 * points(1, 20) - 15
    raw = field.network(grid(contracted(at / 1.5) / 4 + 0.5))  # the ball of radius 2 fills the cube
    torch.testing.assert_close(field(at)[0], 4 * F.softplus(raw[..., 0]), rtol=0, atol=1e-12)
    bounded = HashField(grid, 8, radius=1.5, kind="none").double()
    inner = 3 * points(1, 20) - 1.5
    raw = bounded.network(grid((inner + 1.5) / 3))
    torch.testing.assert_close(bounded(inner)[0], 4 * F.softplus(raw[..., 0]), rtol=0, atol=1e-12)


def test_a_field_in_a_scene_has_gradients_everywhere():
    torch.manual_seed(0)
    field = HashField(HashGrid(4, 2, 10, 3, 12), 8)
    VolumeScene(field, 8)(orbit(0.0, width=6, height=6)).image.square().sum().backward()
    assert all(bool(p.grad.any()) for p in field.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HashGrid(0), "levels=0, features=2, log2_size=19, .* a hash grid needs levels and features >= 1"),
        (lambda: HashGrid(2, coarsest=9, finest=8), "coarsest=9, finest=8"),
        (lambda: HashGrid(2, **ALL, interpolation="cubic"), "interpolation='cubic': choose one of linear, smoothstep"),
        (lambda: HashField(HashGrid(2, **ALL), 0), "width=0, layers=1, radius=1, gain=4: a field needs width >= 1"),
        (lambda: HashField(HashGrid(2, **ALL), kind="box"), "unknown blob 'box'"),
        (
            lambda: HashField(HashGrid(2, **ALL))(torch.zeros(2, 3), torch.tensor([0, 1])),
            "which=.* this field holds one scene, 0",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()


def test_more_levels_than_there_are():
    grid = HashGrid(2, **ALL)
    grid.active = 3
    with pytest.raises(LimbeckError, match=r"active=3: a hash grid of 2 levels has 1 to all of them in use"):
        grid(torch.zeros(1, 3))
