"""The task of language models: a model of transformers moves to bytes or to another's tokenizer, by the command line and from Python."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import limbeck
from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.interop.tokenizers import Special, byte_form
from limbeck.methods.sequences.alm import ALM, ALMOptions
from limbeck.tasks import AnyTask
from limbeck.tasks.language import bits_per_byte, language, pieces, read_documents

LINES = "".join(
    f"the {a} of a {b}\n" for a in ("teacher", "student", "text", "token") for b in ("word", "byte", "chunk", "line") * 3
)


def bpe(size):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    given = {"special_tokens": ["<s>", "</s>"], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator([LINES], trainers.BpeTrainer(vocab_size=size, **given))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def model(vocabulary, seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with teacher, student and tokenizer, and texts."""
    folder = tmp_path_factory.mktemp("language")
    for name, size in (("teacher", 290), ("student", 270)):
        tokenizer = bpe(size)
        model(len(tokenizer)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    bpe(265).save_pretrained(folder / "tokenizer")
    (folder / "lines.txt").write_text(LINES)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES.splitlines()))
    return folder


def test_the_command_line_moves_a_model_to_bytes(place, tmp_path, capsys, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(cli, "one_thread", lambda: None)
    run, data = tmp_path / "run", str(place / "texts.jsonl")
    arguments = [
        "distill",
        "alm",
        "--teacher",
        str(place / "teacher"),
        "--tokenizer",
        "bytes",
        "--data",
        data,
        "--out",
        str(run),
    ]
    assert cli.main([*arguments, "--iterations", "3", "--batch", "4", "--quiet", "--track", "none"]) == 0
    assert "bits per byte in bytes, the teacher" in capsys.readouterr().out
    table = json.loads((run / "summary.json").read_text())["table"]["rows"]
    assert {*table} == {"teacher", "student as it began", "student"} and table["teacher"]["chunk_gap"] == 0
    assert table["student"]["bits_per_byte"] < table["student as it began"]["bits_per_byte"]
    saved = AutoModelForCausalLM.from_pretrained(run / "student")
    assert saved.get_input_embeddings().num_embeddings == 259 and saved.config.eos_token_id == 257
    assert cli.main(["export", str(run), "--to", "transformers", str(tmp_path / "out")]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(exported.get_input_embeddings().weight, saved.get_input_embeddings().weight)


def test_from_python_a_stopped_run_goes_on_bit_for_bit(place, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    given = {"method": "alm", "teacher": str(place / "teacher"), "student_model": str(place / "student"), "data": place / "lines.txt",
             "task_options": {"tokens": 40, "judged_every": 4}, "batch": 4, "iterations": 4, "track": ("none",), "quiet": True}  # fmt: skip
    whole = limbeck.distill(**given, out=tmp_path / "whole")
    step = ALM.step

    def dies(self, batch):
        if batch.step == 3:
            raise KeyboardInterrupt
        yield from step(self, batch)

    monkeypatch.setattr(ALM, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        limbeck.distill(**given, out=tmp_path / "stopped", checkpoint_every=2)
    monkeypatch.setattr(ALM, "step", step)
    again = limbeck.distill(**given, out=tmp_path / "stopped", checkpoint_every=2, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.student.parameters(), again.student.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "whole" / "student").vocab_size == 270
    assert whole.summary["reference"] == "the teacher"


def test_the_task_and_its_figures(place):
    task = language(place / "teacher", place / "texts.jsonl", tokenizer=place / "tokenizer", judged_every=4)
    assert isinstance(task, AnyTask) and task.source.size == 36 and task.judged_source.size == 12
    lines = LINES.splitlines()[::4]
    assert task.judged_bytes == sum(map(len, lines))
    nats = 0.0
    for line in lines:
        ids = torch.tensor([task.vocabularies[0].encode([Special("bos"), line, Special("eos")]).ids])
        nats += float(torch.nn.functional.cross_entropy(task.teacher(ids).logits[0, :-1], ids[0, 1:], reduction="sum").detach())
    found = bits_per_byte(task.teacher, task.judged_source, "teacher", task.judged_bytes)
    assert found == pytest.approx(nats / math.log(2) / task.judged_bytes, rel=1e-5)
    assert task.vocabularies[0].pieces == byte_form(bpe(290)).pieces
    assert task.new_student() is not task.student and task.student.get_input_embeddings().num_embeddings == 265


def test_what_is_judged_is_never_cut(place):
    task = language(place / "teacher", place / "lines.txt", tokenizer="bytes", tokens=24, judged_every=2)
    lengths = task.judged_source.cond["student_length"]
    assert int(lengths.max()) <= 24 and task.judged_bytes == int(lengths.sum()) - 2 * task.judged_source.size  # bos and eos
    assert task.judged_source.kept == tuple(range(task.judged_source.size)) and task.judged_bytes > 200


def test_the_page_says_what_runs():
    page = (Path(__file__).parents[2] / "docs" / "tokenizers.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"tokenizer": bpe(290), "model": model(290), "texts": LINES.splitlines()[:8]}
    exec(code.replace("10)", "1)"), names)
    assert names["student"].get_input_embeddings().num_embeddings == 259 and names["source"].size == 8


def test_texts_are_cut_at_lines(tmp_path):
    assert list(pieces("ab\ncd\nefghijk\nl\n", 6)) == ["ab\ncd\n", "efghijk\n", "l\n"]
    assert "".join(pieces(LINES, 50)) == LINES and max(map(len, pieces(LINES, 50))) <= 50
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("é\n" * 3)
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert list(read_documents(tmp_path, 6)) == ["é\né\n", "é\n", "one", "two"]


def test_what_cannot_be_used(place, tmp_path):
    teacher, data = place / "teacher", place / "texts.jsonl"
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"txt": "two"}\n')
    (tmp_path / "few.txt").write_text("a line\n")
    bpe(265).save_pretrained(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    for arguments, message in (
        ((None, data), "needs --teacher FOLDER, --data TEXTS, and one of --student-model"),
        ((teacher, data, place / "student", "bytes"), "one of --student-model FOLDER and --tokenizer"),
        ((tmp_path, data, None, "bytes"), "is no folder with a tokenizer.json"),
        ((teacher, data, None, tmp_path), "is no folder with a tokenizer.json"),
        ((place / "tokenizer", data, None, "bytes"), "is no folder with a config.json"),
        ((tmp_path / "empty", data, None, "bytes"), "holds no causal language model"),
        ((teacher, tmp_path / "none.txt", None, "bytes"), "is no FILE.txt, FILE.jsonl or a folder"),
        ((teacher, tmp_path / "bad.jsonl", None, "bytes"), r"line 2 of .*bad.jsonl is not of the form \{\"text\""),
        ((teacher, tmp_path / "few.txt", None, "bytes"), "has 1 documents, of which every 10th is held out; give at least 20"),
    ):
        with pytest.raises(LimbeckError, match=message):
            language(*arguments)
    with pytest.raises(LimbeckError, match="tokens=1 and judged_every=10 must be at least 8 and 2"):
        language(teacher, data, tokenizer="bytes", tokens=1)
    with pytest.raises(LimbeckError, match="unknown task for this method 'language': Allowed: symbols"):
        limbeck.distill(method="lsd", task="language", out=tmp_path / "run")
    with pytest.raises(LimbeckError, match="unknown task for this method 'symbols': Allowed: language"):
        limbeck.distill(method="alm", task="symbols", out=tmp_path / "run")
    with pytest.raises(LimbeckError, match="alm distils language models on texts, and ring is no such task"):
        ALM.on(SimpleNamespace(name="ring"), ALMOptions(), 0)
