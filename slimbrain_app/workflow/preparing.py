"""Runs of a corpus plan, prepared by the verb of the participant level."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimbrain_app.errors import Exit
from slimbrain_app.files import lock, remove_leftovers
from slimbrain_app.records import Contract, Recording, Refusal
from slimbrain_app.workflow.corpus import (
    CorpusPlan,
    GroupSettings,
    Refused,
    Todo,
    plan_corpus,
)
from slimbrain_app.workflow.resources import Limits
from slimbrain_app.workflow.running import open_logs, refuse_lost, run_graph, work_folder
from slimbrain_app.workflow.state import Call, RunState

PASSING = ("worker-killed", "timeout", "out-of-memory")
# Nipype's book-keeping grows with the square of the nodes.
RUNS_PER_PROCESS = 16


def lock_prepared(output: Path) -> AbstractContextManager[None]:
    """Lock ``prepared/``, from before runs are looked for until they are prepared."""
    return lock(output / "logs" / "prepared.lock", "prepared")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathering:
    """What a group call works on, and where it is written down.

    ``work_dir`` is for intermediate files; a temporary folder if None.
    """

    datasets: tuple[Path, ...]
    output: Path
    settings: GroupSettings
    work_dir: Path | None
    command: tuple[str, ...]


def gather_runs(
    call: Gathering,
    contract: Contract,
    limits: Limits,
    show_plan: Callable[[CorpusPlan], None],
    count: Callable[[str, int, int], None],
    stack: ExitStack,
) -> tuple[tuple[Recording, ...], tuple[Refused, ...]]:
    """Find the runs and prepare them, alone among the calls on this output.

    The log of the call stays open until the stack closes.
    """
    settings = call.settings
    with lock_prepared(call.output):
        plan = plan_corpus(call.datasets, call.output, settings, contract)
        show_plan(plan)
        logs = stack.enter_context(open_logs(call.output, settings, call.command))
        with work_folder(call.work_dir, logs) as work:
            steps = Call(
                output=call.output,
                logs=logs,
                work=work,
                threads=limits.threads,
                memory_gb=limits.memory_gb,
                stop_on_first_crash=settings.compute.stop_on_first_crash,
                prepare=settings.prepare,
                span_seconds=contract.span_seconds,
            )
            return prepare_runs(plan, steps, limits, count)


def prepare_runs(
    plan: CorpusPlan, call: Call, limits: Limits, count: Callable[[str, int, int], None]
) -> tuple[tuple[Recording, ...], tuple[Refused, ...]]:
    """Prepare what is to be prepared; return all recordings, in order, and all refusals.

    Raises
    ------
    RunRefused
        ``still-written``: to train without a run that may be whole soon would be a waste;
        ``internal`` where the call was to stop at a fault of ours.
    """
    for folder in (call.output / "prepared").glob("**/func/"):
        remove_leftovers(folder)
    ended = itertools.count(1)

    def tick() -> None:
        count("prepare", next(ended), len(plan.todo))

    recordings, refused = list(plan.recordings), list(plan.refused)
    at_once = RUNS_PER_PROCESS * limits.processes
    for first in range(0, len(plan.todo), at_once):
        batch = plan.todo[first : first + at_once]
        for todo, state in zip(batch, _run(batch, call, limits, tick), strict=True):
            if state.refusal is not None:
                refused.append(Refused(todo.dataset, state.refusal))
            elif state.prepared is not None:
                recordings.append(todo.record(state.prepared))
        if call.stops_here:
            break
    for one in refused:
        _judge(one.refusal, call)
    return tuple(sorted(recordings, key=lambda one: (one.dataset, one.run))), tuple(refused)


def _run(
    batch: Sequence[Todo], call: Call, limits: Limits, tick: Callable[[], None]
) -> Iterator[RunState]:
    """Run the graph; yield how each run has ended, in order."""
    states = [RunState(run=todo.run, folder=todo.folder) for todo in batch]
    ended: dict[Path, RunState] = {}

    def collect(node: Any) -> None:
        state = node.result.outputs.state
        ended[state.folder] = state
        tick()

    def build() -> Any:
        from slimbrain_app.workflow.graph import build_corpus

        return build_corpus(states, call)

    lost = run_graph(build, call, limits, collect)
    for state in states:
        refused = replace(state, refusal=refuse_lost(state.run, call, lost))
        yield ended.get(state.folder, refused)


def _judge(refusal: Refusal, call: Call) -> None:
    """Raise a run's refusal if it ends the call.

    What says nothing of the data may be gone at the next call: to train without such a run would
    make the result depend on the machine's bad day.
    """
    passes = refusal.exit_code == Exit.TRY_AGAIN or refusal.code in PASSING
    if passes or (call.stops_here and refusal.code == "internal"):
        raise refusal.restore()
