import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.metrics import psnr


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
