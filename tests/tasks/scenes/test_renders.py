"""The library of renders: its weights against counts by hand, its teacher against a sum by hand, its encoder, its controls."""

import math
from dataclasses import replace

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.noise import VP, CosineVP
from limbeck.scenes import angles, orbit
from limbeck.tasks.scenes.renders import LinearLatents, RenderLibrary


@pytest.fixture(scope="module")
def library():
    return RenderLibrary.of_heads(3, size=8)


def shares(library, **asked):
    """Weights (K, V) of the first sample."""
    batch = len(asked["azimuth"]) if "azimuth" in asked else 1
    return library.condition(batch, **asked)["prior"].exp()[0].unflatten(0, library.images.shape[:2])


def test_views_begin_in_front_and_go_round(library):
    assert library.images.shape == (3, 24, 3, 8, 8) and library.shape == (3, 8, 8)
    step = (library.azimuth[1:] - library.azimuth[:-1]) % 360
    assert float(library.azimuth[0]) == 0 and torch.allclose(step, torch.full((23,), 15.0), atol=1e-3)
    assert int(library.front().sum()) == 5


def test_two_elevations_are_two_turntables():
    two = RenderLibrary.of_heads(1, views=6, elevations=(0.0, 30.0), size=8)
    assert torch.allclose(two.azimuth[:6], two.azimuth[6:], atol=1e-3)
    assert torch.allclose(two.elevation, torch.tensor([0.0, 30.0]).repeat_interleave(6), atol=1e-3)
    known = two.condition(1, 0, torch.tensor([60.0]), torch.tensor([25.0]), width=0)["prior"][0]
    assert known.argmax() == 7 and float(known.max()) == 0
    assert torch.allclose(two.truth(0, two.cameras), two.images[0])


def test_weights_by_hand(library):
    uniform = shares(library)
    assert torch.allclose(uniform, torch.full_like(uniform, 1 / 72))
    one = shares(library, objects=1)
    assert torch.allclose(one[1], torch.full((24,), 1 / 24).double()) and float(one[[0, 2]].sum()) == 0
    pair = shares(library, objects=[0, 2]).sum(1)
    assert torch.allclose(pair, torch.tensor([0.5, 0, 0.5]).double())
    around = shares(library, objects=0, azimuth=torch.tensor([90.0]))[0]  # 45..135 within 50 degrees
    assert [int(i) for i in around.nonzero()[:, 0]] == list(range(3, 10)) and float(around[6]) == pytest.approx(1 / 7)
    behind = shares(library, objects=0, azimuth=torch.tensor([-175.0]), width=20.0)[0]  # across the seam at 180
    assert [int(i) for i in behind.nonzero()[:, 0]] == [11, 12, 13]
    exact = shares(library, objects=0, azimuth=torch.tensor([37.0]), width=0.0)[0]
    assert float(exact[2]) == pytest.approx(1)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_the_front_holds_its_share(library, share):
    weights = shares(library, objects=2, front_share=share)[2]
    front = library.front()
    assert float(weights[front].sum()) == pytest.approx(share)
    assert torch.allclose(weights[~front], torch.full((19,), (1 - share) / 19).double())


def test_a_bias_and_a_camera_multiply(library):
    weights = shares(library, objects=0, azimuth=torch.tensor([60.0]), width=30.0, front_share=0.5)[0]
    expected = torch.zeros(24, dtype=torch.float64)
    expected[2] = 0.5 / 5  # 30 degrees: still in front
    expected[3:7] = 0.5 / 19
    assert torch.allclose(weights, expected / expected.sum())


def test_one_object_per_sample(library):
    weights = library.condition(3, torch.tensor([2, 0, 1]))["prior"].exp().unflatten(1, (3, 24)).sum(2)
    assert torch.allclose(weights, torch.eye(3).double()[[2, 0, 1]])


@pytest.mark.parametrize("bandwidth", [0.0, 0.2])
@pytest.mark.parametrize("process", [CosineVP(), VP()])
def test_the_teacher_is_the_sum_by_hand(library, process, bandwidth):
    teacher = library.teacher(process, bandwidth)
    cond = library.condition(2, torch.tensor([0, 1]), torch.tensor([0.0, 70.0]), front_share=0.8)
    x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([0.5, 0.9]).double()
    a, s = process.a(t), process.s(t)
    bank = library.images.flatten(0, 1).double()
    V = (a * bandwidth) ** 2 + s**2
    far = (x_t[:, None] - a[:, None, None, None, None] * bank).square().flatten(2).sum(2)
    r = torch.softmax(cond["prior"] - far / (2 * V[:, None]), 1)
    m = torch.einsum("bj,jchw->bchw", r, bank)
    expected = m + (a * bandwidth**2 / V)[:, None, None, None] * (x_t - a[:, None, None, None] * m)
    assert torch.allclose(teacher(x_t, t, cond), expected, atol=1e-9)
    null = teacher(x_t, t, library.condition(2))
    assert torch.allclose(null, teacher(x_t, t), atol=1e-12) and teacher.null == {}


def test_another_prompt_asks_for_another_object(library):
    teacher, t = library.teacher(), torch.tensor([0.6])
    asked, wrong = (teacher(library.images[0, :1], t, library.condition(1, k, torch.zeros(1))) for k in (0, 1))
    assert float((asked - library.images[0, 0]).abs().mean()) < 0.1 < float((wrong - library.images[0, 0]).abs().mean())


def test_a_shuffled_library_has_the_same_images_elsewhere(library):
    moved = library.shuffled(0)
    before, after = (x.images.flatten(2).flatten(0, 1).sum(1).sort().values for x in (library, moved))
    assert torch.equal(before, after)
    same = (moved.images == library.images).flatten(2).all(2).double().mean()
    assert float(same) < 0.1
    assert torch.equal(moved.images, library.shuffled(0).images)


def test_the_truth_is_known_between_the_views(library):
    between = orbit(torch.tensor([7.5]), width=8, height=8)
    image = library.truth(0, between)
    errors = (library.images[0] - image).square().flatten(1).mean(1)
    assert sorted(errors.topk(2, largest=False).indices.tolist()) == [0, 1] and float(errors.min()) > 1e-4
    assert torch.allclose(angles(between.position)[0], torch.tensor([7.5]), atol=1e-3)


def test_a_random_projection_keeps_what_it_projects_on():
    latents = LinearLatents.random((3, 4, 4), (2, 4, 4), seed=3)
    z = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(latents.encode(latents.decode(z)), z, atol=1e-5)
    assert torch.allclose(latents.P @ latents.P.T, torch.eye(32), atol=1e-5)


def test_principal_directions_are_the_best_ones(library):
    bank = library.images.flatten(0, 1)
    principal = LinearLatents.principal(bank, (4, 4, 1))
    z = principal.encode(bank)
    assert float(z.square().mean()) == pytest.approx(1, rel=1e-4)
    flat = (bank - bank.mean(0)).flatten(1).double()
    left = float((bank - principal.decode(z)).double().square().sum())
    assert left == pytest.approx(float(torch.linalg.svdvals(flat)[16:].square().sum()), rel=1e-3)
    random = LinearLatents.random((3, 8, 8), (4, 4, 1))
    assert left < float((bank - random.decode(random.encode(bank))).double().square().sum())
    known = replace(library, latents=principal)
    assert known.shape == (4, 4, 1) and torch.allclose(known.teacher().bank, z.double(), atol=1e-5)
    x = bank[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(known.encode(x).sum(), x)
    assert torch.allclose(gradient.flatten(), principal.P.sum(0) / principal.scale, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"objects": 3}, "name at least one of the library's 3, by whole numbers 0..2"),
        ({"objects": []}, "name at least one"),
        ({"objects": torch.tensor([0, 1])}, "2 objects for a batch of 1"),
        ({"azimuth": torch.zeros(2)}, "azimuth of shape \\(2,\\) for a batch of 1"),
        ({"front_share": 1.2}, "front_share=1.2 over 24 views, 19 of them not in front"),
    ],
)
def test_conditions_that_make_no_sense(library, asked, message):
    with pytest.raises(LimbeckError, match=message):
        library.condition(1, **asked)


def test_libraries_and_encoders_that_make_no_sense(library):
    with pytest.raises(LimbeckError, match="0 views at 1 elevations"):
        RenderLibrary.of_heads(views=0)
    with pytest.raises(LimbeckError, match="give 1 to 192 numbers"):
        LinearLatents.random((3, 8, 8), (4, 8, 8))
    with pytest.raises(LimbeckError, match="72 images have no 128 principal directions"):
        LinearLatents.principal(library.images.flatten(0, 1), (2, 8, 8))
    with pytest.raises(LimbeckError, match="do not fit an encoder of"):
        LinearLatents.random((3, 8, 8), (4,)).encode(torch.zeros(1, 3, 4, 4))
    assert math.isclose(float(library.condition(1)["prior"][0, 0]), -math.log(72))
