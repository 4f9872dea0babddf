"""Negative prompts in cross-attention: what is subtracted, where, and that nothing of it stays behind."""

import warnings

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.networks import (
    Attention,
    DiT,
    Negative,
    ResidualMLP,
    UNet,
    adapted,
    attend,
    attended,
    attentions,
    exchange_processors,
    masked,
    negative_prompt,
)

F64 = torch.float64


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = DiT((1, 4, 4), width=8, blocks=2, heads=2, text=(2, 3)).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return net


@pytest.fixture
def layer():
    torch.manual_seed(1)
    return Attention(6, 2, context=3).double()


def draw(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def answer(net, batch=3):
    return net(draw(batch, 1, 4, 4), torch.linspace(0.1, 1, batch, dtype=F64), {"text": draw(batch, 2, 3, seed=3)})


def projected(layer, call):
    """What goes into the output projection while ``call`` runs."""
    seen = []
    hook = layer.output.register_forward_pre_hook(lambda _, z: seen.append(z[0]))
    call()
    hook.remove()
    return seen[-1]


@pytest.mark.parametrize("mode", ["nasa", "nag"])
@pytest.mark.parametrize("alpha", [0.0, torch.zeros(3, dtype=F64)])
def test_alpha_zero_is_the_plain_network_bitwise(net, mode, alpha):
    before = answer(net)
    with negative_prompt(net, draw(5, 3), alpha, mode=mode):
        assert torch.equal(answer(net), before)


def test_the_negative_prompt_matters_and_leaves_no_trace(net):
    before, hooks = answer(net), [len(a.output._forward_pre_hooks) for a in attentions(net).values()]
    with negative_prompt(net, draw(5, 3), 0.5):
        assert (answer(net) - before).abs().max() > 1e-3
        with pytest.raises(LimbeckError, match="3 negative prompts do not fit 2"), negative_prompt(net, draw(3, 5, 3), 0.5):
            answer(net, 2)
    assert torch.equal(answer(net), before)
    assert all(a.processor is attend for a in attentions(net).values())
    assert hooks == [len(a.output._forward_pre_hooks) for a in attentions(net).values()]


@pytest.mark.parametrize("alpha", [0.3, 1.0, torch.tensor([0.0, 0.5, 1.2], dtype=F64)])
def test_the_positive_prompt_itself_scales_its_attention(layer, alpha):
    x, c = draw(3, 4, 6), draw(3, 5, 3, seed=4)
    plain = attended(layer, x, c)
    with negative_prompt(layer, c, alpha):
        z = projected(layer, lambda: layer(x, c))
    share = 1 - (alpha[:, None, None] if isinstance(alpha, torch.Tensor) else alpha)
    torch.testing.assert_close(z, share * plain, rtol=1e-12, atol=1e-14)


def test_a_layer_is_linear_in_alpha(layer):
    x, c, c_minus = draw(3, 4, 6), draw(3, 5, 3, seed=4), draw(2, 3, seed=5)
    found = []
    for alpha in (0.0, 0.25, 1.0):
        with negative_prompt(layer, c_minus, alpha):
            found.append(layer(x, c))
    torch.testing.assert_close(found[1], 0.75 * found[0] + 0.25 * found[2], rtol=1e-12, atol=1e-14)


def test_the_bias_enters_once(layer):
    x, c, c_minus = draw(3, 4, 6), draw(3, 5, 3, seed=4), draw(3, 2, 3, seed=5)
    with negative_prompt(layer, c_minus, 0.4):
        found = layer(x, c)
    z = attended(layer, x, c) - 0.4 * attended(layer, x, c_minus)
    torch.testing.assert_close(found, z @ layer.output.weight.T + layer.output.bias, rtol=1e-12, atol=1e-14)
    after = layer(x, c) - 0.4 * layer(x, c_minus)  # subtracted behind the projection: the bias is lost in part
    torch.testing.assert_close(found - after, (0.4 * layer.output.bias).expand_as(found), rtol=1e-9, atol=1e-12)
    assert (found - after).abs().max() > 0.01


def test_the_order_of_the_negative_tokens_means_nothing(net):
    c = draw(6, 3)
    found = []
    for order in (c, c.flip(0)):
        with negative_prompt(net, order, 0.7):
            found.append(answer(net))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_masked_tokens_of_either_prompt_mean_nothing(net):
    names = [n for n, a in attentions(net).items() if a.cross]
    c, mask = draw(3, 4, 3), torch.tensor([[True, True, False, False], [True, False, False, False], [True] * 4])
    found, text = [], {"text": draw(3, 2, 3, seed=3)}
    for junk in (0.0, 9.0):
        filled, other = c.masked_fill(~mask[..., None], junk), {"text": torch.cat([text["text"], junk + draw(3, 1, 3)], 1)}
        seen = exchange_processors(net, dict.fromkeys(names, masked(torch.tensor([[True, True, False]]))))
        with seen, negative_prompt(net, filled, 0.7, mask=mask):
            found.append(net(draw(3, 1, 4, 4), torch.linspace(0.1, 1, 3, dtype=F64), other))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)
    with negative_prompt(net, c[1, :1], 0.7):  # a mask is the shorter prompt
        torch.testing.assert_close(answer(net)[1], found[0][1], rtol=1e-10, atol=1e-12)


def test_a_batch_of_mixed_negatives_is_each_alone(net):
    c, alphas = draw(3, 4, 3), torch.tensor([0.2, 0.9, 0.0])
    with negative_prompt(net, c, alphas):
        together = answer(net)
    for i in range(3):
        with negative_prompt(net, c[i], float(alphas[i])):
            torch.testing.assert_close(answer(net)[i], together[i], rtol=1e-6, atol=1e-7)


def test_negatives_nest_and_an_inner_processor_keeps_its_share(layer):
    x, c, one, two = draw(3, 4, 6), draw(3, 5, 3, seed=4), draw(2, 3, seed=5), draw(1, 3, seed=6)
    picture = lambda attention, x, context: attend(attention, x, context) + 0.3 * x  # noqa: E731
    with exchange_processors(layer_in := nn.ModuleDict({"a": layer}), {"a": picture}):
        with negative_prompt(layer_in, one, 0.4), negative_prompt(layer_in, two, 0.2):
            found = layer(x, c)
            assert isinstance(layer.processor, Negative) and isinstance(layer.processor.inner, Negative)
        assert layer.processor is picture
        with negative_prompt(layer_in, one, 0.4), exchange_processors(layer_in, {"a": attend}):
            assert torch.equal(layer(x, c), attend(layer, x, c))  # one put inside replaces it
    expand = lambda z: z.expand(3, -1, -1)  # noqa: E731
    z = attended(layer, x, c) - 0.4 * attended(layer, x, expand(one)) - 0.2 * attended(layer, x, expand(two))
    torch.testing.assert_close(found, layer.output(z) + 0.3 * x, rtol=1e-12, atol=1e-14)


def test_nag_is_its_equation_with_its_limit_per_token(layer):
    x, c, c_minus = draw(3, 4, 6), draw(3, 5, 3, seed=4), draw(3, 2, 3, seed=5)
    plus, minus = (attended(layer, x, text).detach() for text in (c, c_minus))
    limited = 0
    with negative_prompt(layer, c_minus, 0.25, mode="nag", phi=6.0, tau=2.5):
        z = projected(layer, lambda: layer(x, c))
    for b in range(3):
        for i in range(4):
            far = plus[b, i] + 6.0 * (plus[b, i] - minus[b, i])
            ratio = float(far.abs().sum() / plus[b, i].abs().sum())
            limited += ratio > 2.5
            far = far * min(1.0, 2.5 / ratio)
            torch.testing.assert_close(z[b, i], 0.25 * far + 0.75 * plus[b, i], rtol=1e-12, atol=1e-14)
    assert 0 < limited < 12


def test_nag_of_nothing_is_nothing_and_has_gradients():
    nag = Negative(attend, torch.zeros(1, 1, 3), 0.5, "nag")
    plus = torch.zeros(1, 2, 4, requires_grad=True)
    z = nag.steer(plus, torch.zeros(1, 2, 4))
    (gradient,) = torch.autograd.grad(z.sum(), plus)
    assert torch.equal(z, torch.zeros(1, 2, 4)) and bool(gradient.isfinite().all())
    assert bool(nag.steer(torch.zeros(1, 2, 4), torch.ones(1, 2, 4)).isfinite().all())


def test_gradients_reach_the_weights_through_the_negative_prompt(net):
    with negative_prompt(net, draw(5, 3), 0.5):
        answer(net).sum().backward()
    steered = net.blocks[0].cross.value.weight.grad.clone()
    net.zero_grad()
    answer(net).sum().backward()
    assert (steered - net.blocks[0].cross.value.weight.grad).abs().max() > 1e-3


def test_a_unet_with_text_and_adapted_networks_take_negatives(net):
    torch.manual_seed(0)
    unet = UNet((1, 4, 4), channels=4, multipliers=(1,), attention=(4,), text=(2, 3)).double()
    for p in unet.parameters():
        nn.init.normal_(p, std=0.3)
    for module in (unet, adapted(net, 2, layers=("key", "output"))):
        before = answer(module)
        with negative_prompt(module, draw(5, 3), 0.5):
            assert (answer(module) - before).abs().max() > 1e-3
        assert torch.equal(answer(module), before)


def test_bad_input(net):
    good = draw(5, 3)

    def message(module=net, context=good, alpha=0.5, **options):
        with pytest.raises(LimbeckError) as error, negative_prompt(module, context, alpha, **options):
            raise AssertionError
        return str(error.value)

    assert "a ResidualMLP has no cross-attention to a text" in message(ResidualMLP((2,), classes=3))
    assert "has no cross-attention" in message(DiT((1, 4, 4), width=8, classes=2))
    assert "shape (1, 5, 4), but the text of 'blocks.0.cross' has the width 3" in message(context=draw(5, 4))
    assert "shape (3,)" in message(context=draw(3))
    assert "alpha is -0.1: a negative prompt is subtracted with alpha >= 0" in message(alpha=-0.1)
    assert "alpha is nan" in message(alpha=float("nan"))
    assert "alpha is -1" in message(alpha=torch.tensor([0.5, -1.0]))
    assert "alpha is 1.2: in mode 'nag' it is a blend" in message(alpha=1.2, mode="nag")
    assert "unknown mode of a negative prompt 'nga'" in message(mode="nga")
    assert "does not fit 5 tokens" in message(mask=torch.ones(4, dtype=torch.bool))
    assert "leaves none of them" in message(mask=torch.zeros(5, dtype=torch.bool))
    with pytest.warns(UserWarning, match=r"alpha is 1.6: above 1.5"), negative_prompt(net, good, 1.6):
        pass
    with warnings.catch_warnings(), negative_prompt(net, good, 1.5):
        warnings.simplefilter("error")
