"""One fault's own copy of the cohort, and what can be done to it and taken back."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.calls import SLIMBRAIN, Call, Command, list_processes, read_words
from slimbrain_app.files import sha256_of

if TYPE_CHECKING:
    from campaign.stage import Stage

# Root may read and write all; without these two it is a user like others.
AS_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
YEAR = 365 * 86400.0


@dataclass(slots=True, kw_only=True)
class Case:
    """One fault: a copy of the cohort, an output, and the calls on them.

    ``undo`` takes the fault away, ``clear`` what it needed. ``clean`` is what a call without a
    fault leaves; numbers may be others if they are ``altered``, and ``told`` are outputs that the
    fault itself has damaged.
    """

    stage: Stage
    folder: Path
    draw: random.Random
    command: Command
    clean: Path
    bound: float
    dataset: Path = field(init=False)
    output: Path = field(init=False)
    work: Path = field(init=False)
    temporary: Path = field(init=False)
    processes: int = 1
    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    altered: bool = False
    told: set[Path] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    sums: dict[str, str] = field(default_factory=dict)
    undo: ExitStack = field(default_factory=ExitStack)
    clear: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.dataset, self.output = self.folder / "dataset", self.folder / "out"
        self.work, self.temporary = self.folder / "work", self.folder / "tmp"

    @property
    def seconds(self) -> float:
        """How long the command takes where it meets no fault."""
        return self.stage.seconds[self.command]

    def start(self) -> Call:
        """Start the command; whoever judges waits for its end."""
        self.sums = sum_files(self.dataset)
        stem = f"call-{len(list(self.folder.glob('call-*.out')))}"
        output, errors = (self.folder / f"{stem}.{ending}" for ending in ("out", "err"))
        words = [*self.prefix, SLIMBRAIN, self.dataset, self.output, *self.command.words]
        if self.command.computes:
            words += ["--nprocs", self.processes, "--work-dir", self.work]
        if self.command.settings:
            config = self.folder / "settings.toml"
            config.write_text(self.command.settings)
            words += ["--config", config]
        own = {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        with output.open("wb") as to, errors.open("wb") as to_errors:
            process = subprocess.Popen(
                [str(word) for word in words],
                stdout=to,
                stderr=to_errors,
                env={**os.environ, **own, **self.environment},
                start_new_session=True,
            )
        self.calls.append(Call(process, output, errors))
        return self.calls[-1]

    def start_and_wait(self, *, for_plan: bool = False) -> Call:
        """Start the command and wait for a moment, not before it has told its plan if that counts.

        The moment is drawn by the clock, by what has been said, or by what was written.
        """
        call = self.start()
        if for_plan:
            call.await_plan()
        call.await_handlers()
        by = self.draw.choice(("clock", "lines", "files"))
        if by == "clock":
            call.wait(self.draw.uniform(0, self.processes * self.seconds))
            return call
        if by == "lines":
            place, every = call.errors, self.stage.lines[self.command]
        else:
            place, every = self.output, count_in(self.stage.clean[self.command])
        have = count_in(place)
        wanted = have + self.draw.randint(1, max(every - have, 8))
        while not call.has_told and count_in(place) < wanted:
            time.sleep(0.02)
        time.sleep(self.draw.uniform(0, 1.0 if by == "lines" else 0.05))
        return call

    def list_processes(self) -> list[int]:
        """List the processes of this case that are alive."""
        return list_processes(self.temporary)

    def list_workers(self, call: Call) -> list[int]:
        """List the processes that do a call's steps."""
        others = [one for one in self.list_processes() if one != call.process.pid]
        return [one for one in others if "spawn_main" in read_words(one)]

    def choose(self, pattern: str) -> Path:
        """Choose a file of the dataset."""
        return self.draw.choice(sorted(self.dataset.glob(pattern)))

    def restore(self, file: Path) -> None:
        """Bring back a file of the dataset as it was, when the fault is undone."""
        kept = self.stage.find_dataset(self.command) / file.relative_to(self.dataset)

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

    def accept(self, file: Path) -> None:
        """Let an input count as unchanged that is, or isn't there, as it is now."""
        name = file.relative_to(self.dataset).as_posix()
        self.sums.pop(name, None)
        if file.exists():
            self.sums[name] = sum_file(file)

    def forbid(self, path: Path, mode: int) -> None:
        """Set a path's mode, for calls by one who is bound by it, until the fault is undone."""
        self.prefix = AS_USER
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        self.undo.callback(path.chmod, before)

    def mount(self, folder: Path, options: str) -> None:
        """Mount a file system in memory, which is large enough once the fault is undone."""
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


def copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def run_quietly(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def sum_files(folder: Path) -> dict[str, str]:
    """Return what is in a folder: names, and a checksum of content and time, or a link's target."""
    files = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {path.relative_to(folder).as_posix(): sum_file(path) for path in files}


def sum_file(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    return f"{sha256_of(path)} {path.stat().st_mtime_ns}"
