"""Calls of the command line, as they are started and watched."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slimbrain_app.errors import REASONS, Scope

SLIMBRAIN = Path(sys.executable).with_name("slimbrain")
COMPUTING = ("--device", "cpu", "--omp-nthreads", "1")
PRETRAINING = """
[extract]
passes = 1
[train]
passes = 2
batch = 2
windows_per_run = 1
[pace]
workers = 0
probe_passes = 0
"""
TUNING = """
[rank]
windows = 1
[tune]
encoder = "lora"
validation = 0.25
test = 0.25
passes = 2
people = 2
windows = 1
[pace]
workers = 0
"""


@dataclass(frozen=True, slots=True)
class Command:
    """What is called: words, settings, how many people are there, and the call made before."""

    words: tuple[str, ...]
    settings: str = ""
    people: int = 2
    after: Command | None = None

    @property
    def computes(self) -> bool:
        """Whether it has processes and a work folder."""
        return COMPUTING[0] in self.words


EMBED = Command(("participant", "--windows", "2", *COMPUTING))
TABULATE = Command(("group",), after=EMBED)
PRETRAIN = Command(("group", "--action", "pretrain", *COMPUTING), PRETRAINING)
EMBED_MORE = Command(("participant", "--windows", "1", "--save-prepared", *COMPUTING), people=8)
FINETUNE = Command(
    ("group", "--action", "finetune", "--outcome", "age", "--package-name", "tuned", *COMPUTING),
    TUNING,
    people=8,
    after=EMBED_MORE,
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the command line that was started."""

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path

    @property
    def ended(self) -> bool:
        """Whether its process is gone."""
        return self.process.poll() is not None

    @property
    def has_told(self) -> bool:
        """Whether what is told at the end has been printed: the call is as good as done."""
        return self.ended or self.has_result

    @property
    def has_result(self) -> bool:
        """Whether the table of runs, or a line that names what was made, stands in its output."""
        text = self.output.read_bytes()
        return any(word in text for word in (b" reason ", b"slimbrain_runs.tsv", b"/models/"))

    def list_reasons(self) -> set[str]:
        """List the codes of refusals among what was printed."""
        text = self.errors.read_text(errors="replace")
        refusals = (code for code, reason in REASONS.items() if reason.scope is not Scope.WARNING)
        return {code for code in refusals if f"[{code}]" in text}

    def read_last(self) -> str:
        """Return the last line that was printed."""
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        return (lines or ["silence"])[-1][-400:]

    def read_status(self, name: str) -> str:
        """Return what the kernel says of the process: 0 if nothing, or if it is gone."""
        with suppress(OSError):
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            return next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "0")
        return "0"

    def wait(self, seconds: float) -> None:
        """Wait so long, or until it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def await_handlers(self) -> None:
        """Wait until it has got hold of its signals: before, Python alone decides."""
        bit = 1 << (signal.SIGUSR1 - 1)
        while not (self.ended or int(self.read_status("SigCgt"), 16) & bit):
            time.sleep(0.01)

    def await_plan(self) -> None:
        """Wait until it has said what it will do."""
        while not (self.ended or b" to do, " in self.errors.read_bytes()):
            time.sleep(0.01)


def list_processes(temporary: Path) -> list[int]:
    """List the processes that are alive and have this temporary folder."""
    marker = f"TMPDIR={temporary}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marker in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return sorted(found)


def read_words(process: int) -> str:
    """Return the command line of a process, or nothing if it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
