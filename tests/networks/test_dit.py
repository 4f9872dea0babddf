import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.networks import DiT
from limbeck.networks.dit import position_features

F64 = torch.float64


def awake(shape, **options):
    torch.manual_seed(0)
    net = DiT(shape, width=16, blocks=2, heads=2, **options).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return net


@pytest.mark.parametrize(("shape", "patch", "tokens"), [((3, 4, 6), 2, 6), ((1, 6, 6), 3, 4), ((6, 5), 2, 3)])
def test_cutting_and_joining_are_inverse(shape, patch, tokens):
    net = DiT(shape, patch=patch, width=8, heads=1)
    x = torch.randn(2, *shape)
    cut = net._cut(x)
    assert cut.shape == (2, tokens, math.prod(shape) // tokens) and net.tokens == tokens
    assert torch.equal(net._join(cut), x)


def test_a_token_is_one_patch():
    net = DiT((1, 4, 6), patch=2, width=8, heads=1)
    x = torch.arange(24.0).view(1, 1, 4, 6)
    cut = net._cut(x)[0]
    assert cut[0].tolist() == [0, 1, 6, 7] and cut[4].tolist() == [14, 15, 20, 21]


def test_positions_are_those_of_the_grid():
    found = position_features((2, 3), 8)
    for row in range(2):
        for column in range(3):
            expected = [f(p * 1e-4**k) for p in (row, column) for f in (math.cos, math.sin) for k in (0, 1)]
            assert found[3 * row + column].tolist() == pytest.approx(expected, abs=1e-12)


def test_per_token_noise_levels():
    net = awake((2, 4, 6), classes=3)
    x, c = torch.randn(2, 2, 4, 6, dtype=F64), torch.rand(2, dtype=F64)
    cond = {"label": torch.tensor([0, 3])}
    same = c[:, None].expand(2, 6).clone()
    torch.testing.assert_close(net(x, same, cond), net(x, c, cond), rtol=1e-12, atol=1e-12)
    same[0, 4] += 0.5
    change = (net(x, same, cond) - net(x, c, cond)).abs()
    assert change[1].max() < 1e-12
    patches = net._cut(change)[0].amax(1)
    assert (patches > 1e-6).all() and patches.argmax() == 4


def test_wrong_number_of_per_token_noise_levels():
    with pytest.raises(LimbeckError, match=r"expected \(2,\) or \(2, 6\)"):
        awake((2, 4, 6))(torch.zeros(2, 2, 4, 6, dtype=F64), torch.zeros(2, 5, dtype=F64))


def test_text_of_any_length_reaches_every_token_and_its_null_is_zeros():
    net = awake((1, 4, 4), text=(3, 5))
    x, c = torch.randn(2, 1, 4, 4, dtype=F64), torch.rand(2, dtype=F64)
    assert net.null["text"].shape == (3, 5) and "label" not in net.null
    without = net(x, c)
    assert torch.equal(without, net(x, c, {"text": torch.zeros(2, 3, 5, dtype=F64)}))
    text = torch.randn(2, 7, 5, dtype=F64)
    assert ((net(x, c, {"text": text}) - without).abs() > 1e-7).all()
    # a set of tokens: their order carries no meaning for the attention itself
    torch.testing.assert_close(net(x, c, {"text": text.flip(1)}), net(x, c, {"text": text}), rtol=1e-10, atol=1e-10)


def test_text_and_label_together():
    net = awake((1, 4, 4), text=(3, 5), classes=2)
    x, c = torch.randn(2, 1, 4, 4, dtype=F64), torch.rand(2, dtype=F64)
    assert sorted(net.null) == ["label", "text"]
    label = {"label": torch.tensor([2, 2])}
    assert torch.equal(net(x, c, label), net(x, c))


@pytest.mark.parametrize("shape", [(2, 5), (3, 4, 5), (2, 4, 6)])
def test_text_of_a_wrong_shape(shape):
    net = awake((1, 4, 4), text=(3, 5))
    with pytest.raises(LimbeckError, match=r'"text" has shape .*: expected \(2, any, 5\)'):
        net(torch.zeros(2, 1, 4, 4, dtype=F64), torch.zeros(2, dtype=F64), {"text": torch.zeros(shape)})


def test_a_new_network_is_the_zero_function_and_its_blocks_the_identity():
    net = DiT((1, 4, 4), width=16, text=(3, 5))
    x, c = torch.randn(2, 1, 4, 4), torch.rand(2)
    assert net(x, c).abs().max() == 0
    h, e = torch.randn(2, 4, 16), torch.randn(2, 1, 128)
    assert torch.equal(net.blocks[0](h, e, torch.randn(2, 3, 5)), h)
