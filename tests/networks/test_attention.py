import math

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.networks import Attention, DiT, UNet, attend, attentions, exchange_processors


def naive(attention, x, context):
    """softmax(Q K^T / sqrt(d)) V, one number at a time."""
    d = attention.channels // attention.heads
    w = {name: p.detach() for name, p in attention.named_parameters()}
    merged = torch.zeros_like(x)
    for b in range(len(x)):
        q = x[b] @ w["query.weight"].T + w["query.bias"]
        k = context[b] @ w["key.weight"].T
        v = context[b] @ w["value.weight"].T + w["value.bias"]
        for head in range(attention.heads):
            own = slice(head * d, (head + 1) * d)
            for i in range(x.shape[1]):
                scores = [float(q[i, own] @ k[j, own]) / math.sqrt(d) for j in range(context.shape[1])]
                total = sum(math.exp(s) for s in scores)
                for j, s in enumerate(scores):
                    merged[b, i, own] += math.exp(s) / total * v[j, own]
    return merged @ w["output.weight"].T + w["output.bias"]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("width", [None, 5])
def test_attention_equals_a_loop(heads, width):
    torch.manual_seed(0)
    attention = Attention(6, heads, width).double()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    context = x if width is None else torch.randn(2, 3, width, dtype=torch.float64)
    found = attention(x) if width is None else attention(x, context)
    torch.testing.assert_close(found, naive(attention, x, context), rtol=1e-12, atol=1e-12)


def test_context_is_given_exactly_where_it_is_needed():
    x = torch.zeros(1, 2, 4)
    with pytest.raises(LimbeckError, match="needs a context"):
        Attention(4, 1, context=4)(x)
    with pytest.raises(LimbeckError, match="takes no context"):
        Attention(4, 1)(x, x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = DiT((1, 4, 4), width=8, blocks=2, heads=2, text=(2, 3)).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return net


def perturbed(attention, x, context):
    """Perturbed attention guidance (Ahn et al. 2024): every token attends to itself alone."""
    return attention.output(attention.value(context))


def evaluate(net):
    g = torch.Generator().manual_seed(1)
    x, text = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((2, 1, 4, 4), (2, 2, 3)))
    return net(x, torch.ones(2, dtype=torch.float64), {"text": text})


def test_every_attention_is_listed(net):
    assert list(attentions(net)) == [f"blocks.{i}.{kind}" for i in (0, 1) for kind in ("attention", "cross")]
    assert list(attentions(UNet((1, 4, 4), channels=4, multipliers=(1,), attention=(4,)))) == [
        f"{place}.attention.attention" for place in ("encoder.0.0", "middle.0", "middle.1", "decoder.0.0")
    ]


def test_processors_are_exchanged_and_restored(net):
    before = evaluate(net)
    with exchange_processors(net, {"blocks.1.attention": perturbed}):
        inside = evaluate(net)
        assert net.blocks[1].attention.processor is perturbed
        assert net.blocks[0].attention.processor is attend
    assert (inside - before).abs().max() > 1e-3
    assert torch.equal(evaluate(net), before)
    assert all(a.processor is attend for a in attentions(net).values())


def test_perturbed_attention_is_attention_with_a_diagonal_mask(net):
    def masked(attention, x, context):
        q, k, v = (
            attention.split(f(c)) for f, c in ((attention.query, x), (attention.key, context), (attention.value, context))
        )
        mask = torch.eye(x.shape[1], dtype=torch.bool)
        return attention.output(attention.merge(nn.functional.scaled_dot_product_attention(q, k, v, mask)))

    outputs = []
    for processor in (perturbed, masked):
        with exchange_processors(net, {f"blocks.{i}.attention": processor for i in (0, 1)}):
            outputs.append(evaluate(net))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


def test_processors_are_restored_after_an_exception(net):
    before = evaluate(net)
    with pytest.raises(ZeroDivisionError), exchange_processors(net, {"blocks.0.cross": perturbed}):
        raise ZeroDivisionError
    assert torch.equal(evaluate(net), before)


class Decoupled(nn.Module):
    """Attention to the text plus `scale` times attention to picture tokens with their own keys and values."""

    def __init__(self, channels, picture, scale):
        super().__init__()
        self.key, self.value = (nn.Linear(picture.shape[2], channels).double() for _ in range(2))
        self.picture, self.scale = picture, scale

    def forward(self, attention, x, context):
        q, k, v = (attention.split(t) for t in (attention.query(x), self.key(self.picture), self.value(self.picture)))
        extra = attention.merge(nn.functional.scaled_dot_product_attention(q, k, v))
        return attend(attention, x, context) + self.scale * nn.functional.linear(extra, attention.output.weight)


def test_a_processor_with_parameters_belongs_to_the_network_while_installed(net):
    before, names = evaluate(net), set(net.state_dict())
    processor = Decoupled(8, torch.randn(2, 5, 4, dtype=torch.float64), scale=0.0)
    with exchange_processors(net, {"blocks.0.cross": processor}):
        added = set(net.state_dict()) - names
        assert {"blocks.0.cross.processor.key.weight", "blocks.0.cross.processor.value.weight"} < added
        assert torch.equal(evaluate(net), before)
        processor.scale = 1.0
        assert (evaluate(net) - before).abs().max() > 1e-3
        with exchange_processors(net, {"blocks.0.cross": attend}):
            assert torch.equal(evaluate(net), before)
        assert net.blocks[0].cross.processor is processor
    assert set(net.state_dict()) == names
    assert torch.equal(evaluate(net), before)


def test_unknown_attention_names_the_nearest_first(net):
    processors = {"blocks.0.cross": perturbed, "blocks.1.cros": perturbed}
    message = "no attention 'blocks.1.cros': there are blocks.1.cross, blocks.0.cross, "
    with pytest.raises(LimbeckError) as error, exchange_processors(net, processors):
        raise AssertionError
    assert str(error.value).startswith(message)
    assert net.blocks[0].cross.processor is attend
