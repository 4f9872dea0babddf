"""A scene is a module that cameras look at: splats as one give what the renderer gives, and learn at the paper's rates."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import Scene, Seen, SplatScene, ball, orbit, render, splats_from_points
from limbeck.scenes.splats import LEARNING_RATES
from limbeck.training import OptimizerOptions, Role
from limbeck.training.optimizers import Trained

CAMERAS = orbit(torch.tensor([0.0, 90.0]), 10.0, width=12, height=10)


def splats():
    return splats_from_points(ball(torch.rand(20, 3, generator=torch.Generator().manual_seed(0)), 0.6), degree=1)


def test_it_shows_what_the_renderer_shows():
    scene = SplatScene(splats(), antialiased=True)
    seen = scene(CAMERAS, 0.1)
    assert isinstance(scene, Scene) and isinstance(seen, Seen)
    assert torch.equal(seen.rgb, render(splats(), CAMERAS, 0.1, antialiased=True).rgb)
    assert not torch.equal(seen.rgb, SplatScene(splats())(CAMERAS, 0.1).rgb)
    seen.image.square().sum().backward()
    moved = {n for n, p in scene.named_parameters() if p.grad is not None and bool((p.grad.abs() > 1e-9).any())}
    assert moved == {n for n, _ in scene.named_parameters()} - {"quaternions"}  # round splats look the same however they turn


def test_its_rates_are_those_of_the_paper_times_the_extent_for_the_means():
    scene = SplatScene(splats(), extent=2.0)
    trained = Trained.of("scene", Role(scene, OptimizerOptions(lr=LEARNING_RATES["logits"]), rates=scene.rates))
    names = {id(p): n for n, p in scene.named_parameters()}
    found = {names[id(p)]: group["lr"] * group["rate"] for group in trained.optimizer.param_groups for p in group["params"]}
    assert found == pytest.approx({**LEARNING_RATES, "means": 2 * LEARNING_RATES["means"]})


def test_a_copy_does_not_follow_the_scene():
    scene = SplatScene(splats())
    copy = scene.detached()
    with torch.no_grad():
        scene.means += 1
    assert torch.equal(copy.means, splats().means) and not any(x.requires_grad for x in copy)


def test_a_radius_that_is_none_is_refused():
    with pytest.raises(LimbeckError, match=r"extent=0: the radius of a scene is positive"):
        SplatScene(splats(), extent=0.0)
