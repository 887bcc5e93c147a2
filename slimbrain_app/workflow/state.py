"""What travels along the graph: a call that all steps share, and the state of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimbrain_app.bids.sidecars import Provenance
from slimbrain_app.records import Embedding, Notice, PreparedRun, RankedRun, Refusal, Run, RunStatus

if TYPE_CHECKING:
    from slimbrain_app.model.packages import Package


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What a participant-level call has decided before its first run."""

    dataset: Path
    output: Path
    logs: Path
    work: Path
    package: Package
    device: str
    threads: int
    provenance: Provenance
    command: tuple[str, ...]
    notices: tuple[Notice, ...]
    methods: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """A run, what is known of it so far, and the seconds each step took."""

    run: Run
    prepared: PreparedRun | None = None
    ranked: RankedRun | None = None
    embedding: Embedding | None = None
    outputs: tuple[str, ...] = ()
    refusal: Refusal | None = None
    spent: tuple[tuple[str, float], ...] = ()
    peak_mib: float = 0.0

    def summarise(self) -> RunStatus:
        results = (self.run, self.prepared, self.ranked)
        return RunStatus(
            run=self.run.name,
            state="refused" if self.refusal else "done",
            outputs=self.outputs,
            notices=tuple(n for result in results if result for n in result.notices),
            refusal=self.refusal,
            spent=self.spent,
            peak_mib=self.peak_mib,
        )
