"""Alarms on a run's figures: a critic that lags behind, samples that grow alike, a student that leaves its reference."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@torch.no_grad()
def diversity(x: Tensor) -> Tensor:
    """Root mean square difference between neighbouring samples of a batch (B, ...): 0 when all are alike."""
    return (x - x.roll(1, 0)).square().mean().sqrt()


@dataclass
class _Alarm:
    """Speaks once when the smoothed figure has been beyond the bound for ``patience`` iterations."""

    figure: str
    above: float | None
    below_share: float | None
    message: str
    patience: int = 100
    smooth: float | None = None
    reference: float = 0.0
    beyond: int = 0
    spoken: bool = False

    def __call__(self, step: int, value: float) -> str | None:
        self.smooth = value if self.smooth is None else 0.98 * self.smooth + 0.02 * value
        self.reference = max(self.reference, self.smooth)
        bad = self.above is not None and self.smooth > self.above
        bad |= self.below_share is not None and self.smooth < self.below_share * self.reference
        self.beyond = self.beyond + 1 if bad else 0
        if self.beyond < self.patience or self.spoken:
            return None
        self.spoken = True
        return f"step {step}: {self.message.format(value=self.smooth, reference=self.reference)}"


class Watch:
    """Feeds the alarms; call with a step and its figures, get the messages that became due."""

    def __init__(self) -> None:
        self.alarms = [
            _Alarm(
                "critic_lag",
                0.5,
                None,
                "the critic lags behind the student (correlation {value:.2f} of its error with the score difference, 0 when "
                "exact); raise its learning rate or its updates per student update",
            ),
            _Alarm(
                "diversity",
                None,
                0.5,
                "the samples grow alike (difference between samples {value:.3f}, it was {reference:.3f}); lower the guidance "
                "or the student's learning rate",
            ),
            _Alarm(
                "drift",
                1.0,
                None,
                "the student has left its reference (log-ratio of the winners {value:.2f} times the bound); raise beta, clip the "
                "ratios, lower the learning rate, or take a reward that has a bound",
                patience=10,
            ),
            _Alarm(
                "ties",
                0.9,
                None,
                "the reward is the same for both samples of {value:.0%} of the pairs, which have no gradient; stop, or take a finer "
                "reward",
            ),
        ]

    def state(self) -> dict[str, Tensor]:
        """What the alarms have heard so far, by figure."""
        return {
            a.figure: torch.tensor([a.smooth, a.reference, a.beyond, a.spoken], dtype=torch.float64)
            for a in self.alarms
            if a.smooth is not None
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave."""
        for alarm in self.alarms:
            if alarm.figure in state:
                smooth, reference, beyond, spoken = state[alarm.figure].tolist()
                alarm.smooth, alarm.reference, alarm.beyond, alarm.spoken = smooth, reference, int(beyond), bool(spoken)

    def __call__(self, step: int, figures: Mapping[str, float]) -> list[str]:
        spoken = (alarm(step, figures[alarm.figure]) for alarm in self.alarms if alarm.figure in figures)
        return [message for message in spoken if message is not None]
