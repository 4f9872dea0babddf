"""One iteration of approximate likelihood matching. The equations are the package's."""

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.interop.tokenizers import ByteForm
from limbeck.losses.chunks import (
    balancing_weights,
    boundary_log_probs,
    chunk_divergence,
    chunk_sums,
    last_tokens,
    merged,
    next_log_probs,
    sorted_l1,
)
from limbeck.losses.ranking import upcast
from limbeck.methods.classifiers import check_apart
from limbeck.methods.sequences.alm.options import PRESETS, ALMOptions
from limbeck.training import Batch, Method, Role, Step, Total, Update

Term = tuple[Tensor, int]  # a sum over this micro-batch, and over how many


class Side(NamedTuple):
    """What one model says of its tokens."""

    ids: Tensor
    """(B, T)"""
    chunk: Tensor
    """The chunk of each token (B, T), -1: of none."""
    ends: Tensor
    """The place of each chunk's last token (B, C)."""
    logits: Tensor
    """(B, T, V)"""
    log_p: Tensor
    """log p of each token (B, T)."""
    hidden: Tensor | None
    """Last hidden states (B, T, d), where they are asked for."""


class Likelihoods(NamedTuple):
    """Log-likelihoods (B, C) of teacher and student, and which of them count."""

    teacher: Tensor
    student: Tensor
    valid: Tensor


class ALM(Method):
    """See the package. ``vocabularies``: of teacher and student. ``teacher`` None: for ``sft`` alone.

    ``projector``: the student's hidden states to the teacher's size, for (6); it is trained as the student is.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        vocabularies: tuple[ByteForm, ByteForm],
        options: ALMOptions = PRESETS["recommended"],
        projector: nn.Module | None = None,
    ):
        self.teacher, self.student, self.projector = teacher, student, projector
        self.vocabularies, self.options = vocabularies, options
        self.boundary = tuple(form.boundary() for form in vocabularies)
        self.roles = {"student": Role(student, options.student, options.ema)}
        check_embedding("student", student, vocabularies[1])
        if teacher is not None:
            check_apart(teacher, student)
            check_embedding("teacher", teacher, vocabularies[0])
            self.roles["teacher"] = Role(teacher)
        elif options.losses != ("sft",):
            raise LimbeckError(
                f"the losses {', '.join(options.losses)} need a teacher; sft alone (alm=0, sft=1) learns without"
            )
        self.learning: tuple[str, ...] = ("student",)
        if projector is not None:
            self.roles["projector"], self.learning = Role(projector, options.student), ("student", "projector")
        if options.balances:
            self.last = last_layer(student)
            self.whole = "the gradients of its last layer are compared"

    @classmethod
    def on(cls, task: Any, options: ALMOptions, seed: int) -> "ALM":
        """On the task language. Raises LimbeckError for others."""
        if not hasattr(task, "vocabularies"):
            raise LimbeckError(
                f"alm distils language models on texts, and {task.name} is no such task; use limbeck.tasks.language"
            )
        return cls(task.teacher, task.new_student(), task.vocabularies, options)

    def step(self, batch: Batch) -> Step:
        cond, o = batch.cond, self.options
        if cond is None or "student_chunks" not in cond:
            raise LimbeckError(
                "ALM learns from texts in two vocabularies: give limbeck.interop.tokenizers.paired(documents, ...)"
            )
        student = self._side(1, cond)
        terms: dict[str, Term] = {}
        logs: dict[str, Tensor | float] = {}
        if o.losses != ("sft",):
            with torch.no_grad():
                teacher = self._side(0, cond)
            whole = aligned_likelihoods(teacher, student)  # (1)
            logs["chunk_gap"] = (whole.teacher - whole.student.detach()).abs()[whole.valid].mean()
            if o.alm:
                found = self._constrained(whole, teacher, student, cond)
                f = chunk_divergence(found.teacher, found.student, o.divergence, o.tau, o.eps)[found.valid]  # (2)
                terms["alm"] = f.sum(), len(f)
                logs["chunks"] = len(f) / batch.size
            if o.uld:
                distances = sorted_l1(*(_at(s.logits, s.ends)[whole.valid] for s in (teacher, student)))
                terms["uld"] = distances.sum(), len(distances)
            if o.latents:
                terms["latents"] = yield from self._latents(teacher, student, whole.valid)
        if o.sft:
            places = torch.arange(1, student.ids.shape[1] + 1, device=batch.device)
            nll = -student.log_p[(places > 1) & (places <= cond["student_length"][:, None])]
            terms["sft"] = nll.sum(), len(nll)
        counts = [float(n) for n in (batch.size, *(n for _, n in terms.values()))]
        totals = yield Total(torch.tensor(counts, dtype=torch.float64, device=batch.device))
        assert totals is not None
        share = batch.size / float(totals[0])  # by which the loop weighs this micro-batch
        losses = {k: v / (share * max(float(n), 1.0)) for (k, (v, _)), n in zip(terms.items(), totals[1:], strict=True)}  # (3)
        if o.balances:
            norms = yield Total(torch.stack([share * self._last_gradient(loss) for loss in losses.values()]))
            assert norms is not None
            weights = balancing_weights(norms.norm(dim=1)).tolist()  # (7)
        else:
            weights = [getattr(o, name) for name in losses]
        total = torch.stack([w * loss for w, loss in zip(weights, losses.values(), strict=True)]).sum()
        yield Update(self.learning, total, logs | {f"part/{name}": loss.detach() for name, loss in losses.items()})

    @torch.no_grad()
    def likelihoods(self, cond: Cond) -> tuple[Likelihoods, Likelihoods]:
        """(all chunks, those that are compared) of a batch, without gradient."""
        teacher, student = self._side(0, cond), self._side(1, cond)
        whole = aligned_likelihoods(teacher, student)
        return whole, self._constrained(whole, teacher, student, cond)

    def _latents(self, teacher: Side, student: Side, valid: Tensor) -> Generator[Total, Tensor | None, Term]:
        """(6), with the teacher's mean squares over the whole batch."""
        if teacher.hidden is None or student.hidden is None:
            raise LimbeckError(
                "latents compares hidden states: both models must take output_hidden_states=True and answer with hidden_states, "
                "as those of transformers do; or set latents=0"
            )
        there, here = _at(teacher.hidden, teacher.ends)[valid], _at(student.hidden, student.ends)[valid]
        here = here if self.projector is None else self.projector(here)
        if here.shape[-1] != there.shape[-1]:
            sizes = f"{here.shape[-1]}, {there.shape[-1]}"
            raise LimbeckError(
                f"hidden states of ({sizes}) numbers, student and teacher, cannot be compared; give projector=nn.Linear({sizes})"
            )
        there, here = upcast(there), upcast(here)
        sums = yield Total(torch.cat([there.square().sum(0), there.new_tensor([len(there)])]))
        assert sums is not None
        return ((here - there).square() / (sums[:-1] / sums[-1] + 1e-8)).mean(-1).sum(), len(there)

    def _side(self, which: int, cond: Cond) -> Side:
        """One model's answer to its own tokens; logits of ids that its tokenizer does not have are cut off."""
        name, form = ("teacher", "student")[which], self.vocabularies[which]
        module: Any = (self.teacher, self.student)[which]
        ids, chunk = cond[f"{name}_ids"], cond[f"{name}_chunks"]
        settings: dict[str, Any] = {"use_cache": False} if hasattr(module, "config") else {}
        if self.options.latents:
            settings["output_hidden_states"] = True
        answer = module(ids, **settings)
        logits = getattr(answer, "logits", answer)
        if not isinstance(logits, Tensor) or logits.shape[:2] != ids.shape or logits.shape[-1] < len(form):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(answer).__name__
            raise LimbeckError(
                f"the {name} must give logits {(*ids.shape, len(form))} or wider (the tokens of {form.name}), not {got}; resize its "
                "embeddings, or give the tokenizer that it was trained with"
            )
        states = getattr(answer, "hidden_states", None)
        count = int(cond["teacher_chunks"].max()) + 1
        logits, ends = logits[..., : len(form)], last_tokens(chunk, count)
        return Side(ids, chunk, ends, logits, next_log_probs(logits, ids), None if states is None else states[-1])

    def _constrained(self, found: Likelihoods, teacher: Side, student: Side, cond: Cond) -> Likelihoods:
        """The chunks that are compared: as they are, or joined where a word ends."""
        o = self.options
        if o.chunks == "unconstrained":
            return found
        masks = [mask.to(teacher.ids.device) for mask in self.boundary]
        if o.chunks == "space":
            ends = found.valid
            for name, side, mask in zip(("teacher", "student"), (teacher, student), masks, strict=True):
                after = (side.ends + 1).clamp(max=side.ids.shape[1] - 1)
                begins = mask[side.ids.gather(1, after)] & (side.ends + 1 < cond[f"{name}_length"][:, None])
                ends = ends & begins
            more = [torch.zeros_like(found.teacher)] * 2
        else:
            space = [
                boundary_log_probs(side.logits, m).gather(1, side.ends)  # (4)
                for side, m in zip((teacher, student), masks, strict=True)
            ]
            ends = found.valid & (space[0].exp() > o.boundary)
            more = [log_p * ends for log_p in space]
        group, width = merged(ends), ends.shape[1]
        t, s = (chunk_sums(value + extra, group, width) for value, extra in zip(found[:2], more, strict=True))  # (5)
        return Likelihoods(t, s, torch.arange(width, device=ends.device) < ends.sum(1, keepdim=True))

    def _last_gradient(self, loss: Tensor) -> Tensor:
        if not loss.requires_grad:
            return torch.cat([p.new_zeros(p.numel()) for p in self.last])
        found = torch.autograd.grad(loss, self.last, retain_graph=True, allow_unused=True)
        return torch.cat(
            [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(self.last, found, strict=True)]
        )


def aligned_likelihoods(teacher: Side, student: Side) -> Likelihoods:
    """(1) of every chunk that both sides have."""
    count = teacher.ends.shape[1]
    t, s = (chunk_sums(side.log_p, side.chunk, count) for side in (teacher, student))
    chunks = teacher.chunk.amax(1, keepdim=True) + 1
    return Likelihoods(t, s, torch.arange(count, device=chunks.device) < chunks)


def last_layer(student: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of a model's last block (of its first ModuleList), or of its last module that has some."""
    blocks = next((m[-1] for m in student.modules() if isinstance(m, nn.ModuleList) and len(m)), None)
    found = [] if blocks is None else [p for p in blocks.parameters() if p.requires_grad]
    if not found:
        own = [[p for p in m.parameters(recurse=False) if p.requires_grad] for m in student.modules()]
        found = next((some for some in reversed(own) if some), [])
    if not found:
        raise LimbeckError("the student has no trained parameter whose gradients could be balanced; set balance=False")
    return found


def check_embedding(name: str, module: nn.Module, form: ByteForm) -> None:
    """Raise LimbeckError where a model's embedding has fewer rows than its tokenizer has tokens (more is padding)."""
    embedding = next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
    get: Any = getattr(module, "get_input_embeddings", None)
    embedding = get() if get is not None else embedding
    if embedding is not None and embedding.num_embeddings < len(form):
        raise LimbeckError(
            f"the {name}'s embedding has {embedding.num_embeddings} rows and its tokenizer {form.name} {len(form)} tokens; make it "
            "with limbeck.interop.tokenizers.transplant, or resize_token_embeddings"
        )


def _at(values: Tensor, places: Tensor) -> Tensor:
    """values (B, T, d) at places (B, C)."""
    return values.gather(1, places[..., None].expand(*places.shape, values.shape[-1]))
