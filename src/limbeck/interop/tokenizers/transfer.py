"""A model's embeddings for another vocabulary (fast vocabulary transfer, arXiv 2402.09977): copied, averaged, or drawn."""

import copy
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.interop.tokenizers.byteform import ByteForm

Sources = list[tuple[int, ...]]


def sources(old: ByteForm, new: ByteForm) -> Sources:
    """For each new token, the old tokens whose mean it starts from: the one with the same bytes, else those it splits into.

    Special tokens by role; one with several roles takes the first (bos, eos, pad, ...). Empty: nothing in the old vocabulary.
    """
    same = old.token_of()
    special: dict[int, tuple[int, ...]] = {}
    for role, unit in new.specials.items():
        former = old.specials.get(role, ())
        for i, token in enumerate(unit):
            special.setdefault(token, (former[i],) if len(former) == len(unit) else former)
    found: Sources = []
    for i, piece in enumerate(new.pieces):
        if not piece:
            found.append(special.get(i, ()))
        else:
            found.append((same[piece],) if piece in same else tuple(old.split(piece)))
    return found


@torch.no_grad()
def carried(matrix: Tensor, found: Sources, rows: int, seed: int = 0) -> Tensor:
    """The rows (len(found), ...) of a new vocabulary from the old one's (V, ...), of which ``rows`` are not padding.

    Tokens without a source are drawn from N(mean, std) of the old rows, by the seed.
    """
    old = matrix[:rows].detach()
    noise = torch.randn(len(found), *old.shape[1:], generator=torch.Generator().manual_seed(seed)).to(old)
    new = old.mean(0) + old.std(0) * noise
    for i, some in enumerate(found):
        if some:
            new[i] = old[list(some)].mean(0)
    return new


def transplant(model: Any, old: ByteForm, new: ByteForm, seed: int = 0) -> Any:
    """A copy of a causal language model of transformers that reads and writes a new vocabulary; the model stays as it is.

    Input and output embeddings (and an output bias) are treated alike; where they were tied they are again. Raises LimbeckError
    for a model without such embeddings, or with fewer rows than the old vocabulary has tokens.
    """
    made, found = copy.deepcopy(model), sources(old, new)
    try:
        into, out = made.get_input_embeddings(), made.get_output_embeddings()
    except AttributeError:
        raise LimbeckError(
            f"a {type(model).__name__} has no get_input_embeddings; carry each matrix over with limbeck.interop.tokenizers.carried"
        ) from None
    if into.weight.shape[0] < len(old):
        raise LimbeckError(
            f"the model has {into.weight.shape[0]} embeddings and {old.name} {len(old)} tokens; give the tokenizer it was trained with"
        )
    tied = out is None or out.weight is into.weight
    rows = carried(into.weight, found, len(old), seed)
    heads = None if tied else carried(out.weight, found, len(old), seed + 1)
    bias = getattr(out, "bias", None)
    biases = None if bias is None else carried(bias, found, len(old), seed + 2)
    made.resize_token_embeddings(len(new), mean_resizing=False)
    with torch.no_grad():
        made.get_input_embeddings().weight.copy_(rows)
        if heads is not None:
            made.get_output_embeddings().weight.copy_(heads)
        if biases is not None:
            made.get_output_embeddings().bias.copy_(biases)
    for settings in (made.config, getattr(made, "generation_config", None)):
        for role in ("bos", "eos", "pad"):
            if settings is not None:
                unit = new.specials.get(role)
                setattr(settings, f"{role}_token_id", unit[-1] if unit else None)
    return made
