"""What every network must do, whatever is inside it."""

import json

import pytest
import torch
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.errors import LimbeckError
from limbeck.networks import Network, build_network

CONFIGS = {
    "mlp": {"kind": "mlp", "shape": [2, 3], "width": 16, "blocks": 2, "embedding": 8},
    "mlp-positional": {"kind": "mlp", "shape": [5], "width": 8, "expansion": 2, "noise": "positional"},
    "unet": {"kind": "unet", "shape": [3, 8, 12], "channels": 8, "multipliers": [1, 2], "attention": [4]},
    "unet-text": {
        "kind": "unet",
        "shape": [1, 8, 8],
        "channels": 8,
        "multipliers": [1, 2],
        "attention": [4],
        "text": [3, 5],
    },
    "unet-patch": {
        "kind": "unet",
        "shape": [1, 8, 8],
        "channels": 8,
        "blocks": 2,
        "multipliers": [1],
        "patch": 2,
    },
    "dit": {"kind": "dit", "shape": [3, 4, 8], "width": 16, "blocks": 2, "heads": 2, "expansion": 2},
    "dit-sequence": {"kind": "dit", "shape": [6, 5], "patch": 1, "width": 12, "blocks": 1, "heads": 3},
    "dit-text": {"kind": "dit", "shape": [1, 4, 4], "width": 16, "blocks": 1, "text": [3, 5], "heads": 1},
}
every_network = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def awake(config, dtype=torch.float64, **options):
    """A network with no weight left at its initial zero."""
    torch.manual_seed(0)
    net = build_network({**config, "classes": 4, **options}).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return net


def example(net, batch=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *net.shape, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.rand(batch, generator=g, dtype=torch.float64).to(dtype)


def labels(*values):
    return {"label": torch.tensor(values)}


@every_network
def test_output_is_like_the_input(config):
    for dtype in (torch.float32, torch.float64):
        net = awake(config, dtype)
        x, c = example(net, dtype=dtype)
        y = net(x, c, labels(0, 3, 4))
        assert y.shape == x.shape and y.dtype == dtype


@every_network
def test_float32_follows_float64(config):
    net = awake(config)
    x, c = example(net)
    y = net(x, c, labels(0, 3, 4))
    torch.testing.assert_close(net.float()(x.float(), c.float(), labels(0, 3, 4)).double(), y, rtol=0, atol=1e-4)


@every_network
def test_noise_levels_may_have_another_precision_than_the_samples(config):
    net = awake(config, torch.float32)
    x, c = example(net, dtype=torch.float32)
    torch.testing.assert_close(net(x, c.double()), net(x, c), rtol=0, atol=1e-5)
    assert net(x, c.double()).dtype == torch.float32


@every_network
def test_samples_do_not_see_each_other(config):
    net = awake(config).train()
    x, c = example(net)
    for i in range(3):
        alone = net(x[i : i + 1], c[i : i + 1], labels(i))
        torch.testing.assert_close(net(x, c, labels(0, 1, 2))[i], alone[0], rtol=1e-12, atol=1e-12)


@every_network
def test_no_condition_is_the_null_condition(config):
    net = awake(config)
    x, c = example(net)
    null = {name: value.expand(3, *value.shape) for name, value in net.null.items()}
    assert null["label"].tolist() == [4, 4, 4]
    without = net(x, c)
    assert torch.equal(without, net(x, c, null))
    assert torch.equal(without, net(x, c, {}))
    assert torch.equal(without, net(x, c, labels(4, 4, 4)))
    mixed = net(x, c, labels(4, 1, 4))
    assert (mixed - without).abs().flatten(1).amax(1)[1] > 1e-3
    torch.testing.assert_close(mixed[[0, 2]], without[[0, 2]], rtol=1e-12, atol=1e-12)


@every_network
def test_the_noise_level_matters(config):
    net = awake(config)
    x, c = example(net)
    assert ((net(x, c) - net(x, c + 0.5)).abs().flatten(1).amax(1) > 1e-4).all()


@every_network
def test_a_network_is_rebuilt_from_its_config(config):
    torch.manual_seed(3)
    net = build_network({**config, "classes": 4, "dropout": 0.25, "fourier_scale": 1.5})
    stored = json.loads(json.dumps(net.config))
    assert stored == net.config
    assert {**net.config, **config} == net.config
    torch.manual_seed(3)
    again = build_network(stored)
    assert again.config == net.config
    assert list(again.state_dict()) == list(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), net.parameters(), strict=True))
    x, c = example(net, dtype=torch.float32)
    assert torch.equal(again.eval()(x, c), net.eval()(x, c))


@every_network
def test_weights_move_through_a_state_dict(config):
    net = awake(config)
    other = build_network(net.config).double()
    other.load_state_dict(net.state_dict())
    x, c = example(net)
    assert torch.equal(other(x, c), net(x, c))


@every_network
def test_every_parameter_learns_from_its_initial_value(config):
    torch.manual_seed(0)
    net = build_network({**config, "classes": 4}).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x, c = example(net, 5)
    cond = labels(0, 1, 2, 3, 4)
    if "text" in config:
        cond["text"] = torch.randn(5, 7, 5, dtype=torch.float64)
    for _ in range(5):
        optimizer.zero_grad()
        (net(x, c, cond) - x.flip(0)).square().mean().backward()
        optimizer.step()
    assert [name for name, p in net.named_parameters() if p.grad.abs().max() < 1e-9] == []


@every_network
def test_dropout_is_drawn_from_the_generator_in_training_alone(config):
    net, plain = awake(config, dropout=0.5), awake(config)
    x, c = example(net)

    def drawn(seed):
        torch.manual_seed(seed)
        return net(x, c)

    net.train()
    assert torch.equal(drawn(0), drawn(0))
    assert (drawn(0) - drawn(1)).abs().max() > 1e-3
    net.eval()
    assert torch.equal(drawn(0), drawn(1))
    assert torch.equal(drawn(0), plain(x, c))


@every_network
def test_forward_mode_derivative_equals_central_differences(config):
    net = awake(config)
    x, c = example(net)
    g = torch.Generator().manual_seed(2)
    dx, dc = torch.randn(x.shape, generator=g, dtype=x.dtype), torch.randn(3, generator=g, dtype=x.dtype)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        value, derivative = jvp(lambda x, c: net(x, c, labels(0, 1, 4)), (x, c), (dx, dc))
        h = 1e-5
        plus, minus = (net(x + s * dx, c + s * dc, labels(0, 1, 4)) for s in (h, -h))
    torch.testing.assert_close(value, net(x, c, labels(0, 1, 4)))
    torch.testing.assert_close(derivative, (plus - minus) / (2 * h), rtol=1e-6, atol=1e-7)


@every_network
def test_unconditional(config):
    net = build_network({**config, "classes": 0})
    x, c = example(net, dtype=torch.float32)
    assert net(x, c).shape == x.shape
    if "text" not in config:
        assert net.null is None
    with pytest.raises(LimbeckError, match="was given the condition 'label'"):
        net(x, c, labels(0, 1, 2))


@every_network
def test_wrong_input(config):
    net = awake(config)
    x, c = example(net)
    with pytest.raises(LimbeckError, match=r"built for x of shape \(B, "):
        net(x.flatten(1)[:, 1:], c)
    for wrong in (c[:2], c[0], c[:, None]):
        with pytest.raises(LimbeckError, match=r"c_noise has shape .*: expected \(3,\)"):
            net(x, wrong)
    with pytest.raises(LimbeckError, match=r"from -1 to 3: allowed are the classes 0..3 and 4 for none"):
        net(x, c, labels(0, -1, 3))
    with pytest.raises(LimbeckError, match=r"from 0 to 5"):
        net(x, c, labels(0, 5, 3))
    with pytest.raises(LimbeckError, match=r"torch.float64 of shape \(3,\): give integers of shape \(3,\)"):
        net(x, c, {"label": c})
    with pytest.raises(LimbeckError, match=r"of shape \(2,\): give integers of shape \(3,\)"):
        net(x, c, labels(0, 1))
    with pytest.raises(LimbeckError, match=r"takes only label.* was given the condition 'lable'"):
        net(x, c, {"lable": torch.tensor([0, 1, 2])})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "unknown kind of network 'None'"),
        ({"kind": "unnet", "shape": [1, 8, 8]}, "did you mean 'unet'"),
        ({"kind": "mlp"}, 'needs a "shape"'),
        (
            {"kind": "mlp", "shape": [2], "widht": 3},
            "option of the network 'mlp' 'widht': did you mean 'width'",
        ),
        ({"kind": "mlp", "shape": [2], "width": 0}, "width of the network 'mlp' is 0: it must be at least 1"),
        ({"kind": "mlp", "shape": [2, 0]}, "shape of the network"),
        ({"kind": "mlp", "shape": [2], "classes": -1}, "classes of the network 'mlp' is -1"),
        ({"kind": "mlp", "shape": [2], "dropout": 1.0}, r"probability in \[0, 1\)"),
        ({"kind": "mlp", "shape": [2], "noise": "fourrier"}, "did you mean 'fourier'"),
        ({"kind": "mlp", "shape": [2], "fourier_scale": 0.0}, "fourier_scale is 0.0"),
        ({"kind": "unet", "shape": [2]}, r"needs a shape \(C, H, W\)"),
        ({"kind": "unet", "shape": [1, 8, 8], "multipliers": []}, "needs a shape"),
        ({"kind": "unet", "shape": [1, 8, 8], "attention": [3]}, r"heights \[3\].*heights \[8, 4, 2\]"),
        ({"kind": "dit", "shape": [2]}, r"needs a shape \(C, H, W\) or \(L, C\)"),
        ({"kind": "dit", "shape": [1, 6, 8], "patch": 4}, "patches of 4 do not tile 6 x 8"),
        ({"kind": "dit", "shape": [1, 8, 8], "width": 30}, "width 30 must be a multiple of 4"),
        ({"kind": "dit", "shape": [1, 8, 8], "heads": 3}, "128 channels cannot be split into 3 heads"),
    ],
)
def test_wrong_config(config, message):
    with pytest.raises(LimbeckError, match=message):
        build_network(config)


def test_the_networks_keep_the_protocol():
    nets: list[Network] = [build_network(c) for c in CONFIGS.values()]
    assert all(n.config["kind"] in ("mlp", "unet", "dit") for n in nets)
