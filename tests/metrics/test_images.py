import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.metrics import luma, luma_scores, modcrop, psnr, ssim


def test_psnr_of_a_constant_error_is_closed_and_per_image():
    x = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(3, 1, 4, 4)
    error = torch.tensor([0.2, 0.02, 2.0], dtype=torch.float64)[:, None, None, None]
    assert psnr(x, x + error).tolist() == pytest.approx([20, 40, 0], abs=1e-10)
    assert psnr(x, x - error, data_range=0.2).tolist() == pytest.approx([0, 20, -20], abs=1e-10)
    assert psnr(x, x).tolist() == [float("inf")] * 3


def test_bad_pairs_are_named():
    x = torch.zeros(3, 2)
    with pytest.raises(LimbeckError, match=r"x has shape \(3, 2\), y \(2, 2\)"):
        psnr(x, x[:2])
    with pytest.raises(LimbeckError, match="data_range is 0"):
        psnr(x, x, data_range=0.0)
    with pytest.raises(LimbeckError, match="y has NaN"):
        psnr(x, x * torch.nan)


def pictures(seed, h=40, w=36):
    generator = torch.Generator().manual_seed(seed)
    real = torch.nn.functional.avg_pool2d(torch.rand(3, 3, h + 4, w + 4, generator=generator, dtype=torch.float64), 5, 1)
    return (real + 0.05 * torch.randn(3, 3, h, w, generator=generator, dtype=torch.float64)).clamp(0, 1), real


def test_psnr_and_ssim_are_those_of_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    x, y = pictures(0)
    theirs = [
        structural_similarity(
            a.numpy(), b.numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=0
        )
        for a, b in zip(x, y, strict=True)
    ]
    assert ssim(x, y, 1.0).tolist() == pytest.approx(theirs, abs=1e-12)
    assert min(theirs) > 0.2 and max(theirs) < 0.99
    assert psnr(x, y, 1.0).tolist() == pytest.approx(
        [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1.0) for a, b in zip(x, y, strict=True)], abs=1e-12
    )
    assert ssim(2 * x - 1, 2 * y - 1).tolist() != pytest.approx(theirs, abs=1e-3)  # its constants know no shift


def test_ssim_of_constants_is_closed():
    x = torch.full((1, 1, 16, 16), 0.4, dtype=torch.float64)
    c1 = 1e-4
    assert float(ssim(x, x, 1.0)) == 1
    assert float(ssim(x, x + 0.2, 1.0)) == pytest.approx((2 * 0.4 * 0.6 + c1) / (0.4**2 + 0.6**2 + c1), abs=1e-12)


def test_luma_scores_are_those_of_the_field():
    """RGB to 8 bits, Y by scikit-image, Y to 8 bits, a border off, and its figures."""
    from skimage.color import rgb2ycbcr
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    x, y = pictures(1)
    x = 1.2 * x - 0.1  # leaves the range: clipped
    found = luma_scores(x, y, 3)
    for i in range(3):
        ys = []
        for v in (x[i], y[i]):
            levels = (255 * v).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()[3:-3, 3:-3]
            ys.append(rgb2ycbcr(levels)[..., 0].clip(0, 255).round().astype("uint8"))
        assert float(found[0][i]) == pytest.approx(peak_signal_noise_ratio(*ys), abs=1e-10)
        similarity = structural_similarity(*ys, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        assert float(found[1][i]) == pytest.approx(similarity, abs=1e-10)


def test_luma_of_black_white_and_the_colours():
    rgb = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    assert (255 * luma(rgb) - 16).flatten().tolist() == pytest.approx([65.481, 128.553, 24.966])
    assert (255 * luma(torch.ones(1, 3, 1, 1, dtype=torch.float64))).item() == pytest.approx(235)
    assert (255 * luma(torch.zeros(1, 3, 1, 1))).item() == pytest.approx(16)


def test_modcrop_cuts_the_end_and_says_so():
    x = torch.arange(35.0).reshape(1, 5, 7)
    with pytest.warns(UserWarning, match=r"cut a picture of \(5, 7\) pixels to \(3, 6\), multiples of the scale 3"):
        assert torch.equal(modcrop(x, 3), x[:, :3, :6])
    assert modcrop(x[:, :4, :6], 2).shape == (1, 4, 6)
    with pytest.raises(LimbeckError, match=r"\(5, 7\) pixels is smaller than one of scale 8"):
        modcrop(x, 8)


def test_bad_pictures_are_named():
    x = torch.zeros(1, 3, 20, 20)
    for call, message in (
        (
            lambda: luma_scores(x[..., :10, :10], x, 2),
            r"restored picture is \(1, 3, 10, 10\) and the real one .*modcrop.*IMDN_AS keeps",
        ),
        (lambda: luma_scores(x, x, 5), "shave=5 leaves less than 11 x 11 pixels of 20 x 20"),
        (lambda: luma(x[:, :1]), r"luma is of RGB \(B, 3, H, W\), not of \(1, 1, 20, 20\)"),
        (lambda: ssim(x[..., :10], x[..., :10]), r"SSIM compares pictures .* at least 11 x 11"),
        (lambda: ssim(x, x[..., :12]), "pass pairs of equal shape"),
    ):
        with pytest.raises(LimbeckError, match=message):
            call()
