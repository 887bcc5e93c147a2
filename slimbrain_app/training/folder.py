"""The folder of a training under way, which will be its package's.

Everything lies in ``checkpoints/`` inside it: what is learnt from, as it was settled, the last
checkpoint, the log. It goes once the package is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimbrain_app.errors import REASONS, CallRefused
from slimbrain_app.model.packages import CHECKPOINTS
from slimbrain_app.training.log import End, Event, open_log
from slimbrain_app.training.state import TrainingState

Tell = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class TrainingFolder:
    """Where things lie."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def manifest(self) -> Path:
        return self.checkpoints / "corpus.json"

    @property
    def log(self) -> Path:
        return self.checkpoints / "training.jsonl"

    @property
    def finished_log(self) -> Path:
        return self.folder / self.log.name

    @property
    def state(self) -> Path:
        return self.checkpoints / "state.pt"


@contextmanager
def telling(
    place: TrainingFolder, step: int | None, tensorboard: bool, tell: Tell
) -> Iterator[Tell]:
    """Yield a function that logs an event and tells it; the log is cut as by `open_log`."""
    with open_log(place.log, step, tensorboard) as write:

        def log(event: Event) -> None:
            write(event)
            tell(event)

        yield log


@contextmanager
def ending(log: Tell, state: TrainingState, per_pass: int) -> Iterator[None]:
    """Log how the block ends."""
    try:
        yield
    except CallRefused as error:
        log(
            End(
                **locate(state, per_pass),
                finished=False,
                reason=f"{REASONS[error.reason].meaning.capitalize()}.",
            )
        )
        raise
    log(End(**locate(state, per_pass), finished=True))


def locate(state: TrainingState, per_pass: int) -> dict[str, Any]:
    """Return the step made last and its pass, for an event."""
    return {"step": state.done, "pass_": -(-state.done // per_pass)}
