"""Models of diffusers, tiny and random, as raw networks."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.interop import DiffusersNetwork, diffusers_denoiser


def unet(**more):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (8, 16)}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(**sizes, **blocks, norm_num_groups=4, attention_head_dim=4, **more).eval()


def test_an_unconditional_unet_is_called_with_x_and_timestep():
    model = unet()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 900.0])
    torch.testing.assert_close(DiffusersNetwork(model)(x, t), model(x, t).sample, rtol=0, atol=0)


def test_a_unet_under_ddpm_answers_x0_and_has_input_gradients():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler()
    denoiser = diffusers_denoiser(DiffusersNetwork(unet()), scheduler)
    x, t = torch.randn(2, 3, 8, 8, requires_grad=True), torch.tensor([100.0, 700.0], dtype=torch.float64)
    got = denoiser(x, t)
    alpha = scheduler.alphas_cumprod[t.long()][:, None, None, None]
    with torch.no_grad():
        eps = denoiser.network.model(x, t).sample
    torch.testing.assert_close(got, (x - (1 - alpha).sqrt() * eps) / alpha.sqrt(), rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(got.square().sum(), x)
    assert float(grad.abs().min()) > 0


def test_what_is_not_known_says_how_to_write_an_adapter():
    with pytest.raises(LimbeckError, match="Linear is not known.*forward\\(x, timestep, cond\\)"):
        DiffusersNetwork(torch.nn.Linear(1, 1))


def test_unknown_conditions_are_named():
    with pytest.raises(LimbeckError, match="takes the conditions label; not text"):
        DiffusersNetwork(unet())(torch.randn(1, 3, 8, 8), torch.ones(1), {"text": torch.ones(1, 2)})
