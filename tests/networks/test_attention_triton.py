"""The Triton kernel, run by Triton's interpreter on the CPU, against the blocks of torch.

Skipped where triton is not installed. The interpreter is chosen before triton is imported, so it runs in a process of its own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.networks import attention_jvp

SCRIPT = """
import torch
from limbeck.errors import LimbeckError
from limbeck.networks import attention_jvp
from limbeck.networks.attention_jvp import forward

g = torch.Generator().manual_seed(0)
for B, H, G, L, M, d, d_v, masks in ((1, 2, 1, 21, 21, 16, 16, 2), (2, 2, 2, 9, 33, 20, 7, 3)):
    sizes = 2 * [(B, H, L, d), (B, G, M, d), (B, G, M, d_v)]
    q, k, v, tq, tk, tv = x = [torch.randn(size, generator=g) for size in sizes]
    shapes = (None, (L, M), (B, 1, L, M))
    for shape in shapes[:masks]:
        mask = None if shape is None else torch.rand(shape, generator=g) > (0.95 if len(shape) == 4 else 0.4)
        for causal, tangents in ((False, (tq, tk, tv)), (True, (tq, None, None))):
            found = forward(q, k, v, *tangents, mask, 0.3, 16, causal, "triton")
            expected = forward(q, k, v, *tangents, mask, 0.3, None, causal, "tiled")
            for name, one, other in zip(("O", "tO", "LSE"), found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=lambda m: f"{name}: {m}")
half = attention_jvp(*(y.half() for y in x), kernel="triton")  # the interpreter multiplies bfloat16 as integers
for one, other in zip(half, attention_jvp(*x), strict=True):
    error = float((one.float() - other).norm() / other.norm())
    assert one.dtype == torch.float16 and error < 5e-3, error
q.requires_grad_()
gradients = [torch.autograd.grad(attention_jvp(*x, kernel=kernel)[0].square().sum(), q)[0] for kernel in ("triton", "tiled")]
torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
for bad, options, said in ((torch.float64, {}, "torch.float64"), (torch.float32, {"block": 24}, "block=24")):
    try:
        attention_jvp(*(y.detach().to(bad) for y in x), kernel="triton", **options)
    except LimbeckError as error:
        assert said in str(error), error
    else:
        raise AssertionError(said)
print("checked")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_equals_the_blocks_of_torch():
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "LIMBECK_TYPECHECK": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "checked" in done.stdout, done.stderr


@pytest.mark.skipif(find_spec("triton") is not None, reason="triton is installed")
def test_without_triton():
    x = [torch.zeros(1, 1, 4, 4) for _ in range(3)]
    with pytest.raises(LimbeckError, match='the Triton kernel needs triton .*or choose kernel="tiled"'):
        attention_jvp(*x, None, None, None, kernel="triton")
