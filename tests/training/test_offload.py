"""Offload: idle roles are away, those at work are there, and the numbers are the same bit for bit."""

import pytest
import torch

from limbeck.methods import find
from limbeck.methods.generators.generator import make_method
from limbeck.tasks import build_task
from limbeck.training import Loop, LoopOptions, checkpoint_roles
from limbeck.training.checkpoints import load
from limbeck.training.offload import Offload
from limbeck.training.options import merged_options

AWAY = torch.device("meta")  # a name for the idle place; nothing is stored there


class Mover:
    """Its idle place really is away: what was moved there reads as not-a-number until it is moved back."""

    def __init__(self):
        self.kept = {}
        self.there = 0

    def __call__(self, tensor, device):
        if device == AWAY:
            absent = torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else torch.full_like(tensor, -1)
            self.kept[absent.data_ptr()] = tensor.detach().clone()
            self.there -= tensor.nbytes
            return absent
        self.there += tensor.nbytes
        return self.kept.pop(tensor.data_ptr())


METHODS = {
    "dmd": ("dmd", {}),
    "dmd with a discriminator": ("dmd", {"gan_weight": 0.1, "critic_steps": 2}),
    "dmd with adapters": ("dmd", {"student_rank": 2, "critic_rank": 2}),
    "sid": ("sid", {}),
    "ct": ("ict", {}),
}


def make(tiny_task, kind, mover=None, checkpointing=False, folder=None, micro_batches=1):
    name, over = METHODS[kind]
    cls, _, presets = find(name).load()
    options = merged_options(presets["recommended"], {"iterations": 6, "batch": 8, **over})
    task = build_task(tiny_task)
    method = make_method(cls, options, task, 0)
    if checkpointing:
        checkpoint_roles(method.roles)
    loop = Loop(method, task.source, LoopOptions(options.iterations, 8, micro_batches, log_every=1), folder=folder, quiet=True)
    if mover is not None:
        loop.residence = Offload(method.roles, loop.trained, "cpu", mover, AWAY)
    return loop


def present(loop):
    """All tensors of the loop's state, brought back."""
    if isinstance(loop.residence, Offload):
        loop.residence.fetch(*loop.residence.modules)
        for name in loop.trained:
            loop.residence._move_state(name, loop.residence.device)
    tensors = loop.state()[0]
    return {f"{g}/{n}": v.clone() for g, named in tensors.items() if g != "rng" for n, v in named.items()}


def assert_same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def owned(loop):
    """Bytes of weights and averages, a shared base counted once."""
    found = {id(t): t.nbytes for m in loop.residence.modules.values() for t in [*m.parameters(), *m.buffers()]}
    return sum(found.values())


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("pieces", [1, 2])
def test_results_are_the_same_bitwise_though_idle_weights_are_unreadable(tiny_task, kind, pieces):
    plain, away = make(tiny_task, kind, micro_batches=pieces), make(tiny_task, kind, Mover(), micro_batches=pieces)
    for _ in range(4):
        assert plain.iterate() == away.iterate()
        assert not away.residence.resident
    assert_same(present(plain), present(away))


def test_checkpointed_blocks_are_computed_again_while_their_weights_are_there(tiny_task):
    plain, away = make(tiny_task, "sid"), make(tiny_task, "sid", Mover(), checkpointing=True)
    for _ in range(4):
        assert plain.iterate() == away.iterate()
    assert_same(present(plain), present(away))


def residents(loop, calls):
    """(role called, roles at work) at every call, as iterations go by."""
    for name, module in loop.residence.modules.items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append((name, frozenset(loop.residence.resident))))
    return calls


def test_a_role_is_there_from_its_first_call_until_its_update(tiny_task):
    loop = make(tiny_task, "dmd", Mover())
    total = owned(loop)
    assert loop.residence.move.there == -total  # nothing is there before the first call
    calls = residents(loop, [])
    loop.iterate()
    assert calls[0] == ("student", {"student"})
    assert {name for name, _ in calls[1:-1]} == {"teacher", "critic"} and "student.ema" not in {name for name, _ in calls}
    assert calls[-1] == ("critic", {"critic"})  # its own update: student and teacher were sent away
    state = sum(v.nbytes for t in loop.trained.values() for s in t.optimizer.state.values() for v in s.values())
    assert loop.residence.move.there == -total - state and state > 0  # optimizer state too, made at the first step


def test_a_frozen_role_that_a_later_loss_goes_through_stays(tiny_task):
    loop = make(tiny_task, "dmd with a discriminator", Mover())
    calls = residents(loop, [])
    loop.iterate()
    first, last = [n for n, _ in calls].index("discriminator"), len(calls) - 1
    assert all("teacher" in there for _, there in calls[first + 1 : last + 1])


def test_a_shared_base_leaves_with_the_last_role_that_uses_it(tiny_task):
    loop = make(tiny_task, "dmd with adapters", Mover())
    base = {id(p) for p in loop.method.roles["teacher"].module.parameters()}
    loop.residence.fetch("student", "critic")
    loop.residence.waiting.add("critic")
    loop.residence.release(["student"])
    assert loop.residence.resident == {"critic"}
    assert all(torch.isfinite(p).all() for p in loop.method.roles["critic"].module.parameters())
    gone = [p for p in loop.method.roles["student"].module.parameters() if id(p) not in base]
    assert gone and all(torch.isnan(p).all() for p in gone)


def test_samples_are_drawn_from_idle_averages(tiny_task):
    z, cond = torch.ones(2, 1, 4, 4), {"label": torch.tensor([0, 1])}
    plain, away = make(tiny_task, "sid"), make(tiny_task, "sid", Mover())
    for loop in (plain, away):
        loop.iterate()
    a, b = (loop.method.sampler()(z, cond) for loop in (plain, away))
    assert torch.equal(a, b) and bool(torch.isfinite(a).all())


def test_on_the_cpu_it_changes_nothing_and_resumes_bitwise(tiny_task, tmp_path):
    plain, first = make(tiny_task, "sid"), make(tiny_task, "sid", folder=tmp_path)
    first.residence = Offload(first.method.roles, first.trained, "cpu")
    for _ in range(3):
        plain.iterate(), first.iterate()
    first.save()
    second = make(tiny_task, "sid", folder=tmp_path)
    second.residence = Offload(second.method.roles, second.trained, "cpu")
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(3):
        assert plain.iterate() == second.iterate()
    assert_same(present(plain), present(second))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_idle_roles_are_on_the_cpu_and_results_are_the_same(tiny_task):
    loops = []
    for offload in (False, True):
        task = build_task(tiny_task, device="cuda")
        cls, _, presets = find("sid").load()
        method = make_method(cls, presets["recommended"], task, 0)
        loops.append(Loop(method, task.source, LoopOptions(6, 8), device="cuda", offload=offload, quiet=True))
    for _ in range(4):
        assert loops[0].iterate() == loops[1].iterate()
    assert {p.device.type for m in loops[1].residence.modules.values() for p in m.parameters()} == {"cpu"}
    a, b = (loop.state()[0] for loop in loops)
    for group in ("student", "student.ema", "student.optimizer", "critic"):
        assert all(torch.equal(v.cpu(), b[group][n].cpu()) for n, v in a[group].items())
