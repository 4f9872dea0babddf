"""Networks under forward mode: own ones by their processors, any other by what torch's functions are replaced with."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.networks import (
    DiT,
    ForwardMode,
    UNet,
    attend_forward_mode,
    attentions,
    dual_attention,
    exchange_processors,
    masked,
)

F64 = torch.float64


def made(cls, *args, **options):
    torch.manual_seed(0)
    net = cls(*args, **options).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net.requires_grad_(False)


@pytest.fixture
def dit():
    return made(DiT, (1, 4, 4), width=8, blocks=2, heads=2, text=(2, 3))


def direction(net, x, t, cond=None):
    g = torch.Generator().manual_seed(3)
    tangent = torch.randn(x.shape, generator=g, dtype=x.dtype)
    return torch.func.jvp(lambda x, t: net(x, t, cond), (x, t), (tangent, torch.ones_like(t)))


def inputs(channels=1, size=4):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, channels, size, size, generator=g, dtype=F64), torch.randn(2, 2, 3, generator=g, dtype=F64)
    return x, torch.tensor([0.3, 0.8], dtype=F64), {"text": text}


def test_a_dit_has_no_forward_mode_of_its_own(dit):
    with pytest.raises(NotImplementedError, match="forward AD"):
        direction(dit, *inputs())


def test_processors_give_a_dit_its_derivative(dit):
    with sdpa_kernel(SDPBackend.MATH):
        expected = direction(dit, *inputs())
    before = dit(*inputs())
    with exchange_processors(dit, dict.fromkeys(attentions(dit), attend_forward_mode())):
        found = direction(dit, *inputs())
        torch.testing.assert_close(dit(*inputs()), before, rtol=0, atol=0)  # without tangents it is what it was
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    assert float(expected[1].abs().max()) > 0.1


def test_processors_of_others_get_one_too(dit):
    seen = torch.tensor([[True, False], [True, True]])
    plain = dict.fromkeys(("blocks.0.cross", "blocks.1.cross"), masked(seen))
    with sdpa_kernel(SDPBackend.MATH), exchange_processors(dit, plain):
        expected = direction(dit, *inputs())
    processors = dict.fromkeys(attentions(dit), attend_forward_mode())
    processors |= {name: attend_forward_mode(processor=processor) for name, processor in plain.items()}
    with exchange_processors(dit, processors):
        found = direction(dit, *inputs())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


class Written(nn.Module):
    """Somebody's own attention, called with positional and keyword arguments."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x, t, cond=None):
        q, k, v = x, x.flip(-1), x.sin() * t[:, None, None, None]
        mask = torch.ones(4, 4, dtype=torch.bool).tril()
        if self.how == "mask":
            return F.scaled_dot_product_attention(q, k, v, mask)
        if self.how == "causal":
            return F.scaled_dot_product_attention(q, key=k, value=v, is_causal=True, scale=0.3)
        if self.how == "groups":
            return F.scaled_dot_product_attention(torch.cat([q, k], 1), k, v, enable_gqa=True)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q).log(), dropout_p=0.0)


@pytest.mark.parametrize("how", ["mask", "causal", "groups", "mask of numbers"])
def test_attention_of_any_network(how):
    net = Written(how)
    with sdpa_kernel(SDPBackend.MATH):
        expected = direction(net, *inputs())
        with ForwardMode():
            found = direction(net, *inputs())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_mode_reaches_the_blocks(dit, monkeypatch):
    from limbeck.networks import forward_mode

    calls, real = [], forward_mode.attention_jvp
    monkeypatch.setattr(forward_mode, "attention_jvp", lambda *a, **o: (calls.append(o["kernel"]), real(*a, **o))[1])
    with ForwardMode():
        direction(dit, *inputs())
    assert calls == ["tiled"] * len(attentions(dit))
    with ForwardMode("math"), sdpa_kernel(SDPBackend.MATH):
        direction(dit, *inputs())
    assert len(calls) == len(attentions(dit))


def test_a_unet_under_half_precision():
    net = made(UNet, (1, 8, 8), channels=8, multipliers=(1, 2), attention=(4,))
    x, t, _ = inputs(size=8)
    with ForwardMode():
        expected = direction(net, x, t)[1]
        net.float()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            found = direction(net, x.float(), t.float())[1]
    assert float((found - expected).norm() / expected.norm()) < 0.1
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), pytest.raises(RuntimeError):
        direction(net, x.float(), t.float())  # what the mode is for


def test_memory_order_does_not_matter():
    x = inputs(4)[0]
    norm = made(nn.GroupNorm, 2, 4)
    with ForwardMode():
        a = torch.func.jvp(norm, (x,), (x.flip(0),))
        b = torch.func.jvp(norm, (x.to(memory_format=torch.channels_last),), (x.flip(0).contiguous(),))
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_tangents_of_torch_autograd_forward_ad():
    from torch.autograd import forward_ad

    x, _, _ = inputs()
    with forward_ad.dual_level():
        q = forward_ad.make_dual(x, x.flip(0))
        found = forward_ad.unpack_dual(dual_attention(q, x, x)).tangent
    expected = torch.func.jvp(lambda q: dual_attention(q, x, x), (x,), (x.flip(0),))[1]
    assert torch.equal(found, expected)


def published(kind):
    """Small transformers of diffusers, and what they are called with beside x and t."""
    import diffusers

    text, pooled = torch.ones(2, 3, 16, dtype=F64), torch.ones(2, 16, dtype=F64)
    given = {"encoder_hidden_states": text, "return_dict": False}
    if kind == "wan":
        net = diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32,
            num_layers=1, cross_attn_norm=True, rope_max_seq_len=32,
        )  # fmt: skip
        return net, (4, 2, 8, 8), given
    if kind == "sana":
        net = diffusers.SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_cross_attention_heads=2,
            cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16, sample_size=8, patch_size=1,
        )  # fmt: skip
        return net, (4, 8, 8), given
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    return net, (4, 8, 8), given | {"pooled_projections": pooled}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["wan", "sana", "sd3"])
def test_published_transformers_as_they_are(kind, monkeypatch):
    from limbeck.networks import forward_mode

    calls, real = [], forward_mode.attention_jvp
    monkeypatch.setattr(forward_mode, "attention_jvp", lambda *a, **o: (calls.append(o["kernel"]), real(*a, **o))[1])
    torch.manual_seed(0)
    net, shape, given = published(kind)
    for p in net.double().eval().requires_grad_(False).parameters():
        nn.init.normal_(p, std=0.1)
    function = lambda x, t: net(hidden_states=x, timestep=t, **given)[0]  # noqa: E731
    x, t = torch.randn(2, *shape, dtype=F64), torch.tensor([300.0, 700.0], dtype=F64)
    tangents, e = (x.flip(0), torch.ones_like(t)), 1e-2  # their time embedding is float32: no smaller step
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(function, (x, t), tangents)[1]
    assert not calls
    with ForwardMode():
        found = torch.func.jvp(function, (x, t), tangents)[1]
    assert calls
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    difference = (function(x + e * tangents[0], t + e) - function(x - e * tangents[0], t - e)) / (2 * e)
    assert float((found - difference).norm() / difference.norm()) < 0.02
