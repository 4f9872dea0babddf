"""IMDN against its equations, the published sizes and names, and hand-computed attention."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks.imdn import (
    IMDN,
    IMDNAS,
    ContrastAttention,
    MultiDistillation,
    copy_body,
    load_imdn,
    save_imdn,
)


def picture(h=20, w=24, b=2, seed=0, dtype=torch.float32):
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def size(network):
    return sum(p.numel() for p in network.parameters())


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


PUBLISHED = {
    "x2": (lambda: IMDN(2), 694_404), "x3": (lambda: IMDN(3), 703_059), "x4": (lambda: IMDN(4), 715_176),
    "AS": (IMDNAS, 752_104),
}  # fmt: skip
FACTORS = {"x2": 2, "x3": 3, "x4": 4, "AS": 1}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones_to_the_unit_and_pictures_are_enlarged(name):
    make, parameters = PUBLISHED[name]
    network = seeded(make)
    assert size(network) == parameters and network.factor == FACTORS[name]
    with torch.no_grad():
        assert network(picture(13, 18, 1)).shape == (1, 3, 13 * network.factor, 18 * network.factor)


def test_names_are_those_of_the_published_checkpoints():
    block = [
        f"{layer}.{kind}"
        for layer in ("c1", "c2", "c3", "c4", "c5", "cca.conv_du.0", "cca.conv_du.2")
        for kind in ("weight", "bias")
    ]
    ends = [f"{layer}.{kind}" for layer in ("fea_conv", "c.0", "LR_conv", "upsampler.0") for kind in ("weight", "bias")]
    assert set(IMDN(3).state_dict()) == {*ends, *(f"IMDB{k}.{name}" for k in range(1, 7) for name in block)}
    shapes = {name: tuple(p.shape) for name, p in IMDN(3).state_dict().items()}
    assert shapes["IMDB4.c2.weight"] == (64, 48, 3, 3) and shapes["IMDB4.c4.weight"] == (16, 48, 3, 3)
    assert shapes["IMDB1.cca.conv_du.0.weight"] == (4, 64, 1, 1) and shapes["upsampler.0.weight"] == (27, 64, 3, 3)
    assert {"fea_conv.0.weight", "fea_conv.2.bias"} <= set(IMDNAS().state_dict())


def test_the_block_is_its_equations():
    block = seeded(lambda: MultiDistillation(16)).double()
    f = torch.randn(2, 16, 7, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    act = lambda v: torch.where(v > 0, v, 0.05 * v)  # noqa: E731
    layer = lambda c, v: F.conv2d(v, c.weight, c.bias, padding=c.weight.shape[-1] // 2)  # noqa: E731
    a = act(layer(block.c1, f))
    b = act(layer(block.c2, a[:, 4:]))
    c = act(layer(block.c3, b[:, 4:]))
    o = torch.cat([a[:, :4], b[:, :4], c[:, :4], layer(block.c4, c[:, 4:])], 1)
    mean = o.mean((2, 3))
    z = mean + (o - mean[:, :, None, None]).square().mean((2, 3)).sqrt()
    first, last = block.cca.conv_du[0], block.cca.conv_du[2]
    gate = torch.sigmoid(F.linear(F.relu(F.linear(z, first.weight[..., 0, 0], first.bias)), last.weight[..., 0, 0], last.bias))
    torch.testing.assert_close(block(f), layer(block.c5, gate[:, :, None, None] * o) + f, rtol=0, atol=1e-12)


def test_a_block_without_its_last_convolution_is_the_identity():
    block = seeded(lambda: MultiDistillation(64))
    nn.init.zeros_(block.c5.weight)
    nn.init.zeros_(block.c5.bias)
    f = torch.randn(1, 64, 6, 5)
    assert block(f).shape == f.shape and torch.equal(block(f), f)


def test_attention_of_a_hand_computed_contrast():
    """Channels of constants and of -1, 3 by turns: mean 1 and std 2; the weights pass z on."""
    x = torch.zeros(1, 16, 2, 2, dtype=torch.float64)
    x[0, 0] = torch.tensor([[-1.0, 3.0], [3.0, -1.0]])
    x[0, 1] = 0.5
    for statistic, z in (("std+mean", [3.0, 0.5]), ("mean", [1.0, 0.5])):
        attention = ContrastAttention(16, statistic).double()
        for p in attention.parameters():
            nn.init.zeros_(p)
        for k in (0, 1):
            attention.conv_du[0].weight.data.zero_()[0, k] = 1
            attention.conv_du[2].weight.data.zero_()[k, 0] = 1
            gate = (attention(x)[0, k] / x[0, k]).flatten()
            assert gate.tolist() == pytest.approx(4 * [float(torch.sigmoid(torch.tensor(z[k], dtype=torch.float64)))], abs=1e-6)


def test_the_network_is_its_equations():
    network = seeded(lambda: IMDN(3, 16, 2)).double()
    x = picture(6, 5, dtype=torch.float64)
    f0 = network.fea_conv(x)
    b1 = network.IMDB1(f0)
    b = F.leaky_relu(network.c[0](torch.cat([b1, network.IMDB2(b1)], 1)), 0.05)
    h = network.upsampler[0](network.LR_conv(b) + f0)
    y = network(x)
    for c in range(3):  # pixel (3 i + u, 3 j + v) of colour c is channel 9 c + 3 u + v
        for u in range(3):
            for v in range(3):
                torch.testing.assert_close(y[:, c, u::3, v::3], h[:, 9 * c + 3 * u + v], rtol=0, atol=1e-13)


def test_flat_patches_have_finite_gradients():
    network = seeded(lambda: IMDN(2, 16, 2)).train()
    nn.init.zeros_(network.IMDB1.c4.weight)  # a constant channel wherever one looks
    x = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    network(x).square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters()) and bool(x.grad.isfinite().all())
    constant = torch.zeros(1, 16, 4, 4, requires_grad=True)
    ContrastAttention(16)(constant + 0.3).sum().backward()
    assert bool(constant.grad.isfinite().all())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_checkpoints_in_the_published_layout_are_read(tmp_path, name, suffix):
    network, x = seeded(PUBLISHED[name][0], 5), picture(8, 12, 1)
    state = {f"module.{key}" if name != "x3" else key: value for key, value in network.state_dict().items()}
    file = tmp_path / f"model{suffix}"
    torch.save(state, file) if suffix == ".pth" else save_file(state, file)
    found = load_imdn(file)
    assert type(found) is type(network) and found.config == network.config and not found.training
    with torch.no_grad():
        assert torch.equal(found(x), network(x))


def test_our_own_files_go_there_and_back_and_tell_the_statistic(tmp_path):
    for statistic in ("std+mean", "mean"):
        network = seeded(lambda statistic=statistic: IMDN(2, 16, 3, statistic))
        file = save_imdn(tmp_path / "student", network)
        found = load_imdn(file, 2)
        assert file == tmp_path / "student.safetensors" and found.config == network.config
        assert found.IMDB2.cca.statistic == statistic
        assert all(torch.equal(v, network.state_dict()[k]) for k, v in load_file(file).items())


def test_bad_checkpoints_are_named(tmp_path):
    good = {k: v.clone() for k, v in IMDN(3, 16, 1).state_dict().items()}

    def written(name, content):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    odd = good | {"upsampler.0.weight": torch.zeros(20, 16, 3, 3), "upsampler.0.bias": torch.zeros(20)}
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    for call, message in (
        (lambda: load_imdn(tmp_path / "none.pth"), "none.pth does not exist"),
        (
            lambda: load_imdn(written("x3.pth", good), 2),
            r"27 rows = 3 x 3\^2, so the checkpoint is for scale 3, and scale=2 .* give scale=3",
        ),
        (lambda: load_imdn(written("odd.pth", odd)), "20 rows, which is 3 s.2 for no scale of 2, 3 and 4"),
        (lambda: load_imdn(written("as.pth", IMDNAS(16, 1).state_dict()), 4), "IMDNAS, which enlarges by 1, not by scale=4"),
        (
            lambda: load_imdn(written("other.pth", {"a": torch.zeros(1)})),
            "holds no IMDN .its first names are a.; expected fea_conv",
        ),
        (lambda: load_imdn(written("list.pth", [1, 2])), "holds no state dict"),
        (lambda: load_imdn(written("pickle.pth", nn.Linear(1, 1))), "pickle.pth cannot be read .* tensors alone"),
        (lambda: load_imdn(written("part.pth", {k: v for k, v in good.items() if "c5" not in k})), "no whole IMDN: .*IMDB1.c5"),
        (lambda: load_imdn(tmp_path / "damaged.safetensors"), "damaged.safetensors is damaged"),
    ):
        with pytest.raises(LimbeckError, match=message):
            call()


def test_three_and_four_begin_with_two_but_for_the_last_convolution():
    two, four = seeded(lambda: IMDN(2, 16, 2), 1), seeded(lambda: IMDN(4, 16, 2), 2)
    last = copy.deepcopy(four.upsampler.state_dict())
    assert copy_body(four, two) is four
    for name, p in four.state_dict().items():
        same = last[name.removeprefix("upsampler.")] if name.startswith("upsampler.") else two.state_dict()[name]
        assert torch.equal(p, same)
    with pytest.raises(LimbeckError, match="'blocks': 3.* do not fit .*'blocks': 2.* only the scale may differ"):
        copy_body(four, IMDN(2, 16, 3))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            r"IMDN expects float RGB in \[0, 1\], not torch.uint8: give x.float\(\) / 255",
        ),
        (255 * picture(), r"IMDN expects float RGB in \[0, 1\], but x goes from .* to 25.*: divide"),
        (2 * picture() - 1, r"IMDN expects float RGB in \[0, 1\], but x goes from -0.9.*give \(x \+ 1\) / 2"),
        (picture()[:, :1], r"expects RGB \(B, 3, H, W\), not \(2, 1, 20, 24\): repeat the grey channel"),
        (picture()[0], r"expects RGB \(B, 3, H, W\), not \(3, 20, 24\)"),
    ],
)
def test_bad_pictures_are_named(x, message):
    with pytest.raises(LimbeckError, match=message):
        IMDN(2, 16, 1).eval()(x)


def test_bad_sizes_are_named():
    for call, message in (
        (lambda: IMDN(5), "scale=5: IMDN enlarges by 2, 3 or 4"),
        (lambda: IMDN(2, 18), "nf=18 must be a multiple of 4, at least 16"),
        (lambda: IMDN(2, 12), "nf=12 must be a multiple of 4, at least 16"),
        (lambda: IMDN(2, 16, 0), "blocks=0 at least 1"),
    ):
        with pytest.raises(LimbeckError, match=message):
            call()


def test_in_bfloat16_it_is_nearly_the_same_and_gradients_are_float32():
    network, x = seeded(lambda: IMDN(2, 16, 2)), picture(16, 16, 1)
    whole = network(x).detach()
    network.compute_dtype = torch.bfloat16
    answer = network(x)
    assert answer.dtype == torch.float32 and 0 < float((answer.detach() - whole).abs().max()) < 0.02
    answer.mean().backward()
    assert all(p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.slow
def test_it_can_be_exported_for_any_size():
    network = seeded(lambda: IMDN(2, 16, 1))
    sides = {2: torch.export.Dim("h", min=8, max=4096), 3: torch.export.Dim("w", min=8, max=4096)}
    program = torch.export.export(network, (picture(16, 12, 1),), dynamic_shapes={"x": sides})
    with torch.no_grad():
        torch.testing.assert_close(program.module()(picture(21, 30, 1)), network(picture(21, 30, 1)))
