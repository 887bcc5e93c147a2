"""The learning rate of each step: a linear warm-up, then a cosine.

A function of the step's number and of nothing else, so that there is no state to lose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_REFERENCE_BATCH = 64


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rates, as shares of the peak, in steps of the optimiser.

    Attributes
    ----------
    steps : int
        Of the whole training.
    warm_up : int
        The peak is reached at this step; at least 1.
    last : float
        Share of the peak that is reached at the last step.
    """

    steps: int
    warm_up: int
    last: float

    def share(self, step: int) -> float:
        """Return the share of the peak rate at which a step is made, counted from 1."""
        if step <= self.warm_up:
            return step / self.warm_up
        done = (step - self.warm_up) / (self.steps - self.warm_up)
        return self.last + (1 - self.last) * (1 + math.cos(math.pi * done)) / 2


def make_schedule(steps: int, warm_up: float, last: float) -> Schedule:
    """Return the schedule of so many steps, a share of them for the warm-up."""
    return Schedule(steps, max(1, round(steps * warm_up)), last)


def scale_rate(rate: float, batch: int) -> float:
    """Return the peak rate for ``batch`` samples per step, given that for 64: in proportion.

    Goyal and others 2017, arXiv 1706.02677.
    """
    return rate * batch / _REFERENCE_BATCH
