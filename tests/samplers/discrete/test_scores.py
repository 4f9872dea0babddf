"""Score adapters: exact predictors give exact scores, scaling, masked language models, and networks of the wrong kind."""

import sys

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.samplers.discrete import Absorbing, CleanPredictor, Linear, LogLinear, LogScores, Uniform, masked_language_model

F64 = torch.float64
T = torch.tensor(0.6, dtype=F64)


class Answer(nn.Module):
    """A network that gives the same rows at every place."""

    def __init__(self, row):
        super().__init__()
        self.row = torch.as_tensor(row, dtype=F64)

    def forward(self, x, total):
        return self.row.expand(*x.shape, -1).clone()


class Posterior(nn.Module):
    """p(clean x_i | the rest of x) of an enumerated law, by Bayes' rule; on the uniform graph p(clean x_i | all of x)."""

    def __init__(self, world, mask_column=True):
        super().__init__()
        self.world, self.mask_column = world, mask_column

    def forward(self, x, total):
        world = self.world
        step = world.graph.transition(total[0].double())
        joint = world.p0[:, None] * torch.kron(step, step)
        q = []
        for i in range(world.length):
            clean = nn.functional.one_hot(world.states[:, i], world.graph.symbols).double()
            q.append((clean.T @ joint / joint.sum(0)).T)
        rows = torch.stack(q, 1).nan_to_num(0.5)[world.index(x)]
        return rows if self.mask_column else rows[..., : world.graph.vocab]


@pytest.mark.parametrize("output", ["probabilities", "logits"])
@pytest.mark.parametrize("mask_column", [True, False])
def test_the_exact_predictor_gives_exact_scores_on_the_absorbing_graph(absorbing, output, mask_column, request):
    network = Posterior(absorbing, mask_column)
    if output == "logits":
        answer = network.forward
        network.forward = lambda x, total: answer(x, total).log() + 3.0
    score = CleanPredictor(network, absorbing.graph, absorbing.schedule, output)
    x = absorbing.states[(absorbing.states == 3).any(1)]
    t = T.expand(len(x))
    masked = x == 3
    assert torch.allclose(score(x, t)[masked].exp(), absorbing(x, t)[masked].exp(), rtol=1e-6)  # networks see float32 noise


def test_the_exact_predictor_gives_exact_scores_on_the_uniform_graph(uniform):
    score = CleanPredictor(Posterior(uniform), uniform.graph, uniform.schedule, "probabilities")
    t = T.expand(len(uniform.states))
    assert torch.allclose(score(uniform.states, t), uniform(uniform.states, t), atol=1e-5)


def test_log_scores_are_passed_on_with_their_own_entry_zero():
    x = torch.tensor([[0, 2]])
    row = [0.3, -1.0, 2.0]
    t = torch.tensor([0.5], dtype=F64)
    plain = LogScores(Answer(row), Uniform(3), Linear())(x, t)
    assert plain.tolist() == [[[0.0, -1.0, 2.0], [0.3, -1.0, 0.0]]]
    scaled = LogScores(Answer(row), Absorbing(3), LogLinear(), scaled=True)(x, t)
    shift = torch.log(torch.expm1(LogLinear().total(t))) + torch.log(torch.tensor(2.0, dtype=F64))
    assert scaled[0, 1, :2].tolist() == pytest.approx([0.3 - float(shift), -1.0 - float(shift)], abs=1e-6)
    assert float(scaled[0, 1, 2]) == 0


def test_networks_are_given_the_total_noise():
    seen = []

    class Spy(Answer):
        def forward(self, x, total):
            seen.append(total)
            return super().forward(x, total)

    LogScores(Spy([0.3, -1.0, 2.0]), Uniform(3), Linear(2.0, 0.1))(torch.tensor([[0, 2]]), torch.tensor([0.5]))
    assert seen[0].tolist() == pytest.approx([1.1])


@pytest.mark.parametrize(
    "row, what",
    [([0.2, 0.3, 0.5], "Answer gives probabilities"), ([-1.0986123, -1.0986123, -1.0986123], "Answer gives log-probabilities")],
)
def test_probabilities_in_place_of_log_scores_name_the_network(row, what):
    with pytest.raises(LimbeckError, match=f"{what}.*log-scores are expected.*CleanPredictor"):
        LogScores(Answer(row), Uniform(3), Linear())(torch.tensor([[0, 1]]), torch.tensor([0.5]))


def test_log_scores_below_zero_are_no_probabilities():
    """Near t = 1 the log ratios of an absorbing graph are all far below 0, and right."""
    out = LogScores(Answer([-7.0, -8.0, 0.0]), Absorbing(3), LogLinear())(torch.tensor([[2]]), torch.tensor([0.99]))
    assert out.tolist() == [[[-7.0, -8.0, 0.0]]]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, t: LogScores(Answer([1.0, 2.0]), Uniform(3), Linear())(x, t), r"Answer .* \(1, 2, 3\), not \(1, 2, 2\)"),
        (lambda x, t: CleanPredictor(Answer([1.0] * 5), Absorbing(3), LogLinear())(x, t), r"Answer .* \(1, 2, 3\)"),
        (
            lambda x, t: CleanPredictor(Answer([2.0, 1.0, 0.0]), Absorbing(3), LogLinear(), "probabilities")(x, t),
            'do not sum to 1.*output="logits"',
        ),
        (lambda x, t: masked_language_model(nn.Linear(2, 2), LogLinear(), 1), "Linear has no config.vocab_size"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call(torch.tensor([[0, 1]]), torch.tensor([0.5]))


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"vocab_size": 5})()

    def forward(self, input_ids):
        logits = nn.functional.one_hot(input_ids, 5).double() + torch.arange(5.0).double()
        return type("Output", (), {"logits": logits})()


def test_masked_language_models_never_write_mask_or_what_is_forbidden():
    score = masked_language_model(Language(), LogLinear(), mask=1, never=[4])
    assert score.graph == Absorbing(5, 1)
    t = torch.tensor([0.5], dtype=F64)
    log_s = score(torch.tensor([[1, 3]]), t)
    q = torch.tensor([0.0, 2.0, 3.0], dtype=F64).softmax(0)  # what masked place 0 may become: 0, 2, 3
    ratios = q / torch.expm1(LogLinear().total(t))
    assert torch.allclose(log_s[0, 0, [0, 2, 3]].exp(), ratios)
    assert log_s[0, 0, 4] == -torch.inf and log_s[0, 0, 1] == 0


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LimbeckError, match=r"pip install 'limbeck\[llm\]'"):
        masked_language_model("some-model", LogLinear(), 3)
    with pytest.raises(LimbeckError, match="mask=7 lies outside the vocabulary of 5"):
        masked_language_model(Language(), LogLinear(), 7)


@pytest.mark.slow  # importing transformers takes seconds
def test_a_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=9, max_position_embeddings=8, **sizes)).eval()
    score = masked_language_model(model, LogLinear(), mask=3, never=[0])
    x, t = torch.tensor([[1, 3, 5]]), torch.tensor([0.5], dtype=F64)
    kept = [1, 2, 4, 5, 6, 7, 8]
    expected = model(input_ids=x).logits[0, 1, kept].double().softmax(-1) / torch.expm1(LogLinear().total(t))
    assert torch.allclose(score(x, t)[0, 1, kept].exp(), expected)
