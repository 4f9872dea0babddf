"""The loop: drives a method's generators, and alone owns backward, clipping, optimizers, averages, checkpoints and signals."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, unknown
from limbeck.training import allocator, checkpoints
from limbeck.training.diagnostics import Watch
from limbeck.training.failure import NotFinite, interrupted, non_finite
from limbeck.training.loop_options import LoopOptions
from limbeck.training.method import Batch, Method, Source, Step, Total, Update
from limbeck.training.offload import Offload, Resident
from limbeck.training.optimizers import Trained
from limbeck.training.parallel import ALONE, Figures, World
from limbeck.training.progress import Progress
from limbeck.training.rng import restore_rng, rng_state
from limbeck.training.signals import noted_signals
from limbeck.training.tracking import Tracker


class Loop:
    """Trains a method. Bitwise reproducible from (seed, options) and from any of its checkpoints on the same torch build.

    ``folder``: the run's folder for checkpoints and metrics (None: keep nothing on disk). ``evaluate``: figures of the
    student, called every ``evaluate_every`` iterations and at the end; ``best`` names the figure (lower is better) whose
    best checkpoint is kept. ``track``: names of trackers (:func:`check_trackers`; None: TensorBoard if it is installed).
    ``world``: the processes that share the batch (:func:`limbeck.training.launched`).
    """

    def __init__(
        self,
        method: Method,
        source: Source,
        options: LoopOptions,
        *,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
        evaluate: Callable[[int], Figures] | None = None,
        best: str | None = None,
        track: Sequence[str] | None = (),
        meta: Mapping[str, Any] | None = None,
        quiet: bool = False,
        world: World = ALONE,
        offload: bool = False,
    ):
        self.method, self.source, self.options, self.folder = method, source, options, folder
        self.device = torch.device(device)
        self.evaluate, self.best, self.track = evaluate, best, track
        self.meta, self.quiet, self.world = dict(meta or {}), quiet or not world.writes, world
        self.step, self.seconds, self.best_value = 0, 0.0, math.inf
        self.best_step: int | None = None
        self.history: list[tuple[int, Figures]] = []
        self.watch, self.messages = Watch(), list[str]()
        if offload and world.sharded:
            raise LimbeckError("--parallel shard splits what --offload would move away; take one of them")
        world.adopt(method)  # before parameters are captured: they may be split
        self.trained = {name: Trained.of(name, role) for name, role in method.roles.items() if role.trained}
        self.residence = Offload(method.roles, self.trained, self.device) if offload else Resident()
        self._signal: int | None = None
        self._restored = False

    # -- one iteration ------------------------------------------------------------------------------------------------

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of an iteration; those of all are the samples that one large batch would have."""
        size, draws = self.options.batch, self.method.draws
        index = step * draws * size + torch.arange(size)
        pieces = torch.tensor_split(self.world.share(index, self.options.micro_batches), self.options.micro_batches)
        return [Batch(self.source, self.options.seed, step, piece, self.device, size) for piece in pieces]

    def iterate(self) -> Figures:
        """Run one iteration of the method, all micro-batches in lockstep; returns its figures."""
        self.world.begin(self.options.seed, self.step)
        batches = self.batches(self.step)
        shares = [b.size / self.options.batch for b in batches]
        steps = [self.method.step(b) for b in batches]
        reply: Tensor | None = None
        figures: Figures = {}
        logs: Figures = {}
        updated: set[str] = set()
        while True:
            yields: list[Update | Total | None] = []
            for generator, share in zip(steps, shares, strict=True):
                yields.append(y := self._advance(generator, reply))
                if isinstance(y, Update):
                    self._backward(y, share)
            kinds = {(type(y), getattr(y, "roles", None)) for y in yields}
            if len(kinds) != 1:
                raise LimbeckError(f"micro-batches of {type(self.method).__name__} left lockstep: they yielded {kinds}")
            first, reply = yields[0], None
            if first is None:
                break
            if isinstance(first, Total):
                reply = self.world.total(torch.stack([y.value.detach() for y in yields if isinstance(y, Total)]).sum(0))
                continue
            updates = [y for y in yields if isinstance(y, Update)]
            for name in _names(first):
                figures |= self._apply(name, sum(float(y.loss.detach()) * w for y, w in zip(updates, shares, strict=True)))
                updated.add(name)
            self.residence.release(_names(first))
            for key in first.logs:
                logs[key] = sum(float(y.logs[key]) * w for y, w in zip(updates, shares, strict=True))
        self.residence.release()
        self.method.finish(self.step)
        self.step += 1
        for name in updated:
            with self.residence.averaging(name):
                self.trained[name].role.update_ema(self.step)
        return figures | self.world.agree(logs, self._signal)

    def _advance(self, generator: Step, reply: Tensor | None) -> Update | Total | None:
        grad, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled(self.device.type)
        try:
            result = generator.send(reply)
        except StopIteration:
            return None
        except NotFinite as error:
            self._fail(error.role, error.quantity, error.value)
        if torch.is_grad_enabled() != grad or torch.is_autocast_enabled(self.device.type) != autocast:
            generator.close()
            raise LimbeckError(
                f"{type(self.method).__name__}.step yielded inside no_grad or autocast, which would leak into the loop; "
                "close the block before the yield"
            )
        return result

    def _backward(self, update: Update, share: float) -> None:
        for name in _names(update):
            if name not in self.trained:
                raise unknown("trained role", name, self.trained)
        if self.world.size == 1 and not bool(torch.isfinite(update.loss)):  # several find out together, from the sum
            self._fail(_names(update)[0], "loss", float(update.loss.detach()))
        params: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, trained in self.trained.items():
            (params if name in _names(update) else others).extend(trained.params)
        if not update.loss.requires_grad:
            raise LimbeckError(
                f"the loss yielded for {update.roles!r} does not depend on its parameters; does its network run under no_grad?"
            )
        self.world.backward(update.loss * share, params, others)

    def _apply(self, name: str, loss: float) -> Figures:
        trained = self.trained[name]
        options = trained.role.optimizer
        assert options is not None
        grads, norm, loss = self.world.gradients(trained.params, loss)
        length = float(norm)
        for quantity, value in (("loss", loss), ("gradient norm", length)):
            if not math.isfinite(value):
                self._fail(name, quantity, value)
        if options.clip is not None and grads:
            torch._foreach_mul_(grads, (options.clip / (norm + 1e-6)).clamp(max=1.0))
        if options.clip_value is not None:
            for grad in grads:
                grad.clamp_(-options.clip_value, options.clip_value)
        if self.step in options.anew:
            trained.optimizer.state.clear()
        lr = options.lr_at(self.step, self.options.iterations)
        for group in trained.optimizer.param_groups:
            group["lr"] = lr * group.get("rate", 1.0)  # a rehearsal's have none
        with self.residence.applying(name):
            trained.optimizer.step()
        trained.optimizer.zero_grad(set_to_none=True)
        return {f"loss/{name}": loss, f"grad_norm/{name}": length, f"lr/{name}": lr}

    def _fail(self, role: str, quantity: str, value: float) -> NoReturn:
        raise non_finite(self.folder, role, self.step, quantity, value, self.world.writes)

    # -- state --------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Everything the next iteration depends on: tensors by group and name, and JSON-able facts."""
        tensors: dict[str, dict[str, Tensor]] = {"rng": rng_state(), "watch": self.watch.state()}
        tensors["method"] = self.method.state()
        for name, trained in self.trained.items():
            tensors |= trained.tensors(name)
        best = None if math.isinf(self.best_value) else self.best_value
        facts = {
            "seconds": self.seconds,
            "best": best,
            "best_step": self.best_step,
            "torch": str(torch.__version__),
            "messages": self.messages,
            "history": [list(h) for h in self.history],
            **self.meta,
        }
        return tensors, facts

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Continue after a checkpoint. Raises LimbeckError where its roles or parameters are not this method's."""
        tensors = checkpoint.tensors
        for name, trained in self.trained.items():
            if name not in tensors:
                raise unknown("role in the checkpoint", name, [k for k in tensors if "." not in k])
            trained.load(name, tensors)
        self.method.load_state(tensors["method"])
        self.step, self.seconds = checkpoint.step, float(checkpoint.meta["seconds"])
        self.best_value = math.inf if checkpoint.meta["best"] is None else checkpoint.meta["best"]
        self.best_step = checkpoint.meta.get("best_step")
        self.watch.load_state(tensors.get("watch", {}))
        self.messages = list(checkpoint.meta.get("messages", []))
        self.history = [(int(step), dict(figures)) for step, figures in checkpoint.meta["history"]]
        restore_rng(tensors["rng"])
        self._restored = True
        if self.folder is not None and self.world.writes:
            if self.best_step == self.step:  # the run may have died before best.json said so
                checkpoints.mark_best(self.folder / "checkpoints", self.step)
            # later ones, damaged, would be "last" again
            checkpoints.rewind(self.folder / "checkpoints", self.step, self.options.keep)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of this step, if the run has a folder. All processes take part, and go on once it is there."""
        if self.folder is None:
            return
        self.world.check_equal(self.method, self.step)
        tensors, meta = self.state()
        if self.world.writes:
            checkpoints.save(self.folder / "checkpoints", self.step, tensors, meta, keep=self.options.keep, best=best)
        else:
            checkpoints.take_part(tensors)
        self.world.wait()

    # -- the run ------------------------------------------------------------------------------------------------------

    def train(self, title: str = "") -> None:
        """Run to the last iteration. SIGINT and SIGTERM end the run between two iterations with a checkpoint."""
        allocator.keep_freed_memory()
        options = self.options
        title, total = title or f"distil {type(self.method).__name__}", options.iterations
        tracker = None
        if self.folder is not None and self.world.writes:
            tracker = Tracker(self.folder, self.track, resume_from=self.step if self._restored else None)
        if self.step == 0:
            self.save()
        bar = Progress(title, total, self.step, self.quiet)
        with noted_signals(self._note_signal), bar as progress, tracker or nullcontext():
            while self.step < total:
                start = time.perf_counter()
                figures = self.iterate()
                self.seconds += time.perf_counter() - start
                last = self.step == total
                for message in self.watch(self.step, figures):
                    self.messages.append(message)
                    if self.world.writes:
                        progress.say(message)
                best = False
                if self.evaluate is not None and (last or _due(self.step, options.evaluate_every)):
                    best = self._judge(figures)
                if tracker is not None and (last or best or _due(self.step, options.log_every)):
                    tracker.log(self.step, figures)
                progress.advance(self.step, figures)
                signum = self.world.stopping(self._signal)
                if last or best or _due(self.step, options.checkpoint_every) or signum is not None:
                    if tracker is not None:
                        tracker.sync()
                    self.save(best)
                if signum is not None and not last:
                    raise interrupted(self.folder, self.step, signum)

    def _judge(self, figures: Figures) -> bool:
        """Evaluate the student, into the figures; is it the best so far?"""
        best = False
        if self.evaluate is not None and self.world.evaluates:
            shown = self.evaluate(self.step)
            self.history.append((self.step, shown))
            figures |= shown
            value = math.inf if self.best is None else shown.get(self.best, math.inf)
            if best := value < self.best_value:
                self.best_value, self.best_step = value, self.step
        return self.world.any(best and self.world.writes)

    def _note_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signal = signum


def _names(update: Update) -> tuple[str, ...]:
    return (update.roles,) if isinstance(update.roles, str) else update.roles


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
