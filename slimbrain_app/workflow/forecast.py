"""What a plan will do with each run, why, and what that will cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimbrain_app.bids.headers import read_header
from slimbrain_app.bids.outputs import read_facts
from slimbrain_app.costs import Cost, foresee
from slimbrain_app.ranking import list_starts
from slimbrain_app.records import Refusal, Run, RunStatus
from slimbrain_app.workflow.plan import Participant, Plan

if TYPE_CHECKING:
    from slimbrain_app.model.packages import Package

WAYS = {
    1: "native, by coregistration and the person's warp",
    2: "{space}, by the person's warp",
    3: "{space}, by the person's warps",
    4: "{space}, by TemplateFlow's transform",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One run's line: ``do``, ``redo``, ``skip`` or ``refuse``."""

    action: str
    run: str
    file: str
    why: str
    cost: Cost | None = None
    refusal: Refusal | None = None

    @property
    def status(self) -> RunStatus:
        """How the run would end, as far as can be told."""
        if self.refusal is not None:
            return RunStatus.of_refusal(self.refusal)
        return RunStatus(run=self.run, state="current" if self.action == "skip" else "done")


def forecast(plan: Plan) -> tuple[Row, ...]:
    """Return a row for each run, participant by participant. Headers are read, nothing else."""
    weights = count_weights(plan.package)
    return tuple(
        row for participant in plan.participants for row in _list_rows(participant, plan, weights)
    )


def count_weights(package: Package) -> int:
    """Return how many weights the encoder has, from the header of their file."""
    from safetensors import safe_open

    from slimbrain_app.model.packages import MODEL

    with safe_open(package.folder / MODEL, framework="numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))


def _list_rows(participant: Participant, plan: Plan, weights: int) -> Iterator[Row]:
    for run in participant.todo:
        known = bool(read_facts(plan.output, run, plan.package.contract))
        yield Row(
            action="redo" if known else "do",
            run=run.name,
            file=run.relative(run.bold),
            why=_describe_way(run),
            cost=_foresee(run, plan, weights),
        )
    for run in participant.current:
        yield Row(action="skip", run=run.name, file=run.relative(run.bold), why="up to date")
    for refusal in participant.refused:
        yield Row(
            action="refuse",
            run=refusal.run,
            file=refusal.file or "",
            why=refusal.code,
            refusal=refusal,
        )


def _describe_way(run: Run) -> str:
    if run.rung == 0:
        return f"{run.space}, {'cropped' if run.interpolations == 1 else 'resampled'}"
    return WAYS[run.rung].format(space=run.space)


def _foresee(run: Run, plan: Plan, weights: int) -> Cost:
    settings, contract = plan.provenance.settings, plan.package.contract
    volumes = read_header(run.bold, run.relative(run.bold)).shape[3]
    seconds = (volumes - 1) * run.repetition_time.seconds
    candidates = len(list_starts(int(seconds / contract.frame_time) + 1, contract.frames))
    windows = settings.rank.windows
    outputs = sum(max(len(head.classes), 1) for head in plan.package.identity.heads)
    return foresee(
        volumes=volumes,
        warped=run.rung > 0,
        views=settings.encode.views
        * (candidates if windows == "all" else min(windows, candidates)),
        weights=weights,
        explained=outputs if settings.output.attribution else 0,
        saved=settings.output.save_prepared,
    )
