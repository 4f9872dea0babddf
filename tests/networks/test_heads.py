import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks import ChannelMean, DiT, FeatureTap, Heads, ResidualMLP, UNet, candidate_layers, feature_shapes

F64 = torch.float64
VECTORS = [(5,), (7, 5), (1, 5)]
MAPS = [(32, 1, 1), (6, 2, 2), (6, 3, 5), (6, 4, 4), (6, 7, 7), (6, 8, 8), (6, 2, 16), (3, 32, 20)]


@pytest.mark.parametrize("shape", VECTORS + MAPS, ids=str)
def test_one_logit_per_feature_that_tells_samples_apart(shape):
    torch.manual_seed(0)
    heads = Heads({"a": shape}, width=32).double()
    x = torch.randn(6, *shape, dtype=F64, requires_grad=True)
    logits = heads({"a": x})
    assert logits.shape == (6, 1)
    assert logits.std() > 0.02
    logits[2].sum().backward()
    per_sample = x.grad.flatten(1).abs().amax(1)
    assert per_sample[2] > 1e-4 and per_sample[[0, 1, 3, 4, 5]].max() == 0
    assert [n for n, p in heads.named_parameters() if p.grad.abs().max() < 1e-9] == []


def test_the_map_head_equals_its_equations():
    torch.manual_seed(0)
    heads = Heads({"a": (6, 16, 8)}, width=32).double()
    w = {k.removeprefix("trunks.0."): p for k, p in heads.named_parameters()}
    x = torch.randn(2, 6, 16, 8, dtype=F64)
    h = x
    for i, (stride, size) in enumerate([((2, 2), (8, 4)), ((2, 1), (4, 4)), ((1, 1), (1, 1))]):
        h = F.conv2d(h, w[f"{i}.0.weight"], w[f"{i}.0.bias"], stride, padding=0 if i == 2 else 1)
        assert h.shape == (2, 32, *size)
        groups = h.view(2, 2, -1)
        groups = (groups - groups.mean(2, True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        h = groups.view_as(h) * w[f"{i}.1.weight"][:, None, None] + w[f"{i}.1.bias"][:, None, None]
        h = h * torch.sigmoid(h)
    expected = h.flatten(1) @ w["logits.0.weight"].T + w["logits.0.bias"]
    torch.testing.assert_close(heads({"a": x}), expected, rtol=1e-10, atol=1e-10)


def test_tokens_are_a_set_of_any_size():
    torch.manual_seed(0)
    heads = Heads({"a": (4, 5)}, width=16).double()
    x = torch.randn(3, 9, 5, dtype=F64)
    torch.testing.assert_close(heads({"a": x}), heads({"a": x.flip(1)}), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(heads({"a": x}), heads({"a": x.repeat(1, 2, 1)}), rtol=1e-12, atol=1e-12)


def test_several_heads_and_their_average():
    torch.manual_seed(0)
    shapes = {"b": (5,), "a.0": (4, 8, 8), "c": (3, 5)}
    heads = Heads(shapes, width=16)
    mean = Heads(shapes, width=16, average=True)
    mean.load_state_dict(heads.state_dict())
    features = {name: torch.randn(2, *shape) for name, shape in reversed(shapes.items())}
    logits = heads(features)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(mean(features), logits.mean(1))
    # logits are ordered as the shapes, each from its own feature alone
    changed = heads({**features, "a.0": torch.randn(2, 4, 8, 8)}) != logits
    assert changed.tolist() == [[False, True, False]] * 2


def test_class_projection_is_zero_at_first_and_then_an_inner_product():
    torch.manual_seed(0)
    shapes = {"a": (5,), "b": (4, 8, 8)}
    heads = Heads(shapes, width=16, classes=3).double()
    features = {name: torch.randn(2, *shape, dtype=F64) for name, shape in shapes.items()}
    cond, null = ({"label": torch.tensor(v)} for v in ([0, 2], [3, 3]))
    assert torch.equal(heads(features, cond), heads(features))
    torch.nn.init.normal_(heads.requires_grad_(False).label.table.weight)
    assert torch.equal(heads(features, null), heads(features))
    table = heads.label.table.weight.view(4, 2, 16)
    hidden = [trunk(features[name]) for name, trunk in zip(shapes, heads.trunks, strict=True)]
    expected = [[float(hidden[i][b] @ (table[label, i] - table[3, i])) for i in (0, 1)] for b, label in ((0, 0), (1, 2))]
    found = heads(features, cond) - heads(features)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-10, atol=1e-10)


def test_heads_on_the_features_of_a_u_net_send_gradients_to_its_input():
    torch.manual_seed(0)
    net = UNet((1, 16, 16), channels=8, multipliers=(1, 2)).requires_grad_(False)
    x, c = torch.randn(2, 1, 16, 16, requires_grad=True), torch.rand(2)
    names = ["encoder.1.0", "middle.1", "conditioning"]
    shapes = feature_shapes(net, names, x, c)
    assert shapes == {"encoder.1.0": (16, 8, 8), "middle.1": (16, 8, 8), "conditioning": (128,)}
    heads = Heads(shapes, width=16)
    with FeatureTap(net, names) as tap:
        net(x, c)
    logits = heads(tap.features)
    F.softplus(-logits).mean().backward()
    assert logits.shape == (2, 3) and x.grad.abs().max() > 0
    assert all(p.grad is None for p in net.parameters()) and all(p.grad is not None for p in heads.parameters())


def test_heads_on_the_tokens_of_a_transformer():
    net = DiT((1, 4, 4), width=8, heads=1)
    shapes = feature_shapes(net, ["blocks.2"], torch.zeros(1, 1, 4, 4), torch.zeros(1))
    assert shapes == {"blocks.2": (4, 8)}
    assert Heads(shapes)({"blocks.2": torch.zeros(3, 4, 8)}).shape == (3, 1)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ((4, 8, 8), (5, 8, 8)),
        ((4, 8, 8), (4, 4, 8)),
        ((4, 8, 8), (4, 8)),
        ((7, 5), (7, 6)),
        ((7, 5), (5,)),
        ((5,), (4,)),
    ],
)
def test_features_of_another_shape(expected, found):
    heads = Heads({"mid": expected})
    with pytest.raises(LimbeckError) as error:
        heads({"mid": torch.zeros(2, *found)})
    assert str(error.value).startswith(f"feature 'mid': found {found} per sample, expected {expected}")


def test_wrong_names_and_shapes():
    with pytest.raises(LimbeckError, match="no feature 'mid': there are middle, low"):
        Heads({"mid": (3,)})({"low": torch.zeros(2, 3), "middle": torch.zeros(2, 3)})
    for shapes in ({}, {"a": ()}, {"a": (2, 3, 4, 4)}, {"a": (3, 0, 2)}):
        with pytest.raises(LimbeckError, match="without the batch"):
            Heads(shapes)
    with pytest.raises(LimbeckError, match=r"no layer '3': there are "):
        feature_shapes(torch.nn.Sequential(torch.nn.Linear(2, 2)), ["3"], torch.zeros(1, 2))


@pytest.mark.parametrize("shape", [*VECTORS, *MAPS], ids=str)
def test_the_head_without_parameters_is_the_mean_over_channels(shape):
    x = torch.randn(3, *shape, dtype=F64)
    head = ChannelMean({"a": shape, "b": shape})
    axis = 1 if len(shape) == 3 else -1
    expected = x.mean(axis).reshape(3, -1)
    assert torch.equal(head({"b": 2 * x, "a": x}), torch.cat([expected, (2 * x).mean(axis).reshape(3, -1)], 1))
    assert not list(head.parameters())


@pytest.mark.parametrize(
    ("network", "feature"),
    [
        (UNet((1, 8, 8), channels=8, multipliers=(1, 2), blocks=2), (16, 4, 4)),
        (DiT((1, 8, 8), width=16, blocks=4, heads=2), (16, 16)),
        (ResidualMLP((1, 8, 8), width=24, blocks=3), (24,)),
    ],
    ids=["unet", "dit", "mlp"],
)
def test_where_the_encoder_of_a_network_ends(network, feature):
    x, c_noise = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert list(feature_shapes(network, network.encoder_layers, x, c_noise).values()) == [feature]
    if isinstance(network, UNet):  # the last that the decoder's skips see, before the bottleneck
        order = list(candidate_layers(network, x, c_noise))
        assert order.index(network.encoder_layers[0]) < order.index("middle.0")
