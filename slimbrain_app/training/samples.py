"""Which windows are read in which order, by which process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from slimbrain_app.training.corpus import Item

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Sample:
    """A window to be read in a pass.

    Attributes
    ----------
    item : int
        Place of its recording among the items.
    start : int
        First frame at model time.
    pass_, number : int
        Which pass, and which one it is there: they seed its mask.
    """

    item: int
    start: int
    pass_: int
    number: int


def draw_pass(items: Sequence[Item], windows_per_run: int, seed: int, pass_: int) -> list[Sample]:
    """Draw so many windows of each recording, or all it has, and shuffle them.

    Nothing but the items, the seed and the pass plays a part: a pass can be drawn again at any
    time, in any process.
    """
    draw = np.random.default_rng((seed, pass_))
    drawn = [
        (number, int(start))
        for number, item in enumerate(items)
        for start in draw.choice(item.starts, min(windows_per_run, len(item.starts)), replace=False)
    ]
    draw.shuffle(drawn)
    return [Sample(item, start, pass_, number) for number, (item, start) in enumerate(drawn)]


def cut_steps(samples: Sequence[Read], batch: int) -> list[Sequence[Read]]:
    """Cut a pass into steps of ``batch`` samples; the last one may have fewer."""
    return [samples[first : first + batch] for first in range(0, len(samples), batch)]


def share_step(step: Sequence[Read], rank: int, ranks: int, at_once: int) -> list[Sequence[Read]]:
    """Return what process ``rank`` of ``ranks`` reads of a step, at most ``at_once`` at a time.

    All shares together are the step; they differ by at most one sample, so that a last step of
    fewer samples than processes leaves some with nothing.
    """
    return cut_steps(step[rank::ranks], at_once)
