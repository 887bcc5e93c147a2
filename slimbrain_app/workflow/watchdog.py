"""Whether processes that have something to do do anything."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LOGGER = logging.getLogger("slimbrain")
# Without a hundredth of a second's work. A file server that stalls for longer is no use to a job.
PATIENCE_SECONDS = 1800.0
_SECONDS_BETWEEN_LOOKS = 1.0


class Watchdog:
    """Ends processes that stand still while steps are under way.

    Parameters
    ----------
    patience : float
        Seconds without any processor time.

    Attributes
    ----------
    barked : bool
        Whether a process was ever ended.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self.patience = patience
        self.barked = False
        self._seen: dict[int, tuple[int | None, float]] = {}
        self._next = 0.0
        self._expected = 0.0

    def expect(self) -> None:
        """Note that a step begins now: whoever was idle until here was right to be."""
        self._expected = time.monotonic()

    def look(self, running: int, workers: Iterable[int]) -> None:
        """Look at the processes that share steps, and end the idle ones if steps outnumber others.

        Parameters
        ----------
        running : int
            Steps under way.
        workers : iterable of int
            Process ids.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN_LOOKS
        idle = {pid: self._stands_still(pid, now) for pid in workers}
        if running <= list(idle.values()).count(False):
            return
        LOGGER.error("no work for %.0f s: processes that stand still are ended", self.patience)
        self.barked = True
        for pid in filter(idle.get, idle):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _stands_still(self, pid: int, now: float) -> bool:
        spent = _read_ticks(pid)
        before, since = self._seen.get(pid, (None, now))
        if spent is None or spent != before:
            since = now
        self._seen[pid] = spent, since
        return now - max(since, self._expected) > self.patience


def _read_ticks(pid: int) -> int | None:
    """Return a process's processor time in ticks; None where nothing tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None  # It has ended, or this is no Linux.
    return int(fields[11]) + int(fields[12])
