"""Signals that ask a training to stop: it does after the step under way, and loses nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# SIGUSR1 is what Slurm is told to send before the time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Where both scheduler and launcher pass a signal on, it arrives twice: still one wish to stop.
_ECHO_SECONDS = 2.0


@dataclass(slots=True)
class Stop:
    """Whether somebody has asked to stop, and when, on a clock that never goes back."""

    asked_at: float | None = None

    @property
    def asked(self) -> bool:
        return self.asked_at is not None

    def ask(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; the second one in earnest has its usual effect, at once."""
        if self.asked_at is None:
            self.asked_at = time.monotonic()
        elif time.monotonic() - self.asked_at > _ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextmanager
def heed_signals() -> Iterator[Stop]:
    """Yield a wish to stop that signals set while the block runs. For the main thread only."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
