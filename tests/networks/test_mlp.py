import torch
from torch.nn import functional as F

from limbeck.networks import ResidualMLP


def test_the_recommended_size():
    net = ResidualMLP((1, 8, 8), width=256, blocks=4, classes=10)
    assert sum(p.numel() for p in net.parameters()) == 718_272
    net = ResidualMLP((1, 8, 8), width=256, blocks=4, classes=10, expansion=2)
    assert sum(p.numel() for p in net.parameters()) == 1_375_680


def test_forward_equals_the_equations():
    torch.manual_seed(0)
    net = ResidualMLP((2, 3), width=8, blocks=2, classes=3, embedding=4).double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
    x, c = torch.randn(4, 2, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 3])
    w = dict(net.named_parameters())

    def standardised(h):
        return (h - h.mean(1, True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()

    e = net.conditioning(c, {"label": label})
    h = x.reshape(4, 6) @ w["input.weight"].T + w["input.bias"]
    for i in range(2):
        v = {k.removeprefix(f"blocks.{i}."): p for k, p in w.items()}
        z = standardised(h) @ v["inner.weight"].T + v["inner.bias"]
        z = z * (1 + e @ v["modulation.weight"].T + v["modulation.bias"])
        h = h + F.silu(z) @ v["outer.weight"].T + v["outer.bias"]
    y = (standardised(h) * w["norm.weight"] + w["norm.bias"]) @ w["output.weight"].T + w["output.bias"]
    torch.testing.assert_close(net(x, c, {"label": label}), y.view(4, 2, 3), rtol=1e-10, atol=1e-10)


def test_samples_need_not_be_contiguous():
    net = ResidualMLP((3, 4), width=8)
    torch.nn.init.normal_(net.output.weight)
    x, c = torch.randn(5, 4, 3).transpose(1, 2), torch.rand(5)
    assert torch.equal(net(x, c), net(x.contiguous(), c))
