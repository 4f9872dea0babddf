"""Low-rank adapters: one base shared by reference, exact with and without them, and nothing else is trained or kept."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from limbeck.errors import LimbeckError
from limbeck.networks import DiT, LowRank, UNet, adapted, adapters, fused, merged
from limbeck.training import Batch, EmaOptions, Loop, LoopOptions, Method, OptimizerOptions, Role, TensorSource, Update
from limbeck.training.checkpoints import load

F64 = torch.float64


def awake(net, seed=0):
    torch.manual_seed(seed)
    net = net.double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net


NETWORKS = {
    "dit": lambda: DiT((1, 4, 4), width=8, blocks=2, heads=2, classes=3),
    "unet": lambda: UNet((1, 4, 4), channels=4, multipliers=(1, 2), attention=(2,), classes=3, embedding=8),
}


@pytest.fixture(params=NETWORKS)
def base(request):
    return awake(NETWORKS[request.param]())


def answer(net):
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    return net(x, torch.linspace(0.1, 1, 3, dtype=F64), {"label": torch.tensor([0, 2, 3])})


def plain(net):
    """Without gradient, as a frozen network answers: torch may choose another kernel, and another last bit, for weights that
    require one."""
    trained = [p for p in net.parameters() if p.requires_grad]
    with torch.no_grad():
        found = answer(net.requires_grad_(False))
    for p in trained:
        p.requires_grad_(True)
    return found


def stirred(tree, seed=2):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in adapters(tree):
            layer.B.copy_(0.3 * torch.randn(layer.B.shape, generator=generator, dtype=layer.B.dtype))
    return tree


def test_a_new_adapter_is_the_base_bitwise_and_shares_it(base):
    before, weights = plain(base), {n: p for n, p in base.named_parameters()}
    tree = adapted(base, rank=2)
    assert torch.equal(plain(tree), before)
    mine = {id(p) for p in tree.parameters()}
    assert all(id(p) in mine for p in weights.values()) and not any(p.requires_grad for p in base.parameters())
    trained = [n for n, p in tree.named_parameters() if p.requires_grad]
    assert trained and all(n.rpartition(".")[2] in "AB" for n in trained)
    assert len(trained) == 2 * len(list(adapters(tree)))


def test_the_base_answers_as_ever_while_its_adapters_learn(base):
    before, tree = plain(base), adapted(base, rank=2, alpha=5.0)
    optimizer = torch.optim.Adam([p for p in tree.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        answer(tree).square().mean().backward()
        optimizer.step()
        assert torch.equal(plain(base), before)
    assert (plain(tree) - before).abs().max() > 1e-2 and all(p.grad is None for p in base.parameters())


def test_merged_weights_answer_like_the_adapters(base):
    tree = stirred(adapted(base, rank=3, alpha=5.0))
    folded = merged(tree)
    torch.testing.assert_close(answer(folded), answer(tree), rtol=1e-10, atol=1e-10)
    assert not list(adapters(folded)) and type(folded) is type(base)
    assert [n for n, _ in folded.named_parameters()] == [n for n, _ in base.named_parameters()]
    assert not {id(p) for p in folded.parameters()} & {id(p) for p in base.parameters()}
    assert merged(base) is base


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 5), nn.Linear(6, 5, bias=False), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2, dilation=2)],
)
def test_one_layer_is_its_equation(layer):
    torch.manual_seed(0)
    low = LowRank(layer.double(), rank=2, alpha=3.0).double()
    nn.init.normal_(low.B)
    x = torch.randn(2, 6, dtype=F64) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 9, 9, dtype=F64)
    changed = copy.deepcopy(layer)
    with torch.no_grad():
        changed.weight += 1.5 * torch.einsum("or,ri...->oi...", low.B.flatten(1), low.A)
    torch.testing.assert_close(low(x), changed(x), rtol=1e-12, atol=1e-12)
    assert low.weight is layer.weight
    spread = low.A.detach().var() * layer.weight[0].numel()
    assert 0.1 < float(spread) < 0.8  # U(-1, 1) / sqrt(inputs): 1/3


def test_layers_are_chosen_by_name_or_by_the_last_part_of_it(base):
    tree = adapted(base, 2, layers=("query",))
    names = [name for name, _ in adapters(tree)]
    assert names and all(n.endswith(".query") for n in names)
    whole = names[0]
    assert [n for n, _ in adapters(adapted(base, 2, layers=(whole,)))] == [whole]


def test_bad_input(base):
    with pytest.raises(LimbeckError, match="rank of an adapter must be at least 1, not 0"):
        adapted(base, 0)
    with pytest.raises(LimbeckError, match=r"no layer to adapt 'quary': there are .*query"):
        adapted(base, 2, layers=("quary",))
    with pytest.raises(LimbeckError, match="has adapters already; merge them first"):
        adapted(adapted(base, 2), 2)
    with pytest.raises(LimbeckError, match="the two modules differ in .*: weights are averaged of one architecture"):
        fused(base, nn.Linear(2, 2))
    with pytest.raises(LimbeckError, match="the two modules differ in weight"):
        fused(nn.Linear(2, 2), nn.Linear(3, 2))


def test_two_adapters_on_one_base_do_not_know_each_other(base):
    one, two = adapted(base, 2), adapted(base, 3)
    stirred(one)
    assert torch.equal(plain(two), plain(base)) and not torch.equal(plain(one), plain(two))


def test_fused_weights_are_the_mean_of_the_merged(base):
    full, low = awake(copy.deepcopy(base), seed=5), stirred(adapted(base, 2, 4.0))
    before = plain(full)
    half = fused(full, low)
    folded = dict(merged(low).named_parameters())
    for name, p in half.named_parameters():
        torch.testing.assert_close(p, 0.5 * dict(full.named_parameters())[name] + 0.5 * folded[name], rtol=1e-12, atol=1e-14)
    assert torch.equal(plain(fused(full, low, 1.0)), before) and torch.equal(plain(full), before)
    torch.testing.assert_close(answer(fused(full, low, 0.0)), answer(low), rtol=1e-10, atol=1e-10)


def test_gradients_are_the_same_under_activation_checkpointing(base):
    tree = stirred(adapted(base, 2))
    inputs = (torch.ones(3, 1, 4, 4, dtype=F64), torch.ones(3, dtype=F64))
    found = []
    for call in (tree, lambda *x: checkpoint(tree, *x, use_reentrant=False)):
        tree.zero_grad()
        call(*inputs).square().sum().backward()
        found.append([p.grad.clone() for p in tree.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert max(float(g.abs().max()) for g in found[0]) > 1e-3


class Regression(Method):
    """Fits adapters to a shifted base."""

    def __init__(self, base):
        torch.manual_seed(0)
        self.net = adapted(base, 2)
        self.roles = {"base": Role(base), "net": Role(self.net, OptimizerOptions(lr=1e-2), EmaOptions("constant", 0.5))}

    def step(self, batch: Batch):
        x = batch.noise.normal("x", (1, 4, 4), F64)
        yield Update("net", (self.net(x, batch.noise.uniform("t")) - x).square().mean())


def regression_loop(base, folder=None):
    return Loop(Regression(base), TensorSource(torch.zeros(4, 1, 4, 4)), LoopOptions(6, 4), folder=folder, quiet=True)


def test_averages_and_checkpoints_hold_the_factors_alone(base):
    loop = regression_loop(base)
    loop.iterate()
    role = loop.method.roles["net"]
    shared = {id(p) for p in base.parameters()}
    assert shared < {id(p) for p in role.ema.parameters()}
    own = {n: (e, p) for (n, e), p in zip(role.ema.named_parameters(), role.module.parameters(), strict=True) if e is not p}
    assert own and all(n.rpartition(".")[2] in "AB" for n in own)
    assert any((e - p).abs().max() > 0 for e, p in own.values())
    tensors, _ = loop.state()
    for group in ("net", "net.ema"):
        assert {n.rpartition(".")[2] for n in tensors[group]} == {"A", "B"}
    assert "base" not in tensors


def test_resuming_is_bitwise(base, tmp_path):
    other = copy.deepcopy(base)
    whole, first = regression_loop(base), regression_loop(other, tmp_path)
    for _ in range(6):
        whole.iterate()
    for _ in range(3):
        first.iterate()
    first.save()
    second = regression_loop(other, tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(3):
        second.iterate()
    a, b = whole.state()[0], second.state()[0]
    for group in ("net", "net.ema", "net.optimizer"):
        assert all(torch.equal(v, b[group][n]) for n, v in a[group].items()), group
