import copy

import pytest
import torch
from torch import nn

from limbeck.denoisers import (
    Exported,
    ForeignNetwork,
    GaussianDenoiser,
    Preconditioned,
    Rescaled,
    load_denoiser,
    load_exported,
    save_student,
)
from limbeck.errors import LimbeckError
from limbeck.networks import UNet
from limbeck.noise import DDPM, VE, VP, CosineVP, RectifiedFlow, TrigFlow


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, t):
        return self.weight * x + t[:, None, None, None]


class Labelled(Plain):
    def forward(self, x, t, y):
        return self.weight * x + t[:, None, None, None] + y[:, None, None, None]


class MaybeLabelled(Plain):
    def forward(self, image, timestep, class_labels=None, return_dict=True):
        shift = 0 if class_labels is None else class_labels[:, None, None, None]
        return {"sample": self.weight * image + shift} if return_dict else (self.weight * image + shift,)


class Conditioned(Plain):
    null = {"label": torch.tensor(7)}

    def forward(self, x, c_noise, cond=None):
        return self.weight * x + (cond["label"][:, None, None, None] if cond else 0)


class Flagged(Plain):
    def forward(self, x, t, verbose=False):
        assert verbose is False
        return super().forward(x, t), None


X = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.1, 0.2, 0.3, 0.6])
LABEL = torch.tensor([0, 1, 2, 1])


def column(values):
    return values[:, None, None, None]


@pytest.mark.parametrize(
    "network, third, required, with_labels, without",
    [
        (Plain(), None, False, 2 * X + column(T), 2 * X + column(T)),
        (Flagged(), None, False, 2 * X + column(T), 2 * X + column(T)),
        (Labelled(), "label", True, 2 * X + column(T) + column(LABEL), None),
        (MaybeLabelled(), "label", False, 2 * X + column(LABEL), 2 * X),
        (Conditioned(), "cond", False, 2 * X + column(LABEL), 2 * X),
    ],
)
def test_the_signature_says_how_a_network_is_called(network, third, required, with_labels, without):
    foreign = ForeignNetwork(network)
    assert (foreign.third, foreign.required) == (third, required)
    torch.testing.assert_close(foreign(X, T, {"label": LABEL}), with_labels)
    if without is not None:
        torch.testing.assert_close(foreign(X, T), without)
    else:
        with pytest.raises(LimbeckError, match=r"Labelled takes labels, but there are none: .*--null-label"):
            foreign(X, T)


def test_a_null_label_stands_for_no_class():
    foreign = ForeignNetwork(Labelled(), null_label=5)
    assert foreign.null["label"].item() == 5 and ForeignNetwork(Labelled()).null is None
    assert ForeignNetwork(Conditioned()).null["label"].item() == 7
    torch.testing.assert_close(foreign(X, T), Labelled()(X, T, torch.full((4,), 5)))
    torch.testing.assert_close(ForeignNetwork(MaybeLabelled(), 3)(X, T), 2 * X + 3)
    with pytest.raises(LimbeckError, match="null label .5. is for networks that take labels"):
        ForeignNetwork(Plain(), null_label=5)


def test_times_are_rounded_where_the_network_counts_them():
    seen = []

    class Counting(Plain):
        def forward(self, x, t):
            seen.append(t)
            return x

    ForeignNetwork(Counting(), time=torch.int64)(X, torch.tensor([0.4, 0.6, 998.7, 3.0]))
    ForeignNetwork(Counting(), time=torch.float64)(X, T)
    assert seen[0].dtype == torch.int64 and seen[0].tolist() == [0, 1, 999, 3]
    assert seen[1].dtype == torch.float64


def test_other_signatures_and_answers_are_refused():
    class One(nn.Module):
        def forward(self, x):
            return x

    class Four(nn.Module):
        def forward(self, x, t, y, text):
            return x

    class Variances(Plain):
        def forward(self, x, t):
            return torch.cat([x, x], 1)

    class Nothing(Plain):
        def forward(self, x, t):
            return None

    for network, message in [(One(), r"One takes \(x\)"), (Four(), r"Four takes \(x, t, y, text\)")]:
        with pytest.raises(LimbeckError, match=message):
            ForeignNetwork(network)
    with pytest.raises(LimbeckError, match=r"Variances answered \(4, 2, 4, 4\) for images \(4, 1, 4, 4\)"):
        ForeignNetwork(Variances())(X, T)
    with pytest.raises(LimbeckError, match="Nothing answered NoneType"):
        ForeignNetwork(Nothing())(X, T)


def exported(network, path, arguments, batch=True):
    B = torch.export.Dim("batch")
    shapes = tuple({0: B} for _ in arguments) if batch else None
    torch.export.save(torch.export.export(network, arguments, dynamic_shapes=shapes), path)
    return path


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.e = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1), nn.Embedding(3, 4)

    def forward(self, x, t, y):
        return self.b(torch.tanh(self.a(x) + (t[:, None] + self.e(y))[..., None, None]))


def test_an_exported_program_is_copied_and_trained(tmp_path):
    network = Small()
    path = exported(network, tmp_path / "a.pt2", (X, T, LABEL))
    module, time = load_exported(path)
    assert isinstance(module, Exported) and module.inputs == 3 and time == torch.float32
    foreign = ForeignNetwork(module)
    more = torch.cat([X, X[:1]]), torch.cat([T, T[:1]]), torch.cat([LABEL, LABEL[:1]])
    torch.testing.assert_close(foreign(*more[:2], {"label": more[2]}), network(*more))
    student = copy.deepcopy(Preconditioned(foreign, VE(), "x0")).train()
    assert {name.split(".", 3)[-1] for name, _ in student.named_parameters()} == {
        name for name, _ in network.named_parameters()
    }
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    loss = lambda: student(X, T.double(), {"label": LABEL}).square().mean()  # noqa: E731
    before = loss()
    before.backward()
    assert all(p.grad is not None for p in student.parameters())
    optimizer.step()
    assert loss() < before
    torch.testing.assert_close(foreign(X, T, {"label": LABEL}), network(X, T, LABEL))  # the teacher stayed
    saved = save_student(tmp_path / "student", student, {"times": [2.5]})
    from safetensors import safe_open
    from safetensors.torch import load_model

    again = Small()
    load_model(again, str(saved))
    torch.testing.assert_close(again(X, T, LABEL), student(X, T.double(), {"label": LABEL}))
    with safe_open(saved, "pt") as file:
        assert file.metadata()["prediction"] == "x0" and file.metadata()["times"] == "[2.5]"


def test_programs_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(LimbeckError, match=r"is fixed to a batch of 4; .* dynamic_shapes"):
        load_exported(exported(Small(), tmp_path / "a.pt2", (X, T, LABEL), batch=False))
    with pytest.raises(LimbeckError, match=r"takes 1 inputs"):
        load_exported(exported(nn.Conv2d(1, 1, 1), tmp_path / "b.pt2", (X,), batch=False))
    (tmp_path / "c.pt2").write_bytes(b"no archive")
    with pytest.raises(LimbeckError, match="no program that torch.export.load can read"):
        load_exported(tmp_path / "c.pt2")


@pytest.mark.parametrize(
    "process", [VE(), VP(), CosineVP(), DDPM(), RectifiedFlow(), TrigFlow()], ids=lambda p: type(p).__name__
)
def test_a_rescaled_denoiser_of_other_data_is_the_denoiser_of_the_data(process):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    mean, covariance = torch.randn(4, generator=generator, dtype=torch.float64), root @ root.T + 0.1 * torch.eye(4)
    exact = GaussianDenoiser.from_covariance(mean, covariance, process)
    low, high = -0.5, 2.0  # the other network's range
    scale, shift = (high - low) / 2, (high + low) / 2
    other = GaussianDenoiser.from_covariance(scale * mean + shift, scale**2 * covariance, process)
    sigma = torch.tensor([0.03, 0.4, 2.0, 20.0], dtype=torch.float64)
    t = process.time_of(sigma)
    x_t = process.add_noise(
        torch.randn(4, 4, generator=generator, dtype=torch.float64), torch.ones(4, 4, dtype=torch.float64), t
    )
    torch.testing.assert_close(Rescaled(other, scale, shift)(x_t, t), exact(x_t, t), rtol=1e-8, atol=1e-9)


def test_a_rescaled_network_is_a_module_that_can_be_copied_and_saved(tmp_path):
    network = UNet((1, 8, 8), channels=8, multipliers=(1,), classes=2)
    rescaled = Rescaled(Preconditioned(network, VE()), 0.5, 0.5)
    assert rescaled.null["label"].item() == 2
    student = copy.deepcopy(rescaled).requires_grad_(True)
    for p in student.parameters():
        p.data.add_(0.1)
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in network.parameters())
    assert not torch.equal(network.input.weight, student.denoiser.network.input.weight)
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5, dtype=torch.float64)
    again, info = load_denoiser(save_student(tmp_path / "s", student, {"method": "dmd"}))
    assert info == {"method": "dmd", "data_range": "0,1"}
    assert torch.equal(Rescaled(again, 0.5, 0.5)(x, t), student(x, t))
    with pytest.raises(LimbeckError, match="data scale must be positive, not 0"):
        Rescaled(again, 0)
