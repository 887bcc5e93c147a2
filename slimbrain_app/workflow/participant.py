"""The participant level: carrying out a plan with Nipype."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slimbrain_app.bids.dataset import lock_shared, open_output
from slimbrain_app.bids.outputs import has_person, is_by_model, is_current, read_facts
from slimbrain_app.bids.status import (
    has_status,
    join_status,
    read_status,
    remove_status,
)
from slimbrain_app.errors import RunRefused
from slimbrain_app.files import TEMPORARY, lock, remove_leftovers, write_text
from slimbrain_app.records import Refusal, RunStatus
from slimbrain_app.report.methods import describe_methods
from slimbrain_app.workflow.plan import Participant, Plan, review
from slimbrain_app.workflow.reporting import report_participant
from slimbrain_app.workflow.resources import Limits, find_limits
from slimbrain_app.workflow.running import open_logs, refuse_lost, run_graph, work_folder
from slimbrain_app.workflow.state import ParticipantCall

# Called with a run's name and a verb whenever that step of it has ended.
Watch = Callable[[str, str], None]

# Nipype's book-keeping grows with the square of the nodes, and prepared runs fill the work folder.
PARTICIPANTS_PER_PROCESS = 8
_OF_PERSON = re.compile(r"-sub-(?P<label>[^-_.]+)(\.html|_status\.json)$")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Labels of participants worked on, of those that others hold, and the latters' runs."""

    worked: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    locked: list[RunStatus] = field(default_factory=list)


def carry_out(
    plan: Plan, work_dir: Path | None, command: Sequence[str], watch: Watch
) -> tuple[RunStatus, ...]:
    """Do what is planned, and return how every run that was found has ended.

    Parameters
    ----------
    work_dir : Path or None
        Where intermediate files go; a temporary folder if None.
    command : sequence of str
        The command line, for the log and the report.
    """
    open_output(plan.output, plan.dataset)
    left = {label for label, _ in _list_leftovers(plan.participants, plan.output)}
    untold = [p for p in plan.participants if p.label in left or not _is_told(p, plan)]
    outcome = _work_on(untold, plan, work_dir, command, watch) if untold else _Outcome()
    if not plan.provenance.settings.select.participants:
        join_status(plan.output)
    free = (p for p in plan.participants if p.label not in outcome.held)
    told = (
        status
        for person in free
        for status in _tell(person, plan.output, worked=person.label in outcome.worked)
    )
    return (*told, *outcome.locked)


def _take(participant: Participant, output: Path, stack: ExitStack) -> RunRefused | None:
    """Lock a participant until the stack closes, or say why not."""
    name = f"sub-{participant.label}"
    try:
        stack.enter_context(lock(output / "logs" / f"{name}.lock", name))
    except RunRefused as error:
        return error
    return None


def _clear_up(participants: Sequence[Participant], output: Path) -> None:
    """Remove half-written files of these participants; those of others may be in the making."""
    for _, leftover in tuple(_list_leftovers(participants, output)):
        remove_leftovers(leftover.parent, leftover.name.removeprefix(TEMPORARY))


def _list_leftovers(
    participants: Sequence[Participant], output: Path
) -> Iterator[tuple[str, Path]]:
    """Yield what killed calls have left half-written of participants, and whose it is."""
    labels = {participant.label for participant in participants}
    # Listed once for all: these folders grow with the cohort.
    for folder in (output, output / "logs"):
        for path in folder.glob(f"{TEMPORARY}*"):
            named = _OF_PERSON.search(path.name)
            if named and named["label"] in labels:
                yield named["label"], path
    for label in sorted(labels):
        for path in (output / f"sub-{label}").glob(f"**/{TEMPORARY}*"):
            yield label, path


def _list_locked(participant: Participant, error: RunRefused) -> Iterator[RunStatus]:
    for run in participant.todo:
        refusal = replace(Refusal.of(run.name, error), file=run.relative(run.bold))
        yield RunStatus.of_refusal(refusal)


def _is_told(participant: Participant, plan: Plan) -> bool:
    """Whether nothing is to be done and the participant's report says all that is known now."""
    told = {status.run: status.refusal for status in read_status(plan.output, participant.label)}
    known: dict[str, Refusal | None] = {run.name: None for run in participant.current}
    known |= {refusal.run: refusal for refusal in participant.refused}
    page = plan.output / f"sub-{participant.label}.html"
    whole = page.exists() and _is_predicted(participant, plan)
    return not participant.todo and told == known and whole


def _is_predicted(participant: Participant, plan: Plan) -> bool:
    if not plan.package.heads or has_person(plan.output, participant.label):
        return True
    facts = (read_facts(plan.output, run, plan.package.contract) for run in participant.current)
    return not any(is_by_model(each, plan.provenance) for each in facts)


def _tell(participant: Participant, output: Path, *, worked: bool) -> Iterator[RunStatus]:
    for status in read_status(output, participant.label):
        before = not worked and status.state == "done"
        yield replace(status, state="current", spent=()) if before else status


def _work_on(
    participants: Sequence[Participant],
    plan: Plan,
    work_dir: Path | None,
    command: Sequence[str],
    watch: Watch,
) -> _Outcome:
    limits, outcome = find_limits(plan.provenance.settings.compute), _Outcome()
    with (
        open_logs(plan.output, plan.provenance.settings, command) as logs,
        work_folder(work_dir, logs) as work,
    ):
        call = _make_call(plan, limits, command, logs, work)
        at_once = PARTICIPANTS_PER_PROCESS * limits.processes
        for first in range(0, len(participants), at_once):
            # Locks are open files, of which a process may often have 1024 only: a batch's at most.
            with ExitStack() as stack:
                batch = _take_batch(participants[first : first + at_once], plan, outcome, stack)
                lost = _run_graph(batch, call, limits, watch) if batch else {}
                for participant in batch:
                    _settle(participant, call, lost)
    return outcome


def _take_batch(
    participants: Sequence[Participant], plan: Plan, outcome: _Outcome, stack: ExitStack
) -> list[Participant]:
    """Lock participants until the stack closes; return those with something still to be done."""
    taken = []
    for planned in participants:
        if refusal := _take(planned, plan.output, stack):
            outcome.held.add(planned.label)
            outcome.locked.extend(_list_locked(planned, refusal))
        else:
            taken.append(review(planned, plan))
    _clear_up(taken, plan.output)
    stack.callback(_clear_up, taken, plan.output)
    untold = [participant for participant in taken if not _is_told(participant, plan)]
    for participant in untold:
        outcome.worked.add(participant.label)
        remove_status(plan.output, participant.label)
    return untold


def _make_call(
    plan: Plan, limits: Limits, command: Sequence[str], logs: Path, work: Path
) -> ParticipantCall:
    provenance = plan.provenance
    return ParticipantCall(
        output=plan.output,
        logs=logs,
        work=work,
        threads=limits.threads,
        memory_gb=limits.memory_gb,
        stop_on_first_crash=provenance.settings.compute.stop_on_first_crash,
        prepare=provenance.settings.prepare,
        span_seconds=plan.package.contract.span_seconds,
        package=plan.package,
        device=plan.device,
        provenance=provenance,
        command=tuple(command),
        notices=plan.notices,
        methods=describe_methods(provenance.settings, provenance.model, provenance.software),
    )


def _run_graph(
    participants: Sequence[Participant], call: ParticipantCall, limits: Limits, watch: Watch
) -> Mapping[str, str]:
    """Run all nodes that can be run; return the runs lost, which take their reports with them."""

    def build() -> Any:
        from slimbrain_app.workflow.graph import build_graph

        graph = build_graph(participants, call)
        with lock_shared(call.output):
            write_text(call.output / "logs" / "CITATION.md", graph.visit_desc())
        return graph

    return run_graph(build, call, limits, lambda node: watch(node.run_name, node.verb))


def _settle(participant: Participant, call: ParticipantCall, lost: Mapping[str, str]) -> None:
    """Report a participant whose own report node was never reached: a process was lost."""
    if has_status(call.output, participant.label):
        return
    done = tuple(run for run in participant.todo if is_current(call.output, run, call.provenance))
    refused = (refuse_lost(run, call, lost) for run in participant.todo if run not in done)
    settled = replace(
        participant,
        todo=(),
        current=(*participant.current, *done),
        refused=(*participant.refused, *refused),
    )
    report_participant(settled, call, [])
