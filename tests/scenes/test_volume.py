"""The volume renderer against closed forms, finite differences and itself in pieces."""

import itertools

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import HashField, HashGrid, Scene, Seen, VolumeScene, VoxelGrid, ball_range, orbit

PARTS = ("rgb", "opacity", "depth", "variance", "weights")


def cameras(size=6, views=2, dtype=torch.float64, distance=2.5):
    return orbit(torch.tensor([20.0, -130.0, 95.0][:views], dtype=dtype), 15.0, distance, 45.0, size + 1, size)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def even(density, colour=(0.9, 0.5, 0.1)):
    """A field of one density and one colour."""

    def field(points, which):
        shape = points.shape[:-1]
        painted = points.new_tensor(colour).reshape(1, 3, *[1] * (len(shape) - 1)).expand(shape[0], 3, *shape[1:])
        return density * points.new_ones(shape), painted

    return field


def grid(size=5, scenes=1, seed=0, scale=1.0):
    start = scale * torch.randn(scenes, 4, size, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return VoxelGrid(size, scenes, start=start)


def chords(views, radius=0.8, extent=None):
    o, d = views.rays() if extent is None else views.parallel_rays(extent)
    near, far = ball_range(o, d, radius)
    return near, far, -(d * views.c2w[:, None, None, :3, 2]).sum(-1)


@pytest.mark.parametrize("extent", [None, 2.0])
@pytest.mark.parametrize("fine", [0, 7])
def test_a_homogeneous_ball_is_its_closed_form(extent, fine):
    sigma, views = 1.7, cameras()
    scene = VolumeScene(even(sigma), 5, fine, bounds="ball", radius=0.8, extent=extent)
    picture = scene(views, 0.25, uniform(2, 6, 7, 5 + fine))
    near, far, _ = chords(views, extent=extent)
    opacity = 1 - torch.exp(-sigma * (far - near))
    assert bool((opacity == 0).any()) and float(opacity.max()) > 0.9  # some rays miss
    torch.testing.assert_close(picture.opacity[:, 0], opacity, rtol=0, atol=1e-14)
    colour = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(picture.rgb, colour * opacity[:, None] + 0.25 * (1 - opacity[:, None]), rtol=0, atol=1e-14)
    torch.testing.assert_close(picture.weights.sum(-1), opacity, rtol=0, atol=1e-14)
    assert torch.equal(picture.image, 2 * picture.rgb - 1)
    points = scene.points(views, picture.distances)
    assert bool((points.norm(dim=-1)[opacity > 0] <= 0.8 + 1e-12).all()) and points.shape == (2, 6, 7, 5 + fine, 3)
    origins, directions = scene.rays(views)
    torch.testing.assert_close(((points - origins[..., None, :]) * directions[..., None, :]).sum(-1), picture.distances)


def test_depth_and_variance_of_a_homogeneous_ball():
    # E t and Var t of an exponential law cut off at the chord's length L, times the chance of stopping
    sigma, views = 1.7, cameras()
    picture = VolumeScene(even(sigma), 4000, bounds="ball", radius=0.8)(views)
    near, far, cosine = chords(views)
    L = far - near
    stop, left = 1 - torch.exp(-sigma * L), torch.exp(-sigma * L)
    mean = 1 / sigma - L * left / stop
    square = 2 / sigma**2 - (L * L + 2 * L / sigma) * left / stop
    hit = L > 0
    torch.testing.assert_close(picture.depth[:, 0][hit], (cosine * (near + mean) * stop)[hit], rtol=1e-6, atol=0)
    variance = cosine**2 * (square - mean**2) * stop
    torch.testing.assert_close(picture.variance[:, 0][hit], variance[hit], rtol=1e-5, atol=0)
    assert not bool(picture.depth[:, 0][~hit].any()) and not bool(picture.variance[:, 0][~hit].any())


def test_a_ball_in_a_box_is_found_at_first_order():
    def ball(points, which):
        inside = (points.norm(dim=-1) < 0.8).to(points)
        return 1.7 * inside, points.new_ones(len(points), 3, *points.shape[1:-1])

    near, far, _ = chords(cameras())
    exact = 1 - torch.exp(-1.7 * (far - near))
    errors = [float((VolumeScene(ball, S)(cameras()).opacity[:, 0] - exact).abs().mean()) for S in (50, 800)]
    assert errors[1] < errors[0] / 8 and errors[1] < 1e-3


def test_importance_samples_find_a_thin_shell():
    def shell(points, which):
        density = 22 * torch.exp(-((points.norm(dim=-1) - 0.6) / 0.008).square() / 2)
        return density, points.new_ones(len(points), 3, *points.shape[1:-1])

    views = orbit(torch.tensor([20.0], dtype=torch.float64), 15.0, 2.5, 25.0, 6, 6)
    exact = VolumeScene(shell, 5000)(views).opacity
    assert 0.2 < float(exact.mean()) < 0.8
    errors = [float((VolumeScene(shell, *S)(views).opacity - exact).abs().mean()) for S in ((64,), (96,), (64, 32))]
    assert errors[2] < errors[0] / 8 and errors[2] < errors[1] / 2  # without them, and with as many everywhere


def test_colours_add_up():
    field = grid()
    density_of = lambda p: field(p, None)[0]  # noqa: E731
    paint = [lambda p: p.sin().movedim(-1, 1).square(), lambda p: p.cos().movedim(-1, 1).square()]
    a, b, both = (
        VolumeScene(lambda p, w, f=f: (density_of(p), f(p)), 9)(cameras()).rgb
        for f in (*paint, lambda p: 0.3 * paint[0](p) + 2 * paint[1](p))
    )
    torch.testing.assert_close(both, 0.3 * a + 2 * b, rtol=0, atol=1e-13)
    white = VolumeScene(lambda p, w: (density_of(p), torch.ones_like(p).movedim(-1, 1)), 9)(cameras())
    torch.testing.assert_close(white.rgb, white.opacity.expand(-1, 3, -1, -1), rtol=0, atol=1e-13)


def test_more_density_is_more_opaque():
    field = grid()
    opacities = [
        VolumeScene(lambda p, w, k=k: (k * field(p)[0], field(p)[1]), 9)(cameras()).opacity for k in (0.0, 0.01, 0.1, 1.0, 10.0)
    ]
    assert not bool(opacities[0].any())
    hit = opacities[-1] > 0
    for less, more in itertools.pairwise(opacities):
        assert bool((more >= less).all()) and bool((more > less)[hit & (less < 1 - 1e-9)].all())


def test_rays_that_miss_see_the_background_and_give_no_gradient():
    scene = VolumeScene(grid(), 6)
    away = orbit(torch.zeros(1, dtype=torch.float64), 0.0, 2.5, 45.0, 4, 4, target=(0.0, 0.0, 9.0))
    background = uniform(1, 3, 4, 4).requires_grad_()
    picture = scene(away, background)
    assert torch.equal(picture.rgb, background) and not bool(picture.opacity.any())
    gradients = torch.autograd.grad(
        picture.rgb.sum() + picture.variance.sum() + picture.depth.sum(), [scene.field.values, background]
    )
    assert not bool(gradients[0].any()) and bool((gradients[1] == 1).all())


@pytest.mark.parametrize("part", PARTS)
def test_gradients_are_those_of_finite_differences(part):
    field = grid(3, scale=0.5)
    scene = VolumeScene(field, 5)
    u, views = uniform(2, 3, 4, 5), cameras(3)

    def loss(values):
        found = torch.func.functional_call(scene, {"field.values": values}, (views, 0.3, u))
        found = getattr(found, part)
        return (found * uniform(*found.shape, seed=3)).sum()

    x = field.values.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    for i in range(0, x.numel(), 4):
        step = torch.zeros_like(x).flatten()
        step[i] = 1e-5
        step = step.reshape(x.shape)
        with torch.no_grad():
            slopes = [float(loss(x + n * step) - loss(x - n * step)) / (2e-5 * n) for n in (1, 2)]
        expected = (4 * slopes[0] - slopes[1]) / 3  # of fourth order
        assert float(gradient.flatten()[i]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("max_points", [1, 200, 700])
@pytest.mark.parametrize("numbers", [False, True])
def test_pieces_change_nothing(max_points, numbers):
    u = uniform(2, 6, 7, 9) if numbers else None
    found = []
    for most in (2**30, max_points):
        field = grid()
        picture = VolumeScene(field, 6, 3, max_points=most)(cameras(), 0.3, u)
        sum((getattr(picture, part) * uniform(*getattr(picture, part).shape)).sum() for part in PARTS).backward()
        found.append([*picture, field.values.grad])
    for whole, pieced in zip(*found, strict=True):
        torch.testing.assert_close(pieced, whole, rtol=0, atol=1e-12)


def test_pieces_bound_what_is_remembered():
    def remembered(max_points):
        kept = {}

        def pack(x):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            picture = VolumeScene(grid(), 64, max_points=max_points)(cameras(32))
        assert picture.rgb.requires_grad
        return sum(kept.values())

    assert remembered(2**12) < remembered(2**30) / 10


def test_it_is_a_scene_that_learns_at_the_rates_of_its_field():
    scene = VolumeScene(grid(), 3)
    assert isinstance(scene, Scene) and isinstance(scene(cameras()), Seen) and scene.rates == {}
    assert VolumeScene(HashField(HashGrid(2, log2_size=4))).rates == {"table": 10.0}


def test_numbers_expand_and_no_numbers_are_the_middles():
    scene = VolumeScene(grid(), 8)
    u = uniform(2, 1, 1, 8)
    whole = scene(cameras(), 0.0, u.expand(2, 6, 7, 8).clone())
    for given, expected in ((u, whole), (torch.full((1,), 0.5).double(), scene(cameras()))):
        assert torch.equal(scene(cameras(), 0.0, given).rgb, expected.rgb)
    assert not torch.equal(whole.rgb, scene(cameras()).rgb)


def test_cameras_follow_the_field_and_single_precision_loses_rounding_alone():
    start = torch.randn(1, 4, 9, 9, 9, generator=torch.Generator().manual_seed(0))
    found = VolumeScene(VoxelGrid(9, start=start), 32)(cameras(), 0.3)
    exact = VolumeScene(VoxelGrid(9, start=start.double()), 32)(cameras(), 0.3)
    assert found.rgb.dtype == torch.float32
    torch.testing.assert_close(found.rgb.double(), exact.rgb, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VolumeScene(even(1.0), bounds="sphere"), "unknown bounds 'sphere'.* Allowed: ball, box"),
        (lambda: VolumeScene(even(1.0), 0), "samples=0, fine=0, max_points=4194304: a ray needs samples >= 1"),
        (lambda: VolumeScene(even(1.0), radius=0.0)(cameras()), "radius=0: a box or ball"),
        (lambda: VolumeScene(even(1.0), extent=0.0)(cameras()), "extent=0: the height of an orthographic image"),
        (
            lambda: VolumeScene(even(1.0), 8)(cameras(), 0.0, torch.zeros(2, 6, 6, 8)),
            r"uniform numbers of shape \(2, 6, 6, 8\): give what expands to \(2, 6, 7, 8\)",
        ),
        (lambda: VolumeScene(even(1.0), 8)(cameras(), torch.zeros(4)), r"a background of shape \(4,\): give a number"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
