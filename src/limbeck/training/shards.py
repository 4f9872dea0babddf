"""Roles whose weights are split over the ranks: FSDP2's `fully_shard`, applied from outside."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from limbeck.errors import LimbeckError
from limbeck.training.method import Method
from limbeck.training.parallel import copies
from limbeck.training.role_options import EIGHT_BIT
from limbeck.training.tensorfile import is_split, whole

LISTS = (nn.ModuleList, nn.ModuleDict)


def shard(method: Method, device: str, size: int) -> None:
    """Split the weights of all roles, and of their averages, over all ranks.

    Parameters are whole only while their unit runs forward or backward: between, a module's parameters are always its shards,
    also those that an optimizer or :func:`limbeck.rules.frozen` sees. Raises LimbeckError for what cannot be split.
    """
    if method.whole:
        raise LimbeckError(
            f"the weights of {type(method).__name__} cannot be split over processes: {method.whole}; use --parallel replicate"
        )
    for name, role in method.roles.items():
        if role.optimizer is not None and role.optimizer.kind in EIGHT_BIT:
            raise LimbeckError(
                f"the optimizer {role.optimizer.kind!r} of the role {name!r} counts in blocks of whole weights; use kind=adam, or "
                "--parallel replicate"
            )
    trees = copies(method)
    _check_apart(trees)
    mesh = init_device_mesh(device, (size,))
    for module in trees.values():
        if isinstance(module, FSDPModule) or not any(True for _ in module.parameters()):
            continue
        for unit in units(module):
            if not isinstance(unit, FSDPModule):
                fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def units(module: nn.Module) -> list[nn.Module]:
    """The parts that are gathered one at a time: the members of lists, and what stands beside the lists."""
    found: list[nn.Module] = []
    for child in module.children():
        holds_lists = any(isinstance(m, LISTS) for m in child.modules())
        if isinstance(child, LISTS) or (holds_lists and not isinstance(module, LISTS)):
            found += units(child)
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """The module's parameters are whole inside, to be read and not to run. All ranks go in and out together."""
    held = [(m, name, p) for m in module.modules() for name, p in m.named_parameters(recurse=False) if is_split(p)]
    for m, name, p in held:
        m._parameters[name] = nn.Parameter(whole(p.detach()), requires_grad=False)
    try:
        yield
    finally:
        for m, name, p in held:
            m._parameters[name] = p


def _check_apart(trees: dict[str, nn.Module]) -> None:
    owners: dict[int, str] = {}
    for label, module in trees.items():
        for name, p in module.named_parameters():
            if (other := owners.setdefault(id(p), label)) != label:
                raise LimbeckError(
                    f"the roles {other!r} and {label!r} share weights ({name}, ...), as adapters on one base do, and what is split "
                    "over processes has one owner; use --parallel replicate, or train all weights (ranks of adapters 0)"
                )
