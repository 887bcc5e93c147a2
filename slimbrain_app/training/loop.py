"""The training loop: what happens between two steps.

It knows an objective, steps, and when to write a checkpoint; it knows no task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from slimbrain_app.errors import CallRefused
from slimbrain_app.training.distributed import Processes, Replica
from slimbrain_app.training.state import TrainingState
from slimbrain_app.training.step import Learner, Plan, Progress, Share
from slimbrain_app.training.stopping import heed_signals


def train(
    state: TrainingState,
    shares: Iterable[Share],
    plan: Plan,
    processes: Processes,
    save: Callable[[], None],
    watch: Callable[[Progress], None],
) -> bool:
    """Make all steps that are left.

    Parameters
    ----------
    state : TrainingState
        Goes from where it is to the end.
    shares : iterable of Share
        Of the steps after ``state.done``.
    plan : Plan
    processes : Processes
    save : callable
        Writes a checkpoint of the state. Called in the first process only.
    watch : callable
        Told of each step, in each process.

    Returns
    -------
    bool
        Whether all steps were made; otherwise the observer wanted an end.

    Raises
    ------
    CallRefused
        ``stopped`` after a signal and a checkpoint; ``diverged`` at a loss or gradient that is not
        finite; ``out-of-memory``; ``process-failed`` where another process has failed. The last
        checkpoint is as it was.
    """
    learner = Learner(state, plan, processes, Replica(state.objective, processes))
    saved = time.monotonic()
    with heed_signals() as stop:
        (enough,) = processes.any(state.observer.wants_end())
        for share in () if enough else shares:
            watch(learner.make_step(share))
            if share.ends_pass:
                state.observer.end_pass(share.pass_)
            stopped, enough = processes.any(stop.asked, state.observer.wants_end())
            due = time.monotonic() - saved >= 60 * plan.checkpoint_minutes
            if processes.first and (due or share.ends_pass or stopped or enough):
                save()
                saved = time.monotonic()
            if stopped:
                processes.any(False)  # Nobody leaves before the checkpoint is there.
                raise _stopped(state.done, plan.schedule.steps)
            if enough:
                break
    return not enough


def _stopped(done: int, steps: int) -> CallRefused:
    return CallRefused(
        "stopped",
        expected=f"to make {steps} steps",
        found=f"a signal to stop after step {done}; all of it is kept",
        advice="start the same command again to go on",
    )
