"""Whether anything is lost when things break: faults put into real calls of the command line.

Each fault meets a call on its own copy of a small cohort, at a moment drawn by the seed. Then it is
judged: the call has ended in time and left no process behind; its exit code, and the reasons that
it gives, are those of docs/reference/reason-codes.md; every file it left is whole and holds what a
call that met no fault writes; every run is listed with its end; the input is as it was. Last, the
fault is taken away and the same command started again: it must end with 0, clear up, and leave what
a call that met no fault leaves.

::

    python benchmarks/faults.py                             # all of them, two at once
    python benchmarks/faults.py --faults 20                 # some of every kind
    python benchmarks/faults.py --only full-output two-calls --keep /scratch/faults

Kinds that mount small file systems, or call as somebody who may not read all, need root, and are
left out otherwise.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from slimbrain_app.bids.status import read_status
from slimbrain_app.errors import REASONS, Exit, Scope
from slimbrain_app.files import TEMPORARY, sha256_of
from slimbrain_app.records import decide_exit
from slimbrain_app.simulation import SimulationSettings, simulate_dataset

SLIMBRAIN = Path(sys.executable).with_name("slimbrain")
COHORT = SimulationSettings(participants=2, volumes=40, voxel_size=6.0)
RUNS = ("sub-01_task-rest_run-01", "sub-02_task-rest_run-01")
BOLD = [f"{run[:6]}/func/{run}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz" for run in RUNS]

Command = tuple[str, ...]
EMBED: Command = ("participant", "--windows", "2", "--device", "cpu", "--omp-nthreads", "1")
TABULATE: Command = ("group",)
PRETRAIN: Command = ("group", "--action", "pretrain", "--device", "cpu", "--omp-nthreads", "1")
TRAINING = """
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

# Root may read and write all; without these two it is a user like others.
AS_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
CLONE_NEWNS = 0x20000  # Of <sched.h>.
YEAR = 365 * 86400.0
# Seconds; on a machine that is slow or busy, as many of a clean call's own lengths.
CALL_SECONDS, SIGNAL_SECONDS = 120.0, 10.0
CALL_LENGTHS, SIGNAL_LENGTHS = 15.0, 1.5
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# What the JSONs of two equal calls may differ in.
VOLATILE = {"seconds", "peak_mib", "state", "outputs", "ModifiedNanoseconds"}
NUMBERS = (".tsv", ".nii.gz", ".npy", ".safetensors")

Column = Literal["hang", "wrong exit", "half-written", "input changed", "not resumable"]
COLUMNS: tuple[Column, ...] = (
    "hang",
    "wrong exit",
    "half-written",
    "input changed",
    "not resumable",
)


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is wrong after a fault."""

    column: Column
    text: str


@dataclass(frozen=True, slots=True)
class Expected:
    """The reasons that a call may give, and the exit codes that it may end with."""

    reasons: frozenset[str]
    exits: frozenset[int]


def expect(*reasons: str) -> Expected:
    """Return what a call may end with: any of ``reasons``, ``done``, or ``killed``."""
    others = {"done": 0, "killed": -signal.SIGKILL}
    exits = {others[one] if one in others else int(REASONS[one].exit_code) for one in reasons}
    return Expected(frozenset(reasons), frozenset(exits))


# Whatever is wrong with the data of a run, and nothing that is wrong with the machine.
BAD_DATA = tuple(
    code
    for code, reason in REASONS.items()
    if (reason.scope, reason.exit_code) == (Scope.RUN, Exit.DATA)
    and code not in ("out-of-memory", "worker-killed", "timeout", "output-bad", "prepared-bad")
)


@dataclass(slots=True)
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


@dataclass(slots=True, kw_only=True)
class Stage:
    """What all faults start from: the cohort, and what calls without a fault make of it."""

    folder: Path
    clean: dict[Command, Path] = field(default_factory=dict)
    seconds: dict[Command, float] = field(default_factory=dict)
    lines: dict[Command, int] = field(default_factory=dict)
    memory_kib: int = 0

    @property
    def dataset(self) -> Path:
        """The cohort, which every case has a copy of."""
        return self.folder / "dataset"

    @property
    def replaced(self) -> Path:
        """What a call leaves of the cohort in which one BOLD is another's."""
        return self.folder / "clean-replaced" / "out"

    def scale(self, least: float, lengths: float) -> float:
        """Return so many seconds, or lengths of a clean call if these are longer."""
        return max(least, lengths * self.seconds[EMBED])


@dataclass(slots=True, kw_only=True)
class Case:
    """One fault: a copy of the cohort, an output, and the calls on them.

    ``undo`` takes the fault away, ``clear`` what it needed.
    """

    stage: Stage
    folder: Path
    draw: random.Random
    command: Command = EMBED
    dataset: Path = field(init=False)
    output: Path = field(init=False)
    work: Path = field(init=False)
    temporary: Path = field(init=False)
    processes: int = 1
    prefix: tuple[str, ...] = ()
    bound: float = 0.0
    altered: bool = False
    told: set[Path] = field(default_factory=set)
    clean: Path | None = None
    calls: list[Call] = field(default_factory=list)
    sums: dict[str, str] = field(default_factory=dict)
    undo: ExitStack = field(default_factory=ExitStack)
    clear: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.dataset, self.output = self.folder / "dataset", self.folder / "out"
        self.work, self.temporary = self.folder / "work", self.folder / "tmp"

    @property
    def reference(self) -> Path:
        """What the command leaves where it meets no fault."""
        return self.clean or self.stage.clean[self.command]

    def start(self) -> Call:
        """Start the command; `finish` waits for its end."""
        self.sums = sum_files(self.dataset)
        stem = f"call-{len(list(self.folder.glob('call-*.out')))}"
        output, errors = (self.folder / f"{stem}.{ending}" for ending in ("out", "err"))
        words = [*self.prefix, SLIMBRAIN, self.dataset, self.output, *self.command]
        if self.command != TABULATE:
            words += ["--nprocs", self.processes, "--work-dir", self.work]
        if self.command == PRETRAIN:
            words += ["--config", self.stage.folder / "training.toml"]
        with output.open("wb") as to, errors.open("wb") as to_errors:
            process = subprocess.Popen(
                [str(word) for word in words],
                stdout=to,
                stderr=to_errors,
                env={**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self.calls.append(Call(process, output, errors))
        return self.calls[-1]

    def list_processes(self) -> list[int]:
        """List the processes of this case that are alive, by their temporary folder."""
        marker = f"TMPDIR={self.temporary}".encode()
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if marker in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        return found

    def list_workers(self, call: Call) -> list[int]:
        """List the processes that do a call's steps."""
        found = []
        for pid in self.list_processes():
            with suppress(OSError):
                started = (Path("/proc") / str(pid) / "cmdline").read_bytes()
                if b"spawn_main" in started and pid != call.process.pid:
                    found.append(pid)
        return sorted(found)

    def await_handlers(self, call: Call) -> None:
        """Wait until the call has got hold of its signals: before, Python alone decides."""
        bit = 1 << (signal.SIGUSR1 - 1)
        while not call.ended:
            with suppress(OSError):
                status = Path(f"/proc/{call.process.pid}/status").read_text()
                caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
                if int(caught.split()[1], 16) & bit:
                    return
            time.sleep(0.01)

    def await_plan(self, call: Call) -> None:
        """Wait until the call has said what it will do."""
        while not call.ended and b" to do, " not in call.errors.read_bytes():
            time.sleep(0.01)

    def await_moment(self, call: Call) -> None:
        """Wait for a moment drawn by the clock, by what has been said, or by what was written."""
        self.await_handlers(call)
        by = self.draw.choice(("clock", "lines", "files"))
        if by == "clock":
            seconds = self.draw.uniform(0, self.processes * self.stage.seconds[self.command])
            with suppress(subprocess.TimeoutExpired):
                call.process.wait(seconds)
            return
        if by == "lines":
            place, every = call.errors, self.stage.lines[self.command]
        else:
            place, every = self.output, count_in(self.stage.clean[self.command])
        have = count_in(place)
        wanted = have + self.draw.randint(1, max(every - have, 8))
        while not call.has_told and count_in(place) < wanted:
            time.sleep(0.02)
        time.sleep(self.draw.uniform(0, 1.0 if by == "lines" else 0.05))

    def choose(self, pattern: str) -> Path:
        """Choose a file of the dataset."""
        return self.draw.choice(sorted(self.dataset.glob(pattern)))

    def restore(self, file: Path) -> None:
        """Bring back a file of the dataset as it was, when the fault is undone."""
        kept = self.stage.dataset / file.relative_to(self.dataset)

        def bring_back() -> None:
            file.unlink(missing_ok=True)
            shutil.copy2(kept, file)

        self.undo.callback(bring_back)

    def damage(self, file: Path, content: bytes, *, young: bool = False) -> None:
        """Give an input other bytes until the fault is undone; it is old unless it is young."""
        self.restore(file)
        file.write_bytes(content)
        if not young:
            os.utime(file, (YEAR, YEAR))

    def forbid(self, path: Path, mode: int) -> None:
        """Set a path's mode, for calls by one who is bound by it, until the fault is undone."""
        self.prefix = AS_USER
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        self.undo.callback(path.chmod, before)

    def mount(self, folder: Path, options: str) -> None:
        """Mount a file system in memory, of such a size, until the fault is undone."""
        folder.mkdir(exist_ok=True)
        run_quietly("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
        self.clear.callback(run_quietly, "umount", "-l", str(folder))
        grow = "remount,rw,size=500m,nr_inodes=100000"
        self.undo.callback(run_quietly, "mount", "-o", grow, str(folder))


def count_in(place: Path) -> int:
    """Count the lines of a file, or what is in a folder."""
    if place.is_file():
        return place.read_bytes().count(b"\n")
    return sum(1 for _ in place.rglob("*"))


def run_quietly(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


# ---------------------------------------------------------------------------- kinds of faults


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: how many are tried, and what puts one into a case.

    ``alone`` while no other fault is tried, ``root`` only by root.
    """

    name: str
    faults: int
    inject: Callable[[Case], Expected]
    command: Command = EMBED
    alone: bool = False
    root: bool = False

    @property
    def meaning(self) -> str:
        """What happens, for the table."""
        return (self.inject.__doc__ or "").strip().splitlines()[0].rstrip(".")


KINDS: dict[str, Kind] = {}


def kind(
    name: str, faults: int, **options: Any
) -> Callable[[Callable[[Case], Expected]], Callable[[Case], Expected]]:
    def keep(inject: Callable[[Case], Expected]) -> Callable[[Case], Expected]:
        KINDS[name] = Kind(name, faults, inject, **options)
        return inject

    return keep


@kind("call-killed", 20)
def kill_call(case: Case) -> Expected:
    """The call is killed by SIGKILL."""
    case.processes = case.draw.choice((1, 2))
    call = case.start()
    case.await_moment(call)
    call.process.kill()
    return expect("killed", "done")


@kind("worker-killed", 10)
def kill_worker(case: Case) -> Expected:
    """One of the call's workers is killed by SIGKILL."""
    case.processes = 2
    call = case.start()
    case.await_moment(call)
    strike_worker(case, call, signal.SIGKILL)
    return expect("done")


@kind("workers-killed", 3)
def kill_workers(case: Case) -> Expected:
    """Workers are killed again and again."""
    case.processes = 2
    call = case.start()
    for _ in range(case.draw.randint(3, 6)):
        strike_worker(case, call, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            call.process.wait(case.draw.uniform(0, case.stage.seconds[EMBED] / 3))
    return expect("done", "worker-killed")


def strike_worker(case: Case, call: Call, number: int) -> int | None:
    """Send a signal to one of the workers, once there is one."""
    while not call.has_told:
        if workers := case.list_workers(call):
            worker = case.draw.choice(workers)
            with suppress(ProcessLookupError):
                os.kill(worker, number)
                return worker
        time.sleep(0.02)
    return None


@kind("signal", 14)
def signal_call(case: Case) -> Expected:
    """SIGTERM, SIGINT or SIGUSR1 reaches the call."""
    case.processes = case.draw.choice((1, 2))
    return stop(case, send)


@kind("signal-to-all", 8)
def signal_group(case: Case) -> Expected:
    """The same, to all processes of the call."""
    case.processes = 2
    return stop(case, lambda call, number: os.killpg(call.process.pid, number))


@kind("signal-twice", 6)
def signal_twice(case: Case) -> Expected:
    """The same, twice within a second."""
    case.processes = case.draw.choice((1, 2))

    def strike(call: Call, number: int) -> None:
        send(call, number)
        time.sleep(case.draw.uniform(0, 1))
        if not call.ended:
            send(call, number)

    return stop(case, strike)


def send(call: Call, number: int) -> None:
    call.process.send_signal(number)


def stop(
    case: Case,
    strike: Callable[[Call, int], None],
    numbers: Sequence[signal.Signals] = STOPPING,
) -> Expected:
    """Start the call, and strike it with one of the signals; it ends soon."""
    call = case.start()
    case.await_moment(call)
    case.bound = case.stage.scale(SIGNAL_SECONDS, SIGNAL_LENGTHS)
    number, late = case.draw.choice(numbers), call.has_told
    if not call.ended:
        strike(call, number)
    told = ["done"] if late or call.has_told else []
    return expect("killed" if number == signal.SIGKILL else "stopped", *told)


@kind("worker-stopped", 5)
def halt_worker(case: Case) -> Expected:
    """A worker, or the call itself, stands still for seconds (SIGSTOP, SIGCONT)."""
    case.processes = 2
    call = case.start()
    case.await_moment(call)
    if case.draw.random() < 0.7:
        halted = strike_worker(case, call, signal.SIGSTOP)
    else:
        halted = call.process.pid
        call.process.send_signal(signal.SIGSTOP)
    time.sleep(case.draw.uniform(0.5, 5))
    if halted is not None:
        with suppress(ProcessLookupError):
            os.kill(halted, signal.SIGCONT)
    return expect("done")


@kind("bold-cut", 8)
def cut_bold(case: Case) -> Expected:
    """A BOLD file is cut at any byte."""
    file, young = case.choose("*/func/*_bold.nii.gz"), case.draw.random() < 0.3
    whole = file.read_bytes()
    case.damage(file, whole[: draw_cut(case, len(whole))], young=young)
    case.start()
    return expect("truncated", "unreadable", *(["still-written"] if young else []))


@kind("mask-cut", 5)
def cut_mask(case: Case) -> Expected:
    """A mask is cut at any byte."""
    file = case.choose("*/func/*_mask.nii.gz")
    whole = file.read_bytes()
    case.damage(file, whole[: draw_cut(case, len(whole))])
    case.start()
    return expect("truncated", "unreadable")


@kind("confounds-cut", 5)
def cut_confounds(case: Case) -> Expected:
    """A confounds table is cut at any byte."""
    file = case.choose("*/func/*_timeseries.tsv")
    whole = file.read_bytes()
    cut = whole[: draw_cut(case, len(whole))]
    case.damage(file, cut)
    case.start()
    shapes = [[line.count(b"\t") for line in text.splitlines()] for text in (whole, cut)]
    # Nothing tells that the last number had more digits; a table of nothing is no table.
    case.altered = cut in (b"", whole) or shapes[0] == shapes[1]
    return expect("done") if case.altered else expect("bad-confounds")


@kind("json-cut", 4)
def cut_json(case: Case) -> Expected:
    """The JSON of a BOLD file is cut at any byte."""
    file = case.choose("*/func/*_bold.json")
    whole = file.read_bytes()
    cut = whole[: draw_cut(case, len(whole.rstrip()))]
    case.damage(file, cut)
    case.start()
    return expect("bad-sidecar")


@kind("header-cut", 4)
def cut_header(case: Case) -> Expected:
    """A BOLD or mask ends within its header, in whole gzip."""
    file = case.choose("*/func/*_[bm][oa][ls][dk].nii.gz")
    whole = gzip.decompress(file.read_bytes())
    case.damage(file, gzip.compress(whole[: case.draw.randrange(352)]))
    case.start()
    return expect("truncated", "unreadable")


def draw_cut(case: Case, size: int) -> int:
    return 0 if case.draw.random() < 0.1 else case.draw.randrange(size)


@kind("bit-flipped", 12)
def flip_bit(case: Case) -> Expected:
    """A bit of a BOLD or mask file is another."""
    file = case.choose(case.draw.choice(["*/func/*_bold.nii.gz", "*/func/*_mask.nii.gz"]))
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[case.draw.randrange(len(whole))] ^= 1 << case.draw.randrange(8)
    case.damage(file, bytes(flipped))
    case.start()
    with suppress(OSError, EOFError, zlib.error):
        if gzip.decompress(flipped) == gzip.decompress(whole):
            return expect("done")  # As in gzip's note of a time.
    return expect(*BAD_DATA)


@kind("input-removed", 6)
def remove_input(case: Case) -> Expected:
    """A BOLD or mask vanishes while the call goes on."""
    file = case.choose("*/func/*_[bm][oa][ls][dk].nii.gz")
    case.restore(file)
    call = case.start()
    case.await_plan(call)
    case.await_moment(call)
    file.unlink()
    case.sums.pop(file.relative_to(case.dataset).as_posix())
    return expect("missing-content", "still-written", "done")


@kind("input-replaced", 6)
def replace_input(case: Case) -> Expected:
    """A BOLD gives way to another while the call goes on."""
    file, other = case.dataset / BOLD[0], case.dataset / ".other"
    shutil.copy2(case.dataset / BOLD[1], other)
    case.altered = True
    case.clean = case.stage.replaced
    call = case.start()
    case.sums.pop(other.name)
    case.await_plan(call)
    case.await_moment(call)
    other.replace(file)
    case.sums[BOLD[0]] = sum_file(file)
    return expect("still-written", "done")


@kind("input-growing", 5)
def grow_input(case: Case) -> Expected:
    """A BOLD is still being written while the call goes on."""
    file = case.choose("*/func/*_bold.nii.gz")
    whole = file.read_bytes()
    done = int(len(whole) * case.draw.uniform(0.3, 0.95))
    case.damage(file, whole[:done], young=True)
    pause = case.stage.seconds[EMBED] * case.draw.uniform(0.3, 1.5) / 40
    step = (len(whole) - done) // 40 + 1
    call = case.start()
    while done < len(whole) and not call.ended:
        with file.open("ab") as stream:
            stream.write(whole[done : done + step])
        done += step
        time.sleep(pause)
    case.sums[file.relative_to(case.dataset).as_posix()] = sum_file(file)
    return expect("still-written", "done")


@kind("not-readable", 8, root=True)
def forbid_input(case: Case) -> Expected:
    """An input may not be read, or its folder."""
    functional = "*/func/*"
    place = case.draw.choice(
        [
            f"{functional}_bold.nii.gz",
            f"{functional}_mask.nii.gz",
            f"{functional}_timeseries.tsv",
            f"{functional}_bold.json",
            "sub-*/func",
            "sub-*",
        ]
    )
    case.forbid(case.choose(place), 0)
    case.start()
    return expect("denied")


@kind("dangling-link", 6)
def dangle_link(case: Case) -> Expected:
    """An input is a link that leads nowhere."""
    place = case.draw.choice(["bold.nii.gz", "mask.nii.gz", "timeseries.tsv", "bold.json", "all"])
    files = [case.choose(f"*/func/*_{place}")] if place != "all" else []
    for file in files or sorted(case.dataset.glob("*/func/*_bold.nii.gz")):
        case.restore(file)
        file.unlink()
        file.symlink_to(Path("../../.git/annex/objects") / file.name)
    case.start()
    if place == "all":
        return Expected(frozenset({"missing-content"}), frozenset({int(Exit.NO_INPUT)}))
    return expect("missing-content", *(["bad-sidecar"] if place == "bold.json" else []))


@kind("output-read-only", 5, root=True)
def forbid_output(case: Case) -> Expected:
    """The output may not be written."""
    match case.draw.randrange(3):
        case 0:
            case.forbid(case.folder, 0o555)
        case 1:
            case.output.mkdir()
            case.forbid(case.output, 0o555)
        case _:
            case.mount(case.output, "ro")
    case.start()
    return expect("not-writable")


@kind("output-turns-read-only", 6, root=True)
def forbid_output_later(case: Case) -> Expected:
    """The output may no longer be written, from some moment on."""
    by_mode = case.draw.random() < 0.5
    case.prefix = AS_USER if by_mode else ()
    call = case.start()
    case.await_moment(call)
    if by_mode:
        for folder in [path for path in (case.output, *case.output.rglob("*")) if path.is_dir()]:
            with suppress(FileNotFoundError):
                case.forbid(folder, 0o555)
    elif case.output.is_dir():
        place = str(case.output)
        run_quietly("mount", "--bind", place, place)
        case.undo.callback(run_quietly, "umount", "-l", place)
        run_quietly("mount", "-o", "remount,bind,ro", place)
    return expect("not-writable", "done")


@kind("full-output", 12, root=True)
def fill_output(case: Case) -> Expected:
    """The output's disk is full after so many bytes."""
    whole = sum(file.stat().st_size for file in case.stage.clean[EMBED].rglob("*"))
    case.processes = case.draw.choice((1, 1, 2))
    case.mount(case.output, f"size={draw_evenly(case, 8 << 10, 2 * whole)}")
    case.start()
    return expect("disk-full", "done")


@kind("full-work", 8, root=True)
def fill_work(case: Case) -> Expected:
    """The disk of the work folder is full after so many bytes."""
    case.processes = case.draw.choice((1, 1, 2))
    case.mount(case.work, f"size={draw_evenly(case, 8 << 10, 60 << 20)}")
    case.start()
    return expect("disk-full", "done")


@kind("few-inodes", 8, root=True)
def spend_inodes(case: Case) -> Expected:
    """The disk of the output or work folder takes no more files."""
    place = case.draw.choice((case.output, case.output, case.work))
    case.mount(place, f"nr_inodes={draw_evenly(case, 2, 100)}")
    case.start()
    return expect("disk-full", "done")


def draw_evenly(case: Case, least: int, most: int) -> int:
    """Draw a number, small ones as often as large ones."""
    return int(least * (most / least) ** case.draw.random())


@kind("two-calls", 6)
def call_twice(case: Case) -> Expected:
    """Two calls on the same output at once."""
    return call_at_once(case, 2)


@kind("twenty-calls", 2, alone=True)
def call_twenty_times(case: Case) -> Expected:
    """Twenty calls on the same output at once."""
    return call_at_once(case, 20)


def call_at_once(case: Case, number: int) -> Expected:
    case.bound *= max(1, number / 4)
    for _ in range(number):
        case.start()
        time.sleep(case.draw.uniform(0, case.stage.seconds[EMBED] / number))
    return expect("done", "locked")


@kind("clock-wrong", 8)
def shift_clock(case: Case) -> Expected:
    """Inputs or outputs are of the future, or of before 1970."""
    seconds = case.draw.choice((time.time() + 3600, time.time() + 10 * YEAR, 0, -10 * YEAR))
    match case.draw.choice(("inputs", "outputs", "truncated")):
        case "inputs":
            move_in_time(case.dataset, seconds)
        case "outputs":
            copy_tree(case.stage.clean[EMBED], case.output)
            move_in_time(case.output, seconds)
        case _:
            file = case.choose("*/func/*_bold.nii.gz")
            case.damage(file, file.read_bytes()[: file.stat().st_size // 2])
            os.utime(file, (seconds, seconds))
            case.start()
            return expect("truncated")
    case.start()
    return expect("done")


def move_in_time(folder: Path, seconds: float) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (seconds, seconds))


@kind("leftovers", 6)
def plant_leftovers(case: Case) -> Expected:
    """Half files, locks and folders of killed calls lie in the output."""
    clean = case.stage.clean[EMBED]
    if case.draw.random() < 0.3:
        copy_tree(clean, case.output)
    files = [file for file in list_files(clean).values() if is_lasting(file)]
    for file in case.draw.sample(files, 5):
        folder = case.output / file.parent.relative_to(clean)
        folder.mkdir(parents=True, exist_ok=True)
        half = f"{TEMPORARY}{case.draw.getrandbits(48):012x}-{file.name}"
        (folder / half).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    functional = case.output / "sub-01/func"
    prepared = functional / f"{TEMPORARY}{case.draw.getrandbits(48):012x}-{RUNS[0]}_prepared"
    prepared.mkdir(parents=True)
    (prepared / "signal.npy").write_bytes(b"half")
    (case.output / "logs").mkdir(exist_ok=True)
    (case.output / "logs/sub-01.lock").write_text("a host and a number that say nothing")
    case.start()
    return expect("done")


@kind("output-damaged", 14)
def damage_output(case: Case) -> Expected:
    """What an earlier call wrote of a run is cut, emptied, changed or gone."""
    copy_tree(case.stage.clean[EMBED], case.output)
    endings = (".tsv", ".json", ".nii.gz")
    files = [file for file in case.output.glob("*/func/*") if file.name.endswith(endings)]
    files += case.output.glob("logs/*status.json")
    damage_file(case, case.draw.choice(sorted(files)))
    case.start()
    return expect("done")


def damage_file(case: Case, file: Path) -> None:
    whole = file.read_bytes()
    match case.draw.choice(("cut", "cut", "empty", "changed", "gone")):
        case "cut":
            file.write_bytes(whole[: case.draw.randrange(1, len(whole) - 1)])
        case "empty":
            file.write_bytes(b"")
        case "changed":
            changed = bytearray(whole)
            changed[case.draw.randrange(len(whole))] ^= 0xFF
            file.write_bytes(changed)
        case _:
            file.unlink()


@kind("work-removed", 5)
def remove_work(case: Case) -> Expected:
    """The work folder vanishes while the call goes on."""
    case.processes = case.draw.choice((1, 2))
    call = case.start()
    case.await_plan(call)
    case.await_moment(call)
    shutil.rmtree(case.work, ignore_errors=True)
    return expect("done", "not-writable", "internal")


@kind("little-memory", 6)
def limit_memory(case: Case) -> Expected:
    """The call may have so much memory, and no more."""
    case.processes = case.draw.choice((1, 1, 2))
    share = case.draw.uniform(0.2, 1.0)
    case.prefix = ("prlimit", f"--as={int(share * case.stage.memory_kib * 1024)}")
    case.undo.callback(setattr, case, "prefix", ())
    case.start()
    return expect("done", "out-of-memory", "internal")


@kind("tables-killed", 6, command=TABULATE)
def kill_tables(case: Case) -> Expected:
    """``group`` is killed or stopped."""
    return stop(case, send, (signal.SIGKILL, *STOPPING))


@kind("tables-at-once", 3, command=TABULATE)
def make_tables_at_once(case: Case) -> Expected:
    """``group`` is called three times at once."""
    return call_at_once(case, 3)


@kind("tables-of-damaged", 6, command=TABULATE)
def tabulate_damaged(case: Case) -> Expected:
    """``group`` finds damaged outputs of a run."""
    endings = (".tsv", ".json", ".nii.gz")
    files = [file for file in case.output.glob("*/func/*") if file.name.endswith(endings)]
    file = case.draw.choice(sorted(files))
    whole = file.read_bytes()
    case.undo.callback(file.write_bytes, whole)
    damage_file(case, file)
    case.altered = True
    case.told |= {file, *file.parent.glob("*_stat-mean_*.json")}
    case.start()
    return expect("done", "output-bad", "no-runs")


@kind("tables-full-output", 5, root=True, command=TABULATE)
def fill_tables(case: Case) -> Expected:
    """The output's disk is full when ``group`` writes."""
    whole = case.stage.clean[EMBED]
    pages = sum(-(-file.stat().st_size // 4096) for file in whole.rglob("*"))
    case.mount(case.output, f"size={4096 * (pages + case.draw.randrange(12))}")
    copy_tree(whole, case.output)
    case.start()
    return expect("disk-full", "done")


@kind("training-killed", 6, command=PRETRAIN)
def kill_training(case: Case) -> Expected:
    """A training is killed or stopped."""
    case.altered = True  # Until its end there are a checkpoint and a table without all columns.
    expected = stop(case, send, (signal.SIGKILL, *STOPPING))
    # In its last step there is nothing left to stop.
    return Expected(expected.reasons | {"done"}, expected.exits | {0})


@kind("training-full-output", 4, root=True, command=PRETRAIN)
def fill_training(case: Case) -> Expected:
    """The disk is full while a training writes."""
    case.altered = True
    whole = sum(file.stat().st_size for file in case.stage.clean[PRETRAIN].rglob("*"))
    case.mount(case.output, f"size={draw_evenly(case, 8 << 10, 2 * whole)}")
    case.start()
    return expect("disk-full", "done")


# ---------------------------------------------------------------------------- judging


def may_be_removed(path: Path) -> bool:
    """Whether its folder lets files be removed; root may by mode, so that is looked at too."""
    return bool(path.parent.stat().st_mode & stat.S_IWUSR) and os.access(path.parent, os.W_OK)


def judge_calls(case: Case, expected: Expected, column: Column) -> Iterator[Flaw]:
    """Wait for all calls of a case, and yield what is wrong with how they ended."""
    yield from await_end(case)
    exits = {call.process.returncode for call in case.calls}
    for call in case.calls:
        code = call.process.returncode
        reasons = call.list_reasons()
        if code not in expected.exits or not reasons <= expected.reasons:
            wanted = ", ".join(sorted(expected.reasons)[:4])
            told = ", ".join(sorted(reasons)) or "no reason"
            yield Flaw(column, f"exit {code} ({told}), not {wanted}; {last_line(call)}")
    if sum_files(case.dataset) != case.sums:
        yield Flaw("input changed", "a file of the input is not as it was")
    hidden = [] if -signal.SIGKILL in exits else case.output.rglob(f"{TEMPORARY}*")
    for path in filter(may_be_removed, hidden):
        yield Flaw(column_of(column), f"left over: {path.relative_to(case.output)}")
    for text in list_torn(case, killed=-signal.SIGKILL in exits):
        yield Flaw(column_of(column), text)
    if case.command == EMBED and len(case.calls) == 1:
        for text in list_untold(case, case.calls[0]):
            yield Flaw(column_of(column), text)


def column_of(column: Column) -> Column:
    return "half-written" if column == "wrong exit" else column


def await_end(case: Case) -> Iterator[Flaw]:
    """End whatever does not end by itself in time."""
    end = time.monotonic() + case.bound
    for call in case.calls:
        try:
            call.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            yield Flaw("hang", f"no end after {case.bound:.0f} s; {last_line(call)}")
            os.killpg(call.process.pid, signal.SIGKILL)
            call.process.wait()
    end = time.monotonic() + case.stage.scale(SIGNAL_SECONDS, SIGNAL_LENGTHS)
    while (left := case.list_processes()) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in left:
        with suppress(OSError):
            started = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            os.kill(pid, signal.SIGKILL)
            yield Flaw("hang", f"a process was left behind: {started.decode()[-80:]}")


def last_line(call: Call) -> str:
    return (call.errors.read_text(errors="replace").strip().splitlines() or ["silence"])[-1][-400:]


def list_torn(case: Case, *, killed: bool) -> Iterator[str]:
    """Yield the files below the output that are not whole, or not what a clean call writes."""
    clean = list_files(case.reference)
    for name, file in list_files(case.output).items():
        if file in case.told:
            continue
        try:
            read_whole(file, killed=killed)
        except Exception as error:
            yield f"{name}: {type(error).__name__}: {error}"
            continue
        if file.name.endswith(NUMBERS) and not case.altered:
            if name not in clean:
                yield f"{name}: no clean call writes it"
            elif clean[name].read_bytes() != file.read_bytes():
                yield f"{name}: other bytes than a clean call's"


def list_files(folder: Path) -> dict[str, Path]:
    """List what is not hidden below a folder, by names that do not depend on where it lies."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = {
        re.sub(r"^prepared/dataset-\w+", "prepared", str(f.relative_to(folder))): f for f in files
    }
    return {name: file for name, file in named.items() if TEMPORARY not in name}


def read_whole(file: Path, *, killed: bool) -> None:
    """Read a file as what its name says it is."""
    match "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix:
        case ".nii.gz":
            gzip.decompress(file.read_bytes())
        case ".npy":
            np.load(file)
        case ".tsv":
            text = file.read_text()
            widths = {line.count("\t") for line in text.splitlines()}
            if len(widths) != 1 or not text.endswith("\n"):
                raise ValueError("rows of different lengths, or a last one without an end")
        case ".json":
            check_sums(file, json.loads(file.read_text()))
        case ".jsonl":
            lines = file.read_text().splitlines()
            for line in lines[:-1] if killed else lines:
                json.loads(line)
        case ".svg":
            ElementTree.fromstring(file.read_text())
        case ".html":
            if not file.read_text().rstrip().endswith("</html>"):
                raise ValueError("a page without an end")
        case ".toml":
            tomllib.loads(file.read_text())
        case ".safetensors":
            from safetensors.numpy import load_file

            load_file(file)


def check_sums(file: Path, content: Any) -> None:
    """Compare the checksums in a sidecar of a run, or in a package, with the files."""
    if file.name == "checksums.json":
        sums, folder = content, file.parent
    elif isinstance(content, dict) and "Outputs" in content:
        sums, folder = content["Outputs"], next(p for p in file.parents if p.name == "out")
    else:
        return
    wrong = [name for name, digest in sums.items() if sha256_of(folder / name) != digest]
    if wrong:
        raise ValueError(f"checksums are not those of {', '.join(wrong)}")


def list_untold(case: Case, call: Call) -> Iterator[str]:
    """Yield what a call that came to its end has not told of the runs' ends."""
    if not call.has_result or "locked" in call.list_reasons():
        return
    statuses = [one for label in ("01", "02") for one in read_status(case.output, label)]
    listed = [status.run for status in statuses]
    # A person whose folder can't be listed stands for all their runs.
    if not all(run in listed or run[:6] in listed for run in RUNS):
        yield f"of {', '.join(RUNS)}, only {listed} are listed"
    refusals = [status.refusal for status in statuses if status.refusal]
    if (code := decide_exit(refusals, len(statuses))) != call.process.returncode:
        yield f"what is listed gives exit {code}, not {call.process.returncode}"
    try:
        together = json.loads((case.output / "logs/status.json").read_text())
    except (OSError, ValueError):
        together = []
    if [run["run"] for person in together for run in person["runs"]] != listed:
        yield "logs/status.json does not list what the participants' own files do"


def list_differences(output: Path, clean: Path) -> Iterator[str]:
    """Yield what tells an output from that of a call that met no fault."""
    ours, theirs = (
        {name: file for name, file in list_files(top).items() if is_lasting(file)}
        for top in (output, clean)
    )
    for name in sorted(ours.keys() ^ theirs.keys()):
        yield f"{name}: {'only here' if name in ours else 'missing'}"
    for name in sorted(ours.keys() & theirs.keys()):
        pair = ours[name], theirs[name]
        if name.endswith(NUMBERS) and pair[0].read_bytes() != pair[1].read_bytes():
            yield f"{name}: other bytes than a clean call's"
        if name.endswith(".json") and not is_timed(pair[0]) and settle(pair[0]) != settle(pair[1]):
            yield f"{name}: says something else than a clean call's"


def is_lasting(file: Path) -> bool:
    """Whether every call leaves this file: no log of a call, no lock, no drawing."""
    in_log = file.parent.parent.name == "logs"
    return not (in_log or file.suffix in (".lock", ".svg"))


def is_timed(file: Path) -> bool:
    """Whether a JSON of a training tells how long it took, or the checksum of one that does."""
    return file.name in ("training.json", "checksums.json", "run.json")


def settle(file: Path) -> Any:
    """Return what a JSON says, without what differs from call to call."""

    def leave_out(content: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in content.items() if key not in VOLATILE}

    content = json.loads(file.read_text(), object_hook=leave_out)
    if isinstance(content, dict) and "Outputs" in content:  # JSONs among them tell of times.
        digests = content["Outputs"].items()
        content["Outputs"] = {name: one for name, one in digests if not name.endswith(".json")}
    return content


def sum_files(folder: Path) -> dict[str, str]:
    """Return what is in a folder: names, and a checksum of content and time, or a link's target."""
    files = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {path.relative_to(folder).as_posix(): sum_file(path) for path in files}


def sum_file(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    return f"{sha256_of(path)} {path.stat().st_mtime_ns}"


# ---------------------------------------------------------------------------- the campaign


@dataclass(frozen=True, slots=True)
class Result:
    """How one fault went: all exit codes of its calls but the last one, and what was wrong."""

    kind: str
    number: int
    exits: tuple[int, ...]
    flaws: tuple[Flaw, ...]

    @property
    def name(self) -> str:
        """The fault's folder."""
        return f"{self.kind}-{self.number}"


def try_fault(stage: Stage, kind: Kind, number: int, seed: int, keep: bool) -> Result:
    """Put one fault into calls, judge them, and start again without it."""
    place = stage.folder / f"{kind.name}-{number}"
    case = begin(stage, place, kind.command, f"{seed} {kind.name} {number}")
    case.bound = stage.scale(CALL_SECONDS, CALL_LENGTHS)
    with case.clear:
        with case.undo:
            expected = kind.inject(case)
            flaws = list(judge_calls(case, expected, "wrong exit"))
            exits = tuple(call.process.returncode for call in case.calls)
        flaws += start_again(case)
    if not flaws or not keep:
        shutil.rmtree(case.folder, ignore_errors=True)
    return Result(kind.name, number, exits, tuple(flaws))


def start_again(case: Case) -> Iterator[Flaw]:
    """Start the same command without the fault; yield what does not come right."""
    case.calls.clear()
    case.told.clear()
    case.altered = False
    case.bound = case.stage.scale(CALL_SECONDS, CALL_LENGTHS)
    case.start()
    yield from judge_calls(case, expect("done"), "not resumable")
    for text in list_differences(case.output, case.reference):
        yield Flaw("not resumable", text)


def copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def set_stage(folder: Path, kinds: Iterable[Kind]) -> Stage:
    """Make the cohort, and start the commands of these kinds on it without a fault."""
    stage = Stage(folder=folder)
    simulate_dataset(stage.dataset, COHORT)
    (folder / "training.toml").write_text(TRAINING)
    for command in dict.fromkeys([EMBED, *(kind.command for kind in kinds)]):
        case = begin(stage, folder / f"clean-{len(stage.clean)}", command)
        start = time.monotonic()
        stage.memory_kib = max(stage.memory_kib, call_cleanly(case))
        stage.clean[command], stage.seconds[command] = case.output, time.monotonic() - start
        stage.lines[command] = count_in(case.calls[0].errors)
    if any(kind.inject is replace_input for kind in kinds):
        case = begin(stage, stage.replaced.parent, EMBED)
        shutil.copy2(case.dataset / BOLD[1], case.dataset / BOLD[0])
        call_cleanly(case)
    return stage


def begin(stage: Stage, folder: Path, command: Command, seed: str = "") -> Case:
    """Return a case with its copy of the cohort and, for tables, of outputs to put into them."""
    case = Case(stage=stage, folder=folder, command=command, draw=random.Random(seed))
    copy_tree(stage.dataset, case.dataset)
    case.temporary.mkdir()
    if command == TABULATE:
        copy_tree(stage.clean[EMBED], case.output)
    return case


def call_cleanly(case: Case) -> int:
    """Call without a fault; return the most address space that it had (KiB)."""
    call, most = case.start(), 0
    while not call.ended:
        with suppress(OSError, StopIteration):
            status = Path(f"/proc/{call.process.pid}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmPeak"))
            most = int(peak.split()[1])
        time.sleep(0.05)
    if call.process.returncode:
        raise SystemExit(f"a call without a fault fails: {call.errors.read_text()}")
    return most


def choose_faults(kinds: Sequence[Kind], faults: int | None) -> list[tuple[Kind, int]]:
    """Choose so many faults, spread evenly over all of the kinds."""
    every = [(kind, number) for kind in kinds for number in range(kind.faults)]
    if faults is None or faults >= len(every):
        return every
    return [every[int((place + 0.5) * len(every) / faults)] for place in range(faults)]


def try_faults(
    stage: Stage, faults: Sequence[tuple[Kind, int]], seed: int, jobs: int, keep: bool
) -> Iterator[Result]:
    """Try some at once, in an order drawn by the seed; yield how each went."""
    alone = [fault for fault in faults if fault[0].alone]
    others = [fault for fault in faults if not fault[0].alone]
    random.Random(seed).shuffle(others)
    for kind, number in alone:
        yield try_fault(stage, kind, number, seed, keep)
    with ThreadPoolExecutor(jobs) as pool:
        tried = [pool.submit(try_fault, stage, *fault, seed, keep) for fault in others]
        for future in as_completed(tried):
            yield future.result()


def tabulate(results: Iterable[Result]) -> str:
    """Return the table of all kinds, as Markdown."""
    results = list(results)
    lines = [
        f"| kind | fault | faults | {' | '.join(f'{column}' for column in COLUMNS)} | exit codes |",
        f"| --- | --- | {'---: | ' * (len(COLUMNS) + 1)}--- |",
    ]
    for name, kind in KINDS.items():
        own = [result for result in results if result.kind == name]
        if own:
            lines.append(f"| `{name}` | {kind.meaning} | {count_row(own)} |")
    return "\n".join([*lines, f"| **all** | | {count_row(results)} |"]) + "\n"


def count_row(results: Sequence[Result]) -> str:
    """Return the number of faults, of those with each flaw, and the exit codes seen."""
    columns = [{flaw.column for flaw in result.flaws} for result in results]
    counts = [sum(column in seen for seen in columns) for column in COLUMNS]
    exits = Counter(code for result in results for code in result.exits)
    seen = ", ".join(f"{code} x {count}" for code, count in sorted(exits.items()))
    return " | ".join(map(str, [len(results), *counts, seen]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--faults", type=int, help="so many, spread over the kinds (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="faults at once")
    parser.add_argument("--keep", type=Path, help="keep here what went wrong")
    parser.add_argument("--table", type=Path, help="write the table here as well")
    options = parser.parse_args()
    kinds = [KINDS[name] for name in options.only or KINDS]
    if not isolate_mounts():
        print("left out, since they need root:", *(kind.name for kind in kinds if kind.root))
        kinds = [kind for kind in kinds if not kind.root]
    faults = choose_faults(kinds, options.faults)
    results = []
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.keep))
    try:
        folder.chmod(0o755)
        stage = set_stage(folder, [kind for kind, _ in faults])
        told = ", ".join(f"{seconds:.1f}" for seconds in stage.seconds.values())
        print(f"{len(faults)} faults; clean calls take {told} s", flush=True)
        for result in try_faults(stage, faults, options.seed, options.jobs, bool(options.keep)):
            results.append(result)
            print(f"[{len(results)}/{len(faults)}] {result.name}: {result.exits}", flush=True)
            for flaw in result.flaws[:5]:
                print(f"    {flaw.column}: {flaw.text}", flush=True)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    table = tabulate(results)
    print(table)
    if options.table:
        options.table.write_text(table, encoding="utf-8")
    sys.exit(any(result.flaws for result in results))


def isolate_mounts() -> bool:
    """Give this process mounts of its own, which end with it; return whether that is allowed."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(CLONE_NEWNS) != 0:
        return False
    run_quietly("mount", "--make-rprivate", "/")
    return True


if __name__ == "__main__":
    main()
