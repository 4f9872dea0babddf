"""Self-distillation of kernel ridge regression: every round, mixture and limit from one eigendecomposition."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.methods.recognition.self_distillation.mixing import estimate_alpha

Kernel = Callable[[Tensor, Tensor], Tensor]


def rbf_kernel(gamma: float) -> Kernel:
    """exp(-gamma |x - x'|^2) of rows (n, d) and (m, d): (n, m)."""
    if not gamma > 0:
        raise LimbeckError(f"gamma={gamma:g} must be positive; 1 / d is a common choice for standardised inputs")
    return lambda a, b: torch.exp(-gamma * torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square())


class KernelSelfDistiller:
    """min_f alpha/2 |f(X) - Y|^2 + (1 - alpha)/2 |f(X) - y_{tau-1}|^2 + lam/2 |f|_K^2, round after round, in float64.

    ``kernel``: (n, d), (m, d) -> (n, m), symmetric and positive semidefinite. ``lam`` counts the sum over samples, as
    scikit-learn's KernelRidge does (a mean needs n times as much). Rounds are told by their weights of the labels: ``alphas`` =
    (alpha_2, ..., alpha_tau); () is round 1, plain ridge regression. ``clip``: what an alpha may be; None allows extrapolation.
    """

    def __init__(self, kernel: Kernel, lam: float, clip: tuple[float, float] | None = (0.0, 1.0)):
        if not lam >= 0:
            raise LimbeckError(
                f"lam={lam:g} penalises the norm: it must not be negative (0 needs a kernel that can be inverted)"
            )
        self.kernel, self.lam, self.clip = kernel, lam, clip

    def fit(self, x: Tensor, y: Tensor) -> "KernelSelfDistiller":
        """Decompose the kernel of x (n, d), with labels y (n,) or (n, c), whose columns are independent. O(n^3), once."""
        if x.ndim != 2 or y.ndim not in (1, 2) or len(x) != len(y) or len(x) == 0:
            raise LimbeckError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be (n, d) and (n,) or (n, c), n >= 1")
        self.x, self.y = x.double(), y.double()
        gram = self.kernel(self.x, self.x)
        largest = float(gram.abs().max())
        if not bool(gram.isfinite().all()) or float((gram - gram.T).abs().max()) > 1e-8 * largest:
            raise LimbeckError("the kernel's matrix is not symmetric (or not finite); a kernel has k(x, y) = k(y, x)")
        d, self.vectors = torch.linalg.eigh((gram + gram.T) / 2)
        low, high = float(d[0]), float(d[-1])
        if low < -1e-8 * high:
            raise LimbeckError(
                f"the kernel is not positive semidefinite: its smallest eigenvalue is {low:.3g}, its largest {high:.3g}"
            )
        if self.lam == 0 and low < 1e-12 * high:
            raise LimbeckError(
                f"lam=0 needs a kernel that can be inverted, but its smallest eigenvalue is {low:.3g}; give lam > 0"
            )
        self.values = d.clamp(min=0.0)
        self._rotated = self.vectors.T @ self.y
        return self

    def spectrum(self, alphas: Sequence[float] = ()) -> Tensor:
        """The diagonal of B_tau: y_tau = V B_tau V^T Y, the eigenvalues of the kernel increasing; shape (n,)."""
        return self._shrinkage() * self._mixture(alphas)  # (3)

    def limit_spectrum(self, alpha: float) -> Tensor:
        """B after infinitely many rounds with one alpha > 0: ridge regression with lam / alpha; 0 for alpha = 0."""
        self._check((alpha,))
        return alpha * self.values / (alpha * self.values + self.lam)  # (5)

    def predict(self, x: Tensor, alphas: Sequence[float] = ()) -> Tensor:
        """f_tau at x (m, d): (m,) or (m, c)."""
        return self._evaluate(x, self._mixture(alphas) / (self.values + self.lam))  # (4)

    def limit(self, x: Tensor, alpha: float) -> Tensor:
        """f at x (m, d) after infinitely many rounds with one alpha."""
        self._check((alpha,))
        return self._evaluate(x, alpha / (alpha * self.values + self.lam))

    def optimal_alpha(self, x: Tensor, y: Tensor, alphas: Sequence[float] = ()) -> float:
        """The alpha of the round after ``alphas`` whose predictions at held-out x are closest to y, held in ``clip``."""
        if x.shape == self.x.shape and bool(torch.equal(x.double(), self.x)):
            warnings.warn(
                "alpha is chosen on the training set, where labels always look best; give held-out data", stacklevel=2
            )
        without = self._evaluate(x, self.spectrum(alphas) / (self.values + self.lam))  # alpha = 0
        return estimate_alpha(self.predict(x), without, y.double(), self.clip)  # (6)

    def greedy_alphas(self, x: Tensor, y: Tensor, rounds: int) -> tuple[float, ...]:
        """alpha_2, alpha_3, ... of ``rounds`` further rounds, each the best on held-out data given those before it."""
        alphas: tuple[float, ...] = ()
        for _ in range(rounds):
            alphas = (*alphas, self.optimal_alpha(x, y, alphas))
        return alphas

    def _shrinkage(self) -> Tensor:
        return self.values / (self.values + self.lam)

    def _mixture(self, alphas: Sequence[float]) -> Tensor:
        """alpha + (1 - alpha) B_{tau-1}: the round's target in the eigenvectors' coordinates."""
        self._check(alphas)
        mixture = torch.ones_like(self.values)
        for alpha in alphas:
            mixture = alpha + (1 - alpha) * self._shrinkage() * mixture  # (1)
        return mixture

    def _evaluate(self, x: Tensor, diagonal: Tensor) -> Tensor:
        rotated = self._rotated if self.y.ndim == 2 else self._rotated[:, None]
        found = self.kernel(x.double(), self.x) @ (self.vectors @ (diagonal[:, None] * rotated))  # (2)
        return found if self.y.ndim == 2 else found[:, 0]

    def _check(self, alphas: Sequence[float]) -> None:
        if self.clip is None:
            return
        for alpha in alphas:
            if not self.clip[0] <= alpha <= self.clip[1]:
                low, high = self.clip
                raise LimbeckError(f"alpha={alpha:g} lies outside [{low:g}, {high:g}]; use clip=None to allow extrapolation")
