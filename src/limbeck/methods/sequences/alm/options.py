"""Options of approximate likelihood matching, and the paper's."""

from dataclasses import dataclass, replace

from limbeck.errors import LimbeckError, unknown
from limbeck.losses.chunks import DIVERGENCES
from limbeck.training import EmaOptions, OptimizerOptions

LOSSES = ("alm", "sft", "latents", "uld")
CHUNKS = ("merged", "space", "unconstrained")


@dataclass(frozen=True)
class ALMOptions:
    """Options of approximate likelihood matching. The defaults are what works on a small corpus."""

    iterations: int = 500
    batch: int = 16
    student: OptimizerOptions = OptimizerOptions(
        lr=1e-3, kind="adamw", betas=(0.9, 0.95), weight_decay=0.01, warmup=20, decay="linear", final=0.0, clip=1.0
    )
    ema: EmaOptions | None = None
    alm: float = 1.0
    """Weight of (3); 0: not computed."""
    sft: float = 1.0
    """Weight of the student's next-token cross-entropy under its own tokenizer."""
    latents: float = 0.0
    """Weight of (6)."""
    uld: float = 0.0
    """Weight of the sorted probabilities' L1 distance, a baseline."""
    balance: bool = True
    """(7), where there are two losses or more: the weights then only say which losses there are, and are 0 or 1."""
    divergence: str = "binary_ce"
    """In place of f: kl, reverse_kl, total_variation, log_ratio, renyi, k2, k3, or limit (of tau kl for tau -> infinity)."""
    tau: float = 100.0
    eps: float = 1e-6
    chunks: str = "merged"
    """Where chunks end: merged, as in (5); space, where both sides begin a word; unconstrained, wherever both end a token."""
    boundary: float = 0.1
    """Threshold of (5), in [0, 1)."""

    def __post_init__(self):
        weights = {name: getattr(self, name) for name in LOSSES}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise LimbeckError(f"the weights {weights} must not be negative, and one of them positive; alm=1 is ALM alone")
        if self.balances and not set(weights.values()) <= {0, 1}:
            raise LimbeckError(
                f"the weights {weights} cancel where gradients are balanced; give 0 or 1, or balance=False to weigh by hand"
            )
        if self.divergence not in DIVERGENCES:
            raise unknown("divergence", self.divergence, DIVERGENCES)
        if self.chunks not in CHUNKS:
            raise unknown("chunks", self.chunks, CHUNKS)
        if not (self.tau > 0 and self.eps > 0 and 0 <= self.boundary < 1):
            raise LimbeckError(
                f"tau={self.tau:g} and eps={self.eps:g} must be positive and boundary={self.boundary:g} lie in [0, 1); "
                "tau=100, eps=1e-6, boundary=0.1 are the paper's"
            )

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that are computed."""
        return tuple(name for name in LOSSES if getattr(self, name))

    @property
    def balances(self) -> bool:
        return self.balance and len(self.losses) > 1


_PAPER = ALMOptions(
    iterations=5000, batch=64, sft=0.0, student=OptimizerOptions(
        lr=1e-5, kind="adamw", betas=(0.9, 0.95), weight_decay=0.01, warmup=2000, decay="linear", final=0.0, clip=1.0
    ),
)  # fmt: skip
PRESETS = {
    "recommended": ALMOptions(),
    "paper-tulu3": _PAPER,  # another subword vocabulary; documents of at most 512 tokens
    "paper-tulu3-bytes": replace(_PAPER, sft=1.0, latents=1.0),
    "paper-openmathinstruct2": replace(  # a big teacher to a small student; at most 1024 tokens
        _PAPER, sft=1.0, student=replace(_PAPER.student, lr=5e-6, weight_decay=0.0, clip=None)
    ),
}
