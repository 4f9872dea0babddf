"""Pairwise sample optimization: preferences for a model that is few-step already (PSO, arXiv 2410.03190).

A student D_theta that samples in K steps is moved towards samples that win, away from samples that lose. Both are measured
relative to a frozen copy of itself, D_ref, so that errors common to both cancel; the plain denoising loss asks for
E[x_0 | x_t] instead, and blurs a student that answers with sharp samples. Only the sampler's own times are trained.

(1) x_u | x_t ~ N(mu_theta, sd^2 I), mu_theta = keep x_t + clean D_theta(x_t, t, c)      one step of the student's own sampler
(2) rho = mean[log p_theta(x_u | x_t) - log p_ref(x_u | x_t)]                   over elements, the stored x_u without gradient
(3) rho <- log clamp(exp rho, 1 - eps, 1 + eps)
(4) L = -log sigmoid(beta (rho^w - rho^l))                                      ties: both 0, L = log 2 and no gradient
(5) d_theta(x) = w_t mean|D_theta(a x + s e, t, c) - x|^2                       offline: the same t and e for winner and loser
(6) rho^w = d_ref(x^w) - d_theta(x^w),  rho^l = kappa (d_ref(x^l) - d_theta(x^l)),  then (4)
(7) L = relu(1 - beta (kappa d_theta(x^l) - d_theta(x^w))) + prior d_theta(x^l)   customisation: no reference

``online``: the pair is two trajectories of the current student under one condition, ranked by a reward. One iteration is one
round: sample, rank, and K - 1 updates, each pair's steps in an order of its own. The sampler's last step has no density.
``offline``: the winner is an image of the data, the loser a sample of the reference (or, ``pairs="labelled"``, the
condition ``loser``, which the networks do not see). ``customisation``: losers are ``num_negatives`` samples drawn once.

With ``rank`` > 0 the student is adapters on the reference's own weights, which then costs no memory. Its figures are "kl", the
mean rho of winners (nats per element and step), and "drift", the same over ``drift_bound``: above 1 the run warns, since a
reward without bound and a small beta lead the student anywhere.

Differs from the paper / from its code: the two trajectories and all samples have noise of their own (the code shares the
re-noising noise in a batch); log-probabilities are float32 or wider. The code draws 16 pairs a round and steps after 4 (8 for
Turbo) of them; here a round is one batch, and ``accumulate`` takes its K - 1 steps in one update, so that the presets draw
anew for every update. No 8-bit optimizer. Presets flagged "paper" hold the published scripts' values; the number of online
iterations, the reward (name your own) and everything of the offline form are unverified.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.denoisers import ClassifierFree, Cond, Denoiser
from limbeck.errors import LimbeckError
from limbeck.losses import clipped, customisation_loss, denoising_errors, denoising_ratios, pair_loss, ranked
from limbeck.methods.generators.fewstep import among, sampled_levels
from limbeck.methods.generators.generator import Generator, Ingredients, check_guidance, trained_copy
from limbeck.samplers import Chain, Rollout, log_prob
from limbeck.tasks import Reward, scored
from limbeck.training import Batch, EmaOptions, Keyed, OptimizerOptions, Role, Step, Total, Update

FEW = 10  # pairs: fewer say nothing about a reward that is constant


@dataclass(frozen=True)
class PSOOptions:
    """Options of PSO. The defaults are online PSO as on the ring of its claim; on the digits they are not measured."""

    form: Literal["online", "offline", "customisation"] = "online"
    iterations: int = 150
    batch: int = 256
    student: OptimizerOptions = OptimizerOptions(lr=1e-3, kind="adamw", betas=(0.9, 0.999), weight_decay=1e-6, clip=1.0)
    ema: EmaOptions = EmaOptions("constant", 0.0)
    """Average of what is trained (value 0: none)."""
    sigmas: tuple[float, ...] = ()
    """Noise levels sigma of the student's sampler, decreasing (none given: those that it was distilled for)."""
    trained: tuple[float, ...] = ()
    """Those of them that are trained (none given: all; online all but the last)."""
    sampler: Literal["renoise", "ancestral", "ddim", "tcd"] = "renoise"
    eta: float = 1.0
    """Share of fresh noise in a step of ddim or tcd."""
    reward: str = "class"
    """Name of the task's reward, or MODULE:FUNCTION, (x, cond) -> (B,) (online)."""
    beta: float = 20.0
    """On mean log-ratios, not sums."""
    clip: Literal["symmetric", "ppo"] | None = None
    eps: float = 0.1
    accumulate: bool = False
    """All steps of a round in one update."""
    rank: int = 16
    """Of the student's adapters; 0 trains all weights."""
    alpha: float | None = None
    layers: tuple[str, ...] = ()
    """Layers that are adapted (none given: all linear ones and convolutions)."""
    reference_copy: bool = False
    """With rank 0: keep a second model in memory as the reference."""
    kappa: float = 1.0
    """How much losers count (offline and customisation)."""
    weight: str = "x0"
    """Which error d is: x0, eps, v, velocity, edm or min_snr_5."""
    times: Literal["sampler", "all"] = "sampler"
    """Offline: the sampler's own times, or uniform over the process's (Diffusion-DPO)."""
    pairs: Literal["reference", "labelled"] = "reference"
    prior: float = 0.5
    num_negatives: int = 20
    refresh: int = 0
    """Iterations between new negatives, drawn from the student as it is then (0: never)."""
    guidance: float = 1.0
    drift_bound: float = 0.1
    """kl that counts as having left the reference."""

    def __post_init__(self):
        if self.beta <= 0 or self.drift_bound <= 0 or self.num_negatives < 1 or self.refresh < 0:
            raise LimbeckError(
                f"beta={self.beta:g} and drift_bound={self.drift_bound:g} must be positive, num_negatives="
                f"{self.num_negatives} at least 1, refresh={self.refresh} at least 0"
            )
        if self.form != "customisation" and self.rank == 0 and not self.reference_copy:
            raise LimbeckError(
                "rank=0 trains all weights, and nothing is left to compare with: give rank >= 1 (the reference is then the model "
                "without its adapters), or reference_copy=True, which holds a second model in memory"
            )


_SDXL = (14.6146, 4.0817, 1.6129, 0.6932)  # sigma at the indices 999, 749, 499, 249 of Stable Diffusion's table
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ADAMW = OptimizerOptions(lr=1e-5, kind="adamw", betas=(0.9, 0.999), weight_decay=1e-6, clip=1.0)
_DMD2 = PSOOptions(
    iterations=10_000, batch=4, student=_ADAMW, sigmas=_SDXL, reward="", beta=50.0, clip="symmetric", eps=0.1, accumulate=True,
    rank=16, layers=_ATTENTION,
)  # fmt: skip
_TURBO = replace(_DMD2, batch=8, rank=32, sampler="ancestral")
PRESETS = {
    "recommended": PSOOptions(),
    "paper-dmd2": _DMD2,
    "paper-turbo": _TURBO,
    "paper-customisation": replace(
        _TURBO, form="customisation", iterations=600, batch=4, student=replace(_ADAMW, lr=2e-4), beta=5.0, rank=16,
        kappa=0.1, prior=0.5, weight="eps", num_negatives=20,
    ),
}  # fmt: skip


class PSO(Generator):
    """See the module. ``parts.start`` is the few-step student; ``parts.images`` are the winners of all forms but online."""

    def __init__(self, parts: Ingredients, options: PSOOptions = PRESETS["recommended"]):
        o = options
        sigmas = sampled_levels(parts, o.sigmas, o.trained, "pso")
        if o.form == "online" and among(sigmas[-1], o.trained):
            raise LimbeckError(
                f"the step from {sigmas[-1]:g}, the last of {list(sigmas)}, has no density; leave it out of trained, or take offline"
            )
        if o.form != "online" and not parts.images:
            raise LimbeckError(f"the form {o.form!r} learns from target images; give data, or take online with a reward")
        super().__init__(parts, sigmas, trained_copy(parts.start, o.rank, o.alpha, o.layers))
        self.options, self.reference = o, parts.start
        self.chain = Chain(self.process, tuple(self.times.tolist()), o.sampler, o.eta)
        self.roles = {"student": Role(self.student, o.student, o.ema if o.ema.value else None), "reference": Role(parts.start)}
        self.allowed = [i for i, s in enumerate(sigmas) if not o.trained or among(s, o.trained)]
        check_guidance(parts.start, o.guidance)
        if o.guidance != 1:
            known = getattr(parts.start, "trained_guidance", None)
            was = "already guided" if known is None else f"distilled at guidance {known:g}"
            warnings.warn(f"guidance={o.guidance:g} on a model that was {was}: that is guiding twice; use 1", stacklevel=2)
        if o.form == "online":
            self.chain.require_density()
            self.allowed = [i for i in self.allowed if i < self.chain.K - 1]
            self.reward: Reward = parts.rewarded(o.reward)
        if o.form != "online" and o.pairs == "labelled" and "loser" not in (parts.cond or {}):
            raise LimbeckError("pairs='labelled' needs the condition 'loser', for every image the one that it was preferred to")
        self.negatives: Tensor | None = None
        if o.form == "customisation" and o.pairs == "reference":
            rows = torch.arange(o.num_negatives, device=parts.example.device) % len(parts.example)
            self.negative_cond = parts.cond and {name: value[rows] for name, value in parts.cond.items()}
            self.negative_seed, self.device = int(torch.randint(2**31, ())), parts.example.device
            self.negatives = self.drawn_negatives(parts.start, 0)

    def step(self, batch: Batch) -> Step:
        self.student.eval()  # ratios compare weights, not dropout masks
        yield from self.online(batch) if self.options.form == "online" else self.from_images(batch)

    def policy(self, denoiser: Denoiser) -> Denoiser:
        """A denoiser as it is sampled from."""
        return denoiser if self.options.guidance == 1 else ClassifierFree(denoiser, self.options.guidance)

    # -- online: pairs of trajectories ------------------------------------------------------------------------------

    def online(self, batch: Batch) -> Step:
        o, n = self.options, batch.size
        states, cond, reward = self.trajectories(batch)
        sign = torch.sign(reward[:n] - reward[n:])
        ties = (sign == 0).double()
        if batch.step == 0:
            found = yield Total(torch.stack([ties.sum(), torch.ones_like(ties).sum()]))
            assert found is not None
            if found[1] >= FEW and found[0] > 0.9 * found[1]:
                raise LimbeckError(
                    f"the reward {o.reward!r} is the same for both samples of {found[0]:.0f} of {found[1]:.0f} pairs: ties have no "
                    "gradient, so nothing would be learned; use a finer reward, or start from a student that varies more"
                )
        columns = batch.noise.uniform("order", (len(self.allowed),)).argsort(1)
        order = torch.tensor(self.allowed, device=columns.device)[columns]  # (B, updates): each pair's own
        for k in [order] if o.accumulate else order.split(1, 1):
            rows = torch.arange(n, device=k.device).repeat_interleave(k.shape[1])
            rho = self.log_ratios(states, cond, torch.cat([rows, rows + n]), k.flatten().repeat(2))
            first, second = rho.chunk(2)
            rho_w, rho_l = ranked(first, second, sign[rows])
            kl = (
                torch.where(sign[rows] < 0, second, first).detach().mean()
            )  # of ties the first: a reward that saturates hides nothing
            held = clipped(rho_w, rho_l, o.eps, o.clip)  # (3)
            loss = pair_loss(*held, o.beta).mean()  # (4)
            outside = torch.stack([(a != b).double().mean() for a, b in zip(held, (rho_w, rho_l), strict=True)]).mean()
            logs = {"reward": reward.mean(), "ties": ties.mean(), "kl": kl, "drift": kl / o.drift_bound, "clipped": outside}
            yield Update("student", loss, logs)

    @torch.no_grad()
    def trajectories(self, batch: Batch) -> tuple[Tensor, Cond | None, Tensor]:
        """States (K, 2 B, ...), conditions and rewards (2 B,) of two trajectories per condition: all first ones, then all second."""
        draw = lambda name: torch.cat([self.normal(batch, f"{name} {side}") for side in ("first", "second")])  # noqa: E731
        cond = None if batch.cond is None else {name: torch.cat([value, value]) for name, value in batch.cond.items()}
        made = self.chain(self.policy(self.student), draw("z"), cond, noise=lambda i: draw(f"renoise {i}"))
        return torch.stack(made.inputs), cond, scored(self.reward, self.options.reward, made.x, cond)

    def log_ratios(self, states: Tensor, cond: Cond | None, rows: Tensor, k: Tensor) -> Tensor:
        """rho of the step ``k`` of the trajectories ``rows``, both (N,): (N,)."""
        x_t, x_u, t = states[k, rows], states[k + 1, rows], self.times.to(states.device)[k]
        cond = None if cond is None else {name: value[rows] for name, value in cond.items()}
        mean, sd = self.chain.moments(x_t, self.policy(self.student)(x_t, t, cond), k)  # (1)
        with torch.no_grad():
            reference, _ = self.chain.moments(x_t, self.policy(self.reference)(x_t, t, cond), k)
        return log_prob(x_u, mean, sd) - log_prob(x_u, reference, sd)  # (2)

    # -- offline and customisation: pairs of images -----------------------------------------------------------------

    def from_images(self, batch: Batch) -> Step:
        o, n = self.options, batch.size
        x, cond = self.image_pairs(batch)
        if o.times == "all":
            t = self.process.t_min + (self.process.t_max - self.process.t_min) * batch.noise.uniform("time")
        else:
            own = self.times.to(x.device)[torch.tensor(self.allowed, device=x.device)]
            t = own[batch.noise.randint("time", 0, len(own))]
        eps = self.normal(batch, "noise").repeat(2, *(1 for _ in self.shape))
        errors = partial(denoising_errors, x=x, t=t.repeat(2), eps=eps, cond=cond, weight=o.weight, sigma_data=self.sigma_data)
        d_w, d_l = errors(self.policy(self.student)).split(n)  # (5)
        if o.form == "customisation":
            loss = customisation_loss(d_w, d_l, o.beta, o.kappa, o.prior)  # (7)
            yield Update("student", loss.mean(), {"error": d_w.detach().mean(), "prior": d_l.detach().mean()})
            return
        with torch.no_grad():
            ref_w, ref_l = errors(self.policy(self.reference)).split(n)
        rho_w, rho_l = denoising_ratios(d_w, d_l, ref_w, ref_l, o.kappa)  # (6)
        kl = rho_w.detach().mean()
        logs = {"kl": kl, "drift": kl / o.drift_bound, "rho_l": rho_l.detach().mean()}
        yield Update("student", pair_loss(rho_w, rho_l, o.beta).mean(), logs)

    @torch.no_grad()
    def image_pairs(self, batch: Batch) -> tuple[Tensor, Cond | None]:
        """Winners, then losers (2 B, ...), with their conditions."""
        assert batch.x is not None
        cond = {name: value for name, value in (batch.cond or {}).items() if name != "loser"} or None
        other: Cond | None = cond
        if self.options.pairs == "labelled":
            loser = (batch.cond or {})["loser"].to(batch.x)
        elif self.negatives is not None:
            i = batch.noise.randint("negative", 0, len(self.negatives)).to(self.negatives.device)
            loser = self.negatives[i]
            other = self.negative_cond and {name: value[i] for name, value in self.negative_cond.items()}
        else:
            z, noise = self.normal(batch, "z"), lambda i: self.normal(batch, f"renoise {i}")
            loser = self.chain(self.policy(self.reference), z, cond, noise=noise).x
        both = None if cond is None or other is None else {name: torch.cat([cond[name], other[name]]) for name in cond}
        return torch.cat([batch.x.to(loser), loser]), both

    @torch.no_grad()
    def drawn_negatives(self, denoiser: Any, step: int) -> Tensor:
        """``num_negatives`` samples, noise keyed by the method's seed and ``step``."""
        keyed = Keyed(self.negative_seed, step, torch.arange(self.options.num_negatives), self.device)
        draw = lambda name: keyed.normal(name, self.shape, next(self.student.parameters()).dtype)  # noqa: E731
        return self.chain(self.policy(denoiser), draw("z"), self.negative_cond, noise=lambda i: draw(f"renoise {i}")).x

    def finish(self, step: int) -> None:
        if self.negatives is not None and self.options.refresh and (step + 1) % self.options.refresh == 0:
            self.negatives = self.drawn_negatives(self.student, step + 1)

    def state(self) -> dict[str, Tensor]:
        return {} if self.negatives is None else {"negatives": self.negatives}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if self.negatives is not None:
            self.negatives = state["negatives"].to(self.negatives)

    @property
    def sampling(self) -> Rollout | Chain:
        if (w := self.options.guidance) != 1:
            raise LimbeckError(f"this student is sampled with guidance {w:g}, which is no part of it; train with guidance 1")
        return self.chain

    def sampler(self, ema: bool = True, steps: int | None = None) -> Callable[..., Tensor]:
        policy = self.policy(self.roles["student"].best if ema else self.student)  # type: ignore[arg-type]
        chain = self.chain if steps is None else replace(self.chain, times=self.chain.times[:steps])

        @torch.no_grad()
        def sample(z: Tensor, cond: Cond | None = None, noise: Callable[[int], Tensor] | None = None) -> Tensor:
            return chain(policy, z, cond, noise=noise).x

        return sample


METHOD, OPTIONS = PSO, PSOOptions
__all__ = ["PRESETS", "PSO", "PSOOptions"]
