import pytest
import torch

from limbeck.training.checkpoints import save


class Run:
    """Checkpoints whose content follows from their step."""

    @staticmethod
    def state(step):
        torch.manual_seed(step)
        return {
            "student": {"net.weight": torch.randn(3, 4), "net.bias": torch.randn(4).bfloat16()},
            "student.optimizer": {
                "net.weight/exp_avg": torch.randn(3, 4),
                "net.weight/step": torch.tensor(step),
            },
        }

    @staticmethod
    def meta(step):
        return {"lr": 0.1 * step, "schedule": ["cosine", None, {"warm": True}], "place": step * 2**40}

    @staticmethod
    def saved(folder, *steps, **options):
        for step in steps:
            save(folder, step, Run.state(step), Run.meta(step), keep=9, **options)
        return folder

    @staticmethod
    def is_step(checkpoint, step):
        expected = Run.state(step)
        return (
            checkpoint.step == step
            and checkpoint.meta == Run.meta(step)
            and checkpoint.tensors.keys() == expected.keys()
            and all(
                checkpoint.tensors[group].keys() == named.keys()
                and all(
                    torch.equal(checkpoint.tensors[group][n], t) and checkpoint.tensors[group][n].dtype == t.dtype
                    for n, t in named.items()
                )
                for group, named in expected.items()
            )
        )

    @staticmethod
    def names(folder):
        return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run():
    return Run
