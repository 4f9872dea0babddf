"""Networks of several families as one thing: log s(x, t) (B, L, S), the log ratios p_t(x with x_i := y) / p_t(x).

The entry y = x_i is 0. What the sampler never reads (places that cannot jump) holds anything finite or -inf.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError, missing_extra
from limbeck.samplers.discrete.graphs import Absorbing, Graph
from limbeck.samplers.discrete.schedules import Schedule


class LogScores(nn.Module):
    """A network that gives log ratios itself (SEDD): network(x (B, L), total noise (B,)) -> (B, L, S).

    ``scaled``: the network leaves out log(expm1(total)) + log(S - 1), which is subtracted here (SEDD's absorbing networks).
    Raises LimbeckError where the first answer looks like probabilities, or has another shape.
    """

    def __init__(self, network: nn.Module, graph: Graph, schedule: Schedule, scaled: bool = False):
        super().__init__()
        self.network, self.graph, self.schedule, self.scaled = network, graph, schedule, scaled
        self.checked = False

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, L) int64, t (B,) -> log s (B, L, S), float64."""
        total = self.schedule.total(t.double())
        out = self.network(x, total.float()).double()
        if not self.checked:
            _check_shape(type(self.network).__name__, out, x, self.graph.symbols)
            _check_not_probabilities(type(self.network).__name__, out)
            self.checked = True
        if self.scaled:
            out = out - (total.expm1().log() + torch.tensor(float(self.graph.symbols - 1)).log())[:, None, None]
        return out.masked_fill(F.one_hot(x, self.graph.symbols).bool(), 0.0)


class CleanPredictor(nn.Module):
    """A network that predicts the clean symbol (MDLM, RADD, MaskGIT, D3PM): network(x, total noise) -> (B, L, V or S).

    ``output``: what it gives: logits, or probabilities. A column of MASK is ignored. On the absorbing graph
    s_y = q_y / expm1(total) at masked places; on the uniform one s_y = sum_z q_z p_t(y | z) / p_t(x_i | z).
    """

    def __init__(
        self, network: nn.Module, graph: Graph, schedule: Schedule, output: Literal["logits", "probabilities"] = "logits"
    ):
        super().__init__()
        self.network, self.graph, self.schedule, self.output = network, graph, schedule, output
        self.checked = False

    def probabilities(self, x: Tensor, total: Tensor) -> Tensor:
        """q (B, L, S), float64, 0 at MASK."""
        graph, name = self.graph, type(self.network).__name__
        out = self.network(x, total.float()).double()
        if isinstance(graph, Absorbing) and out.shape[-1] == graph.vocab:
            out = torch.cat([out[..., : graph.at], torch.full_like(out[..., :1], -torch.inf), out[..., graph.at :]], -1)
            if self.output == "probabilities":
                out[..., graph.at] = 0.0
        _check_shape(name, out, x, graph.symbols)
        if isinstance(graph, Absorbing):
            out = out.masked_fill(_column(graph, out), -torch.inf if self.output == "logits" else 0.0)
        if self.output == "logits":
            return out.softmax(-1)
        if not self.checked and (bool((out < 0).any()) or not bool(torch.isclose(out.sum(-1), out.new_ones(())).all())):
            raise LimbeckError(
                f"{name} is said to give probabilities, but its rows are negative or do not sum to 1 (MASK left out); "
                'use CleanPredictor(..., output="logits")'
            )
        self.checked = True
        return out / out.sum(-1, keepdim=True)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, L) int64, t (B,) -> log s (B, L, S), float64."""
        total = self.schedule.total(t.double())
        q, own = self.probabilities(x, total), F.one_hot(x, self.graph.symbols).bool()
        if isinstance(self.graph, Absorbing):
            return (q.log() - total.expm1().log()[:, None, None]).masked_fill(own, 0.0)
        rare = -(-total).expm1()[:, None, None] / self.graph.vocab
        odds = (rare + (-total).exp()[:, None, None]) / rare  # p_t(a | a) / p_t(b | a)
        here = q.gather(-1, x[..., None])
        return (here / odds + q * odds + (1 - here - q)).log().masked_fill(own, 0.0)


class _Logits(nn.Module):
    """A masked language model of transformers as a network of logits; what it must never write has logit -inf."""

    def __init__(self, model: nn.Module, never: list[int]):
        super().__init__()
        self.model, self.never = model, never

    def forward(self, x: Tensor, total: Tensor) -> Tensor:
        model: Any = self.model
        logits = model(input_ids=x).logits
        logits[..., self.never] = -torch.inf
        return logits


def masked_language_model(
    model: nn.Module | str, schedule: Schedule, mask: int, never: list[int] | None = None
) -> CleanPredictor:
    """Any AutoModelForMaskedLM of transformers as scores on the absorbing graph of its own vocabulary.

    ``model``: the model, or the name or folder that ``from_pretrained`` takes. ``mask``: its tokenizer's mask_token_id.
    ``never``: further tokens that are never written (padding, separators).
    """
    if isinstance(model, str):
        try:
            from transformers import AutoModelForMaskedLM
        except ImportError as error:
            raise missing_extra("llm", f"{model!r} is read with transformers") from error
        network: nn.Module = AutoModelForMaskedLM.from_pretrained(model)
    else:
        network = model
    config: Any = getattr(network, "config", None)
    if config is None or not hasattr(config, "vocab_size"):
        raise LimbeckError(
            f"{type(model).__name__} has no config.vocab_size, so it is no masked language model of transformers"
        )
    graph = Absorbing(config.vocab_size, mask)
    return CleanPredictor(_Logits(network, [mask, *(never or [])]), graph, schedule)


def _column(graph: Absorbing, out: Tensor) -> Tensor:
    return torch.arange(graph.symbols, device=out.device) == graph.at


def _check_shape(name: str, out: Tensor, x: Tensor, symbols: int) -> None:
    if out.shape != (*x.shape, symbols):
        raise LimbeckError(f"{name} must give one value per symbol, {(*x.shape, symbols)}, not {tuple(out.shape)}")


def _check_not_probabilities(name: str, out: Tensor) -> None:
    """SEDD's log ratios neither sum to 1 nor have exponentials that do, in every row."""
    for what, rows in (("probabilities", out.sum(-1)), ("log-probabilities", out.logsumexp(-1).exp())):
        proper = what == "log-probabilities" or bool((out >= 0).all())
        if proper and bool(torch.isclose(rows, rows.new_ones(()), atol=1e-4).all()):
            raise LimbeckError(
                f"{name} gives {what} (every row sums to 1), but log-scores are expected here; use "
                "limbeck.samplers.discrete.CleanPredictor for networks that predict the clean symbol"
            )
