"""Cross-tokenizer distillation by approximate likelihood matching (ALM, arXiv 2503.20083): chunks of text in place of tokens.

Teacher T and student S read one text in tokens of their own. Where both end a token after the same bytes, a chunk c ends.

(1) L(c) = sum_{j in c} log p(token_j | tokens before)                  of T and of S, each over its own tokens
(2) f(c) = -(P log Q + (1 - P) log(1 - Q))                              P = e^{L_T/tau - eps}, Q = e^{L_S/tau - eps}; L_T is fixed
(3) loss = sum_c f(c) / number of chunks                                over the whole batch
(4) log P_space = log sum_{v begins with space, newline, tab, or is special} p(v | tokens up to the chunk's end)
(5) chunks are joined until P_space of T > ``boundary``; then L(c) += log P_space, T's to T's, S's to S's
(6) latents = mean_c mean_d (h_S - h_T)_d^2 / E h_T,d^2                 last hidden states at each chunk's last token
(7) total = sum_l w_l loss_l / sum_l w_l,  w_l = 1 / |grad loss_l|      gradients with respect to the student's last layer

A chunk's end says something of its own: after "Hel" a tokenizer with a token "Hello" would not have stopped. (5) asks both models
for "this text, and then a word's end", which all tokenizers can say. ``chunks="space"`` instead cuts only where both sides' next
token begins a word; "unconstrained" everywhere. (7) needs two losses or more: at tau = 100 the slope of (2) is 1/100 of theirs.
``uld`` (the baseline of arXiv 2402.12030) compares sorted probabilities at each chunk's end. Data are what
:func:`limbeck.interop.tokenizers.paired` makes. Models are causal and take ids: those of transformers, or plain modules.

Differs from the paper: (5) is the form that the authors' documents recommend, not the precomputed table of biases
("unbiased", which is not here). Chunks behind the last word's end of a row are dropped, since nothing ends them. The paper sums
(3), its code takes the mean. ULD pairs tokens by number, here where both sides have read the same. No adapters, ensembles,
hypernetwork, or bytes that see the subwords which end at them. Unverified: the full tables; which layer (7) means (here the last
block, or the output layer where there are no blocks).
"""

from limbeck.methods.sequences.alm.method import ALM
from limbeck.methods.sequences.alm.options import PRESETS, ALMOptions

METHOD, OPTIONS = ALM, ALMOptions
__all__ = ["ALM", "PRESETS", "ALMOptions"]
