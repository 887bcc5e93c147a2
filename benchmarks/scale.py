"""What a dataset of thousands costs beside one of a single participant.

Lays out derivatives of so many participants, one run each: hard links to one simulated run. Their
outputs are those of the real command on that run, with the label replaced. Everything is measured
in processes of its own; floors are those of the promise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Nothing heavy is imported here: a process's memory counts from that of the one that started it.
SLIMBRAIN = str(Path(sys.executable).with_name("slimbrain"))
SIMULATE = [f"{SLIMBRAIN}-tools", "simulate"]
LABEL = "01"
_TIMED = """
import sys, time
from pathlib import Path
import nibabel.nifti1, nibabel.nifti2
from slimbrain_app.bids.discover import discover, discover_participant, list_participants
from slimbrain_app.bids.folders import Participant
from slimbrain_app.bids.runs import gather_runs
from slimbrain_app.settings import Prepare, Select
folder, label = Path(sys.argv[1]), sys.argv[2]
start, busy = time.perf_counter(), time.process_time()
found = {work}
print(time.perf_counter() - start, time.process_time() - busy)
"""
_WORKS = {
    "names": "[run.name for label in list_participants(folder)"
    " for run in gather_runs(Participant(folder, label).list_files('func', None))]",
    "runs": "discover(folder, Select(), Prepare()).runs",
    "one": "discover_participant(folder, label, Select(), Prepare()).runs",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds by the clock and of the processor, and the most memory (MB)."""

    wall: float
    processor: float
    memory: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--participants", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the trees go for a while")
    count = parser.parse_args().participants
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as place:
        one, many = Path(place) / "one/fmriprep", Path(place) / "many/fmriprep"
        size = ["--participants", "1", "--runs", "1", "--volumes", "40", "--voxel-size", "6"]
        run([*SIMULATE, str(one), *size])
        outputs = one.with_name("out"), many.with_name("out")
        run([SLIMBRAIN, str(one), str(outputs[0]), "participant", "--nprocs", "1", "-q"])
        labels = [f"{number:05d}" for number in range(count)]
        multiply(one, many, labels)
        multiply(outputs[0], outputs[1], labels)
        print(f"{'':34}{'here':>10}{'floor':>10}")
        report(one, many, labels[count // 2])
        report_tables(one, many, *outputs)


def report(one: Path, many: Path, label: str) -> None:
    """Print what it costs to find runs."""
    for what, work, most in (
        ("names of all runs, s", "names", 3.0),
        ("all runs with their headers, s", "runs", None),
        ("one participant, s", "one", 0.1),
    ):
        cost = time_work(work, many, label)
        show(what, cost.wall, most)
        show("    of a processor, s", cost.processor, None)
        show("    memory, MB", cost.memory, 300.0)
    small, large = (
        min(
            (run(list_dry_run(folder, label)) for _ in range(3)),
            key=lambda cost: cost.wall,
        )
        for folder, label in ((one, LABEL), (many, label))
    )
    show("dry run of one, s", large.wall, None)
    show("    times that in a tree of one", large.wall / small.wall, 1.2)


def report_tables(one: Path, many: Path, small: Path, large: Path) -> None:
    """Print what it costs to collect the runs' outputs."""
    few = run([SLIMBRAIN, str(one), str(small), "group", "-q"])
    cost = run([SLIMBRAIN, str(many), str(large), "group", "-q"])
    show("group tables, s", cost.wall, 5.0)
    show("    of a processor, s", cost.processor, None)
    show("    memory, MB", cost.memory, 300.0)
    show("group tables of one run, s", few.wall, None)


def multiply(source: Path, target: Path, labels: list[str]) -> None:
    """Lay out a folder for each label as it is for the one, by hard links where nothing differs."""
    own = f"sub-{LABEL}"
    for path, name in list_files(source):
        if own not in name:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(path.read_bytes())
            continue
        text = path.read_bytes() if path.suffix == ".json" else b""
        for label in labels:
            new = target / name.replace(own, f"sub-{label}")
            new.parent.mkdir(parents=True, exist_ok=True)
            if own.encode() in text:
                new.write_bytes(text.replace(own.encode(), f"sub-{label}".encode()))
            else:
                new.hardlink_to(path)


def list_files(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".lock":  # By hard links, one would lock all.
            yield path, path.relative_to(folder).as_posix()


def time_work(work: str, folder: Path, label: str) -> Cost:
    """Return the seconds that a call takes in a new process, and all the memory of that."""
    with tempfile.TemporaryFile("w+") as stream:
        program = _TIMED.replace("{work}", _WORKS[work])
        cost = run([sys.executable, "-c", program, str(folder), label], stream.fileno())
        stream.seek(0)
        wall, processor = map(float, stream.read().split())
        return Cost(wall, processor, cost.memory)


def list_dry_run(folder: Path, label: str) -> list[str]:
    output = str(folder.with_name("nothing"))
    wish = ["--participant-label", label, "--device", "cpu", "-q", "--dry-run"]
    return [SLIMBRAIN, str(folder), output, "participant", *wish]


def run(command: list[str], output: int = subprocess.DEVNULL) -> Cost:
    """Run a command to its end; it must succeed."""
    start = os.times().elapsed
    process = subprocess.Popen(command, stdout=output)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    wall = os.times().elapsed - start
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6)


def show(what: str, value: float, most: float | None) -> None:
    floor = "" if most is None else f"{most:g}"
    print(f"{what:34}{value:10.3g}{floor:>10}{'  missed' if most and value > most else ''}")


if __name__ == "__main__":
    main()
