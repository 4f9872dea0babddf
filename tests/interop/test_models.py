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
# the last block of QwenImage makes text tokens that nobody reads
LAST_TEXT = ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
UNUSED = {
    "QwenImageTransformer2DModel": [f"transformer_blocks.1.{name}.{part}" for name in LAST_TEXT for part in ("weight", "bias")]
}


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
    w, direction = torch.randn(2, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x.requires_grad_()
    names, parameters = zip(*denoiser.named_parameters(), strict=True)
    grad, *others = torch.autograd.grad((denoiser(x, t, cond) * w).sum(), (x, *parameters), allow_unused=True)
    h, rtol = 1e-3, 3e-4 if rounds(case.model) else 1e-6
    with torch.no_grad():
        at = [((denoiser(x + k * h * direction, t, cond) - denoiser(x - k * h * direction, t, cond)) * w).sum() for k in (1, 2)]
    torch.testing.assert_close((grad * direction).sum(), (8 * at[0] - at[1]) / (12 * h), rtol=rtol, atol=1e-9)
    unused = {name.removeprefix("network.model.") for name, g in zip(names, others, strict=True) if g is None}
    assert unused == set(UNUSED.get(type(case.model).__name__, ()))


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
        torch.testing.assert_close(denoiser(x, t), away, rtol=1e-10, atol=1e-10)
    assert not case.cond or not torch.equal(away, towards)


def test_adapters_change_nothing_at_first_and_leave_the_base_alone(case):
    denoiser, x, t, cond = doubled(case)
    with torch.no_grad():
        before = denoiser(x, t, cond)
    kept = {name: p.clone() for name, p in denoiser.named_parameters()}
    tree = adapted(denoiser, rank=2)
    answer = tree(x, t, cond)
    torch.testing.assert_close(answer, before, rtol=1e-10, atol=1e-10)
    answer.square().sum().backward()
    trained = {name for name, p in tree.named_parameters() if p.grad is not None}
    assert trained and all(name.endswith((".A", ".B")) for name in trained)
    with torch.no_grad():
        for module in tree.modules():
            if isinstance(module, LowRank):
                module.B.add_(0.1)
        assert not torch.equal(tree(x, t, cond), before)
        torch.testing.assert_close(denoiser(x, t, cond), before, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(p, kept[name]) for name, p in denoiser.named_parameters())


def test_a_discriminator_finds_its_layers(case):
    denoiser = diffusers_denoiser(case.network, case.scheduler())
    parts = Ingredients(denoiser, case.shape, case.x, case.cond)
    heads = discriminator_on(denoiser, parts, ())
    x, t = case.x.clone().requires_grad_(), case.t.double() / 1000 * denoiser.process.t_max
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


def test_forward_mode_agrees_with_reverse_mode(case):
    denoiser, x, _, cond = doubled(case)
    network = denoiser.network
    t, v = torch.tensor([21.3, 17.9], dtype=torch.float64), torch.randn(x.shape, dtype=torch.float64)

    def function(x, t):
        return network(x, t, cond)

    value, along = derivative(function, x, t, v, network=network)
    w = torch.randn(x.shape, dtype=torch.float64)
    x, t = x.requires_grad_(), t.requires_grad_()
    answer = function(x, t)
    grads = torch.autograd.grad((answer * w).sum(), (x, t))
    torch.testing.assert_close(value, answer.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((along * w).sum(), (grads[0] * v).sum() + grads[1].sum(), rtol=1e-5, atol=1e-7)


def test_a_model_in_half_precision_takes_and_answers_what_the_caller_has(case):
    network = case.network.to(torch.bfloat16)
    with torch.no_grad():
        answer = network(case.x, case.t, case.cond)
        half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in case.cond.items()}
        inside = network(case.x.bfloat16(), case.t, half)
    assert (answer.dtype, inside.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(answer, inside.float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "label"),
    [(None, torch.tensor([3, 7])), ("timestep", torch.tensor([0.5, 30.0])), ("identity", torch.randn(2, 32))],
)
def test_a_unet_takes_labels_of_every_type(made_unet, kind, label):
    model = made_unet(in_channels=3, out_channels=3, class_embed_type=kind, num_class_embeds=None if kind else 10)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 900.0])
    with torch.no_grad():
        mine = DiffusersNetwork(model)(x, t, {"label": label})
        torch.testing.assert_close(mine, model(x, t, class_labels=label).sample, rtol=0, atol=0)
        assert not torch.equal(mine, DiffusersNetwork(model)(x, t, {"label": label.flip(0)}))


def test_dit_has_a_null_label_and_drops_none_of_its_own(tiny):
    case = tiny("dit")
    network = DiffusersNetwork(copy.deepcopy(case.model))
    assert {name: int(value) for name, value in network.null.items()} == {"label": 10}
    with torch.no_grad():
        calm = network(case.x, case.t, case.cond)
        for _ in range(20):  # its own dropout of labels, 10 % in each of four blocks, would show
            torch.testing.assert_close(network.train()(case.x, case.t, case.cond), calm, rtol=0, atol=0)


def test_fixed_conditions_stand_for_all_samples_and_given_ones_win(tiny):
    case = tiny("flux")
    guided = {"guidance": torch.full((2,), 3.5)}
    with torch.no_grad():
        fixed = DiffusersNetwork(case.model, fixed=case.fixed)
        torch.testing.assert_close(
            fixed(case.x, case.t, case.cond), DiffusersNetwork(case.model)(case.x, case.t, case.cond | guided), rtol=0, atol=0
        )
        other = case.cond | {"guidance": torch.full((2,), 1.0)}
        assert not torch.equal(fixed(case.x, case.t, other), fixed(case.x, case.t, case.cond))


def test_a_null_may_depend_on_nothing(tiny):
    case = tiny("sd15")
    network = DiffusersNetwork(case.model)
    assert network.null is None
    with pytest.raises(LimbeckError, match="declares no null condition"):
        ClassifierFree(diffusers_denoiser(network, case.scheduler()), 2.0)(case.x, case.t.double(), case.cond)


def test_feature_layers_lie_over_the_depth(tiny):
    assert tiny("dit").network.feature_layers == tuple(f"model.transformer_blocks.{i}" for i in (1, 2, 3))
    names = (
        "model.transformer_blocks.1.norm1",
        "model.single_transformer_blocks.0.norm",
        "model.single_transformer_blocks.1.norm",
    )
    assert tiny("flux").network.feature_layers == names
    assert tiny("sdxl").network.feature_layers == ("model.mid_block",)


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen"])
def test_features_of_joint_transformers_tell_of_the_image(tiny, name):
    case = tiny(name)
    network = case.network
    first = network.feature_layers[0]
    with FeatureTap(network, [first]) as tap, torch.no_grad():
        network(case.x, case.t, case.cond)
    assert tap[first].shape[1] == 24  # 4 x 6 squares, and none of the text's 4 tokens


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("flux", {"guidance": None}, r"needs the conditions .*guidance; missing: guidance .*fixed="),
        ("sd3", {"pooled_projections": None}, "missing: pooled_projections"),
        ("sd15", {"text": torch.ones(2, 1)}, "takes the conditions encoder_hidden_states, encoder_attention_mask; not text"),
        ("ddpm", {"label": torch.ones(2)}, "takes the conditions none; not label"),
        ("dit", {"label": torch.tensor([3])}, "the batch is 2: label has 1"),
        ("sdxl", {"time_ids": None}, "missing: time_ids"),
        ("sdxl", {"timestep_cond": None}, "missing: timestep_cond"),
        ("wan", {"encoder_hidden_states_image": torch.ones(2, 1, 8)}, "not encoder_hidden_states_image"),
        ("pixart-alpha", {"resolution": None}, "missing: resolution"),
    ],
)
def test_conditions_that_do_not_fit_are_named(tiny, name, change, said):
    case = tiny(name)
    fixed = {n: torch.stack([v, v]) for n, v in case.fixed.items()}
    cond = {n: v for n, v in (fixed | case.cond | change).items() if v is not None}
    with pytest.raises(LimbeckError, match=said):
        DiffusersNetwork(case.model)(case.x, case.t, cond)


@pytest.mark.parametrize("where", ["null", "fixed"])
def test_null_and_fixed_conditions_must_be_known(tiny, where):
    with pytest.raises(LimbeckError, match="takes the conditions label; not text"):
        DiffusersNetwork(tiny("unet").model, **{where: {"text": torch.ones(1)}})


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "flux",
            (2, 4, 7, 8),
            r"takes x \(B, C, H, W\) with C = 4, H a multiple of 2, W a multiple of 2; this one is \(2, 4, 7, 8\)",
        ),
        ("flux", (2, 16, 8, 8), "C = 4, .*this one is"),
        ("qwen", (2, 4, 8, 5), "W a multiple of 2"),
        ("sd15", (2, 3, 8, 8), "C = 4; this one"),
        ("sd3", (2, 4, 8, 7), "W a multiple of 2"),
        ("unet", (2, 3, 7, 8), "H a multiple of 2"),
        ("wan", (2, 4, 8, 8), r"takes x \(B, C, F, H, W\)"),
        ("cogvideox-1.5", (2, 3, 4, 8, 12), r"takes x \(B, F, C, H, W\) with C = 4, F a multiple of 2"),
        ("dit", (2, 4, 8, 4), "takes squares, not 8 x 4"),
    ],
)
def test_an_input_that_does_not_fit_is_explained(tiny, name, shape, said):
    case = tiny(name)
    with pytest.raises(LimbeckError, match=said):
        case.network(torch.randn(shape), case.t, case.cond)


def test_a_model_that_takes_more_than_it_answers_is_explained(made_unet):
    with pytest.raises(LimbeckError, match=r"answered \(2, 3, 8, 8\) for x \(2, 7, 8, 8\).*docs/diffusers.md"):
        DiffusersNetwork(made_unet(in_channels=7, out_channels=3))(torch.randn(2, 7, 8, 8), torch.ones(2))


def test_what_is_not_known_says_how_to_write_an_adapter():
    known = ", ".join(CONVENTIONS)
    with pytest.raises(
        LimbeckError, match=f"Linear is not known; known are {known}.*forward\\(x, timestep, cond\\).*docs/diffusers.md"
    ):
        convention_of(torch.nn.Linear(1, 1))


def test_the_adapter_in_the_docs_works_as_it_stands():
    from diffusers import AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

    page = (Path(__file__).parents[2] / "docs" / "diffusers.md").read_text()
    code = page.split("```python\n")[1:]
    (code,) = [block.split("```")[0] for block in code if "class AuraFlow" in block]
    assert len(code.split("class AuraFlow")[1].strip().splitlines()) <= 15
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 8, "caption_projection_dim": 16}
    model = AuraFlowTransformer2DModel(
        sample_size=8, pos_embed_max_size=16, num_mmdit_layers=1, num_single_dit_layers=1, out_channels=4, **sizes
    )
    names = {"model": model.eval(), "scheduler": FlowMatchEulerDiscreteScheduler()}
    exec(code, names)
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([0.8, 0.2], dtype=torch.float64), torch.randn(2, 3, 8)
    with torch.no_grad():
        got = names["teacher"](x, t, {"encoder_hidden_states": text})
        velocity = model(x, text, t.float(), return_dict=False)[0]
    torch.testing.assert_close(got, x - t.float()[:, None, None, None] * velocity, rtol=1e-5, atol=1e-5)
    parts = Ingredients(names["teacher"], (4, 8, 8), x, {"encoder_hidden_states": text})
    assert len(discriminator_on(names["teacher"], parts, ()).shapes) == 1
