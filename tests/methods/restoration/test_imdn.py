"""IMDN in the loop: its step, micro-batches, resume, how x3 begins with x2, and every bad input."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.methods import METHODS
from limbeck.methods.restoration.imdn import PRESETS, IMDNOptions, IMDNTraining, new_student
from limbeck.networks.imdn import IMDNAS, save_imdn
from limbeck.tasks.picture_pairs import PicturePairs, degraded_pairs
from limbeck.training import EmaOptions, Loop, LoopOptions, OptimizerOptions, TensorSource
from limbeck.training.checkpoints import load

SGD = OptimizerOptions(lr=1.0, kind="sgd", betas=(0.0, 0.0))
TINY = IMDNOptions(patch=8, blocks=1, student=SGD)


def pairs(scale=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    pictures = [
        torch.randint(256, (3, h, w), generator=generator, dtype=torch.uint8) for h, w in ((24, 36), (36, 30), (18, 24))
    ]
    return degraded_pairs(pictures, scale, dtype)


def loop(method, source, **options):
    return Loop(method, source, LoopOptions(**{"iterations": 1, "batch": 6, **options}), quiet=True)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_one_step_is_one_step_down_the_mean_absolute_error():
    source, student = pairs(dtype=torch.float64), new_student(TINY).double()
    twin = copy.deepcopy(student)
    run = loop(IMDNTraining(student, TINY), source)
    batch = run.batches(0)[0]
    x, y = source.crops(batch.rows, batch.noise, 8)
    figures = run.iterate()
    loss = (twin(x) - y).abs().mean()
    assert figures["loss/student"] == pytest.approx(float(loss.detach()), rel=1e-12)
    each = -10 * torch.log10((twin(x) - y).detach().square().mean((1, 2, 3)))
    assert figures["psnr"] == pytest.approx(float(each.mean()), rel=1e-12)
    loss.backward()
    torch.testing.assert_close(weights(student), weights(twin) - torch.cat([p.grad.flatten() for p in twin.parameters()]))


def test_micro_batches_are_the_large_batch():
    students = [new_student(TINY).double() for _ in range(2)]
    for student, parts in zip(students, (1, 4), strict=True):
        loop(IMDNTraining(student, TINY), pairs(dtype=torch.float64), micro_batches=parts).iterate()
    torch.testing.assert_close(weights(students[0]), weights(students[1]), rtol=0, atol=1e-14)
    assert float((weights(students[0]) - weights(new_student(TINY).double())).abs().max()) > 1e-4


def test_resume_is_bitwise(tmp_path):
    adam = OptimizerOptions(lr=1e-3, betas=(0.9, 0.999), halve_every=3)
    options = IMDNOptions(patch=8, blocks=1, student=adam, ema=EmaOptions("constant", 0.9))

    def run(folder, seed=0):
        method, steps = IMDNTraining(new_student(options, seed), options), LoopOptions(9, batch=4, checkpoint_every=4)
        return Loop(method, pairs(), steps, folder=folder, quiet=True)

    whole = run(tmp_path / "whole")
    whole.train()
    stopped = run(tmp_path / "stopped")
    for _ in range(4):
        stopped.iterate()
    stopped.save()
    resumed = run(tmp_path / "stopped", seed=9)
    resumed.restore(load(tmp_path / "stopped" / "checkpoints"))
    resumed.train()
    for get in (lambda m: m.student, lambda m: m.roles["student"].best):
        assert torch.equal(weights(get(whole.method)), weights(get(resumed.method)))
    assert not torch.equal(weights(whole.method.student), weights(new_student(options)))


def test_it_learns_to_repeat_pixels():
    """Real pictures that are the degraded ones with every pixel twice: the error falls to a quarter."""
    generator = torch.Generator().manual_seed(0)
    low = [torch.rand(3, 16, 16, generator=generator) for _ in range(4)]
    source = PicturePairs(low, [x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in low])
    options = IMDNOptions(patch=16, blocks=1, student=OptimizerOptions(lr=8e-3, betas=(0.9, 0.99), decay="cosine"))
    run = loop(IMDNTraining(new_student(options), options), source, iterations=80)
    first = run.iterate()["loss/student"]
    for _ in range(79):
        last = run.iterate()["loss/student"]
    assert last < 0.25 * first
    answer = run.method.restored(low[0][None])
    assert answer.shape == (1, 3, 32, 32) and float(answer.min()) >= 0 and float(answer.max()) <= 1
    assert run.method.student.training
    nearest = F.interpolate(low[0][None], scale_factor=2)
    assert float((answer - nearest).abs().mean()) < 0.08


def test_pairs_of_one_size_train_the_one_for_any_factor():
    low = [torch.rand(3, 16, 16) for _ in range(2)]
    run = loop(IMDNTraining(IMDNAS(16, 1), TINY), PicturePairs(low, low))
    assert run.iterate()["loss/student"] > 0


def test_presets_are_the_papers():
    for scale in (2, 3, 4):
        o = PRESETS[f"paper-x{scale}"]
        assert (o.iterations, o.batch, o.patch, o.nf, o.blocks, o.scale) == (10**6, 16, 192, 64, 6, scale)
        rates = [o.student.lr_at(k, o.iterations) for k in (0, 199_999, 200_000, 999_999)]
        assert rates == [2e-4, 2e-4, 1e-4, 2e-4 / 16]
        assert o.student.betas == (0.9, 0.999) and o.student.weight_decay == 0 and o.ema is None
    entry = METHODS["imdn"]
    assert entry.load()[2] is PRESETS and entry.wing == "restoration" and entry.extra == "restoration"


def test_three_begins_with_two_from_memory_or_a_file(tmp_path):
    two = new_student(TINY, 1)
    three = IMDNOptions(scale=3, patch=9, blocks=1)
    for begin in (two, save_imdn(tmp_path / "x2", two)):
        student = new_student(three, 2, begin)
        assert torch.equal(student.LR_conv.weight, two.LR_conv.weight) and student.upsampler[0].weight.shape[0] == 27
        assert torch.equal(student.upsampler[0].weight, new_student(three, 2).upsampler[0].weight)
    with pytest.raises(LimbeckError, match="holds IMDNAS; an IMDN begins with an IMDN"):
        new_student(three, 2, save_imdn(tmp_path / "as", IMDNAS()))


def test_bad_input_is_named():
    same = [torch.rand(3, 16, 16)]

    def one(student, source, options=TINY):
        return lambda: loop(IMDNTraining(student, options), source).iterate()

    for call, message in (
        (one(new_student(TINY), TensorSource(torch.zeros(6, 3, 8, 8))), "not from a TensorSource: give .*degraded_pairs"),
        (
            one(IMDNAS(16, 1), pairs()),
            r"IMDNAS made \(6, 3, 4, 4\) of \(6, 3, 4, 4\), .* so it is not enlarged; .* already resized",
        ),
        (one(new_student(TINY), PicturePairs(same, same)), "scale is another one than the pairs'"),
        (one(nn.Identity(), pairs()), "none of its parameters"),
        (one(new_student(TINY), pairs(), IMDNOptions(patch=40)), "patch=40 is larger than real picture"),
        (lambda: IMDNOptions(scale=3, patch=16), "patch=16 must be a multiple of scale=3"),
        (lambda: new_student(IMDNOptions(scale=8)), "scale=8: IMDN enlarges by 2, 3 or 4"),
    ):
        with pytest.raises(LimbeckError, match=message):
            call()
