"""Hyper-SD: trajectory segmented consistency distillation (TSCD), human feedback, one-step score distillation (2404.13686).

The way from clean data (position 0) to noise (1) is cut into k segments, and the student learns to jump inside each. When it
can, segments merge: k = 8, 4, 2, 1, one stage after the other in one run. A position u is the time t of the process.

(1) b_m = m / k,  u in (b_m, b_{m+1}]                                              half-open: one segment for every position
(2) u ~ U{1/N, 2/N, ..., 1},  u_n = max(u - 1/N, b_m)                              where the teacher's jump starts and lands
(3) u_e ~ U[b_m, u_n]  or  u_e = b_m                                               where the student must land
(4) f(x_t, t, s) = Phi(x_t, D(x_t, t, c), t, s)                                    Phi: DDIM's step; f(x, t, t) = x
(5) x_t = a x_0 + s e,  x_{t_n} = Phi(x_t, D_T^w(x_t, t, c), t, t_n)               w ~ U[w_min, w_max] of the teacher
(6) L_k = w_mse(k) d(f(x_t, t, t_e), sg f^-(x_{t_n}, t_n, t_e)) + w_adv(k) L_adv   f^-: the average theta^- of theta
(7) L_adv = softplus(-h(fake)),  L_D = softplus(-h(real)) + softplus(h(sg fake))   fake, real: the two points of (6)
(8) L_aes = sum_d E relu(alpha_d - r_d(x0_hat, c)),  L_percep = E L_I(x0_hat, x_0) x0_hat: a late prediction; rewards r_d
(9) g = (D_F(x_tau) - D_w(x_tau)) / mean|x - D_w|,  L_dmd = mean(x sg[g])          x = D(s(T) z, T): one step; D_F its critic
(10) L_mse = mean |x - x*|^2                                                       x*: several steps from the same z

The k-stage's weights are the k-step model: :meth:`HyperSD.stage` gives every stage's. With adapters (``rank``) each is a small
tree on the shared base. The unified model is the last stage's, kept good at more steps by ``anchor`` and sampled with TCD's eta.
Sampling is deterministic DDIM on trailing positions, or TCD.

Differs from the paper, which has no code: the reward stage trains the same weights on, not an adapter of its own that is merged
later; the discriminator reads the frozen network that the student starts as; position 0 is the process's least noisy time.
"""

from limbeck.methods.generators.hyper_sd.method import HyperSD
from limbeck.methods.generators.hyper_sd.options import PRESETS, HyperSDOptions, Stage

METHOD, OPTIONS = HyperSD, HyperSDOptions
__all__ = ["PRESETS", "HyperSD", "HyperSDOptions", "Stage"]
