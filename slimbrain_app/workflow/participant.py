"""The participant level: carrying out a plan with Nipype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
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
from slimbrain_app.files import lock, remove_leftovers, write_text
from slimbrain_app.records import Refusal, RunStatus
from slimbrain_app.report.methods import describe_methods
from slimbrain_app.workflow.plan import Participant, Plan
from slimbrain_app.workflow.reporting import report_participant
from slimbrain_app.workflow.resources import Limits, find_limits
from slimbrain_app.workflow.running import open_logs, refuse_lost, run_graph, work_folder
from slimbrain_app.workflow.state import ParticipantCall

# Called with a run's name and a verb whenever that step of it has ended.
Watch = Callable[[str, str], None]

# Nipype's book-keeping grows with the square of the nodes, and prepared runs fill the work folder.
PARTICIPANTS_PER_PROCESS = 8


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
    with ExitStack() as stack:
        free: list[Participant] = []
        locked: list[RunStatus] = []
        for participant in plan.participants:
            if refusal := _take(participant, plan.output, stack):
                locked += _list_locked(participant, refusal)
            else:
                free.append(participant)
        untold = [p for p in free if not _is_told(p, plan)]
        if untold:
            _work_on(untold, plan, work_dir, command, watch)
        if not plan.provenance.settings.select.participants:
            join_status(plan.output)
    worked = {participant.label for participant in untold}
    told = [status for p in free for status in _tell(p, plan.output, worked=p.label in worked)]
    return (*told, *locked)


def _take(participant: Participant, output: Path, stack: ExitStack) -> RunRefused | None:
    """Lock a participant until the stack closes, clearing up before and after; or say why not."""
    name = f"sub-{participant.label}"
    try:
        stack.enter_context(lock(output / "logs" / f"{name}.lock", name))
    except RunRefused as error:
        return error
    _clear_up(participant, output)
    stack.callback(_clear_up, participant, output)
    return None


def _clear_up(participant: Participant, output: Path) -> None:
    """Remove half-written files of this participant; those of others may be in the making."""
    label = participant.label
    remove_leftovers(output, f"sub-{label}.html")
    remove_leftovers(output / "logs", f"sub-{label}_status.json")
    for folder in (output / f"sub-{label}").glob("**/"):
        remove_leftovers(folder)


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
) -> None:
    limits = find_limits(plan.provenance.settings.compute)
    for participant in participants:
        remove_status(plan.output, participant.label)
    with (
        open_logs(plan.output, plan.provenance.settings, command) as logs,
        work_folder(work_dir, logs) as work,
    ):
        call = _make_call(plan, limits, command, logs, work)
        at_once = PARTICIPANTS_PER_PROCESS * limits.processes
        for first in range(0, len(participants), at_once):
            batch = participants[first : first + at_once]
            lost = _run_graph(batch, call, limits, watch)
            for participant in batch:
                _settle(participant, call, lost)


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
