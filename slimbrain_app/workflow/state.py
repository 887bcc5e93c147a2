"""What travels along the graph: a call that all steps share, and the state of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimbrain_app.bids.sidecars import Provenance
from slimbrain_app.records import (
    Embedding,
    Explanation,
    Notice,
    Prediction,
    PreparedRun,
    RankedRun,
    Refusal,
    Run,
    RunStatus,
)
from slimbrain_app.settings import Prepare

if TYPE_CHECKING:
    from slimbrain_app.model.packages import Package


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What all steps of a call share: places, limits, and how runs are prepared.

    ``span_seconds`` must lie between a run's first and last volume: one window.
    """

    output: Path
    logs: Path
    work: Path
    threads: int
    memory_gb: float
    stop_on_first_crash: bool
    prepare: Prepare
    span_seconds: float

    @property
    def stops_here(self) -> bool:
        """Whether a fault of ours ends the call, as was wished."""
        return self.stop_on_first_crash and any(self.logs.glob("crash-*"))


@dataclass(frozen=True, kw_only=True, slots=True)
class ParticipantCall(Call):
    """What a participant-level call has decided besides before its first run."""

    package: Package
    device: str
    provenance: Provenance
    command: tuple[str, ...]
    notices: tuple[Notice, ...]
    methods: str

    @property
    def explains(self) -> bool:
        """Whether predictions are to be explained, as was wished."""
        return self.provenance.settings.output.attribution


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """A run, what is known of it so far, and the seconds each step took.

    ``folder`` is where its prepared run goes.
    """

    run: Run
    folder: Path
    prepared: PreparedRun | None = None
    ranked: RankedRun | None = None
    embedding: Embedding | None = None
    predictions: tuple[Prediction, ...] = ()
    explanations: tuple[Explanation, ...] = ()
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
