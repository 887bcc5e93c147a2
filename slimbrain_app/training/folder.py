"""The folder of a training under way, which will be its package's.

Everything lies in ``checkpoints/`` inside it: what is learnt from, as it was settled, the last
checkpoint, the log. It goes once the package is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimbrain_app.errors import REASONS, CallRefused
from slimbrain_app.model.packages import CHECKPOINTS
from slimbrain_app.training.checkpoint import Identity, resume, write_checkpoint
from slimbrain_app.training.log import Checkpoint, End, Event, Resume, Start, open_log
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


@dataclass(frozen=True, slots=True)
class Course:
    """A training under way: how it is told and kept, and whether it goes on from a checkpoint."""

    tell: Tell
    save: Callable[[], None]
    resumed: bool


@contextmanager
def under_way(
    place: TrainingFolder,
    state: TrainingState,
    identity: Identity,
    start: Start,
    first: bool,
    tensorboard: bool,
    tell: Tell,
) -> Iterator[Course]:
    """Take up the last checkpoint, if there is one; log the start, checkpoints and the end.

    Parameters
    ----------
    state : TrainingState
        Is brought to where the checkpoint was written.
    first : bool
        Whether this is the first process, which alone writes the log.

    Raises
    ------
    CallRefused
        As of `resume`; or what the block raises, after it was logged.
    """
    resumed = resume(place.state, state, identity)
    per_pass = start.steps // start.passes

    def locate() -> dict[str, Any]:
        return {"step": state.done, "pass_": -(-state.done // per_pass)}

    opened = telling(place, state.done, tensorboard, tell) if first else nullcontext(tell)
    with opened as log:

        def save() -> None:
            write_checkpoint(place.state, state, identity)
            log(Checkpoint(**locate()))

        log(start)
        if resumed:
            log(Resume(**locate()))
        try:
            yield Course(tell=log, save=save, resumed=resumed)
        except CallRefused as error:
            reason = f"{REASONS[error.reason].meaning.capitalize()}."
            log(End(**locate(), finished=False, reason=reason))
            raise
        log(End(**locate(), finished=True))
