import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks import UNet, candidate_layers
from limbeck.networks.unet import ResidualBlock, group_norm


def awake(**options):
    torch.manual_seed(0)
    net = UNet((2, 16, 16), channels=8, multipliers=(1, 2, 2), **options).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return net


@pytest.mark.parametrize("size", [(15, 16), (16, 18), (7, 7), (2, 2)])
def test_sizes_that_cannot_be_halved_are_errors(size):
    with pytest.raises(LimbeckError, match=r"must be multiples of 4 \(pad the images"):
        UNet((3, *size), channels=8, multipliers=(1, 1, 1))
    with pytest.raises(LimbeckError, match=f"images of {size[0]} x {size[1]} do not fit"):
        awake()(torch.zeros(1, 2, *size, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


def test_patches_count_in_the_size():
    with pytest.raises(LimbeckError, match="multiples of 8"):
        UNet((1, 12, 12), channels=8, multipliers=(1, 1), patch=4)


def test_other_sizes_than_the_nominal_one_are_welcome():
    net = awake(attention=(4,))
    x, c = torch.randn(2, 2, 8, 20, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert net(x, c).shape == x.shape


def test_levels_have_the_promised_channels_and_resolutions():
    net = awake(blocks=2)
    shapes = candidate_layers(net, torch.zeros(1, 2, 16, 16).double(), torch.zeros(1).double())
    assert [shapes[f"encoder.{i}.1"][1:] for i in range(3)] == [(8, 16, 16), (16, 8, 8), (16, 4, 4)]
    assert [shapes[f"decoder.{i}.1"][1:] for i in range(3)] == [(16, 4, 4), (16, 8, 8), (8, 16, 16)]
    assert shapes["middle.1"][1:] == (16, 4, 4)


def test_attention_sits_where_it_is_asked_for():
    names = [name for name, _ in awake(attention=(8,)).named_modules() if name.endswith("attention.attention")]
    assert names == ["encoder.1.0.attention.attention", "decoder.1.0.attention.attention"]


def test_the_resampling_modules_can_be_replaced():
    net = awake()
    x, c = torch.randn(1, 2, 16, 16, dtype=torch.float64), torch.rand(1, dtype=torch.float64)
    before = net(x, c)
    strided = nn.Conv2d(8, 8, 2, stride=2, bias=False, groups=8).double()
    nn.init.constant_(strided.weight, 0.25)
    net.down[0] = strided
    torch.testing.assert_close(net(x, c), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "least", "groups"), [(32, 4, 8), (256, 4, 32), (6, 4, 1), (24, 4, 6), (3, 4, 1)])
def test_group_norm_divides_the_channels(channels, least, groups):
    assert group_norm(channels, least).num_groups == groups


@pytest.mark.parametrize("outputs", [8, 16])
def test_residual_block_equals_diffusers(outputs):
    resnet = pytest.importorskip("diffusers.models.resnet")
    torch.manual_seed(0)
    ours = ResidualBlock(8, outputs, embedding=6, dropout=0.0, head_channels=None)
    theirs = resnet.ResnetBlock2D(
        in_channels=8, out_channels=outputs, temb_channels=6, groups=2, groups_out=outputs // 4,
        eps=1e-5, time_embedding_norm="scale_shift",
    )  # fmt: skip
    pairs = {
        "norm_in": "norm1", "conv_in": "conv1", "modulation": "time_emb_proj", "norm_out": "norm2",
        "conv_out": "conv2", "skip": "conv_shortcut",
    }  # fmt: skip
    state = {}
    for name, p in ours.named_parameters():
        nn.init.normal_(p)
        module, kind = name.split(".")
        state[f"{pairs[module]}.{kind}"] = p.detach()
    theirs.load_state_dict(state)
    x, e = torch.randn(2, 8, 6, 6).double(), torch.randn(2, 6).double()
    torch.testing.assert_close(ours.double()(x, F.silu(e)), theirs.double()(x, e), rtol=1e-10, atol=1e-10)


def test_text_reaches_the_pixels_where_they_attend_and_starts_without_effect():
    torch.manual_seed(0)
    new = UNet((2, 16, 16), channels=8, multipliers=(1, 2, 2), attention=(4,), text=(3, 5), classes=2)
    h, text = torch.randn(2, 16, 4, 4), torch.randn(2, 7, 5)
    block = new.middle[0]
    assert torch.equal(block.cross(h, text), h) and new.encoder[0][0].cross is None
    net = awake(attention=(4,), text=(3, 5))
    x, c = torch.randn(2, 2, 16, 16, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert net.null["text"].shape == (3, 5) and sorted(new.null) == ["label", "text"]
    without = net(x, c)
    assert torch.equal(without, net(x, c, {"text": torch.zeros(2, 3, 5, dtype=torch.float64)}))
    text = text.double()
    assert ((net(x, c, {"text": text}) - without).abs() > 1e-9).all()
    torch.testing.assert_close(net(x, c, {"text": text.flip(1)}), net(x, c, {"text": text}), rtol=1e-10, atol=1e-10)
    with pytest.raises(LimbeckError, match=r'"text" has shape \(2, 5\): expected \(2, any, 5\)'):
        net(x, c, {"text": text[:, 0]})
    with pytest.raises(LimbeckError, match=r"name some of the heights \[16, 8, 4\] in attention"):
        awake(text=(3, 5))
