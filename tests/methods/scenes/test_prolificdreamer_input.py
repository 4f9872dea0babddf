"""What variational score distillation into scenes refuses, and how it says so."""

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.methods.scenes.options import SceneOptions
from limbeck.methods.scenes.prolificdreamer import PRESETS
from limbeck.training.failure import NonFiniteError


@pytest.mark.parametrize(
    "options, message",
    [
        ({"particles": 0}, "particles=0: there must be at least 1 scene"),
        ({"particles": 3, "batch": 4}, "batch=4 renders cannot be shared out to 3 particles.*or update='one'"),
        ({"early": (0.98, 0.02)}, r"early=\(0.98, 0.02\): times are shares of the schedule, 0 <= low < high <= 1"),
        ({"late": (-0.1, 0.5)}, r"late=\(-0.1, 0.5\): times are shares"),
        ({"critic_times": (0.5, 1.5)}, r"critic_times=\(0.5, 1.5\)"),
        ({"late_from": 5000}, "late_from=5000 must lie in .*share of the run, not an iteration"),
        ({"critic_drop": 1.5}, "critic_drop=1.5 must lie in"),
        ({"sparsity": -1.0}, "sparsity=-1, opaque=0 and entropy=0: weights must not be negative"),
        (
            {"critic_kind": "network", "critic_steps": 0},
            "critic_steps=0 and critic.lr=0.001: the score .* never be learned.*diverge",
        ),
        ({"critic_kind": "exact", "update": "one", "particles": 2}, "needs the renders of all particles.*update='all'"),
        ({"critic_kind": "dirac", "critic_guidance": 0.5}, "the noise itself has no version without the camera"),
        (
            {"critic_kind": "network", "critic_guidance": 0.5, "critic_drop": 0.0},
            "critic_guidance=0.5 with critic_drop=0: the score without the camera was never trained",
        ),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(LimbeckError, match=message):
        SceneOptions(**options)


def test_a_critic_that_does_not_learn():
    from limbeck.training import OptimizerOptions

    with pytest.raises(LimbeckError, match="critic.lr=0: the score of the renders would never be learned"):
        SceneOptions(critic_kind="adapters", critic=OptimizerOptions(lr=0.0))


def test_a_guidance_of_sds_with_a_critic_warns(recwarn):
    SceneOptions(critic_kind="dirac", guidance=100.0)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="guidance=100 is what SDS needs; with a critic of the renders 7.5 is usual"):
        SceneOptions(guidance=100.0)


def test_every_preset_is_sound(recwarn):
    assert all(isinstance(options, SceneOptions) for options in PRESETS.values()) and not recwarn.list


def test_renders_that_are_not_what_the_teacher_knows(tiny):
    method = tiny.make(tiny.task(encode=lambda x: x[:, :1]))
    with pytest.raises(
        LimbeckError, match=r"renders of \(3, 4, 4\) become \(1, 4, 4\), but the teacher's data are \(3, 4, 4\)"
    ):
        tiny.yields(method, tiny.batch(method))


def test_cameras_that_are_no_rigid_motion(tiny):
    from dataclasses import replace

    def flat(u, step):
        good = tiny.task().cameras(u, step)
        return replace(good, c2w=good.c2w * torch.tensor([1.0, 1.0, 0.0, 1.0])[:, None])

    method = tiny.make(tiny.task(cameras=flat))
    with pytest.raises(LimbeckError, match="camera 0 is no rigid motion"):
        tiny.yields(method, tiny.batch(method))


def test_a_gradient_that_is_not_finite_stops_the_run(tiny):
    class Torn(tiny.Blob):
        def forward(self, cameras, background=0.0):
            seen = super().forward(cameras, background)
            seen.rgb = seen.rgb + torch.sqrt((self.base - self.base.detach()).square()).sum()  # value 0, gradient nan
            return seen

    run = tiny.loop(tiny.make(tiny.task(scene=Torn)))
    with pytest.raises(NonFiniteError, match="gradient norm of the role 'student' is nan at step 0"):
        run.iterate()


def test_entropy_of_scenes_without_rays(tiny):
    method = tiny.make(entropy=1.0)
    with pytest.raises(LimbeckError, match="entropy=1 is of samples on rays, which these scenes have not"):
        tiny.yields(method, tiny.batch(method))


def test_adapters_on_a_teacher_without_a_network(tiny):
    with pytest.raises(LimbeckError, match="no parameters to train"):
        tiny.make(critic_kind="adapters")


def test_a_network_that_cannot_be_told_the_camera(tiny):
    with pytest.raises(LimbeckError, match="where a Linear could be told the camera is not known"):
        tiny.make(tiny.task(network=lambda: nn.Linear(2, 2)), critic_kind="network")
