"""Networks that are told integers: nothing changes at first, each value has a vector of its own, and the config rebuilds them."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.networks import build_network, counted

CONFIGS = {
    "mlp": {"kind": "mlp", "shape": [2], "width": 8, "blocks": 2, "embedding": 16, "classes": 3},
    "unet": {"kind": "unet", "shape": [1, 8, 8], "channels": 8, "multipliers": [1, 2], "classes": 3},
    "dit": {"kind": "dit", "shape": [1, 4, 4], "width": 16, "blocks": 1, "heads": 2, "classes": 3},
}


@pytest.fixture(params=CONFIGS)
def network(request):
    torch.manual_seed(0)
    made = build_network(CONFIGS[request.param])
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made


def test_a_network_is_told_integers(network):
    x, c = torch.randn(4, *network.shape), torch.linspace(-1, 1, 4)
    cond = {"label": torch.tensor([0, 1, 2, 3])}
    before = network(x, c, cond).detach()
    assert counted(network, {"steps": (1, 2, 4)}) is network and network.null == network.conditioning.inner.null
    told = {**cond, "steps": torch.tensor([1, 4, 2, 2])}
    assert torch.equal(network(x, c, told), before)  # the vectors start at zero
    with torch.no_grad():
        network.conditioning.tables["steps"].weight.copy_(torch.randn(3, network.conditioning.inner.second.out_features))
    after = network(x, c, told).detach()
    assert bool(((after - before).flatten(1).abs().amax(1) > 1e-4).all())
    other = network(x, c, {**cond, "steps": torch.tensor([1, 4, 2, 1])}).detach()
    torch.testing.assert_close(other[:3], after[:3])
    assert float((other[3] - after[3]).abs().max()) > 1e-4
    again = build_network(network.config)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x, c, told), network(x, c, told))


def test_what_it_cannot_be_told(network):
    counted(network, {"steps": (1, 2, 4)})
    x, c = torch.randn(2, *network.shape), torch.zeros(2)
    with pytest.raises(LimbeckError, match="needs the condition 'steps', one of 1, 2, 4 per sample"):
        network(x, c, {"label": torch.tensor([0, 1])})
    with pytest.raises(LimbeckError, match="steps=3, 5 was not trained; the network knows steps 1, 2, 4"):
        network(x, c, {"steps": torch.tensor([3, 5])})
    with pytest.raises(LimbeckError, match="was given the condition 'segment'"):
        network(x, c, {"steps": torch.tensor([1, 2]), "segment": torch.tensor([0, 0])})
    with pytest.raises(LimbeckError, match="cannot be told steps: that needs one of the library's networks, once"):
        counted(network, {"steps": (1, 2)})
    with pytest.raises(LimbeckError, match="a Linear cannot be told steps"):
        counted(torch.nn.Linear(2, 2), {"steps": (1, 2)})
