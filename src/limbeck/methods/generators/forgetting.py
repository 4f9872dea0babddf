"""What is to be forgotten: forbidden conditions, and what the teacher is asked in their place.

Labels and prompts are the same here: rows of a table of forbidden conditions, each with a goal of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.training import Batch

Logits = Callable[[Tensor], Tensor]  # samples (B, ...) -> logits (B, classes)
CHOSEN = ("random", "judged", "sampled")
CONCEPT_BREAKS = str.maketrans({c: " " for c in ".,;:!?'\"()[]{}-_/\\"})


@dataclass(frozen=True)
class Forgetting:
    """Forbidden conditions (F rows) and their goals (F rows), row by row.

    ``how`` (F names): fixed, the goal of the row; random, a safe label, uniform; judged and sampled, the safe label that a
    judge finds most likely in the critic's answer, or one drawn by its probabilities. ``safe``: the labels that may be goals.
    ``remain``: the labels to be kept; None: whatever conditions the data has (they must not hold forbidden ones).
    """

    forbidden: Cond
    goals: Cond
    how: tuple[str, ...]
    safe: Tensor | None = None
    remain: Tensor | None = None

    @property
    def judged(self) -> bool:
        """Does a row need a judge?"""
        return any(name in ("judged", "sampled") for name in self.how)

    def rows(self, batch: Batch) -> Tensor:
        """The forbidden row of each sample, (B,): uniform."""
        return batch.noise.randint("forbidden", 0, len(self.how))

    def asked(self, rows: Tensor) -> Cond:
        """The forbidden conditions of the rows (B,)."""
        return {name: value.to(rows.device)[rows] for name, value in self.forbidden.items()}

    def kept(self, batch: Batch) -> Cond | None:
        """The batch's conditions, with a kept label, drawn uniformly, in place of each label that is not to be kept."""
        if self.remain is None or batch.cond is None:
            return batch.cond
        label, remain = batch.cond["label"], self.remain.to(batch.cond["label"])
        other = remain[batch.noise.randint("kept label", 0, len(remain))]
        return {**batch.cond, "label": torch.where(torch.isin(label, remain), label, other)}

    def goal(self, batch: Batch, rows: Tensor, logits: Callable[[], Tensor] | None = None) -> Cond:
        """What the teacher is asked in place of the rows (B,); ``logits`` (B, classes): the judge's, asked if a row needs them."""
        goal = {name: value.to(rows.device)[rows] for name, value in self.goals.items()}
        if self.safe is None or all(name == "fixed" for name in self.how):
            return goal
        safe = self.safe.to(rows.device)
        choices = {"fixed": goal["label"], "random": safe[batch.noise.randint("random goal", 0, len(safe))]}
        if self.judged:
            assert logits is not None
            seen = logits()[:, safe]
            choices["judged"] = safe[seen.argmax(1)]
            u = batch.noise.uniform("sampled goal")[:, None]
            edges = seen.double().softmax(1).cumsum(1)
            choices["sampled"] = safe[(u >= edges[:, :-1]).sum(1)]
        label = goal["label"].clone()
        for i, name in enumerate(self.how):
            label = torch.where(rows == i, choices[name], label)
        return {**goal, "label": label}


def labels_to_forget(forget: Sequence[str], classes: int, remain: Sequence[int] | None = None) -> Forgetting:
    """From entries CLASS=GOAL, e.g. "3=8"; GOAL a class, random, judged or sampled; CLASS "*": all others, but the goal.

    ``remain``: the classes to be kept (None: all that are not forgotten). Raises LimbeckError for what is no class, the null
    class, a goal that is itself forgotten, and a class that is to be kept and forgotten.
    """
    named = dict(_entry(text, classes) for text in forget)
    if (rest := named.pop(-1, None)) is not None:
        named = {c: rest for c in range(classes) if str(c) != rest and c not in named} | named
    for label, goal in named.items():
        if goal == str(label):
            raise LimbeckError(f"the class {label} is to be forgotten and cannot be its own override; name another class")
        if goal.isdigit() and int(goal) in named:
            raise LimbeckError(f"the override {goal} of the class {label} is to be forgotten too; name a class that stays")
        if remain is not None and label in remain:
            raise LimbeckError(f"the class {label} is to be forgotten and kept; take it out of remain or of forget")
    for label in remain or ():
        _check_class(label, classes)
    forbidden = torch.tensor(list(named), dtype=torch.long)
    goals = torch.tensor([int(g) if g.isdigit() else -1 for g in named.values()], dtype=torch.long)
    how = tuple(g if g in CHOSEN else "fixed" for g in named.values())
    safe = torch.tensor([c for c in range(classes) if c not in named], dtype=torch.long)
    if not len(safe):
        raise LimbeckError("all classes are to be forgotten, and none is left to be an override")
    keep = safe if remain is None else torch.tensor(list(remain), dtype=torch.long)
    return Forgetting({"label": forbidden}, {"label": goals}, how, safe, keep)


def _entry(text: str, classes: int) -> tuple[int, str]:
    left, _, right = text.partition("=")
    left, right = left.strip(), right.strip()
    if not (left == "*" or left.isdigit()) or not (right in CHOSEN or right.isdigit()):
        raise LimbeckError(
            f"{text!r} does not say what to forget: write CLASS=OVERRIDE, e.g. 3=8; the class a number or *, the override a "
            f"class or {', '.join(CHOSEN)}"
        )
    for label in (left, right):
        if label.isdigit():
            _check_class(int(label), classes)
    return -1 if left == "*" else int(left), str(int(right)) if right.isdigit() else right


def _check_class(label: int, classes: int) -> None:
    if label == classes:
        raise LimbeckError(f"{label} is the null class: to forget or replace it would destroy guidance; name a class below it")
    if not 0 <= label < classes:
        raise LimbeckError(f"there is no class {label}; there are 0 to {classes - 1}")


def _words(text: str) -> str:
    return f" {' '.join(text.lower().translate(CONCEPT_BREAKS).split())} "


def prompts_to_forget(
    overrides: Mapping[str, str], concepts: Sequence[str], encode: Callable[[list[str]], Cond], remain: Sequence[str] = ()
) -> Forgetting:
    """From prompts, forbidden -> safe, that ``encode`` (prompts) -> conditions turns into what the networks take.

    ``concepts``: the words to be forgotten; they may stand in no override and in no prompt of ``remain``, the prompts that
    the data holds. Raises LimbeckError with the prompt where one does.
    """
    if not overrides:
        raise LimbeckError("name the prompts to forget, each with the prompt that takes its place")
    for prompt, safe in overrides.items():
        if _words(prompt) == _words(safe):
            raise LimbeckError(f"the prompt {prompt!r} is to be forgotten and cannot be its own override; write another")
    for what, prompts in (("override", overrides.values()), ("remaining prompt", remain)):
        for prompt in prompts:
            if found := [c for c in concepts if _words(c) in _words(prompt)]:
                raise LimbeckError(f"the {what} {prompt!r} still holds the concept {found[0]!r} that is to be forgotten")
    return Forgetting(encode(list(overrides)), encode(list(overrides.values())), ("fixed",) * len(overrides))


def forgetting_figures(
    x: Tensor, asked: Tensor, forgetting: Forgetting, judge: Logits | None, real: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """What a judge sees in samples x (N, ...) that were asked for with the labels ``asked`` (N,).

    unlearning (UA): share of forbidden requests whose answer it does not call the forbidden class; override: share that it
    calls the fixed goal (nan without one); remain accuracy; judge error: its own, on ``real`` (images, labels), without which
    none of this says anything. Raises LimbeckError without a judge.
    """
    if judge is None:
        raise LimbeckError(
            "unlearning accuracy is a classifier's judgement of the samples: give one, (N, ...) -> logits, that was trained "
            "on real data of all classes"
        )
    with torch.no_grad():
        seen, own = judge(x).argmax(1), judge(real[0]).argmax(1)
    forbidden, goals = (v["label"].to(asked) for v in (forgetting.forbidden, forgetting.goals))
    bad = torch.isin(asked, forbidden)
    wanted = torch.full_like(asked, -1)
    for label, goal in zip(forbidden, goals, strict=True):
        wanted = torch.where(asked == label, goal, wanted)
    fixed = bad & (wanted >= 0)
    share = lambda hit: float(hit.double().mean())  # noqa: E731
    return {
        "unlearning": share(seen[bad] != asked[bad]),
        "override": share(seen[fixed] == wanted[fixed]),
        "remain accuracy": share(seen[~bad] == asked[~bad]),
        "judge error": share(own != real[1]),
    }
