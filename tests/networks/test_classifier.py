"""The small classifier: its sizes by hand, and built again from its config."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.networks import Classifier


@pytest.mark.parametrize(
    "shape, convolutions, inputs",
    [((1, 8, 8), [(1, 4), (4, 8)], 8 * 4 * 4), ((3, 64, 33), [(3, 4), (4, 8), (8, 16), (16, 32), (32, 32)][:5], 32 * 4 * 3)],
)
def test_halved_until_a_side_has_four_pixels(shape, convolutions, inputs):
    net = Classifier(shape, 5, 4)
    found = [m for m in net.body if isinstance(m, torch.nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in found] == convolutions
    assert net.head.in_features == inputs and net(torch.zeros(2, *shape)).shape == (2, 5)
    again = Classifier(**net.config)
    again.load_state_dict(net.state_dict())
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("shape, classes, width", [((8, 8), 10, 4), ((1, 8, 8), 1, 4), ((1, 8, 8), 10, 0)])
def test_sizes_that_no_network_has_are_refused(shape, classes, width):
    with pytest.raises(LimbeckError, match=r"give a shape \(C, H, W\), two classes or more, width >= 1"):
        Classifier(shape, classes, width)
