"""Several roles on one frozen base: bitwise the losses, gradients and weights that each role would have on a base of its own."""

import copy

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned
from limbeck.interop import DiffusersNetwork
from limbeck.methods import find
from limbeck.methods.generators.generator import Ingredients
from limbeck.networks import UNet, adapted, adapters
from limbeck.noise import VE
from limbeck.training import Loop, LoopOptions, TensorSource, checkpoint_roles, set_precision
from limbeck.training.options import merged_options

SHAPE, BATCH = (1, 8, 8), 4
TEXT = {"encoder_hidden_states": torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(1))}


def awake(network):
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    return Preconditioned(network, VE(), "edm", 0.5)


def unet():
    return awake(UNet(SHAPE, channels=8, multipliers=(1, 2), attention=(4,), embedding=8, dropout=0.1)), None


def diffusers_model(text):
    diffusers = pytest.importorskip("diffusers")
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16)}
    common = {**sizes, "norm_num_groups": 4, "attention_head_dim": 4}
    if text:
        down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
        more = {"down_block_types": down, "up_block_types": up, "cross_attention_dim": 6}
        return awake(DiffusersNetwork(diffusers.UNet2DConditionModel(**common, **more))), TEXT
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return awake(DiffusersNetwork(diffusers.UNet2DModel(**common, down_block_types=down, up_block_types=up))), None


BASES = {"unet": unet, "UNet2DModel": lambda: diffusers_model(False), "UNet2DConditionModel": lambda: diffusers_model(True)}


def trained(base, method, shared, checkpointing=False, precision=None, iterations=2):
    """(figures, gradients, factors) of a few iterations of adapters on the teacher itself, or on copies of it."""
    teacher, cond = BASES[base]()
    cls, _, presets = find(method).load()
    options = merged_options(presets["recommended"], {"student_rank": 2, "critic_rank": 3, "adapter_alpha": 4.0})
    parts = Ingredients(teacher, SHAPE, torch.zeros(BATCH, *SHAPE), cond and {n: v[:BATCH] for n, v in cond.items()})
    torch.manual_seed(2)
    student = adapted(teacher if shared else copy.deepcopy(teacher), 2, 4.0)
    critic = adapted(teacher if shared else copy.deepcopy(teacher), 3, 4.0)
    made = cls(parts, options, student=student, critic=critic)
    bases = {id(p) for role in made.roles.values() for p in role.module.parameters() if not p.requires_grad}
    assert len(bases) == (1 if shared else 3) * len(list(teacher.parameters()))
    if checkpointing:
        checkpoint_roles(made.roles)
    if precision is not None:
        set_precision(made.roles, precision)
    loop = Loop(made, TensorSource(torch.zeros(8, *SHAPE), cond), LoopOptions(iterations, BATCH), quiet=True)
    gradients = []
    for name, role in loop.trained.items():
        for p in role.params:
            p.register_post_accumulate_grad_hook(lambda p, name=name: gradients.append((name, p.grad.clone())))
    torch.manual_seed(3)  # dropout
    figures = [loop.iterate() for _ in range(iterations)]
    factors = [t for role in (student, critic) for _, m in adapters(role) for t in (m.A, m.B)]
    return figures, gradients, factors


def assert_same(a, b):
    assert a[0] == b[0]
    assert len(a[1]) == len(b[1]) and all(n == m and torch.equal(g, h) for (n, g), (m, h) in zip(a[1], b[1], strict=True))
    assert all(torch.equal(v, w) for v, w in zip(a[2], b[2], strict=True))
    assert {name for name, g in a[1] if float(g.abs().max()) > 0} == {"student", "critic"}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", ["dmd", "sid"])  # the teacher is asked without gradient, and differentiated through
def test_one_base_is_bitwise_a_base_each(base, method):
    plain = trained(base, method, shared=False)
    assert_same(plain, trained(base, method, shared=True))
    assert_same(plain, trained(base, method, shared=True, checkpointing=True))


def test_one_base_is_bitwise_a_base_each_in_bfloat16():
    plain = trained("unet", "sid", shared=False, precision=torch.bfloat16)
    assert_same(plain, trained("unet", "sid", shared=True, checkpointing=True, precision=torch.bfloat16))
    assert all(g.dtype == torch.float32 for _, g in plain[1])
    assert plain[0] != trained("unet", "sid", shared=False)[0]  # bfloat16 did act


@pytest.mark.parametrize("text", [False, True])
def test_adapters_are_those_of_peft(text):
    peft = pytest.importorskip("peft")
    model = diffusers_model(text)[0].network.model.double().eval()
    reference = copy.deepcopy(model)
    targets = ["to_q", "to_v", "to_out.0", "conv1", *(["proj_in"] if text else [])]
    config = peft.LoraConfig(r=2, lora_alpha=5.0, target_modules=targets, bias="none")
    theirs = peft.inject_adapter_in_model(config, reference)
    mine = adapted(model, 2, 5.0, layers=targets)
    found = list(adapters(mine))
    assert {name for name, _ in found} == {n for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    generator = torch.Generator().manual_seed(4)
    pairs = []
    for name, layer in found:
        other = theirs.get_submodule(name)
        for factor, (of_peft,) in ((layer.A, other.lora_A.parameters()), (layer.B, other.lora_B.parameters())):
            value = torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            factor.data.copy_(value)
            of_peft.data.copy_(value)
            pairs.append((factor, of_peft))
    x = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    cond = (TEXT["encoder_hidden_states"][:2].double(),) if text else ()
    answers = [net(x, torch.tensor([3.0, 500.0], dtype=torch.float64), *cond).sample for net in (mine, theirs)]
    torch.testing.assert_close(*answers, rtol=1e-10, atol=1e-10)
    for answer in answers:
        answer.square().mean().backward()
    for factor, of_peft in pairs:
        torch.testing.assert_close(factor.grad, of_peft.grad, rtol=1e-8, atol=1e-12)
    assert max(float(f.grad.abs().max()) for f, _ in pairs) > 1e-3
