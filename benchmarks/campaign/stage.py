"""What all faults start from: cohorts, and what calls without a fault make of them."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from campaign.calls import EMBED, Command
from campaign.case import Case, copy_tree, count_in
from slimbrain_app.simulation import SimulationSettings, simulate_dataset

RUNS = ("sub-01_task-rest_run-01", "sub-02_task-rest_run-01")
BOLD = [f"{run[:6]}/func/{run}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz" for run in RUNS]
# Seconds; on a machine that is slow or busy, as many of a clean call's own lengths.
CALL_SECONDS, SIGNAL_SECONDS = 120.0, 10.0
CALL_LENGTHS, SIGNAL_LENGTHS = 15.0, 1.5


@dataclass(slots=True, kw_only=True)
class Stage:
    """Cohorts, and what each command leaves of them and takes: time, lines, address space."""

    folder: Path
    clean: dict[Command, Path] = field(default_factory=dict)
    seconds: dict[Command, float] = field(default_factory=dict)
    lines: dict[Command, int] = field(default_factory=dict)
    memory_kib: dict[Command, int] = field(default_factory=dict)

    @property
    def replaced(self) -> Path:
        """What a call leaves of the cohort in which one BOLD is another's."""
        return self.folder / "clean-replaced" / "out"

    @property
    def call_seconds(self) -> float:
        """How long a call may take."""
        return max(CALL_SECONDS, CALL_LENGTHS * self.seconds[EMBED])

    @property
    def signal_seconds(self) -> float:
        """How long a call may take to end after a signal."""
        return max(SIGNAL_SECONDS, SIGNAL_LENGTHS * self.seconds[EMBED])

    def find_dataset(self, command: Command) -> Path:
        """Return the cohort that the command meets, which every case has a copy of."""
        return self.folder / f"dataset-{command.people}"

    def begin(self, folder: Path, command: Command, seed: str = "") -> Case:
        """Return a case with its copy of the cohort, and of what the call before has left."""
        case = Case(
            stage=self,
            folder=folder,
            draw=random.Random(seed),
            command=command,
            clean=self.clean.get(command, folder),
            bound=self.call_seconds if self.seconds else CALL_SECONDS,
        )
        copy_tree(self.find_dataset(command), case.dataset)
        case.temporary.mkdir()
        if command.after:
            copy_tree(self.clean[command.after], case.output)
        return case

    def add(self, command: Command) -> None:
        """Start a command on its cohort without a fault, unless that was done."""
        if command in self.clean:
            return
        if command.after:
            self.add(command.after)
        if not self.find_dataset(command).exists():
            settings = SimulationSettings(participants=command.people, volumes=40, voxel_size=6.0)
            simulate_dataset(self.find_dataset(command), settings)
        case = self.begin(self.folder / f"clean-{len(self.clean)}", command)
        start = time.monotonic()
        self.memory_kib[command] = call_cleanly(case)
        self.clean[command], self.seconds[command] = case.output, time.monotonic() - start
        self.lines[command] = count_in(case.calls[0].errors)


def set_stage(folder: Path, commands: Iterable[Command], *, replaced: bool) -> Stage:
    """Start commands without a fault, and one on the cohort in which one BOLD is another's."""
    stage = Stage(folder=folder)
    for command in (EMBED, *commands):
        stage.add(command)
    if replaced:
        case = stage.begin(stage.replaced.parent, EMBED)
        shutil.copy2(case.dataset / BOLD[1], case.dataset / BOLD[0])
        call_cleanly(case)
    return stage


def call_cleanly(case: Case) -> int:
    """Call without a fault; return the most address space that it had (KiB)."""
    call, most = case.start(), 0
    while not call.ended:
        most = max(most, int(call.read_status("VmPeak")))
        time.sleep(0.05)
    if call.process.returncode:
        raise SystemExit(f"a call without a fault fails: {call.errors.read_text()}")
    return most
