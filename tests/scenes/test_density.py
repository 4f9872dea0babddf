"""Copying, splitting and pruning by hand, and the optimizer's state that follows."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import (
    ScreenGradients,
    Splats,
    apply_edit,
    densify,
    prune,
    reindexed,
    render,
    reset_opacity,
)
from limbeck.scenes.splats import covariance_roots


def test_small_ones_are_copied_and_big_ones_split(cloud):
    splats = cloud(6)
    scales = torch.tensor([0.1, 0.5, 0.1, 0.5, 0.1, 0.5], dtype=torch.float64)
    splats = splats._replace(log_scales=scales.log()[:, None] + torch.tensor([0.0, -1.0, -2.0]))
    gradient = torch.tensor([0.0, 0.0, 3.0, 3.0, 1.0, 3.0])
    normals = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edit = densify(splats, gradient, normals, extent=20.0, threshold=1.0, percent_dense=0.01)  # big: above 0.2
    assert edit.source.tolist() == [0, 1, 2, 4, 2, 3, 3, 5, 5]
    assert edit.kept.tolist() == [True] * 4 + [False] * 5
    for name, x in edit.splats._asdict().items():
        same = slice(0, 5) if name in ("means", "log_scales") else slice(None)
        assert torch.equal(x[same], getattr(splats, name)[edit.source][same])
    halves = edit.splats.log_scales[5:] - splats.log_scales[edit.source[5:]]
    torch.testing.assert_close(halves, torch.full((4, 3), -math.log(1.6)).double())
    M = covariance_roots(splats)
    for row, (parent, k) in enumerate([(3, 0), (3, 1), (5, 0), (5, 1)]):
        expected = splats.means[parent] + M[parent] @ normals[parent, k]
        torch.testing.assert_close(edit.splats.means[5 + row], expected, rtol=0, atol=1e-14)
    assert splats.log_scales.exp().amax(1).tolist() == pytest.approx(scales.tolist())  # the old ones are as they were


def test_nothing_to_densify(cloud):
    splats = cloud(4)
    edit = densify(splats, torch.zeros(4), torch.zeros(4, 2, 3), 1.0)
    assert all(torch.equal(x, y) for x, y in zip(edit.splats, splats, strict=True)) and bool(edit.kept.all())


def test_pruning(cloud):
    splats = cloud(5)._replace(
        logits=torch.tensor([0.0, -6.0, 0.0, 0.0, -5.0]).double(),
        log_scales=torch.tensor([0.1, 0.1, 2.0, 0.1, 0.1]).double().log()[:, None].repeat(1, 3),
    )
    drop = torch.tensor([False, False, False, True, False])
    edit = prune(splats, least_opacity=0.005, largest_scale=1.0, drop=drop)
    assert edit.source.tolist() == [0, 4] and bool(edit.kept.all())
    assert torch.equal(edit.splats.means, splats.means[[0, 4]])
    with pytest.raises(LimbeckError, match=r"all 5 Gaussians were pruned at step 300: lower least_opacity=0.9"):
        prune(splats, least_opacity=0.9, step=300)


def test_opacities_are_lowered_but_never_raised(cloud):
    splats = cloud(50)
    reset = torch.sigmoid(reset_opacity(splats, 0.01).logits)
    torch.testing.assert_close(reset, torch.sigmoid(splats.logits).clamp(max=0.01))


def test_screen_gradients_are_averaged_over_the_pictures_that_show_a_splat(cloud):
    norms = torch.tensor([[1.0, 2.0, 5.0], [3.0, 4.0, 7.0]])
    seen = torch.tensor([[True, False, False], [True, True, False]])
    sums = ScreenGradients.zeros(cloud(3)).add(norms, seen).add(norms[:1], seen[:1])
    assert sums.mean.tolist() == [5 / 3, 4.0, 0.0]


def adam(splats):
    parameters = {name: torch.nn.Parameter(x.clone()) for name, x in splats._asdict().items()}
    return parameters, torch.optim.Adam([{"params": [p], "lr": 1e-2, "name": name} for name, p in parameters.items()])


def descend(parameters, optimizer, cameras):
    optimizer.zero_grad()
    render(Splats(**parameters), cameras).rgb.square().sum().backward()
    optimizer.step()


def test_the_optimizer_follows_and_goes_on(cloud, three_cameras):
    cameras = three_cameras(10)
    parameters, optimizer = adam(cloud(8))
    descend(parameters, optimizer, cameras)
    before = {name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in parameters.items()}
    gradient = torch.tensor([2.0, 0, 0, 2.0, 0, 0, 0, 0])
    edit = densify(Splats(**{n: p.detach() for n, p in parameters.items()}), gradient, torch.zeros(8, 2, 3), 10.0, 1.0)
    old, graph = parameters, render(Splats(**parameters), cameras)  # a graph through the old ones is in nobody's way
    parameters = apply_edit(edit, old, optimizer)
    assert graph.rgb.requires_grad and not any(p in optimizer.state for p in old.values())
    N = len(edit.source)
    assert N > 8
    for name, p in parameters.items():
        assert any(p is q for group in optimizer.param_groups for q in group["params"]) and torch.equal(
            p.detach(), getattr(edit.splats, name)
        )
        for key in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[p][key]
            assert torch.equal(state[edit.kept], before[name][key][edit.source[edit.kept]])
            assert not bool(state[~edit.kept].any()) and len(state) == N
        assert optimizer.state[p]["step"] == 1
    descend(parameters, optimizer, cameras)
    assert all(bool(p.isfinite().all()) and len(p) == N for p in parameters.values())


def test_pruned_training_is_that_of_the_rest_alone(cloud, three_cameras):
    # splats far off the screen do not touch the others: without them, every later step is the same
    cameras = three_cameras(10)
    splats = cloud(8)
    splats.means[5:] += 100
    with_all, optimizer = adam(splats)
    rest, other = adam(Splats(*(x[:5] for x in splats)))
    for parameters, steps in ((with_all, optimizer), (rest, other)):
        descend(parameters, steps, cameras)
    now = Splats(**{n: p.detach() for n, p in with_all.items()})
    with_all = apply_edit(prune(now, 0.0, drop=torch.arange(8) >= 5), with_all, optimizer)
    for _ in range(2):
        descend(with_all, optimizer, cameras)
        descend(rest, other, cameras)
    for name in with_all:
        torch.testing.assert_close(with_all[name], rest[name], rtol=0, atol=1e-12)


def test_state_of_another_shape_stays(cloud):
    splats = cloud(4)
    edit = prune(splats, 0.0, drop=torch.tensor([True, False, False, False]))
    state = reindexed({"step": torch.tensor(3.0), "beta": 0.9, "rows": torch.arange(4.0), "other": torch.zeros(7)}, edit, 4)
    assert state["step"] == 3 and state["beta"] == 0.9 and state["rows"].tolist() == [1, 2, 3] and len(state["other"]) == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: densify(s, torch.zeros(3), torch.zeros(4, 2, 3), 1.0),
            r"gradient \(3,\) and normals \(4, 2, 3\) do not fit 4",
        ),
        (lambda s: reset_opacity(s, 0.0), "highest=0: an opacity lies between 0 and 1"),
    ],
)
def test_bad_input(call, message, cloud):
    with pytest.raises(LimbeckError, match=message):
        call(cloud(4))
