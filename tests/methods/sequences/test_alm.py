"""Likelihood matching in the loop: its loss, micro-batches, balance, resume, models of transformers, and every bad input."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.interop.tokenizers import ByteForm, Special, byte_tokenizer, carried, paired, sources, transplant
from limbeck.losses.chunks import DIVERGENCES, balancing_weights, chunk_divergence
from limbeck.methods.sequences.alm import ALM, PRESETS, ALMOptions
from limbeck.methods.sequences.alm.method import last_layer
from limbeck.training import Loop, LoopOptions, OptimizerOptions, TensorSource
from limbeck.training.checkpoints import load

SGD = OptimizerOptions(lr=1.0, kind="sgd", betas=(0.0, 0.0))
TEXTS = [
    "the cat sat on the mat",
    "a hat and a cat ",
    "that is  the\nhat",
    "on a mat sat the cat",
    "cats",
    "the end of that hat",
]


def greedy(*pieces, roles=("bos", "eos"), name="words"):
    """A tokenizer that takes the longest of its pieces, or a byte."""
    all_ = (*(bytes([i]) for i in range(256)), *(p.encode() for p in pieces), *[None] * len(roles))
    known = {piece: i for i, piece in enumerate(all_) if piece}

    def split(loose):
        ids = []
        while loose:
            piece = next(loose[:n] for n in range(len(loose), 0, -1) if loose[:n] in known)
            ids.append(known[piece])
            loose = loose[len(piece) :]
        return ids

    specials = {role: (256 + len(pieces) + i,) for i, role in enumerate(roles)}
    return ByteForm(name, all_, specials, lambda text: split(text.encode()), split)


WORDS = greedy(" the", "the", "at", " cat", " m", "hat", " a")
PARTS = greedy("th", "e ", "cat", "at", "s on", name="parts")
BOTH = (WORDS, PARTS)


class Reader(nn.Module):
    """A causal model: each place sees the mean of what came before; answers with an object if ``states``."""

    def __init__(self, vocabulary, seed, width=6, dtype=torch.float64, dropout=0.0, states=False):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.drop, self.states = nn.Dropout(dropout), states
        self.head.bias.data[32:33] += 3.5  # a space is likely enough to end a chunk now and then
        self.to(dtype)

    def forward(self, ids, output_hidden_states=False):
        x = self.embedding(ids)
        x = x.cumsum(1) / torch.arange(1, ids.shape[1] + 1, dtype=x.dtype)[:, None] + x
        for block in self.blocks:
            x = x + self.drop(torch.tanh(block(x)))
        logits = self.head(x)
        return SimpleNamespace(logits=logits, hidden_states=(x,)) if self.states else logits


def data(texts=TEXTS, forms=BOTH):
    return paired([[Special("bos"), text, Special("eos")] for text in texts], *forms)


def options(**changes):
    return ALMOptions(**{"student": SGD, "balance": False, "sft": 0.0, **changes})


def make(seed=2, teacher=None, forms=BOTH, student=None, **changes):
    teacher = Reader(len(forms[0]), 1) if teacher is None else teacher
    return ALM(teacher, Reader(len(forms[1]), seed) if student is None else student, forms, options(**changes))


def loop(method, source=None, **given):
    return Loop(method, source or data(), LoopOptions(**{"iterations": 1, "batch": 6, **given}), quiet=True)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def by_hand(teacher, student, mode, boundary=0.1, forms=BOTH):
    """Chunk log-likelihoods of both sides, text by text and token by token."""
    found = []
    for text in TEXTS:
        document = [Special("bos"), text, Special("eos")]
        sides = []
        for form, model in zip(forms, (teacher, student), strict=True):
            ids, widths = form.encode(document)
            log_p = model(torch.tensor([ids])).log_softmax(-1)[0]
            space = log_p[:, form.boundary()].logsumexp(-1)
            at = torch.tensor(widths).cumsum(0).tolist()
            terms = [log_p[j - 1, ids[j]] for j in range(1, len(ids))]
            begins = [form.boundary()[i].item() for i in ids[1:]] + [False]
            sides.append({"at": at, "terms": terms, "space": space, "begins": begins})
        common = sorted({*sides[0]["at"]} & {*sides[1]["at"]})
        start = common[0]
        for end in common[1:]:
            where = [side["at"].index(end) for side in sides]
            if mode == "space" and not all(side["begins"][w] for side, w in zip(sides, where, strict=True)):
                continue
            spaces = [side["space"][w] for side, w in zip(sides, where, strict=True)]
            if mode == "merged" and not float(spaces[0].detach().exp()) > boundary:
                continue
            sums = [sum(side["terms"][side["at"].index(start) : w]) for side, w in zip(sides, where, strict=True)]
            found.append([s + (p if mode == "merged" else 0) for s, p in zip(sums, spaces, strict=True)])
            start = end
    return [torch.stack(side) for side in zip(*found, strict=True)]


@pytest.mark.parametrize("mode", ["unconstrained", "space", "merged"])
@pytest.mark.parametrize("divergence", ["binary_ce", "log_ratio"])
def test_one_step_is_one_step_down_the_loss(mode, divergence):
    method = make(chunks=mode, divergence=divergence, boundary=0.05)
    twin = copy.deepcopy(method.student)
    figures = loop(method).iterate()
    t, s = by_hand(method.teacher, twin, mode, 0.05)
    assert len(t) > 10
    expected = chunk_divergence(t.detach(), s, divergence).mean()
    assert figures["loss/student"] == pytest.approx(float(expected.detach()), rel=1e-10)
    expected.backward()
    torch.testing.assert_close(
        weights(method.student), weights(twin) - torch.cat([p.grad.flatten() for p in twin.parameters()])
    )
    t, s = by_hand(method.teacher, twin, "unconstrained")
    assert figures["chunk_gap"] == pytest.approx(float((t - s).abs().mean().detach()), rel=1e-10)


def test_modes_cut_differently():
    teacher, student = Reader(len(WORDS), 1), Reader(len(PARTS), 2)
    counts = [len(by_hand(teacher, student, mode, 0.06)[0]) for mode in ("unconstrained", "merged", "space")]
    assert counts[0] > counts[1] > 0 and counts[0] > counts[2] > 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("mode", ["unconstrained", "space", "merged"])
def test_a_student_that_is_its_teacher_stays(divergence, mode):
    teacher = Reader(len(WORDS), 1)
    method = make(teacher=teacher, forms=(WORDS, WORDS), student=copy.deepcopy(teacher), chunks=mode, divergence=divergence)
    figures = loop(method, data(forms=(WORDS, WORDS))).iterate()
    assert figures["grad_norm/student"] < 1e-12 and figures["chunk_gap"] == 0


def test_cross_entropy_is_over_what_is_no_padding():
    method = make(alm=0.0, sft=1.0, forms=(WORDS, greedy("th", "e ", name="parts", roles=("bos", "eos"))))
    assert method.vocabularies[1].specials.get("pad") is None  # rows are filled up with eos, and the first eos counts
    student, source = copy.deepcopy(method.student), data(forms=method.vocabularies)
    losses = []
    for text in TEXTS:
        ids = torch.tensor(method.vocabularies[1].encode([Special("bos"), text, Special("eos")]).ids)
        losses.append(F.cross_entropy(student(ids[None])[0, :-1], ids[1:], reduction="none"))
    figures = loop(method, source).iterate()
    assert figures["loss/student"] == pytest.approx(float(torch.cat(losses).mean().detach()), rel=1e-12)
    assert "chunk_gap" not in figures


CASES = {
    "alm": {},
    "space": {"chunks": "space"},
    "all": {"sft": 1.0, "latents": 0.7, "uld": 0.3},
    "balanced": {"sft": 1.0, "latents": 1.0, "uld": 1.0, "balance": True},
}


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_are_the_large_batch(case):
    found = []
    for parts in (1, 4):
        teacher, student = Reader(len(WORDS), 1, states=True), Reader(len(PARTS), 2, states=True)
        method = ALM(teacher, student, BOTH, options(**CASES[case]))
        figures = loop(method, micro_batches=parts).iterate()
        found.append((weights(student), figures["loss/student"]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-13)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-12)
    assert float((found[0][0] - weights(Reader(len(PARTS), 2))).abs().max()) > 1e-5


def test_balanced_losses_pull_the_last_layer_alike():
    student = Reader(len(PARTS), 2)
    parts = {}
    for name in ("alm", "sft"):
        one = copy.deepcopy(student)
        loop(make(student=one, **{"alm": 0.0, "sft": 0.0, name: 1.0})).iterate()
        parts[name] = weights(student) - weights(one)  # the gradient
    n = sum(p.numel() for p in student.embedding.parameters()) + sum(p.numel() for p in student.head.parameters())
    block = slice(n + sum(p.numel() for p in student.blocks[0].parameters()), None)
    w = balancing_weights(torch.stack([parts[name][block].norm() for name in parts]))
    both = copy.deepcopy(student)
    figures = loop(make(student=both, sft=1.0, balance=True)).iterate()
    torch.testing.assert_close(weights(student) - weights(both), w[0] * parts["alm"] + w[1] * parts["sft"])
    assert figures["loss/student"] == pytest.approx(float(w[0] * figures["part/alm"] + w[1] * figures["part/sft"]))
    assert float(w[0]) > 0.9  # the slope of (2) is the smaller one


def test_the_last_layer():
    model = Reader(9, 0)
    assert [id(p) for p in last_layer(model)] == [id(p) for p in model.blocks[1].parameters()]
    model.blocks[1].requires_grad_(False)
    assert [id(p) for p in last_layer(model)] == [id(p) for p in model.blocks[0].parameters()]
    gru = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3))
    assert [p.shape for p in last_layer(gru)] == [(3, 4), (3,)]
    with pytest.raises(LimbeckError, match="no trained parameter .* balance=False"):
        last_layer(gru.requires_grad_(False))


def test_latents_are_scaled_by_the_teachers_channels():
    teacher, student = Reader(len(WORDS), 1, states=True), Reader(len(PARTS), 2, width=5, states=True)
    projector = nn.Linear(5, 6).double()
    before = copy.deepcopy(projector)
    method = ALM(teacher, copy.deepcopy(student), BOTH, options(alm=0.0, latents=1.0), projector)
    figures = loop(method).iterate()
    there, here = [], []
    for text in TEXTS:
        ids, widths = zip(*(form.encode([Special("bos"), text, Special("eos")]) for form in BOTH), strict=True)
        at = [torch.tensor(w).cumsum(0).tolist() for w in widths]
        for end in sorted({*at[0]} & {*at[1]})[1:]:
            there.append(teacher(torch.tensor([ids[0]])).hidden_states[-1][0, at[0].index(end)])
            here.append(before(student(torch.tensor([ids[1]])).hidden_states[-1])[0, at[1].index(end)])
    there, here = torch.stack(there), torch.stack(here)
    expected = ((there - here).square() / (there.square().mean(0) + 1e-8)).mean()
    assert figures["loss/student"] == pytest.approx(float(expected.detach()), rel=1e-10)
    assert not torch.equal(projector.weight, before.weight) and figures["grad_norm/projector"] > 0


def test_ids_beyond_the_tokenizer_count_nothing():
    figures = []
    for extra in (0, 7):
        teacher = Reader(len(WORDS) + extra, 1)
        teacher.load_state_dict({k: F.pad(v, (*[0, 0] * (v.ndim - 1), 0, extra), value=9.0) if len(v) == len(WORDS) else v
                                 for k, v in Reader(len(WORDS), 1).state_dict().items()})  # fmt: skip
        figures.append(loop(make(teacher=teacher)).iterate()["loss/student"])
    assert figures[0] == pytest.approx(figures[1], rel=1e-12)


def test_resume_is_bitwise(tmp_path):
    def run(folder):
        torch.manual_seed(0)
        kinds = {"dtype": torch.float32}
        method = ALM(
            Reader(len(WORDS), 1, **kinds), Reader(len(PARTS), 2, dropout=0.3, **kinds), BOTH, replace(ALMOptions(), uld=1.0)
        )
        return Loop(method, data(), LoopOptions(8, batch=4, checkpoint_every=4), folder=folder, quiet=True)

    whole = run(tmp_path / "whole")
    whole.train()
    stopped = run(tmp_path / "stopped")
    for _ in range(4):
        stopped.iterate()
    stopped.save()
    torch.manual_seed(99)
    resumed = run(tmp_path / "stopped")
    resumed.restore(load(tmp_path / "stopped" / "checkpoints"))
    resumed.train()
    assert resumed.step == 8 and torch.equal(weights(whole.method.student), weights(resumed.method.student))


def llama(vocabulary, tied=False, seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=tied, **sizes)).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_transformers_takes_another_vocabulary_and_learns(tied):
    teacher = llama(len(WORDS) + 5, tied)  # padded beyond the tokenizer
    student = transplant(teacher, WORDS, PARTS, seed=3)
    found, same = sources(WORDS, PARTS), WORDS.token_of()
    assert student.get_input_embeddings().num_embeddings == len(PARTS) and teacher.config.vocab_size == len(WORDS) + 5
    old, new = teacher.get_input_embeddings().weight, student.get_input_embeddings().weight
    assert torch.equal(new[:256], old[:256]) and torch.equal(new[PARTS.token_of()[b"at"]], old[same[b"at"]])
    cat = [old[i] for i in WORDS.split(b"cat")]
    torch.testing.assert_close(new[PARTS.token_of()[b"cat"]], torch.stack(cat).mean(0))
    assert len(cat) == 2 and torch.equal(new[PARTS.specials["eos"][0]], old[WORDS.specials["eos"][0]])
    head, last = student.get_output_embeddings().weight, teacher.get_output_embeddings().weight
    assert (head is new) == tied
    torch.testing.assert_close(head, carried(last, found, len(WORDS), 4 - tied))
    assert student.config.eos_token_id == PARTS.specials["eos"][0]
    method = ALM(teacher, student, BOTH, ALMOptions(latents=1.0))
    run = loop(method)
    before = weights(student)
    figures = run.iterate()
    assert {"part/alm", "part/sft", "part/latents"} < {*figures} and not torch.equal(before, weights(student))
    assert {id(p) for p in method.last} == {id(p) for p in student.model.layers[-1].parameters()}


def test_rows_without_a_source_are_drawn_like_the_others():
    matrix = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0]) + 5
    new = carried(matrix, [()] * 2000 + [(4,), (1, 2)], 400, seed=1)
    torch.testing.assert_close(new[:2000].mean(0), matrix.mean(0), rtol=0, atol=0.25)
    torch.testing.assert_close(new[:2000].std(0), matrix.std(0), rtol=0.06, atol=0)
    assert torch.equal(new[2000], matrix[4]) and torch.equal(new[2001], matrix[1:3].mean(0))
    assert torch.equal(new, carried(matrix, [()] * 2000 + [(4,), (1, 2)], 400, seed=1))
    assert not torch.equal(new, carried(matrix, [()] * 2000 + [(4,), (1, 2)], 400, seed=2))
    assert (
        sources(PARTS, byte_tokenizer(("cls",)))[256] == ()
        and sources(PARTS, byte_tokenizer(("eos",)))[256] == PARTS.specials["eos"]
    )
    assert carried(matrix[:, 0], [(0,), ()], 400).shape == (2,)


def test_presets():
    tulu, bytes_, maths = (PRESETS[f"paper-{name}"] for name in ("tulu3", "tulu3-bytes", "openmathinstruct2"))
    assert tulu.losses == ("alm",) and bytes_.losses == ("alm", "sft", "latents") and maths.losses == ("alm", "sft")
    assert (tulu.tau, tulu.boundary, tulu.batch, tulu.iterations, tulu.chunks) == (100, 0.1, 64, 5000, "merged")
    assert (tulu.student.lr, tulu.student.warmup, tulu.student.weight_decay) == (1e-5, 2000, 0.01)
    assert (maths.student.lr, maths.student.weight_decay, maths.student.clip) == (5e-6, 0.0, None)
    assert maths.balances and not tulu.balances and make(sft=1.0, balance=True).whole and make().whole is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alm": 0.0, "sft": 0.0}, "the weights .* one of them positive"),
        ({"alm": -1.0}, "must not be negative"),
        ({"alm": 2.0, "sft": 1.0, "balance": True}, "cancel where gradients are balanced; give 0 or 1"),
        ({"divergence": "kll"}, "unknown divergence 'kll'"),
        ({"chunks": "merge"}, "unknown chunks 'merge': did you mean 'merged'"),
        ({"tau": 0.0}, "tau=0 .* must be positive"),
        ({"boundary": 1.0}, r"boundary=1 lie in \[0, 1\)"),
    ],
)
def test_options_that_make_no_sense(given, message):
    with pytest.raises(LimbeckError, match=message):
        options(**given)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: ALM(None, Reader(300, 0), BOTH, options(sft=1.0)), "the losses alm, sft need a teacher"),
        (
            lambda: make(student=Reader(len(PARTS) - 1, 0)),
            "the student's embedding has 262 rows and its tokenizer parts 263 tokens",
        ),
        (lambda: make(teacher=Reader(5, 0)), "the teacher's embedding has 5 rows and its tokenizer words 265 tokens"),
        (lambda: loop(make(), TensorSource(torch.zeros(9, 2))).iterate(), "ALM learns from texts in two vocabularies"),
        (lambda: loop(make(latents=1.0)).iterate(), "latents compares hidden states"),
        (
            lambda: loop(
                make(
                    latents=1.0,
                    teacher=Reader(len(WORDS), 1, states=True),
                    student=Reader(len(PARTS), 2, 5, states=True),
                )
            ).iterate(),
            r"hidden states of \(5, 6\) numbers, .* projector=nn.Linear\(5, 6\)",
        ),
        (
            lambda: loop(make(student=nn.Sequential(nn.Embedding(999, 4), nn.Linear(4, 9)).double())).iterate(),
            r"the student must give logits \(6, \d+, 263\)",
        ),
        (lambda: transplant(nn.Linear(2, 2), *BOTH), "a Linear has no get_input_embeddings; carry each matrix over"),
        (lambda: transplant(llama(100), *BOTH), "the model has 100 embeddings and words 265 tokens"),
    ],
)
def test_what_cannot_be_trained(run, message):
    with pytest.raises(LimbeckError, match=message):
        run()


def test_a_teacher_that_the_student_trains_is_refused_and_a_shared_frozen_body_is_not():
    forms, model = (WORDS, WORDS), Reader(len(WORDS), 0)
    with pytest.raises(LimbeckError, match="teacher and student are one object"):
        make(teacher=model, student=model, forms=forms)
    student = copy.deepcopy(model.requires_grad_(False), {id(p): p for p in model.parameters()})
    student.head = nn.Linear(6, len(WORDS)).double()
    loop(make(teacher=model, student=student, forms=forms), data(forms=forms)).iterate()


def test_rows_of_several_lengths_are_fetched_as_long_as_the_longest():
    source = data()
    _, cond = source.fetch(torch.tensor([4, 4]))
    assert cond["student_ids"].shape == (2, int(source.cond["student_length"][4])) and cond["teacher_length"].shape == (2,)
