"""One iteration of approximate likelihood matching. The equations are the package's."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
from limbeck.methods.recognition.classifiers import check_apart
from limbeck.methods.sequences.alm.options import PRESETS, ALMOptions
from limbeck.training import Batch, Method, Role, Step, Total, Update


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
    """See the module. ``vocabularies``: of teacher and student. ``projector``: student's hidden states to the teacher's size (6)."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        vocabularies: tuple[ByteForm, ByteForm],
        options: ALMOptions = PRESETS["recommended"],
        projector: nn.Module | None = None,
    ):
        check_apart(teacher, student)
        for name, module, form in zip(("teacher", "student"), (teacher, student), vocabularies, strict=True):
            check_embedding(name, module, form)
        self.teacher, self.student, self.vocabularies, self.options = teacher, student, vocabularies, options
        self.projector = projector
        self.roles = {"teacher": Role(teacher), "student": Role(student, options.student, options.ema)}
        self.trained: tuple[str, ...] = ("student",)
        if projector is not None:
            self.roles["projector"], self.trained = Role(projector, options.student), ("student", "projector")
        self.boundary = tuple(form.boundary() for form in vocabularies)
        if options.balances:
            self.last = last_layer(student)
            self.whole = "the gradients of its last layer are compared"

    def step(self, batch: Batch) -> Step:
        cond, o = batch.cond, self.options
        if cond is None or "student_chunks" not in cond:
            raise LimbeckError(
                "ALM learns from texts in two vocabularies: give limbeck.interop.tokenizers.paired(documents, ...)"
            )
        with torch.no_grad():
            teacher = self._side(0, cond)
        student = self._side(1, cond)
        aligned = aligned_likelihoods(teacher, student)  # (1)
        terms: dict[str, tuple[Tensor, Tensor | int]] = {}
        if o.alm:
            found = self._constrained(aligned, teacher, student, cond)
            f = chunk_divergence(found.teacher, found.student, o.divergence, o.tau, o.eps)  # (2)
            terms["alm"] = (f * found.valid).sum(), found.valid.sum()
        if o.sft:
            places = torch.arange(student.ids.shape[1], device=batch.device)
            told = (places > 0) & (places < cond["student_length"][:, None])
            terms["sft"] = -(student.log_p * told).sum(), told.sum()
        if o.uld:
            heads = (_at(side.logits, side.ends)[aligned.valid] for side in (teacher, student))
            terms["uld"] = sorted_l1(*heads).sum(), aligned.valid.sum()
        if o.latents:
            there, here = (_at(self._hidden(side), side.ends)[aligned.valid] for side in (teacher, student))
            here = here if self.projector is None else self.projector(here)
            if here.shape[-1] != there.shape[-1]:
                raise LimbeckError(
                    f"hidden states of {here.shape[-1]} (student) and {there.shape[-1]} (teacher) numbers cannot be compared; give "
                    f"projector=nn.Linear({here.shape[-1]}, {there.shape[-1]})"
                )
            squares = yield Total(there.square().sum(0))
            counted = yield Total(aligned.valid.sum())
            assert squares is not None and counted is not None
            scale = squares / counted + 1e-8
            terms["latents"] = ((here - there).square() / scale).mean(-1).sum(), aligned.valid.sum()  # (6)
        numbers = [batch.size, *(count for _, count in terms.values())]
        totals = yield Total(torch.tensor([float(n) for n in numbers], dtype=torch.float64, device=batch.device))
        assert totals is not None
        share = batch.size / float(totals[0])
        losses = {  # (3): the loop weighs this micro-batch by its share
            name: value / (share * max(float(n), 1.0)) for (name, (value, _)), n in zip(terms.items(), totals[1:], strict=True)
        }
        if o.balances:
            norms = yield Total(torch.stack([share * self._last_gradient(loss) for loss in losses.values()]))
            assert norms is not None
            weights = dict(zip(losses, balancing_weights(norms.norm(dim=1)), strict=True))  # (7)
        else:
            weights = {name: torch.tensor(getattr(o, name)) for name in losses}
        gap = ((aligned.teacher - aligned.student.detach()).abs() * aligned.valid).sum() / aligned.valid.sum().clamp(min=1)
        logs = {"chunk_gap": gap, **{f"part/{name}": loss.detach() for name, loss in losses.items()}}
        total = torch.stack([weights[name].to(loss) * loss for name, loss in losses.items()]).sum()
        yield Update(self.trained, total, logs)

    def _side(self, which: int, cond: Any) -> Side:
        """One model's answer to its own tokens; logits of ids that its tokenizer does not have are cut off."""
        name, form = ("teacher", "student")[which], self.vocabularies[which]
        module, ids, chunk = (self.teacher, self.student)[which], cond[f"{name}_ids"], cond[f"{name}_chunks"]
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

    def _constrained(self, found: Likelihoods, teacher: Side, student: Side, cond: Any) -> Likelihoods:
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
            more = (0.0, 0.0)
        else:
            space = [
                boundary_log_probs(side.logits, m).gather(1, side.ends)  # (4)
                for side, m in zip((teacher, student), masks, strict=True)
            ]
            ends = found.valid & (space[0].exp() > o.boundary)
            more = (space[0] * ends, space[1] * ends)
        group, width = merged(ends), ends.shape[1]
        sums = [chunk_sums(value + extra, group, width) for value, extra in zip(found[:2], more, strict=True)]  # (5)
        return Likelihoods(*sums, torch.arange(width, device=ends.device) < ends.sum(1, keepdim=True))

    def _hidden(self, side: Side) -> Tensor:
        if side.hidden is None:
            raise LimbeckError(
                "latents compares hidden states: both models must take output_hidden_states=True and answer with hidden_states, "
                "as those of transformers do; or set latents=0"
            )
        return side.hidden

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
    sums = [chunk_sums(side.log_p, side.chunk, count) for side in (teacher, student)]
    chunks = teacher.chunk.amax(1, keepdim=True) + 1
    return Likelihoods(*sums, torch.arange(count, device=chunks.device) < chunks)


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
