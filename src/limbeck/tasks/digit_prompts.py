"""The digits asked for in words: prompts are sets of tokens that name a digit, even or odd ones, thin or bold strokes.

A prompt is a text of two tokens out of ``WORDS`` (a shorter one is filled up with zeros, and the empty one is the null
condition), each a row of a fixed table of orthogonal vectors. Every digit of the data has four prompts that are true of it:
"any", its parity, itself, and one of these three with its stroke where that is thin or bold (the lowest and highest third of
all digits by their ink). The teacher is a small U-Net with cross-attention to the text (a transformer of the same cost draws
far worse digits); ``accuracy`` is the share of samples that satisfy their prompt, by the frozen classifier and their ink.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Preconditioned
from limbeck.errors import unknown
from limbeck.networks import UNet
from limbeck.noise import VE
from limbeck.tasks.digit_features import load_digit_features, load_digits
from limbeck.tasks.digits import SHAPE, SIGMA_DATA
from limbeck.tasks.task import Evaluator, Task
from limbeck.tasks.teacher import TeacherOptions, cached_teacher
from limbeck.training import OptimizerOptions, TensorSource

WORDS = ("any", "even", "odd", *"0123456789", "thin", "bold")
TOKENS, WIDTH = 2, 16
TEACHER = TeacherOptions(
    iterations=1600, batch=64, optimizer=OptimizerOptions(lr=2e-3, betas=(0.9, 0.99), warmup=100, decay="cosine", clip=1.0)
)


@lru_cache(maxsize=1)
def embeddings() -> Tensor:
    """The table (words, WIDTH): orthogonal rows whose entries have mean square 1, float32."""
    square = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (WIDTH**0.5 * torch.linalg.qr(square).Q[: len(WORDS)]).float()


def prompt(*words: str) -> Tensor:
    """The text (TOKENS, WIDTH) of at most TOKENS words. Raises LimbeckError for a word that is none of ``WORDS``."""
    text = torch.zeros(TOKENS, WIDTH)
    for i, word in enumerate(words):
        if word not in WORDS:
            raise unknown("word of a prompt", word, WORDS)
        text[i] = embeddings()[WORDS.index(word)]
    return text


def satisfied(x: Tensor, text: Tensor) -> Tensor:
    """Which of the images (N, 1, 8, 8) show what their texts (N, any length, WIDTH) ask for, (N,) bool."""
    digit, stroke = seen(x)
    shows = torch.stack([shown(word, digit, stroke) for word in WORDS], 1)  # (N, words)
    wanted = (text.to(x) @ embeddings().to(x).T > WIDTH / 2).any(1)
    return (shows | ~wanted).all(1)


def shown(word: str, digit: Tensor, stroke: Tensor) -> Tensor:
    """Is the word true of images with these digits and strokes (both (N,))? (N,) bool."""
    if word in ("thin", "bold"):
        return stroke == (-1 if word == "thin" else 1)
    if word in ("even", "odd"):
        return digit % 2 == (word == "odd")
    return digit == int(word) if word.isdigit() else torch.ones_like(digit, dtype=torch.bool)


@torch.no_grad()
def seen(x: Tensor) -> tuple[Tensor, Tensor]:
    """(the digit by the frozen classifier, -1 thin, 0 or 1 bold by the ink) of images (N, 1, 8, 8), both (N,)."""
    low, high = ink_thirds()
    ink = x.double().clamp(-1, 1).flatten(1).mean(1)
    return load_digit_features().to(x.device).logits(x).argmax(1), (ink > high).long() - (ink < low).long()


@lru_cache(maxsize=1)
def ink_thirds() -> tuple[float, float]:
    """Mean brightness below which a third of the digits lies, and above which another does."""
    ink = load_digits()[0].double().flatten(1).mean(1)
    low, high = torch.quantile(ink, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)).tolist()
    return low, high


def prompts_of(labels: Tensor, stroke: Tensor) -> list[tuple[str, ...]]:
    """Four prompts that are true of each digit, first "any" of all, then parities, digits, and those with strokes."""
    digits = [str(int(d)) for d in labels]
    parities = ["odd" if int(d) % 2 else "even" for d in labels]
    words = [("any", parities[i], digits[i])[i % 3] for i in range(len(labels))]
    strokes = [{-1: ("thin",), 0: (), 1: ("bold",)}[int(s)] for s in stroke]
    with_strokes = [(word, *extra) for word, extra in zip(words, strokes, strict=True)]
    return [*[("any",)] * len(labels), *((p,) for p in parities), *((d,) for d in digits), *with_strokes]


def prompts(
    seed: int = 0, *, device: str = "cpu", dtype: str = "float32", quiet: bool = False, teacher: TeacherOptions | None = None
) -> Task:
    """The task; trains its teacher at the first call and caches it. ``seed`` is the teacher's."""
    images, labels = load_digits()
    low, high = ink_thirds()
    ink = images.double().flatten(1).mean(1)
    written = prompts_of(labels, (ink > high).long() - (ink < low).long())
    text = torch.stack([prompt(*words) for words in written])
    source = TensorSource(images.repeat(4, 1, 1, 1), {"text": text})
    network = lambda: UNet(  # noqa: E731
        SHAPE, channels=16, multipliers=(1, 2), attention=(4,), text=(TOKENS, WIDTH), embedding=64
    )
    options = replace(teacher or TEACHER, seed=seed)
    model, facts = cached_teacher("prompts", lambda: Preconditioned(network(), VE(), "edm", SIGMA_DATA), source, options, quiet)
    real = images.to(device, getattr(torch, dtype))
    net = load_digit_features().to(device)

    def accuracy(x: Tensor, cond: Cond) -> float:
        return float(satisfied(x, cond["text"]).double().mean())

    evaluator = Evaluator(net.features, real, len(text), {"text": text.to(real)}, accuracy)
    placed = TensorSource(images.to(real.dtype).repeat(4, 1, 1, 1), {"text": text.to(real.dtype)})
    negatives = torch.stack([prompt(word) for word in WORDS[1:]]).to(real.dtype)
    return Task(
        "prompts", model.to(real), placed, SHAPE, evaluator, SIGMA_DATA, network, facts=facts, negatives=negatives
    )  # fmt: skip
