"""Models of diffusers, tiny and random, as raw networks and denoisers."""

import copy
from pathlib import Path

import pytest
import torch

from limbeck.denoisers import ClassifierFree, derivative
from limbeck.errors import LimbeckError
from limbeck.interop import CONVENTIONS, DiffusersNetwork, convention_of, diffusers_denoiser
from limbeck.methods.generators.generator import Ingredients, discriminator_on
from limbeck.networks import FeatureTap, LowRank, adapted

# rotary embeddings, linear attention and Wan's norms are computed in float32, whatever the weights are
IN_FLOAT32 = ("FluxTransformer2DModel", "QwenImageTransformer2DModel", "SanaTransformer2DModel", "WanTransformer3DModel")


def rounds(model):
    rotary = getattr(model.config, "use_rotary_positional_embeddings", False)
    return type(model).__name__ in IN_FLOAT32 or rotary


def doubled(case):
    """(the denoiser, x, t in the process's time, conditions) in float64."""
    denoiser = diffusers_denoiser(case.network, case.scheduler()).double()
    t = case.t.double() / (1000 if denoiser.noise_input == "thousand" else 1)
    return denoiser, case.x.double(), t, {n: v.double() if v.is_floating_point() else v for n, v in case.cond.items()}


def test_gradients_agree_with_differences_and_reach_the_parameters(case):
    denoiser, x, t, cond = doubled(case)
    x, w, direction = x.requires_grad_(), *torch.randn(2, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*denoiser.named_parameters(), strict=True)
    grad, *others = torch.autograd.grad((denoiser(x, t, cond) * w).sum(), (x, *parameters), allow_unused=True)
    h, rtol = (3e-2, 1e-3) if rounds(case.model) else (1e-3, 1e-6)
    with torch.no_grad():
        at = [((denoiser(x + k * h * direction, t, cond) - denoiser(x - k * h * direction, t, cond)) * w).sum() for k in (1, 2)]
    torch.testing.assert_close((grad * direction).sum(), (8 * at[0] - at[1]) / (12 * h), rtol=rtol, atol=1e-9)
    unused = {name.removeprefix("network.model.") for name, g in zip(names, others, strict=True) if g is None}
    assert unused == set(UNUSED.get(type(case.model).__name__, ()))


UNUSED = {}


def test_copies_are_independent_and_states_are_the_models(case):
    network = case.network
    other = copy.deepcopy(network)
    with torch.no_grad():
        before = network(case.x, case.t, case.cond)
        for p in other.parameters():
            p.zero_()
        assert not torch.equal(other(case.x, case.t, case.cond), before)
        torch.testing.assert_close(network(case.x, case.t, case.cond), before, rtol=0, atol=0)
    assert set(network.state_dict()) == {f"model.{name}" for name in case.model.state_dict()}


def test_null_and_fixed_conditions_move_with_the_module(case):
    network = case.network.to(torch.bfloat16)
    for kept in (network.null, {name: getattr(network, f"fixed_{name}") for name in case.fixed}):
        for name, value in kept.items():
            was = {**case.null, **case.fixed}[name]
            assert value.dtype == (torch.bfloat16 if was.is_floating_point() else was.dtype)
    assert {value.device.type for value in network.to("meta").null.values()} <= {"meta"}
    assert {buffer.device.type for buffer in network.buffers()} == {"meta"} or not list(network.buffers())


def test_guidance_leads_from_the_null_condition(case):
    denoiser, x, t, cond = doubled(case)
    null = {name: value.double() if value.is_floating_point() else value for name, value in case.null.items()}
    with torch.no_grad():
        away, towards = denoiser(x, t, {n: torch.stack([v, v]) for n, v in null.items()}), denoiser(x, t, cond)
        torch.testing.assert_close(ClassifierFree(denoiser, 3.0)(x, t, cond), away + 3 * (towards - away), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(denoiser(x, t), away, rtol=0, atol=0)
    assert not case.cond or not torch.equal(away, towards)


def test_adapters_change_nothing_at_first_and_leave_the_base_alone(case):
    denoiser, x, t, cond = doubled(case)
    with torch.no_grad():
        before = denoiser(x, t, cond)
    kept = {name: p.clone() for name, p in denoiser.named_parameters()}
    tree = adapted(denoiser, rank=2)
    answer = tree(x, t, cond)
    torch.testing.assert_close(answer, before, rtol=0, atol=0)
    answer.square().sum().backward()
    trained = {name for name, p in tree.named_parameters() if p.grad is not None}
    assert trained and all(name.endswith((".A", ".B")) for name in trained)
    with torch.no_grad():
        for module in tree.modules():
            if isinstance(module, LowRank):
                module.B.add_(0.1)
        assert not torch.equal(tree(x, t, cond), before)
        torch.testing.assert_close(denoiser(x, t, cond), before, rtol=0, atol=0)
    assert all(torch.equal(p, kept[name]) for name, p in denoiser.named_parameters())


def test_a_discriminator_finds_its_layers(case):
    denoiser = diffusers_denoiser(case.network, case.scheduler())
    parts = Ingredients(denoiser, case.shape, case.x, case.cond)
    heads = discriminator_on(denoiser, parts, ())
    x, t = case.x.clone().requires_grad_(), doubled(case)[2]
    with FeatureTap(denoiser, list(heads.shapes)) as tap:
        denoiser(x, t, case.cond)
    logits = heads(tap.features)
    assert logits.shape == (2, len(heads.shapes))
    assert len(heads.shapes) == (1 if "unet" in type(case.model).__module__ else min(3, blocks(case.model)))
    (grad,) = torch.autograd.grad(logits.sum(), x)
    assert bool((grad.flatten(1).norm(dim=1) > 0).all())


def blocks(model):
    names = ("transformer_blocks", "single_transformer_blocks", "blocks")
    return sum(len(getattr(model, name, ())) for name in names)


def test_forward_mode_agrees_with_differences(case):
    denoiser, x, _, cond = doubled(case)
    network = denoiser.network
    t, v = torch.tensor([21.3, 17.9], dtype=torch.float64), torch.randn(x.shape, dtype=torch.float64) / 10

    def function(x, t):
        return network(x, t, cond)

    F, dF = derivative(function, x, t, v, network=network)
    h = 0.1  # the time embedding is float32: smaller steps in t would measure its rounding
    with torch.no_grad():
        at = {k: function(x + k * h * v, t + k * h) for k in (-2, -1, 0, 1, 2)}
    torch.testing.assert_close(F, at[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dF, (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h), rtol=1e-3, atol=2e-5 + 1e-3 * float(dF.std()))
