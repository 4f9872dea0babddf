"""Negative prompts in diffusers' cross-attention, against the equations written out densely in float64."""

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.interop import DiffusersNetwork, diffusers_denoiser, negative_prompt
from limbeck.interop.negative import cross_attentions
from limbeck.methods.generators.generator import Ingredients
from limbeck.methods.generators.snoopi import SNOOPI, SNOOPIOptions, negative_sampler
from limbeck.networks import DiT
from limbeck.training import Loop, LoopOptions, TensorSource

diffusers = pytest.importorskip("diffusers")
F64 = torch.float64


def draw(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def lively(model):
    """Weights that make attention matter; zero-initialised ones too."""
    g = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=F64) * 0.3 + (p.ndim == 1)
    return model.eval()


def unet(**more):
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(4, 8), norm_num_groups=2,
        attention_head_dim=2, cross_attention_dim=6, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **more,
    )  # fmt: skip


def pixart():
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=6, in_channels=2, out_channels=4, num_layers=2, cross_attention_dim=12,
        sample_size=8, patch_size=2, caption_channels=6, use_additional_conditions=False,
    )  # fmt: skip


def sana():
    return diffusers.SanaTransformer2DModel(
        in_channels=2, out_channels=2, num_attention_heads=2, attention_head_dim=4, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=6, sample_size=8, patch_size=1, mlp_ratio=1.0,
    )  # fmt: skip


def wan():
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=2, out_channels=2, text_dim=6,
        freq_dim=8, ffn_dim=8, num_layers=2, cross_attn_norm=True, rope_max_seq_len=8,
    )  # fmt: skip


MODELS = {"unet": unet, "pixart": pixart, "sana": sana, "wan": wan}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    torch.manual_seed(0)
    return lively(MODELS[request.param]())


def answer(model, text=None, batch=2, mask=None):
    x, t = draw(batch, 2, 8, 8), torch.linspace(100, 900, batch, dtype=F64)
    x = x[:, :, None] if "Wan" in type(model).__name__ else x
    options = {} if mask is None else {"encoder_attention_mask": mask.to(F64)}
    text = draw(batch, 3, 6, seed=3) if text is None else text
    return model(x, encoder_hidden_states=text, timestep=t, **options).sample


def dense(layer, x, text, mask=None):
    """Z by the definition: one query, one head at a time."""
    q, k, v = layer.to_q(x), layer.to_k(text), layer.to_v(text)
    if layer.norm_q is not None:  # over all heads at once, as Wan has it
        q, k = layer.norm_q(q), layer.norm_k(k)
    heads = []
    for qh, kh, vh in zip(*(z.chunk(layer.heads, -1) for z in (q, k, v)), strict=True):
        scores = qh @ kh.transpose(1, 2) / qh.shape[-1] ** 0.5
        scores = scores if mask is None else scores.masked_fill(~mask[:, None], -torch.inf)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        heads.append(weights / weights.sum(-1, keepdim=True) @ vh)
    return torch.cat(heads, -1)


class Written:
    """NASA as a processor of its own, negative context and mask given."""

    def __init__(self, negative, alpha, mask=None):
        self.negative, self.alpha, self.mask = negative, alpha, mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        negative = self.negative.expand(len(hidden_states), -1, -1)
        z = dense(attn, hidden_states, encoder_hidden_states) - self.alpha * dense(attn, hidden_states, negative, self.mask)
        return attn.to_out[0](z) / getattr(attn, "rescale_output_factor", 1.0)


def projected(model, text):
    name = type(model).__name__
    if name.startswith("Wan"):
        return model.condition_embedder.text_embedder(text)
    if name.startswith("UNet"):
        return text
    return model.caption_norm(model.caption_projection(text)) if name.startswith("Sana") else model.caption_projection(text)


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_alpha_zero_is_the_stock_model_bitwise(model, mode):
    before = answer(model)
    with negative_prompt(model, draw(5, 6), 0.0, mode=mode):
        assert torch.equal(answer(model), before)
    with negative_prompt(model, draw(5, 6), 0.5, mode=mode):
        assert float((answer(model) - before).abs().max()) > 1e-3
    assert torch.equal(answer(model), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("masked", [False, True])
def test_the_steered_model_is_the_equation_written_out(model, masked):
    c, alpha = draw(2, 5, 6, seed=7), torch.tensor([0.3, 0.9], dtype=F64)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5]) if masked else None
    with negative_prompt(model, c, alpha, mask=mask):
        found = answer(model)
    written = copy.deepcopy(model)
    for layer in cross_attentions(written).values():
        layer.set_processor(Written(projected(model, c), alpha[:, None, None], mask))
    size = float(found.abs().max())
    torch.testing.assert_close(found / size, answer(written) / size, rtol=1e-9, atol=1e-9)


def test_masked_tokens_mean_nothing_and_the_positive_mask_is_not_the_negatives(model):
    if "Wan" in type(model).__name__:
        pytest.skip("the model takes no mask of its text")
    positive = torch.tensor([[True, True, False], [True, False, False]])
    c, mask, found = draw(4, 6, seed=7), torch.tensor([True, True, False, False]), []
    for junk in (0.0, 9.0):
        text = draw(2, 3, 6, seed=3).masked_fill(~positive[..., None], junk)
        with negative_prompt(model, c.masked_fill(~mask[:, None], junk), 0.7, mask=mask):
            found.append(answer(model, text, mask=positive))
    with negative_prompt(model, c[:2], 0.7):
        found.append(answer(model, text, mask=positive))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found[0], found[2], rtol=1e-9, atol=1e-10)


def test_gradients_reach_the_negative_prompt_and_the_projection(model):
    c = draw(1, 4, 6, seed=7).requires_grad_()
    key = next(iter(cross_attentions(model).values())).to_k.weight
    with negative_prompt(model, c, 0.5):
        one = torch.autograd.grad(answer(model).sum(), (c, key))
        two = torch.autograd.grad(answer(model).sum(), (c, key))  # a second graph, projected anew
    assert all(float(g.abs().max()) > 0 for g in one) and all(map(torch.equal, one, two))
    if "UNet" not in type(model).__name__:
        return
    step, direction = 1e-5, draw(1, 4, 6, seed=8)
    ends = []
    for sign in (step, -step):
        with negative_prompt(model, (c + sign * direction).detach(), 0.5), torch.no_grad():
            ends.append(answer(model).sum())
    torch.testing.assert_close((one[0] * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_nag_and_nesting_on_one_layer():
    net = lively(unet())
    layer = next(iter(cross_attentions(net).values()))
    x, c, one, two = draw(2, 4, 8), draw(2, 3, 6, seed=3), draw(2, 6, seed=5), draw(1, 6, seed=6)
    plus, (minus, other) = dense(layer, x, c), (dense(layer, x, z.expand(2, -1, -1)) for z in (one, two))
    with negative_prompt(layer, one, 0.25, mode="nag", phi=6.0, tau=10.0):
        found = layer(x, encoder_hidden_states=c)
    far = plus + 6.0 * (plus - minus)
    ratio = far.abs().sum(-1, keepdim=True) / plus.abs().sum(-1, keepdim=True)
    assert 0 < int((ratio > 10.0).sum()) < ratio.numel()
    z = 0.25 * torch.where(ratio > 10.0, far * 10.0 / ratio, far) + 0.75 * plus
    torch.testing.assert_close(found, layer.to_out[0](z), rtol=1e-10, atol=1e-12)
    with negative_prompt(layer, one, 0.4), negative_prompt(layer, two, 0.2):
        found = layer(x, encoder_hidden_states=c)
    torch.testing.assert_close(found, layer.to_out[0](plus - 0.4 * minus - 0.2 * other), rtol=1e-10, atol=1e-12)


def test_image_prompts_keep_their_share():
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    net = lively(unet())
    layer = next(iter(cross_attentions(net).values()))
    processor = IPAdapterAttnProcessor2_0(8, 6, num_tokens=(2,), scale=0.7)
    layer.set_processor(lively(processor))
    x, text, c = draw(2, 4, 8), (draw(2, 3, 6, seed=3), [draw(2, 1, 2, 6, seed=4)]), draw(5, 6, seed=5)
    plain = layer(x, encoder_hidden_states=text)
    with negative_prompt(layer, c, 0.4):
        found = layer(x, encoder_hidden_states=text)
    share = nn.functional.linear(dense(layer, x, c.expand(2, -1, -1)), layer.to_out[0].weight)
    torch.testing.assert_close(found, plain - 0.4 * share, rtol=1e-9, atol=1e-11)
    assert layer.processor is processor and processor.scale == [0.7]


def test_a_stock_pipeline_says_without():
    """Stable Diffusion's pipeline as it is, at guidance 1, is the loop with the equation written out."""
    pipe = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2), unet=lively(unet()).float(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False), requires_safety_checker=False,
        text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    x, prompt, c = draw(2, 2, 8, 8).float(), draw(2, 3, 6, seed=3).float(), draw(5, 6).float()
    asked = {"prompt_embeds": prompt, "latents": x, "num_inference_steps": 2, "output_type": "latent", "height": 8, "width": 8}
    plain = pipe(**asked, guidance_scale=1.0).images
    with negative_prompt(pipe.unet, c, 0.5):
        found = pipe(**asked, guidance_scale=1.0).images
        guided = pipe(**asked, guidance_scale=3.0, negative_prompt_embeds=0 * prompt).images
    for layer in cross_attentions(pipe.unet).values():
        layer.set_processor(Written(c[None], 0.5))
    torch.testing.assert_close(found, pipe(**asked, guidance_scale=1.0).images, rtol=1e-3, atol=1e-3)
    assert float((found - plain).abs().max()) > 0.05 and bool(guided.isfinite().all())


def test_fused_projections_and_batches():
    net = lively(wan())
    with negative_prompt(net, draw(5, 6), 0.5):
        plain = answer(net)
        with pytest.raises(LimbeckError, match="3 negative prompts do not fit 2"), negative_prompt(net, draw(3, 5, 6), 0.5):
            answer(net)
    net.fuse_qkv_projections()
    with negative_prompt(net, draw(5, 6), 0.5):
        torch.testing.assert_close(answer(net), plain, rtol=1e-4, atol=1e-4)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_our_own_networks_are_served_too_and_others_refused():
    net = DiT((1, 4, 4), width=8, blocks=1, heads=2, text=(2, 3)).double()
    with negative_prompt(net, draw(5, 3), 0.5):
        pass
    with pytest.raises(LimbeckError, match="has no cross-attention"), negative_prompt(nn.Linear(1, 1), draw(5, 3), 0.5):
        pass
    net = lively(unet())
    for context, alpha, options, message in [
        (draw(5, 7), 0.5, {}, "shape .1, 5, 7., but the text of '.*attn2' has the width 6"),
        (draw(5, 6), -1.0, {}, "alpha is -1"),
        (draw(5, 6), 0.5, {"mode": "nga"}, "unknown mode of a negative prompt"),
        (draw(5, 6), 0.5, {"mask": torch.zeros(5, dtype=torch.bool)}, "leaves none of them"),
    ]:
        with pytest.raises(LimbeckError, match=message), negative_prompt(net, context, alpha, **options):
            pass
    joint = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=2, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=6, caption_projection_dim=16, pooled_projection_dim=6, out_channels=2, pos_embed_max_size=8,
    )  # fmt: skip
    with pytest.raises(LimbeckError, match="text and image jointly"), negative_prompt(joint, draw(5, 6), 0.5):
        pass


def test_snoopi_trains_and_samples_a_model_of_diffusers():
    net = diffusers.UNet2DConditionModel(
        sample_size=4, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(4,), norm_num_groups=2,
        attention_head_dim=2, cross_attention_dim=3, down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), mid_block_type=None,
    )  # fmt: skip
    network = DiffusersNetwork(net.double(), null={"encoder_hidden_states": torch.zeros(3, 3, dtype=F64)})
    teacher = diffusers_denoiser(network, diffusers.DDIMScheduler()).requires_grad_(False)
    cond, negatives = {"encoder_hidden_states": draw(16, 3, 3)}, draw(5, 3, 3, seed=4)
    parts = Ingredients(teacher, (1, 4, 4), draw(16, 1, 4, 4), cond, sigma_data=0.5, negatives=negatives)
    options = SNOOPIOptions(iterations=2, batch=4, rewards=(), alpha=1.0, sigmas=(10.0,), critic_rank=2)
    method = SNOOPI(parts, options)
    before = [p.clone() for p in method.student.parameters()]
    Loop(method, TensorSource(None, cond), LoopOptions(2, 4), quiet=True).train()
    assert any(float((p - q).abs().max()) > 0 for p, q in zip(method.student.parameters(), before, strict=True))
    z, texts = draw(3, 1, 4, 4), {"encoder_hidden_states": draw(3, 3, 3, seed=8)}
    plain = negative_sampler(method)(z, texts)
    steered = negative_sampler(method, negatives[0], 0.5)(z, texts)
    guided = negative_sampler(method, negatives[0], 0.0, guidance=2.0)(z, texts)
    with negative_prompt(method.roles["student"].best, negatives[0], 0.5):
        torch.testing.assert_close(negative_sampler(method)(z, texts), steered, rtol=0, atol=0)
    assert float((plain - steered).abs().max()) > 1e-6 and float((plain - guided).abs().max()) > 1e-6
