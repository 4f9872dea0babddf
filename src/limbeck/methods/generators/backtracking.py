"""Backtracking: a target that leads from the student back to the teacher (DisBack, arXiv 2408.15991), and its path on disk.

A path's folder: index.json (whose path it is, the losses, the size and sha256 of every file) and one safetensors file per node.
"""

import copy
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.denoisers import Denoiser
from limbeck.errors import LimbeckError
from limbeck.noise import process_config
from limbeck.rules import Target
from limbeck.training import placed
from limbeck.training.durable import discard, sync_folder, verify, write_known, write_synced
from limbeck.training.sealed import Damaged, seal, unseal
from limbeck.training.tensorfile import chunks

Weights = Mapping[str, Tensor]
FORMAT = 1
INDEX = "index.json"


class Degradation:
    """D'_0, D'_1, ..., D'_N: the teacher, and what became of its copy while that learned the first student's samples.

    ``teacher``: D'_0, frozen and in eval mode. ``copy_of``: a module of the copy's make (the critic). ``weights``: those of
    D'_1, ..., D'_N that are trained: of an adapted copy its factors alone. The nodes take turns in one module, ``holder``, which
    shares what is frozen: a new target is new numbers, and needs no new wrapping. Raises LimbeckError for a teacher that is
    not frozen.
    """

    def __init__(self, teacher: Any, copy_of: nn.Module, weights: Sequence[Weights] = ()):
        if isinstance(teacher, nn.Module) and (teacher.training or any(p.requires_grad for p in teacher.parameters())):
            raise LimbeckError("the path's teacher can change: call teacher.requires_grad_(False).eval() first")
        shared = {id(p): p for p in copy_of.parameters() if not p.requires_grad}
        self.teacher, self.weights = teacher, weights
        self.holder: Any = copy.deepcopy(copy_of, shared).requires_grad_(False).eval()
        self._held: Weights | None = None

    def node(self, i: int) -> Denoiser:
        """D'_i; the one before it is overwritten. Raises LimbeckError for a node that is not there yet."""
        if i == 0:
            teacher: Denoiser = self.teacher
            return teacher
        if i > len(self.weights):
            raise LimbeckError(
                f"node {i} of the path is not there: {len(self.weights)} are recorded; degrade the teacher first"
            )
        if self._held is not self.weights[i - 1]:
            self._held = self.weights[i - 1]
            put_weights(self.holder, self._held)
        holder: Denoiser = self.holder
        return holder


class Backtracking:
    """A target: node ``order[j]`` of a path at steps that j ``switches`` have passed (order None: N - 1, ..., 0).

    Raises LimbeckError for an order that is empty or does not end at the teacher, node 0, and for switches that do not
    increase or are not one fewer than the nodes.
    """

    def __init__(self, path: Degradation, switches: Sequence[int], order: Sequence[int] | None = None):
        order = range(len(path.weights) - 1, -1, -1) if order is None else order
        self.path, self.switches, self.order = path, list(switches), list(order)
        if not self.order or self.order[-1] != 0:
            found = f"ends at node {self.order[-1]}" if self.order else "is empty"
            raise LimbeckError(f"the path {found}, not at the teacher, node 0; add it")
        if len(self.switches) != len(self.order) - 1 or self.switches != sorted(set(self.switches)):
            raise LimbeckError(
                f"{len(self.order)} targets need {len(self.order) - 1} increasing steps to switch at, not {self.switches}"
            )

    def index(self, step: int) -> int:
        """The number of the node that is the target at a step."""
        return self.order[bisect_right(self.switches, step)]

    def __call__(self, step: int) -> Denoiser:
        return self.path.node(self.index(step))


def retarget(host: Any, target: Target) -> None:
    """Let a score distillation's rule pull towards target(step) in its teacher's place. Raises LimbeckError if it has none."""
    if not callable(getattr(host.rule, "target", None)):
        raise LimbeckError(
            f"the rule of {type(host).__name__}, a {type(host.rule).__name__}, has no 'target' that could be another; "
            "give it one (limbeck.rules.fixed_target)"
        )
    host.rule.target = target


def chosen_nodes(losses: Sequence[float], every: int, count: int, spacing: str) -> list[int]:
    """Which ``count`` of the copies recorded after every ``every`` losses are nodes, increasing; the last is always one.

    "iteration": equally many iterations apart. "loss": where the loss (its mean since the copy before, and never rising) has
    first fallen by each of ``count`` equal parts: a path that falls steeply at first has its nodes there.
    """
    recorded = len(losses) // every
    if spacing == "iteration":
        return [round(recorded * j / count) - 1 for j in range(1, count + 1)]
    fallen = torch.tensor(losses, dtype=torch.float64)[: recorded * every].view(recorded, every).mean(1).cummin(0).values
    first, last = losses[0], float(fallen[-1])
    nodes: list[int] = []
    for j in range(1, count):
        reached = int((fallen > first - (first - last) * j / count).sum())
        least = nodes[-1] + 1 if nodes else 0
        nodes.append(min(max(reached, least), recorded - 1 - (count - j)))
    return [*nodes, recorded - 1]


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what a module trains, and of its buffers, by name."""
    held = {n for n, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {n: v.detach().clone() for n, v in module.state_dict().items() if n not in held}


def put_weights(module: nn.Module, weights: Weights) -> None:
    """Write weights that :func:`trained_weights` took into a module of the same make; what it shares is not touched."""
    own = module.state_dict()
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(placed(value, own[name]))


def fingerprint(denoiser: Any, *facts: Any) -> str:
    """The sha256 of a denoiser's make, process and weights, and of further facts."""
    try:
        process: Any = process_config(denoiser.process)
    except LimbeckError:  # a process of the person's own
        process = type(denoiser.process).__name__
    declared = [getattr(denoiser, name, None) for name in ("prediction", "sigma_data", "noise_input")]
    digest = sha256(repr([type(denoiser).__name__, process, declared, *facts]).encode())
    for name, value in denoiser.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def record_path(folder: Path | str, path: Degradation, losses: Sequence[float], student: str) -> None:
    """Write a path; ``losses`` of the degradation, ``student``: the fingerprint of the student whose samples it learned.

    A path of the same teacher and student is replaced. Raises LimbeckError where the folder holds another one.
    """
    folder, teacher = Path(folder), fingerprint(path.teacher)
    if (folder / INDEX).is_file():
        old = _index(folder)
        if (old["teacher"], old["student"]) != (teacher, student):
            raise LimbeckError(f"{folder} holds the path of another teacher or student; choose another folder")
        discard(folder / INDEX)  # without it the folder is no path until the new one is whole
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for i, weights in enumerate(path.weights, 1):
        name = f"node-{i:03}.safetensors"
        discard(folder / name)
        files[name] = write_known(write_synced, folder / name, chunks(dict(weights)))
    facts = {"format": FORMAT, "teacher": teacher, "student": student, "losses": [float(v) for v in losses]}
    write_synced(folder / INDEX, [seal({**facts, "order": "from the teacher on", "nodes": files})])
    sync_folder(folder)


def load_path(
    folder: Path | str, teacher: Any, copy_of: nn.Module, student: str | None = None
) -> tuple[list[Weights], list[float]]:
    """(weights of the nodes D'_1, ..., D'_N, losses of the degradation) for this teacher, checked byte by byte.

    ``copy_of``: a module of the nodes' make; ``student``: the fingerprint of the first student (None: any). Raises LimbeckError
    for a folder without a path, a damaged one, another teacher's or student's, and names or shapes that are not the copy's.
    """
    folder, index = Path(folder), _index(Path(folder))
    for whose, found, wanted in (("teacher", index["teacher"], fingerprint(teacher)), ("student", index["student"], student)):
        if wanted is not None and found != wanted:
            raise LimbeckError(
                f"{folder} is the path of another {whose} (sha256 {found[:12]}..., this one's is {wanted[:12]}...); "
                "record one for this, or give back what it was made with"
            )
    if not index["nodes"]:
        raise LimbeckError(f"the path in {folder} is empty; record it again")
    own = trained_weights(copy_of)
    nodes: list[Weights] = []
    for name, facts in index["nodes"].items():
        try:
            verify(folder / name, facts)
        except Damaged as error:
            raise LimbeckError(f"the path in {folder} is damaged: {error}; record it again") from None
        nodes.append(load_file(folder / name))
        _check_fits(folder / name, nodes[-1], own)
    return nodes, [float(v) for v in index["losses"]]


def _index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        raise LimbeckError(f"there is no path in {folder}: {INDEX} is missing; record one there with the option 'record'")
    try:
        return unseal((folder / INDEX).read_bytes(), FORMAT, {})
    except Damaged as error:
        raise LimbeckError(f"the path in {folder} is damaged: {INDEX} {error}; record it again") from None


def _check_fits(file: Path, found: Weights, wanted: Weights) -> None:
    missing, unexpected = ([n for n in a if n not in b][:5] for a, b in ((wanted, found), (found, wanted)))
    if missing or unexpected:
        raise LimbeckError(
            f"{file} does not fit the teacher's copy: missing {', '.join(missing) or 'nothing'}; "
            f"unexpected {', '.join(unexpected) or 'nothing'}"
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise LimbeckError(f"{file}: {name} has shape {tuple(value.shape)}, the teacher's copy {tuple(wanted[name].shape)}")
