"""The digits asked for in words: which prompts are true of a digit, and when an image satisfies its prompt."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.networks import UNet
from limbeck.tasks import TASKS, TeacherOptions, build_task, load_digits
from limbeck.tasks.digit_prompts import TOKENS, WIDTH, WORDS, embeddings, ink_thirds, prompt, prompts_of, satisfied, seen, shown


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def texts(count, *words):
    return prompt(*words).expand(count, TOKENS, WIDTH)


def test_the_table_is_orthogonal_and_never_changes():
    table = embeddings().double()
    torch.testing.assert_close(table @ table.T, WIDTH * torch.eye(len(WORDS), dtype=torch.float64), rtol=0, atol=1e-5)
    again = embeddings.__wrapped__()
    assert torch.equal(again, embeddings())
    assert torch.equal(prompt("3", "bold")[0], embeddings()[WORDS.index("3")])
    assert not prompt("any")[1].any() and not prompt().any()


def test_real_digits_satisfy_what_is_true_of_them_and_nothing_else(digits):
    images, labels = digits
    digit, stroke = seen(images)
    right = digit == labels
    assert right.double().mean() > 0.99
    assert satisfied(images, texts(1797, "any")).all() and satisfied(images, texts(1797)).all()
    for word in ("odd", "even", "4", "thin", "bold"):
        assert torch.equal(satisfied(images, texts(1797, word)), shown(word, digit, stroke))
    both = satisfied(images, texts(1797, "odd", "bold"))
    assert torch.equal(both, satisfied(images, texts(1797, "bold", "odd")))
    assert torch.equal(both, (digit % 2 == 1) & (stroke == 1))
    assert not satisfied(images, texts(1797, "odd", "even")).any()


def test_strokes_are_thirds_of_the_ink(digits):
    images = digits[0]
    low, high = ink_thirds()
    stroke = seen(images)[1]
    assert low < high and [round(float((stroke == s).double().mean()), 2) for s in (-1, 0, 1)] == [0.33, 0.35, 0.33]  # ties
    assert images[stroke == -1].mean() < images[stroke == 0].mean() < images[stroke == 1].mean()


def test_every_prompt_of_a_digit_is_true_of_it(digits):
    images, labels = digits
    stroke = seen(images)[1]
    written = prompts_of(labels, stroke)
    assert len(written) == 4 * len(labels) and all(1 <= len(words) <= TOKENS for words in written)
    assert {words[0] for words in written} == set(WORDS[:13]) and {w for words in written for w in words[1:]} == {
        "thin",
        "bold",
    }
    told = [all(bool(shown(w, labels[i % 1797], stroke[i % 1797])) for w in words) for i, words in enumerate(written)]
    assert all(told)
    assert written[3 * 1797 + 2][0] == str(int(labels[2])) and written[0] == ("any",)


def test_words_that_there_are_not():
    with pytest.raises(LimbeckError, match=r"unknown word of a prompt 'seven'"):
        prompt("seven")


def test_the_task_is_complete(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    assert "prompts" in TASKS
    task = build_task("prompts", {"teacher": TeacherOptions(iterations=2, batch=8)}, dtype="float64", quiet=True)
    assert isinstance(task.network(), UNet) and task.facts["origin"] == "trained"
    assert task.source.size == task.evaluator.count == 7188 and task.negatives.shape == (14, TOKENS, WIDTH)
    x, cond = task.source.fetch(torch.arange(0, 7188, 300))
    answer = task.teacher(x, torch.full((len(x),), 0.5, dtype=torch.float64), cond)
    assert answer.shape == x.shape and answer.dtype == torch.float64
    real = task.evaluator.judge(task.source.x, task.evaluator.cond)
    assert real["accuracy"] > 0.99 and real["frechet"] < 1e-5  # the divisor n - 1 of four copies
    wrong = {"text": task.evaluator.cond["text"].roll(1797, 0).roll(1, 0)}
    assert task.evaluator.judge(task.source.x, wrong)["accuracy"] < 0.7
    with pytest.raises(LimbeckError, match=r"expected \(1, any, 16\)"):
        task.teacher(x[:1], torch.ones(1, dtype=torch.float64), {"text": torch.zeros(1, 2, 8, dtype=torch.float64)})
