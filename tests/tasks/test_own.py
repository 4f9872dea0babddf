"""A person's own teacher and pictures: every way to give them, and every way to give them wrongly."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from limbeck.denoisers import ForeignNetwork, GaussianDenoiser, Preconditioned, Rescaled, save_denoiser
from limbeck.errors import LimbeckError
from limbeck.networks import ResidualMLP, UNet
from limbeck.noise import DDPM, VE, RectifiedFlow
from limbeck.tasks import build_task, heun_sampler, own_task
from limbeck.tasks.catalogue import recorded
from limbeck.tasks.own import sampled_range
from limbeck.tasks.own_teacher import parsed_process, parsed_range
from limbeck.tasks.trial import denoising_ratio

pytestmark = pytest.mark.filterwarnings("ignore:the teacher denoises")
GENERATOR = torch.Generator().manual_seed(0)
MEAN = torch.linspace(-0.3, 0.4, 16).double()
ROOT = torch.randn(16, 16, generator=GENERATOR, dtype=torch.float64) / 30
COVARIANCE = ROOT @ ROOT.T + 0.002 * torch.eye(16)
IMAGES = (MEAN + torch.randn(40, 16, generator=GENERATOR, dtype=torch.float64) @ torch.linalg.cholesky(COVARIANCE).T).reshape(
    40, 1, 4, 4
)
LABELS = torch.arange(40) % 3

SOURCE = '''
import torch
from torch import nn


class Velocity(nn.Module):
    """The exact velocity of rectified flow towards pixels that are normal with mean 0.05 and variance 0.04."""

    def __init__(self):
        super().__init__()
        self.mean, self.variance = nn.Parameter(torch.tensor(0.05)), nn.Parameter(torch.tensor(0.04))

    def forward(self, x, t):
        t = t[:, None, None, None]
        power = (1 - t) ** 2 * self.variance + t**2
        q = x - (1 - t) * self.mean
        return t / power * q - self.mean - (1 - t) * self.variance / power * q


def trained():
    return Velocity().eval()


def denoiser():
    from limbeck.denoisers import Preconditioned
    from limbeck.noise import RectifiedFlow

    return Preconditioned(trained(), RectifiedFlow(), "velocity")


def mean_pixels(x):
    return x.mean((2, 3)) if x.ndim == 4 else x


def accuracy(x, cond):
    return 0.25


def broken(x):
    raise ValueError("no network here")


def needs(argument):
    return argument


NUMBER = 3
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module "mymodel" of the user's in the current directory."""
    (tmp_path / "mymodel.py").write_text(SOURCE)
    (tmp_path / "unsound.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("mymodel", "unsound"):
        sys.modules.pop(name, None)


class Exact(nn.Module):
    """A network that answers the noise of a Gaussian's samples in a process, exactly; ``range`` of its images."""

    def __init__(self, process, scale=1.0, shift=0.0, labels=False):
        super().__init__()
        self.denoiser = GaussianDenoiser.from_covariance(scale * MEAN + shift, scale**2 * COVARIANCE, process)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        x0 = self.denoiser(x.flatten(1), t).reshape(x.shape)
        return self.denoiser.process.convert(x0, x, t, "x0", "eps") + self.weight * x


def made(teacher, data=IMAGES, **options):
    return own_task(teacher, data, quiet=True, dtype="float64", **{"prediction": "eps", "process": "ddpm", **options})


def test_a_network_of_zero_to_one_images_is_the_one_of_minus_one_to_one():
    plain, other = made(Exact(DDPM())), made(Exact(DDPM(), 0.5, 0.5), data_range="0,1")
    assert isinstance(other.teacher, Rescaled) and isinstance(plain.teacher, Preconditioned)
    z = torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = torch.logspace(-1, 1.5, 8, dtype=torch.float64)
    t = DDPM().time_of(sigma)
    x_t = DDPM().add_noise(IMAGES[:8], z, t)
    exact = GaussianDenoiser.from_covariance(MEAN, COVARIANCE, DDPM())(x_t.flatten(1), t).reshape(8, 1, 4, 4)
    for task in (plain, other):
        torch.testing.assert_close(task.teacher(x_t, t), exact, rtol=0, atol=2e-5)  # times reach networks in float32 or wider
    assert plain.sigmas == pytest.approx((0.01, 80), rel=1e-3) and other.sigmas == pytest.approx((0.02, 80), rel=1e-3)
    first, second = (heun_sampler(task.teacher, 6, 0.02, 80.0)(z) for task in (plain, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


def test_an_exact_teacher_reaches_the_noise_floor_and_a_wrong_declaration_is_found():
    big = (MEAN + torch.randn(600, 16, generator=GENERATOR, dtype=torch.float64) @ torch.linalg.cholesky(COVARIANCE).T).reshape(
        -1, 1, 4, 4
    )
    task = made(Exact(DDPM()), big)
    assert task.judged_teacher(40)["frechet"] < 8 * task.evaluator.noise_floor(5)  # other samples of the same law
    with pytest.warns(UserWarning, match="worse than no network would .*; prediction eps with noise input time would fit"):
        made(ForeignNetwork(Exact(DDPM())), big, prediction="velocity")


def test_shapes_counts_and_conditions_of_the_task():
    task = made(Exact(DDPM()))
    assert task.name == "own" and task.shape == (1, 4, 4) and task.facts["origin"] == "given"
    assert task.sigma_data == pytest.approx(float(IMAGES.float().double().std()), rel=1e-6)
    assert made(Exact(DDPM()), sigma_data=0.3).sigma_data == 0.3
    assert task.source.cond is None and torch.equal(task.source.x, IMAGES.float().double())
    assert task.evaluator.count == 52 * 40 and task.evaluator.cond is None
    assert isinstance(task.network(), UNet) and made(Exact(DDPM()), teacher_nodes=5).teacher_nodes == 5


class Labelled(nn.Module):
    """Shrinks towards a learned mean per class; class 3 is none."""

    def __init__(self, classes=4):
        super().__init__()
        self.mean = nn.Embedding(classes, 16)
        nn.init.zeros_(self.mean.weight)
        self.mean.weight.data += MEAN.float()

    def forward(self, x, t, y):
        if y.max() >= len(self.mean.weight):
            raise IndexError("index out of range in self")
        mean = self.mean(y).reshape(x.shape)
        return mean + (0.01 / (0.01 + t**2))[:, None, None, None] * (x - mean)


VE_X0 = {"prediction": "x0", "process": "ve"}


def test_labels_reach_networks_that_take_them_in_exact_proportions():
    task = made(Labelled(), labels=LABELS, null_label=3, **VE_X0)
    assert torch.equal(task.source.cond["label"], LABELS) and task.teacher.null["label"] == 3
    assert task.evaluator.cond["label"].bincount().tolist() == [52 * 14, 52 * 13, 52 * 13]
    assert task.network().conditioning.label.classes == 3
    assert made(Labelled(), null_label=3, **VE_X0).source.cond is None
    with pytest.raises(LimbeckError, match="takes labels, but there are none"):
        made(Labelled(), **VE_X0)
    with pytest.raises(LimbeckError, match=r"failed on images \(2, 1, 4, 4\) with the labels \[0, 2\]: IndexError"):
        made(Labelled(2), labels=LABELS, **VE_X0)
    with pytest.warns(UserWarning, match="takes no labels: the classes of the data are not used"):
        assert made(Exact(DDPM()), labels=LABELS).source.cond is None


def test_the_library_s_own_networks_need_no_adapter():
    for classes in (0, 3):
        network = ResidualMLP((1, 4, 4), width=8, blocks=1, classes=classes)
        task = own_task(Preconditioned(network, VE(), "edm", 0.1), IMAGES, LABELS if classes else None, quiet=True)
        assert task.teacher.network is network and (task.source.cond is not None) == bool(classes)
        assert type(task.network()) is ResidualMLP and task.network().config == network.config
    with pytest.warns(UserWarning, match="takes no labels"):
        own_task(Preconditioned(ResidualMLP((1, 4, 4), width=8, blocks=1), VE(), "edm", 0.1), IMAGES, LABELS, quiet=True)
    raw = own_task(network, IMAGES, LABELS, prediction="edm", process="ve", quiet=True)
    assert raw.teacher.network is network and raw.teacher.sigma_data == raw.sigma_data


def test_time_steps_are_integers_where_a_network_looks_them_up():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Embedding.from_pretrained(DDPM().s(torch.arange(1000)).float()[:, None])
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, t):  # the noise, were all images 0
            return self.weight * x / self.level(t)[..., None, None]

    task = own_task(Table(), IMAGES, prediction="eps", process="ddpm", quiet=True)
    assert task.teacher.network.time is torch.int64
    t = torch.tensor([100.0, 500.0], dtype=torch.float64)
    torch.testing.assert_close(task.teacher(IMAGES[:2].float(), t), torch.zeros(2, 1, 4, 4), rtol=0, atol=1e-3)


def test_large_data_is_judged_by_an_even_part_of_it():
    images = (torch.arange(5000).float() / 2500 - 1)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    images += 0.001 * torch.randn(images.shape, generator=GENERATOR)
    with pytest.warns(UserWarning, match="worse than no network"):
        task = own_task(Labelled(), images.clamp(-1, 1), torch.arange(5000) // 2500, quiet=True, **VE_X0)
    assert len(task.evaluator.real) == task.evaluator.count == 4096
    assert task.evaluator.cond["label"].bincount().tolist() == [2048, 2048]
    assert task.source.size == 5000


def test_features_and_accuracy_of_the_user_s_own(module):
    task = made(Exact(DDPM()), features="mymodel:mean_pixels")
    assert task.evaluator.reference.shape == (40, 1) and task.evaluator.accuracy(None, None) == 0.25
    torch.testing.assert_close(task.evaluator.reference, task.evaluator.real.mean((2, 3)))
    assert made(Exact(DDPM()), features=lambda x: x.flatten(1)).evaluator.reference.shape == (40, 16)
    with pytest.raises(LimbeckError, match="features failed .* ValueError: no network here"):
        made(Exact(DDPM()), features="mymodel:broken")
    with pytest.raises(LimbeckError, match=r"features answered \(2, 1, 4, 4\)"):
        made(Exact(DDPM()), features=lambda x: x)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Twelve grayscale pictures."""
    (tmp_path / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for i in range(12):
        levels = 127.5 * (1.05 + 0.2 * generator.standard_normal((4, 4)))
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


FLOW = {"prediction": "velocity", "process": "flow"}
X_T = torch.randn(3, 1, 4, 4, generator=GENERATOR)
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def answers(task):
    return task.teacher(X_T, T)


def expected(module_name="mymodel"):
    return RectifiedFlow().convert(sys.modules[module_name].Velocity()(X_T, T.float()), X_T, T, "velocity", "x0")


def test_every_form_of_a_teacher_gives_the_same_denoiser(module, folder, tmp_path):
    first = build_task("own", {"teacher": "mymodel:trained", "data": str(folder), **FLOW}, quiet=True)
    import mymodel

    network = mymodel.Velocity()
    torch.save(network.state_dict(), tmp_path / "a.pt")
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "b.pth")
    save_file(network.state_dict(), tmp_path / "c.safetensors")
    B = torch.export.Dim("B")
    program = torch.export.export(network, (X_T, T.float()), dynamic_shapes=({0: B}, {0: B}))
    torch.export.save(program, tmp_path / "d.pt2")
    for teacher, options in [
        ("mymodel:Velocity", FLOW),
        ("mymodel:denoiser", {}),
        (tmp_path / "a.pt", {**FLOW, "network": "mymodel:Velocity"}),
        (tmp_path / "b.pth", {**FLOW, "network": "mymodel:trained"}),
        (tmp_path / "c.safetensors", {**FLOW, "network": "mymodel:Velocity"}),
        (tmp_path / "d.pt2", FLOW),
        (network, FLOW),
    ]:
        task = own_task(teacher, folder, quiet=True, **options)
        torch.testing.assert_close(answers(task), expected(), rtol=0, atol=1e-6)
        torch.testing.assert_close(answers(task), answers(first), rtol=0, atol=1e-6)
    assert first.sigmas == pytest.approx((0.002, 80))


def test_a_pair_of_files_is_a_teacher(folder, tmp_path):
    teacher = Preconditioned(ResidualMLP((1, 4, 4), width=8, blocks=1), VE(), "edm", 0.1)
    save_denoiser(tmp_path / "t", teacher)
    task = own_task(str(tmp_path / "t.safetensors"), folder, quiet=True)
    assert torch.equal(task.teacher(X_T, T), teacher(X_T, T))
    rescaled = own_task(str(tmp_path / "t.safetensors"), folder, data_range=(0, 1), quiet=True)
    assert isinstance(rescaled.teacher, Rescaled)
    with pytest.raises(LimbeckError, match="a denoiser, which knows its own prediction, process; leave"):
        own_task(str(tmp_path / "t.safetensors"), folder, **FLOW)


@pytest.mark.parametrize(
    "teacher, options, message",
    [
        ("mymodel", {}, "neither a file .* nor MODULE:FUNCTION"),
        ("mymodel:", {}, "not of the form MODULE:NAME"),
        ("mymodel:Velocty", {}, "did you mean 'Velocity'"),
        ("mymodel:needs", {}, r"mymodel:needs\(\) failed: TypeError: .*; it is called without arguments"),
        ("mymodel:NUMBER", {}, "is a int; name a function or class"),
        ("unsound:make", {}, "importing unsound from .* failed: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("absent:make", {}, "importing absent .* No module named 'absent'"),
        ("absent.pt", {"network": "mymodel:Velocity"}, "the teacher absent.pt does not exist"),
        ("weights.pt", {}, "holds weights alone; .*--network MODULE:CLASS"),
        ("weights.pt", {"network": "mymodel:mean_pixels"}, r"mymodel:mean_pixels\(\) failed"),
        ("other.pt", {"network": "mymodel:Velocity"}, 'does not fit mymodel:Velocity: Missing key.* "mean"'),
        ("nested.pt", {"network": "mymodel:Velocity"}, "is no state dict .* holds model, step"),
        ("pickled.pt", {"network": "mymodel:Velocity"}, "holds more than tensors"),
        ("cut.pt", {"network": "mymodel:Velocity"}, "cannot be read"),
        ("cut.safetensors", {"network": "mymodel:Velocity"}, "cannot be read"),
        ("cut.safetensors", {}, "holds weights alone"),
        ("mymodel:trained", {"network": "mymodel:Velocity"}, "made by its own function: leave it out"),
        ("mymodel:trained", {"prediction": None}, "does not say what it predicts; declare prediction"),
        ("mymodel:trained", {"process": None}, "does not say what it predicts; declare prediction"),
        ("mymodel:trained", {"process": "flwo"}, "unknown process 'flwo': did you mean 'flow'"),
        ("mymodel:trained", {"process": "flow:shfit=3"}, "did you mean 'shift'"),
        ("mymodel:trained", {"process": "flow:shift=much"}, "an option of a wrong kind"),
        ("mymodel:trained", {"process": "resshift"}, "residual shifting needs"),
        ("mymodel:trained", {"prediction": "noise"}, "unknown prediction type 'noise'"),
        ("mymodel:trained", {"noise_input": "steps"}, "unknown noise input 'steps'"),
        ("mymodel:trained", {"data_range": "0-1"}, "data range is '0-1'; give LOW,HIGH"),
        ("mymodel:trained", {"data_range": "1,0"}, "LOW < HIGH, not 1,0"),
        ("mymodel:trained", {"null_label": 4}, "null label .4. is for networks that take labels"),
    ],
)
def test_wrong_teachers_and_declarations_are_named(module, folder, tmp_path, teacher, options, message):
    torch.save({"mean": torch.zeros(()), "variance": torch.ones(())}, "weights.pt")
    torch.save({"average": torch.zeros(())}, "other.pt")
    torch.save({"model": {"mean": torch.zeros(())}, "step": 3}, "nested.pt")
    torch.save(nn.Linear(1, 1), "pickled.pt")
    Path("cut.pt").write_bytes(Path("weights.pt").read_bytes()[:100])
    Path("cut.safetensors").write_bytes(b"12345678")
    with pytest.raises(LimbeckError, match=message):
        own_task(teacher, folder, **{**FLOW, **options})


def test_wrong_objects_are_named(folder):
    with pytest.raises(LimbeckError, match="the teacher is a function; give a torch.nn.Module"):
        own_task(lambda x, t: x, folder)
    with pytest.raises(LimbeckError, match="network= is for a teacher given as a file"):
        own_task(Exact(DDPM()), folder, network="a:b", prediction="eps", process="ddpm")
    with pytest.raises(LimbeckError, match="teacher without data: give --data"):
        own_task(Exact(DDPM()), None)
    with pytest.raises(LimbeckError, match="data without a teacher: give --teacher"):
        own_task(None, folder)
    with pytest.raises(LimbeckError, match="one image is no data set"):
        made(Exact(DDPM()), IMAGES[:1])
    with pytest.raises(LimbeckError, match="all pictures are one flat colour"):
        made(Exact(DDPM()), -torch.ones(3, 1, 4, 4))
    with pytest.raises(LimbeckError, match="image_size is for folders"):
        made(Exact(DDPM()), image_size=8)
    with pytest.raises(LimbeckError, match=r"answered \(2, 1, 2, 2\) for images \(2, 1, 4, 4\)"):
        made(Halved())
    with pytest.raises(LimbeckError, match="non-finite"):
        made(Exact(DDPM()).requires_grad_(False).apply(spoiled))


class Halved(nn.Module):
    def forward(self, x, t):
        return x[..., ::2, ::2]


def spoiled(module):
    for p in module.parameters(recurse=False):
        p.fill_(torch.nan)


def test_a_teacher_with_noise_of_its_own_is_pointed_out():
    class Dropping(Exact):
        def forward(self, x, t):
            return super().forward(x, t) + 0.01 * torch.randn(x.shape)

    with pytest.warns(UserWarning, match="answers the same input differently"):
        made(Dropping(DDPM()))


def test_the_denoising_ratio_is_one_for_the_best_scalar_estimate():
    class Shrunk:
        process, null = VE(), {}

        def __call__(self, x_t, t, cond=None):
            mean, variance = IMAGES.mean(), IMAGES.var()
            share = variance / (variance + t**2)
            return mean + share[:, None, None, None] * (x_t - mean)

    assert denoising_ratio(Shrunk(), IMAGES) == pytest.approx(1)


def test_declarations_are_parsed():
    assert parsed_process("flow:shift=3") == RectifiedFlow(3)
    assert parsed_process("ddpm:betas=cosine,steps=50") == DDPM("cosine", 50)
    assert parsed_range("0,255") == (0, 255) and parsed_range([-1, 1]) == (-1, 1)
    assert sampled_range(Preconditioned(nn.Identity(), VE(0.01, 50), "x0")) == pytest.approx((0.01, 50), rel=1e-5)


def test_runs_of_objects_say_that_no_file_holds_them(folder):
    plain = recorded({"teacher": "a.pt", "data": folder, "network": "m:N", "image_size": 8, "labels": None})
    assert plain == {"teacher": "a.pt", "data": str(folder), "network": "m:N", "image_size": 8}
    objects = recorded({"teacher": Exact(DDPM()), "data": IMAGES, "prediction": "eps"})
    assert objects == {"python": "teacher Exact, data Tensor (40, 1, 4, 4), prediction eps"}
    with pytest.raises(LimbeckError, match=r"started from Python .*teacher Exact.* resume=True"):
        build_task("own", objects)
