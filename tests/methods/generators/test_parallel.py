"""Every system on two processes against one with the whole batch, with all weights in each or split between them."""

from dataclasses import replace

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.training import ALONE, Loop, LoopOptions, OptimizerOptions, TensorSource, launched

SGD = OptimizerOptions(lr=1e-2, kind="sgd")
RATES = {"student": SGD, "critic": SGD, "discriminator": SGD}
GAN = {"gan_weight": 0.1}
CRITIC_GAN = {**GAN, "gan_on": "critic", "gan_head": "mean", "gan_time": "shared", "gan_paired": True}
BOTH = {
    "dmd": ("dmd", {"sigmas": (5.0, 1.0)}),
    "dmd, adversary on the teacher": ("dmd", {**GAN, "gan_r1": 0.1}),
    "sid": ("sid", {}),
    "sida": ("sid", {**CRITIC_GAN, "gan_scale": "batch"}),
    "sim": ("sim", {}),
    "f-distill": ("f-distill", {**GAN, "ratio_bins": 3}),
    "tdm": ("tdm", {}),
    "phased dmd": ("phased-dmd", {}),
    "compose": ("compose", {"rule": "vsd", "producer": "chain", "sigmas": (5.0, 1.0)}),
    "disback": ("disback", {"degrade": 2, "every": 1, "interval": 1, "nodes": 2}),
    "ict": ("ict", {"s1": 8}),
    "ect": ("ict", {"schedule": "ect", "start": "teacher", "c": 0.0}),
    "rcm": ("rcm", {"cycle": 2}),
    "scm": ("rcm", {"dmd_weight": 0.0}),
    "hyper-sd": ("hyper-sd", {}),
    "sfd": ("sfd", {"forget": ("0=1",)}),
}
REPLICATED = {
    "dmd, adapters": ("dmd", {"student_rank": 2, "critic_rank": 2}),
    "swiftbrush": ("swiftbrush", {}),
    "pso": ("pso", {"sigmas": (5.0, 1.0, 0.2), "reward": "height", "rank": 2}),
    "snoopi": ("snoopi", {}),
    "ct": ("ict", {"target": "ema", "distance": "l2", "weight": "one", "s1": 8}),
}


def made(tiny, name, options):
    from limbeck.methods import find

    cls, options_class, _ = find(name).load()
    known = options_class.__dataclass_fields__
    parts = tiny.ingredients()
    if name == "pso":
        parts = replace(parts, start=tiny.teacher(seed=1), rewards={"height": lambda x, cond: x[:, 1]})
    torch.manual_seed(3)
    return cls(parts, options_class(**{"iterations": 6, **{n: r for n, r in RATES.items() if n in known}, **options}))


def whole(value):
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def trained(tiny, case, world=ALONE, steps=4):
    """Every gradient that is applied in the first iterations, of seven samples, and the state after them."""
    loop, seen = Loop(made(tiny, *case), TensorSource(*tiny.data()), LoopOptions(6, 7), quiet=True, world=world), []
    for name, role in loop.trained.items():
        keep = lambda *_, n=name, r=role: seen.append((n, [None if p.grad is None else whole(p.grad) for p in r.params]))  # noqa: E731
        role.optimizer.register_step_pre_hook(keep)
    for _ in range(steps):
        loop.iterate()
    tensors, _ = loop.state()
    return seen, {f"{g}.{n}": whole(v) for g, named in tensors.items() for n, v in named.items() if g != "rng"}


def compare(tiny, cases, way, ranks, steps=4):
    def work():
        with launched("cpu", way) as world:
            return {name: trained(tiny, case, world, steps) for name, case in cases.items()}

    mine, theirs = ranks(2, work)
    for name, case in cases.items():
        (seen, after), (expected, expected_after) = mine[name], trained(tiny, case, steps=steps)
        assert [role for role, _ in seen] == [role for role, _ in expected], name
        for (role, left), (_, right) in zip(seen, expected, strict=True):
            for a, b in zip(left, right, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=lambda text, n=(name, role): f"{n}: {text}")
        assert max(float(g.abs().max()) for _, grads in expected for g in grads if g is not None) > 1e-3, name
        assert after.keys() == expected_after.keys()
        for key, value in after.items():
            torch.testing.assert_close(value, expected_after[key], rtol=1e-8, atol=1e-10)
            assert torch.equal(value, theirs[name][1][key]), (name, key)


def test_dmd_and_f_distill_on_two_processes(tiny, ranks):
    compare(tiny, {name: BOTH[name] for name in ("dmd", "f-distill")}, "replicate", ranks, steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["replicate", "shard"])
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_all_systems_on_two_processes(way, tiny, ranks):
    compare(tiny, BOTH if way == "shard" else {**BOTH, **REPLICATED}, way, ranks)


@pytest.mark.parametrize(
    "name, message",
    [
        ("dmd, adapters", "share weights .* as adapters on one base do.*use --parallel replicate"),
        ("ct", "the weights of ICT cannot be split over processes: the average that is its target is no role of its own"),
    ],
)
def test_what_cannot_be_split_says_so(name, message, tiny, ranks):
    def work():
        with launched("cpu", "shard") as world, pytest.raises(LimbeckError, match=message):
            trained(tiny, REPLICATED[name], world)

    ranks(2, work)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_what_methods_keep_beside_their_roles_is_whole_on_disk_and_split_again(tiny, ranks, tmp_path):
    from limbeck.training.checkpoints import load

    names = ("disback", "hyper-sd", "phased dmd")

    def loop(world, name, iterations, folder=None):
        options = LoopOptions(iterations, 6, checkpoint_every=1)
        return Loop(made(tiny, *BOTH[name]), TensorSource(*tiny.data()), options, folder=folder, quiet=True, world=world)

    def begin():
        with launched("cpu", "shard") as world:
            for name in names:
                loop(world, name, 4, tmp_path / name).train()

    def go_on():
        found = {}
        with launched("cpu", "shard") as world:
            for name in names:
                resumed = loop(world, name, 6)
                resumed.restore(load(tmp_path / name / "checkpoints"))
                resumed.train()
                found[name] = {f"{g}.{n}": whole(v) for g, t in resumed.state()[0].items() for n, v in t.items() if g != "rng"}
        return found

    ranks(2, begin)
    found = ranks(2, go_on)[0]
    for name in names:
        uncut = loop(ALONE, name, 6)
        uncut.train()
        for group, named in uncut.state()[0].items():
            for key, value in named.items():
                if group not in ("rng", "watch"):  # alarms hear root mean squares, which are those of a rank's part
                    torch.testing.assert_close(found[name][f"{group}.{key}"], value, rtol=1e-8, atol=1e-10)
