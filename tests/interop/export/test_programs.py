"""Students as programs: torch.export and onnxruntime answer what the student does, at other batch sizes than they were made with."""

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned, Rescaled
from limbeck.errors import LimbeckError
from limbeck.interop.export import Steps, example_inputs, input_names, unrolled, write_onnx, write_program
from limbeck.interop.export.programs import coefficients
from limbeck.networks import ResidualMLP, build_network
from limbeck.noise import DDPM, VE, RectifiedFlow, TrigFlow
from limbeck.samplers import Experts

SHAPE, EXPLODING = (1, 4, 4), VE()
PREDICTIONS = [
    (VE(), "edm", 2.5), (VE(), "consistency", 80.0), (TrigFlow(), "trigflow", 1.5), (DDPM(), "eps", 400.0), (DDPM(), "v", 999.0),
    (RectifiedFlow(), "velocity", 1.0), (RectifiedFlow(), "x0", 0.5), (DDPM(), "score", 300.0),
]  # fmt: skip


def student(process=EXPLODING, prediction="edm", kind=None):
    torch.manual_seed(0)
    network = ResidualMLP(SHAPE, width=8, blocks=1, classes=2, embedding=8) if kind is None else build_network(kind)
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    return Preconditioned(network, process, prediction, 0.4).eval()


def reference(denoiser, steps, inputs, names=("label",)):
    cond, noises = dict(zip(names, inputs[1:], strict=False)) or None, iter(inputs[1 + len(names) :])
    with torch.no_grad():
        return steps(denoiser, inputs[0], cond, noise=lambda i: next(noises))


@pytest.mark.parametrize("process, prediction, t", PREDICTIONS)
def test_the_coefficients_are_the_denoisers(process, prediction, t):
    denoiser, at = student(process, prediction).double(), torch.tensor([t], dtype=torch.float64)
    skip, out, scale_in, c_noise = coefficients(denoiser, at[0])
    x, label = torch.randn(1, *SHAPE, dtype=torch.float64), {"label": torch.tensor([1])}
    with torch.no_grad():
        answer = denoiser.network(scale_in * x, torch.tensor([c_noise], dtype=torch.float64), label)
        torch.testing.assert_close(skip * x + out * answer, denoiser(x, at, label), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind, start", [("fresh", "noise"), ("ode", "unit"), ("ode", "noise")])
def test_written_out_steps_are_the_rollout(kind, start):
    denoiser = student().double()
    steps = Steps(VE(), (80.0, 5.0, 0.8), kind, start, noise_scale=0.9)
    module = unrolled(denoiser, steps, ("label",))
    inputs = tuple(
        v.double() if v.is_floating_point() else v for v in example_inputs(SHAPE, module, {"label": torch.tensor([0, 1])})
    )
    assert input_names(module) == ["z", "label", *(["noise_1", "noise_2"] if kind == "fresh" else [])]
    torch.testing.assert_close(module(*inputs), reference(denoiser, steps, inputs), rtol=1e-10, atol=1e-10)


def test_experts_are_written_out_step_by_step():
    high, low = student(), student(prediction="consistency")
    experts = Experts([(0.0, 5.0, low), (5.0, 100.0, high)])
    steps = Steps(VE(), (80.0, 5.0, 0.8), "ode")
    module = unrolled(experts, steps, ("label",))
    inputs = example_inputs(SHAPE, module, {"label": torch.tensor([0, 1])})
    assert len(module.networks) == 2 and [call.network for call in module.calls] == [0, 1, 1]
    torch.testing.assert_close(module(*inputs), reference(experts, steps, inputs), rtol=1e-5, atol=1e-5)


def test_a_torch_export_program_takes_any_batch(tmp_path):
    denoiser, steps = student(), Steps(VE(), (2.5,))
    module = unrolled(denoiser, steps, ("label",))
    inputs = example_inputs(SHAPE, module, {"label": torch.tensor([0, 1])})
    write_program(tmp_path / "student.pt2", module, inputs)
    program = torch.export.load(tmp_path / "student.pt2").module()
    for batch in (1, 7):
        z, label = torch.randn(batch, *SHAPE), torch.arange(batch) % 2
        torch.testing.assert_close(program(z, label), reference(denoiser, steps, (z, label)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "unet", "dit", "UNet2DModel"])
@pytest.mark.parametrize("times", [(2.5,), (80.0, 2.5)])
def test_onnxruntime_answers_what_the_student_does(kind, times, tmp_path):
    import onnxruntime

    if kind == "UNet2DModel":
        from diffusers import UNet2DModel

        from limbeck.interop import DiffusersNetwork

        torch.manual_seed(0)
        sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (8, 16)}
        blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
        model = UNet2DModel(**sizes, **blocks, norm_num_groups=4, attention_head_dim=4).eval()
        denoiser, shape, names = Preconditioned(DiffusersNetwork(model), VE(), "edm", 0.5), (3, 8, 8), ()
    else:
        shape = SHAPE if kind is None else (1, 8, 8)
        config = None if kind is None else {"kind": kind, "shape": list(shape), "classes": 2}
        denoiser, names = student(kind=config), ("label",)
    steps = Steps(VE(), times)
    module = unrolled(denoiser, steps, names)
    write_onnx(
        tmp_path / "student.onnx", module, example_inputs(shape, module, {"label": torch.tensor([0, 1])}), input_names(module)
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == input_names(module)
    for batch in (1, 5):
        given = (torch.randn(batch, *shape), *([torch.arange(batch) % 2] if names else []))
        given += tuple(torch.randn(batch, *shape) for _ in times[1:])
        (found,) = session.run(None, {n: v.numpy() for n, v in zip(input_names(module), given, strict=True)})
        np.testing.assert_allclose(found, reference(denoiser, steps, given, names).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_network_with_text_is_a_program_for_any_batch(tmp_path):
    from diffusers import UNet2DConditionModel

    from limbeck.interop import DiffusersNetwork

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=4, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=6,
        attention_head_dim=4,
    ).eval()  # fmt: skip
    denoiser = Preconditioned(DiffusersNetwork(model), VE(), "edm", 0.5)
    steps, names = Steps(VE(), (2.5,)), ("encoder_hidden_states",)
    module = unrolled(denoiser, steps, names)
    write_program(tmp_path / "student.pt2", module, example_inputs((2, 4, 4), module, {names[0]: torch.randn(2, 3, 6)}))
    program = torch.export.load(tmp_path / "student.pt2").module()
    for batch in (1, 5):
        given = torch.randn(batch, 2, 4, 4), torch.randn(batch, 3, 6)
        torch.testing.assert_close(program(*given), reference(denoiser, steps, given, names), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: unrolled(Rescaled(student(), 0.5, 0.5), Steps(VE(), (2.5,))), "another range of data"),
        (lambda: unrolled(nn.Linear(1, 1), Steps(VE(), (2.5,))), "a Linear, not a preconditioned network"),
        (lambda: unrolled(student(), Steps(VE(), (2.5, 1.0), "fixed")), "renoise 'fixed'"),
        (lambda: unrolled(student(), Steps(DDPM(), (700.0, 300.0), "tcd", eta=0.3)), "kind 'tcd' are not written out"),
    ],
)
def test_what_is_no_program_is_refused(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def test_a_network_that_cannot_be_traced_is_named(tmp_path):
    class Looks(ResidualMLP):
        def forward(self, x, c_noise, cond=None):
            return super().forward(x, c_noise, cond) * (1 if float(x.sum()) > 0 else 2)

    network = Looks(SHAPE, width=8, blocks=1, embedding=8)
    module = unrolled(Preconditioned(network, VE(), "edm", 0.5), Steps(VE(), (2.5,)))
    with pytest.raises(LimbeckError, match="cannot trace the Looks: .*(data-dependent|guard|symbolic)"):
        write_program(tmp_path / "student.pt2", module, example_inputs(SHAPE, module, None))
    assert not list(tmp_path.iterdir())
