"""How fast a training is, what it waits for, and when it will be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slimbrain_app.training.log import Start, Step

# Enough to smooth the hiccups of a shared disk, few enough to follow a change of pace.
_RECENT = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Over the last steps.

    Attributes
    ----------
    windows_per_second, volumes_per_second : float
        Over all processes; a volume is a frame at model time.
    loader_share : float
        Of the time, in which a step waited for windows.
    seconds_left : float
        Of steps alone, without validation and probes.
    """

    windows_per_second: float
    volumes_per_second: float
    loader_share: float
    seconds_left: float


def measure_throughput(steps: Sequence[Step], start: Start) -> Throughput:
    """Judge a training's pace by its last steps; NaN before the first."""
    recent = steps[-_RECENT:]
    seconds = math.fsum(step.seconds for step in recent)
    if seconds <= 0:
        return Throughput(
            windows_per_second=math.nan,
            volumes_per_second=math.nan,
            loader_share=math.nan,
            seconds_left=math.nan,
        )
    windows = math.fsum(step.windows_per_second * step.seconds for step in recent) / seconds
    return Throughput(
        windows_per_second=windows,
        volumes_per_second=windows * start.frames,
        loader_share=math.fsum(step.loader_seconds for step in recent) / seconds,
        seconds_left=(start.steps - recent[-1].step) * seconds / len(recent),
    )
