import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks import FeatureTap, ResidualMLP, UNet, candidate_layers

F64 = torch.float64


def hooks(module):
    return sum(len(m._forward_hooks) for m in module.modules())


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = ResidualMLP((6,), width=8, blocks=3, classes=2, embedding=4).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return net.requires_grad_(False)


def test_gradient_through_a_tap_equals_the_closed_form():
    torch.manual_seed(0)
    layer = nn.Linear(3, 4).double().requires_grad_(False)
    net = nn.Sequential(layer, nn.SiLU(), nn.Linear(4, 2).double())
    x = torch.randn(5, 3, dtype=F64, requires_grad=True)
    with FeatureTap(net, ["1"]) as tap:
        net(x)
    tap["1"].square().sum().backward()
    z = x.detach() @ layer.weight.T + layer.bias
    s = torch.sigmoid(z)
    expected = (2 * z * s * (s + z * s * (1 - s))) @ layer.weight
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-12)
    assert layer.weight.grad is None and net[2].weight.grad is None


def test_features_and_gradients_equal_a_forward_by_hand(net):
    x, c = torch.randn(4, 6, dtype=F64), torch.rand(4, dtype=F64)
    weight = torch.randn(4, 8, dtype=F64)
    xt, xh = x.clone().requires_grad_(), x.clone().requires_grad_()
    with FeatureTap(net, ["blocks.1", "blocks.0.inner"]) as tap:
        y = net(xt, c)
        tapped = (tap["blocks.1"] * weight).sum() + tap["blocks.0.inner"].square().sum()
    h, e = net.input(xh), net.conditioning(c, None)
    inner = net.blocks[0].inner(F.layer_norm(h, (8,)))
    h = net.blocks[1](net.blocks[0](h, e), e)
    by_hand = (h * weight).sum() + inner.square().sum()
    assert torch.equal(tapped, by_hand)
    (found,) = torch.autograd.grad(tapped, xt, retain_graph=True)
    torch.testing.assert_close(found, *torch.autograd.grad(by_hand, xh), rtol=1e-12, atol=1e-12)
    # the output is the untapped one, and has its own gradient
    assert torch.equal(y, net(x, c))
    assert torch.autograd.grad(y.sum(), xt)[0].abs().max() > 0


def test_gradients_reach_trained_parameters_up_to_the_tap():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with FeatureTap(net, ["1"]) as tap:
        net(torch.randn(5, 3))
        tap["1"].sum().backward()
    assert net[0].weight.grad.abs().max() > 0 and net[2].weight.grad is None


def test_the_latest_call_counts_and_reopening_forgets(net):
    x, c = torch.randn(2, 3, 6, dtype=F64), torch.rand(3, dtype=F64)
    tap = FeatureTap(net, ["blocks.0", "blocks.2"])
    with tap:
        net(x[0], c)
        first = tap["blocks.0"]
        net(x[1], c)
    assert list(tap.features) == ["blocks.0", "blocks.2"]
    assert not torch.equal(tap["blocks.0"], first)
    kept = tap["blocks.2"]
    net(x[0], c)
    assert tap["blocks.2"] is kept
    with tap:
        assert tap.features == {}
        net(x[0], c)
        assert torch.equal(tap["blocks.0"], first)
    tap.clear()
    with pytest.raises(LimbeckError, match=r"'blocks.0' has not run since the tap was opened"):
        tap["blocks.0"]


def test_hooks_are_removed_whatever_happens(net):
    x, c = torch.randn(2, 6, dtype=F64), torch.rand(2, dtype=F64)
    tap = FeatureTap(net, ["blocks.0"])
    assert hooks(net) == 0
    with tap:
        assert hooks(net) == 1
        net(x, c)
        with pytest.raises(LimbeckError, match="open already"):
            tap.__enter__()
        with FeatureTap(net, ["blocks.0", "input"]) as other:
            net(2 * x, c)
    assert hooks(net) == 0 and torch.equal(tap["blocks.0"], other["blocks.0"])
    with pytest.raises(LimbeckError, match="built for"), tap:
        net(x, c)
        net(x[:, :5], c)
    assert hooks(net) == 0 and tap.features == {}


def test_unknown_names_list_the_nearest_first(net):
    with pytest.raises(LimbeckError, match=r"no layer 'block.1': there are blocks.1, blocks.0, blocks.2"):
        FeatureTap(net, ["blocks.0", "block.1"])
    with pytest.raises(LimbeckError, match="no layer ''"):
        FeatureTap(net, [""])
    with pytest.raises(LimbeckError, match=r"no tapped layer 'blocks.2': there are blocks.0$"):
        FeatureTap(net, ["blocks.0"])["blocks.2"]
    with pytest.raises(LimbeckError, match="no layer 'x': the module has none"):
        FeatureTap(nn.SiLU(), ["x"])
    big = nn.Sequential(*(nn.SiLU() for _ in range(30)))
    with pytest.raises(LimbeckError, match=r"\(10 more\)$"):
        FeatureTap(big, ["x"])


class Several(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


@pytest.mark.parametrize(
    "output", [lambda x: (None, x, 2 * x), lambda x: [x], lambda x: {"mode": "a", "sample": x}, lambda x: x]
)
def test_the_first_tensor_is_the_feature(output):
    net = nn.ModuleDict({"layer": Several(output)})
    x = torch.randn(3)
    with FeatureTap(net, ["layer"]) as tap:
        net["layer"](x)
    assert tap["layer"] is x


@pytest.mark.parametrize("output", [lambda x: None, lambda x: 3.0, lambda x: ("a", 1), lambda x: {}])
def test_a_layer_without_a_tensor_cannot_be_tapped(output):
    net = nn.ModuleDict({"layer": Several(output)})
    with (
        pytest.raises(LimbeckError, match=r"'layer' puts out a .* without a tensor"),
        FeatureTap(net, ["layer"]),
    ):
        net["layer"](torch.zeros(1))


def test_a_shared_layer_has_both_names():
    layer = nn.Linear(2, 2)
    net = nn.Sequential(layer, layer)
    assert list(candidate_layers(net, torch.zeros(1, 2))) == ["0", "1"]
    with FeatureTap(net, ["1"]) as tap:
        y = net(torch.ones(1, 2))
    assert tap["1"] is y


def test_candidate_layers_of_a_u_net():
    net = UNet((1, 8, 8), channels=4, multipliers=(1, 2), classes=3)
    shapes = candidate_layers(net, torch.zeros(2, 1, 8, 8), torch.zeros(2), cond={"label": torch.tensor([0, 3])})
    assert shapes["encoder.1.0"] == (2, 8, 4, 4) and shapes["output"] == (2, 1, 8, 8)
    assert shapes["conditioning"] == (2, 128)
    order = list(shapes)
    assert order.index("encoder.0.0") < order.index("encoder.1.0") < order.index("middle.0") < order.index("output")


def test_candidate_layers_leaves_the_module_as_it_was():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Sequential(nn.Linear(3, 2), nn.LSTM(2, 4)))
    net[1].eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.get_rng_state()
    shapes = candidate_layers(net, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert shapes == {"0": (5, 3), "1": (5, 3), "2.0": (5, 2), "2.1": (5, 4), "2": (5, 4)}
    with pytest.raises(RuntimeError):
        candidate_layers(net, torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    assert [m.training for m in net.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng) and hooks(net) == 0
