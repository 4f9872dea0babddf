"""Gradient checkpointing: the same numbers bit for bit, dropout included, from less memory; copies, names and taps stay."""

import copy

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned, derivative
from limbeck.errors import LimbeckError
from limbeck.networks import DiT, FeatureTap, Heads, ResidualMLP, UNet, adapted, checkpoint_blocks
from limbeck.noise import VE

NETWORKS = {
    "mlp": lambda: ResidualMLP((1, 8, 8), width=64, blocks=4, classes=3, dropout=0.3),
    "unet": lambda: UNet((1, 8, 8), channels=8, multipliers=(1, 2), attention=(4,), classes=3, dropout=0.3, embedding=8),
    "dit": lambda: DiT((1, 8, 8), width=8, blocks=3, heads=2, classes=3, dropout=0.3),
}
X, T = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.linspace(0.1, 1.0, 4)
LABELS = {"label": torch.tensor([0, 1, 2, 3])}


def awake(net, seed=0):
    torch.manual_seed(seed)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net.train()


def trained_once(call, net):
    """(answer, gradients with respect to input and weights, where the generator stands) of one forward and backward."""
    torch.manual_seed(5)
    x = X.clone().requires_grad_()
    y = call(net, x)
    weights = [p for p in net.parameters() if p.requires_grad]
    grads = torch.autograd.grad(y.square().mean(), [x, *weights], allow_unused=True)
    return [y.detach(), *(g for g in grads if g is not None), torch.get_rng_state()]


def same(a, b):
    return len(a) == len(b) > 3 and all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


def kept_bytes(call, net):
    """What autograd keeps between forward and backward, weights aside."""
    kept, weights = {}, {p.untyped_storage()._cdata for p in net.parameters()}

    def pack(t):
        kept[t.untyped_storage()._cdata] = (t.untyped_storage().nbytes(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = call(net, X.clone().requires_grad_())
    assert y.requires_grad
    return sum(size for key, (size, _) in kept.items() if key not in weights)


def own(net, x):
    return net(x, T, LABELS)


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_are_the_same_bitwise_with_dropout_and_less_is_kept(kind):
    plain = awake(NETWORKS[kind]())
    net = checkpoint_blocks(copy.deepcopy(plain))
    first, second = trained_once(own, plain), trained_once(own, net)
    assert same(first, second) and float(first[2].abs().max()) > 0
    assert not torch.equal(first[0], trained_once(own, plain.eval())[0])  # dropout did act
    assert kept_bytes(own, net.train()) < 0.6 * kept_bytes(own, plain.train())


def diffusers_unet(text=False):
    diffusers = pytest.importorskip("diffusers")
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "block_out_channels": (8, 16)}
    common = {**sizes, "norm_num_groups": 4, "attention_head_dim": 4}
    if text:
        down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
        model = diffusers.UNet2DConditionModel(
            **common, down_block_types=down, up_block_types=up, cross_attention_dim=6, dropout=0.3
        )
        return model, lambda net, x: net(x, T, torch.ones(4, 2, 6)).sample
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(
        **common, down_block_types=down, up_block_types=up, dropout=0.3
    ), lambda net, x: net(x, T).sample


@pytest.mark.parametrize("text", [False, True])
def test_a_model_of_diffusers_is_checkpointed_its_own_way(text):
    model, call = diffusers_unet(text)
    plain = awake(model)
    wrapped = checkpoint_blocks(nn.ModuleDict({"model": copy.deepcopy(plain)}))  # as inside a denoiser
    net = copy.deepcopy(wrapped)["model"]
    assert net.is_gradient_checkpointing and not plain.is_gradient_checkpointing
    assert same(trained_once(call, plain), trained_once(call, net))
    assert kept_bytes(call, net) < 0.6 * kept_bytes(call, plain)
    assert list(net.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("kind", NETWORKS)
def test_names_stay_and_a_copy_is_checkpointed_and_computes_with_its_own_weights(kind):
    plain = awake(NETWORKS[kind]())
    net = checkpoint_blocks(copy.deepcopy(plain))
    assert list(net.state_dict()) == list(plain.state_dict()) and str(net) == str(plain)
    assert [n for n, _ in net.named_modules()] == [n for n, _ in plain.named_modules()]
    student = copy.deepcopy(net)
    for p in net.parameters():
        nn.init.zeros_(p)
    assert same(trained_once(own, student), trained_once(own, plain))
    assert kept_bytes(own, student) < 0.6 * kept_bytes(own, plain)
    assert same(trained_once(own, checkpoint_blocks(student)), trained_once(own, plain))  # twice is once
    student.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("kind", NETWORKS)
def test_taps_and_heads_on_blocks_see_and_differentiate_what_they_did(kind):
    plain = awake(NETWORKS[kind]())
    net = checkpoint_blocks(copy.deepcopy(plain))
    layers = plain.feature_layers
    torch.manual_seed(0)
    with FeatureTap(plain, layers) as tap:
        plain(X, T, LABELS)
    heads = Heads({name: tap[name].shape[1:] for name in layers}, width=8)

    def logits(net, x):
        calls = []
        handle = net.get_submodule(layers[0]).register_forward_hook(lambda *_: calls.append(1))
        with FeatureTap(net, layers) as tap:
            net(x, T, LABELS)
        found = heads(tap.features)
        found.sum().backward(retain_graph=True, inputs=[x])
        handle.remove()
        assert calls == [1]  # hooks do not see the second computation
        return found

    assert same(trained_once(logits, plain), trained_once(logits, net))


@pytest.mark.parametrize("kind", NETWORKS)
def test_adapters_on_a_checkpointed_base_learn_the_same(kind):
    plain = awake(NETWORKS[kind]())
    net = checkpoint_blocks(copy.deepcopy(plain))
    trees = []
    for base in (plain, net):
        torch.manual_seed(1)
        trees.append(adapted(base, 2))
    trees.append(checkpoint_blocks(adapted(copy.deepcopy(plain), 2)))
    trees[2].load_state_dict(trees[0].state_dict())
    found = [trained_once(own, tree) for tree in trees]
    assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize("kind", NETWORKS)
def test_forward_mode_goes_through(kind):
    plain = Preconditioned(awake(NETWORKS[kind]()), VE()).eval()
    net = checkpoint_blocks(copy.deepcopy(plain))
    v, t = torch.ones_like(X), T.double()
    found = [
        derivative(lambda x, t, m=m: m(x, t, LABELS), X, t, v, network=m, attention="math") for m in (plain, net)
    ]  # without gradient
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    assert float(found[0][1].abs().max()) > 0
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # and where gradients are on
        (a, da), (b, db) = (torch.func.jvp(lambda x, m=m: m(x, t, LABELS), (X,), (v,)) for m in (plain, net))
    assert torch.equal(a, b) and torch.equal(da, db)


def test_bfloat16_compute_is_the_same_bitwise():
    plain = Preconditioned(awake(NETWORKS["unet"]()), VE(), compute_dtype=torch.bfloat16)
    net = checkpoint_blocks(copy.deepcopy(plain))
    call = lambda net, x: net(x, T.double(), LABELS)  # noqa: E731
    found = trained_once(call, plain)
    assert same(found, trained_once(call, net)) and all(v.dtype == torch.float32 for v in found[:-1])


def test_where_there_are_no_blocks_it_says_so():
    with pytest.raises(LimbeckError, match="a Sequential has no blocks to checkpoint: .*ModuleList.*use micro-batches"):
        checkpoint_blocks(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.SiLU()])))
