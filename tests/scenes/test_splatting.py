"""The splat renderer against closed forms, a dense renderer and finite differences, at every size of its blocks."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import Splats, orbit, project, render, splats_from_points


def splat(position, colour, opacity, scale=0.1):
    """One round splat of a colour."""
    x = torch.tensor([position, position], dtype=torch.float64)
    both = splats_from_points(x, torch.tensor(colour, dtype=torch.float64), opacity=opacity)
    return Splats(*(x[:1] for x in both._replace(log_scales=both.log_scales * 0 + math.log(scale))))


def joined(*parts):
    return Splats(*(torch.cat(x) for x in zip(*parts, strict=True)))


def front(size=9, distance=2.0, fovy=40.0):
    return orbit(torch.zeros(1, dtype=torch.float64), 0.0, distance, fovy, size, size)


def falloff(scale, size=9, distance=2.0, fovy=40.0):
    """exp(-d^2 / 2S) on the pixels of front() for a round splat at the origin: J = f / z on both axes, S = (f s / z)^2 + 0.3."""
    focal = size / (2 * math.tan(math.radians(fovy) / 2))
    S = (focal * scale / distance) ** 2 + 0.3
    x = torch.arange(size, dtype=torch.float64) + 0.5 - size / 2
    return torch.exp(-(x * x + x[:, None] ** 2) / (2 * S))


def test_one_round_splat_on_the_axis_by_hand():
    colour, opacity = (0.9, 0.4, 0.2), 0.7
    picture = render(splat((0.0, 0.0, 0.0), colour, opacity), front(), background=0.25)
    alpha = opacity * falloff(0.1)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    assert 0 < int((alpha == 0).sum()) < 81
    expected = alpha * torch.tensor(colour, dtype=torch.float64)[:, None, None] + (1 - alpha) * 0.25
    torch.testing.assert_close(picture.rgb[0], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(picture.opacity[0, 0], alpha, rtol=0, atol=1e-14)
    torch.testing.assert_close(picture.depth[0, 0], 2 * alpha, rtol=0, atol=1e-14)
    torch.testing.assert_close(picture.image, 2 * picture.rgb - 1)


@pytest.mark.parametrize("swap", [False, True])
def test_the_nearer_of_two_is_in_front_whatever_their_order(swap):
    near, far = splat((0.5, 0.0, 0.0), (1.0, 0.0, 0.0), 0.6), splat((-0.5, 0.0, 0.0), (0.0, 0.0, 1.0), 0.8)
    picture = render(joined(far, near) if swap else joined(near, far), front())
    a, b = (render(one, front()).opacity[0, 0] for one in (near, far))
    torch.testing.assert_close(picture.rgb[0], torch.stack([a, 0 * a, (1 - a) * b]), rtol=0, atol=1e-14)
    torch.testing.assert_close(picture.depth[0, 0], 1.5 * a + 2.5 * (1 - a) * b, rtol=0, atol=1e-14)


def test_alpha_stops_at_its_bound():
    picture = render(splat((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.9999), front())
    assert float(picture.opacity[0, 0, 4, 4]) == pytest.approx(0.99, abs=1e-15)


def test_weights_sum_to_the_opacity(cloud, three_cameras):
    white = cloud(200)
    white = white._replace(sh0=torch.full_like(white.sh0, 0.5 / 0.28209479177387814))
    picture = render(white, three_cameras())
    torch.testing.assert_close(picture.rgb, picture.opacity.expand(-1, 3, -1, -1), rtol=0, atol=1e-11)
    assert float(picture.opacity.min()) >= 0 and float(picture.opacity.max()) > 0.99


def pictures(splats, cameras, renderer=render, **options):
    found = renderer(splats, cameras, 0.3, **options)
    rgb, opacity, depth = (found.rgb, found.opacity[:, 0], found.depth[:, 0]) if renderer is render else found
    return torch.cat([rgb, opacity[:, None], depth[:, None]], 1)


def with_gradients(splats, cameras, renderer=render, **options):
    """The pictures, and the gradients of a random linear function of them."""
    leaves = Splats(*(x.clone().requires_grad_() for x in splats))
    picture = pictures(leaves, cameras, renderer, **options)
    weight = torch.randn(picture.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    gradients = torch.autograd.grad((picture * weight).sum(), leaves, materialize_grads=True)
    size = [max(1.0, float(g.abs().max())) if g.numel() else 1.0 for g in gradients]
    return picture.detach(), {name: g / s for name, g, s in zip(Splats._fields, gradients, size, strict=True)}


@pytest.mark.parametrize(("N", "size"), [(300, 0.12), (40, 0.5), (500, 0.02)], ids=["middling", "big", "small"])
def test_pictures_and_gradients_are_those_of_the_dense_renderer(N, size, cloud, three_cameras, render_dense):
    splats = cloud(N, seed=N, size=size)
    picture, gradients = with_gradients(splats, three_cameras())
    expected, dense = with_gradients(splats, three_cameras(), render_dense)
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-10)
    for name in dense:
        torch.testing.assert_close(gradients[name], dense[name], rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_at_full_size(cloud, render_dense):
    # 2,000 splats of mean 3-sigma radius 3 to 3.5 pixels at 64 x 64
    splats = cloud(2000, size=0.024, spread=0.6)
    splats = splats._replace(log_scales=splats.log_scales.clamp(max=math.log(0.06)))
    cameras = orbit(torch.tensor([20.0], dtype=torch.float64), 10.0, 2.5)
    S = project(splats, cameras).covariances[0]
    largest = (S[:, 0] + S[:, 2]) / 2 + (((S[:, 0] - S[:, 2]) / 2) ** 2 + S[:, 1] ** 2).sqrt()
    assert 3 < float(3 * largest.sqrt().mean()) < 3.5
    picture, gradients = with_gradients(splats, cameras)
    expected, dense = with_gradients(splats, cameras, render_dense)
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-10)
    for name in dense:
        torch.testing.assert_close(gradients[name], dense[name], rtol=0, atol=1e-10)
    single = Splats(*(x.float() for x in splats))
    torch.testing.assert_close(pictures(single, cameras).double(), expected, rtol=0, atol=1e-5)


def test_float32_splats_lose_nothing_but_their_own_rounding(cloud, three_cameras):
    splats = cloud(300, dtype=torch.float32)
    exact = pictures(Splats(*(x.double() for x in splats)), three_cameras())
    found = render(splats, three_cameras(dtype=torch.float64), 0.3)
    assert found.rgb.dtype == torch.float32
    torch.testing.assert_close(found.rgb.double(), exact[:, :3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_pairs", [1, 300, 5000])
def test_blocks_change_nothing(max_pairs, cloud, three_cameras):
    splats = cloud(100)
    picture, gradients = with_gradients(splats, three_cameras())
    found, others = with_gradients(splats, three_cameras(), max_pairs=max_pairs)
    torch.testing.assert_close(found, picture, rtol=0, atol=1e-11)
    for name in gradients:
        torch.testing.assert_close(others[name], gradients[name], rtol=0, atol=1e-10)


def test_the_order_of_the_splats_does_not_matter(cloud, three_cameras):
    splats = cloud(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    picture, gradients = with_gradients(splats, three_cameras())
    found, others = with_gradients(Splats(*(x[order] for x in splats)), three_cameras())
    torch.testing.assert_close(found, picture, rtol=0, atol=1e-11)
    for name in gradients:
        torch.testing.assert_close(others[name], gradients[name][order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("name", Splats._fields)
def test_gradients_are_those_of_finite_differences(name, antialiased, cloud, three_cameras):
    splats = cloud(5, seed=2, degree=1, size=0.3)
    splats = splats._replace(logits=splats.logits.clamp(-2, 2))
    cameras = three_cameras(12)
    weight = torch.randn(3, 5, 12, 17, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def loss(x):
        p = render(splats._replace(**{name: x}), cameras, 0.3, antialiased=antialiased)
        return (torch.cat([p.rgb, p.opacity, p.depth], 1) * weight).sum()

    x = getattr(splats, name).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    checked = 0
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=torch.float64)
        step[i] = 1e-6
        step = step.reshape(x.shape)
        with torch.no_grad():
            near, far = (float(loss(x + n * step) - loss(x - n * step)) / (2e-6 * n) for n in (1, 2))
        if abs(near - far) < 1e-5:  # else a pixel crosses 1/255, where pictures jump
            checked += 1
            assert float(gradient.flatten()[i]) == pytest.approx(near, rel=1e-5, abs=1e-5)
    assert checked >= 0.9 * x.numel()


def test_the_covariance_moves_with_the_mean(cloud, three_cameras):
    # off the axis, the derivative of the projected covariance in mu is that of J, which a frozen J would lack
    splats = cloud(4, seed=1, size=0.2)
    cameras = three_cameras(12)
    mu = splats.means.clone().requires_grad_()
    found = torch.autograd.functional.jacobian(lambda m: project(splats._replace(means=m), cameras).covariances, mu)
    h = 1e-6
    steps = h * torch.eye(12, dtype=torch.float64).reshape(12, 4, 3)
    by_steps = [
        (
            project(splats._replace(means=mu + s), cameras).covariances
            - project(splats._replace(means=mu - s), cameras).covariances
        )
        / (2 * h)
        for s in steps
    ]
    expected = torch.stack(by_steps, -1).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert float(found.abs().max()) > 1


def test_antialiasing_keeps_the_integral():
    # a splat much smaller than a pixel: opacity * sqrt(det S) is what it was before the low-pass
    tiny = splat((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.9, scale=0.02)
    plane = [project(tiny, front(), antialiased=on) for on in (False, True)]
    focal = float(front().focal[0, 0])
    before = (focal * 0.02 / 2) ** 2
    change = (plane[1].log_opacity - plane[0].log_opacity).exp()
    assert float(change) == pytest.approx(before / (before + 0.3), rel=1e-9)


def test_what_cannot_be_seen_is_left_out():
    seen = splat((0.0, 0.0, 0.0), (1.0, 0.5, 0.0), 0.7)
    hidden = [
        splat((3.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.9),  # behind the camera
        splat((1.995, 0.0, 0.0), (1.0, 1.0, 1.0), 0.9),  # nearer than the near plane
        splat((0.0, 9.0, 0.0), (1.0, 1.0, 1.0), 0.9),  # beside the image
        splat((0.5, 0.0, 0.0), (1.0, 1.0, 1.0), 0.0039),  # below 1/255 everywhere
        splat((0.5, 0.0, 0.0), (1.0, 1.0, 1.0), 0.9, scale=1e200),  # without a covariance
    ]
    leaves = Splats(*(x.requires_grad_() for x in joined(seen, *hidden)))
    picture = render(leaves, front(), 0.3)
    assert picture.visible.tolist() == [[True, False, False, False, False, False]]
    assert torch.equal(picture.rgb, render(seen, front(), 0.3).rgb)
    picture.rgb.sum().backward()
    for x in leaves:
        assert bool(x.grad.isfinite().all()) and not bool(x.grad[1:].any())
    assert float(leaves.sh0.grad[0].abs().min()) > 0


def test_an_empty_scene_is_its_background(cloud, three_cameras):
    nothing = Splats(*(x[:0] for x in cloud(2)))
    background = torch.rand(3, 3, 24, 29, dtype=torch.float64)
    picture = render(nothing, three_cameras(), background)
    assert torch.equal(picture.rgb, background) and not bool(picture.opacity.any())


def test_backgrounds_of_every_shape(cloud, three_cameras):
    splats = cloud(20)
    colour = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    expected = render(splats, three_cameras(), colour).rgb
    for background in (colour.expand(3, 3), colour[:, None, None].expand(3, 3, 24, 29)):
        assert torch.equal(render(splats, three_cameras(), background).rgb, expected)
    with pytest.raises(LimbeckError, match=r"a background of shape \(4,\): give a number, \(3,\), \(3, 3\)"):
        render(splats, three_cameras(), torch.zeros(4))


def test_screen_gradients_are_of_the_projected_means(cloud, three_cameras):
    # moving the image by a pixel moves every projected mean: the gradients' sum is the derivative along x
    splats = Splats(*(x.requires_grad_() for x in cloud(50, size=0.05, spread=0.3)))
    cameras = three_cameras()
    weight = torch.rand(3, 3, 24, 29, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    picture = render(splats, cameras)
    with pytest.raises(LimbeckError, match=r"no screen-space gradients yet: call backward\(\)"):
        picture.screen_gradients()
    (picture.rgb * weight).sum().backward()
    assert torch.equal(picture.screen_gradients(), (picture.means.grad * torch.tensor([14.5, 12.0]).double()).norm(dim=-1))
    assert not bool(picture.screen_gradients()[~picture.visible].any())
    h = 1e-6
    shifted = [
        render(splats, type(cameras)(cameras.c2w, cameras.focal, cameras.centre + torch.tensor([s * h, 0.0]).double(), 29, 24))
        for s in (1, -1)
    ]
    slope = ((shifted[0].rgb - shifted[1].rgb) * weight).sum() / (2 * h)
    assert float(picture.means.grad[..., 0].sum()) == pytest.approx(slope.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
        ({"degree": 2}, "degree=2 is asked for, but these splats have harmonics of degree 0"),
    ],
)
def test_bad_input(options, message, cloud, three_cameras):
    with pytest.raises(LimbeckError, match=message):
        render(cloud(3), three_cameras(), **options)
    with pytest.raises(LimbeckError, match="splat 1 has logits that are not finite"):
        render(cloud(3)._replace(logits=torch.tensor([0.0, math.nan, 0.0]).double()), three_cameras())


def test_blocks_bound_what_is_remembered(cloud):
    # large splats in a fine image: nearly all memory is in the pairs, and blocks remember none of theirs
    splats = Splats(*(x.requires_grad_() for x in cloud(30, size=0.4)))
    cameras = orbit(torch.zeros(1, dtype=torch.float64), 0.0, 2.0, width=128, height=128)

    def remembered(max_pairs):
        kept = {}

        def pack(x):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            picture = render(splats, cameras, max_pairs=max_pairs)
        assert picture.rgb.requires_grad
        return sum(kept.values())

    assert remembered(10_000) < remembered(2**30) / 4
