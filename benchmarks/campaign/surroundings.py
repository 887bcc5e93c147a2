"""Faults that strike what is around a call: its output and disks, other calls, times, memory."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from campaign.calls import EMBED
from campaign.case import AS_USER, YEAR, Case, copy_tree, run_quietly
from campaign.inputs import BOLDS
from campaign.judging import is_lasting, list_files
from campaign.kinds import Expected, draw_evenly, expect, kind
from campaign.stage import RUNS
from slimbrain_app.files import TEMPORARY

NO_LOCKS = Path(__file__).parents[2] / "tests/nolocks"


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
    return expect("not-writable")


@kind("output-turns-read-only", 6, root=True)
def forbid_output_later(case: Case) -> Expected:
    """The output may no longer be written, from some moment on."""
    by_mode = case.draw.random() < 0.5
    case.prefix = AS_USER if by_mode else ()
    case.start_and_wait()
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


@kind("full-output", 12, root=True, processes=(1, 1, 2))
def fill_output(case: Case) -> Expected:
    """The output's disk is full after so many bytes."""
    return fill(case, case.output, 2 * sum(file.stat().st_size for file in case.clean.rglob("*")))


@kind("full-work", 8, root=True, processes=(1, 1, 2))
def fill_work(case: Case) -> Expected:
    """The disk of the work folder is full after so many bytes."""
    return fill(case, case.work, 60 << 20)


def fill(case: Case, folder: Path, most: int) -> Expected:
    """Give a folder a disk of 8 KiB or more."""
    case.mount(folder, f"size={draw_evenly(case, 8 << 10, most)}")
    return expect("disk-full", "done")


@kind("few-inodes", 8, root=True)
def spend_inodes(case: Case) -> Expected:
    """The disk of the output or work folder takes no more files."""
    place = case.draw.choice((case.output, case.output, case.work))
    case.mount(place, f"nr_inodes={draw_evenly(case, 2, 100)}")
    return expect("disk-full", "done")


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


@kind("no-locks", 8)
def take_locks_away(case: Case) -> Expected:
    """The file system has no locks: a call is killed, or starts beside another."""
    case.environment["PYTHONPATH"] = str(NO_LOCKS)  # To the end: nor has it any later.
    if case.draw.random() < 0.5:
        return call_at_once(case, 2)
    case.start_and_wait().process.kill()
    return expect("killed", "done")


@kind("clock-wrong", 8)
def shift_clock(case: Case) -> Expected:
    """Inputs or outputs are of the future, or of before 1970."""
    seconds = case.draw.choice((time.time() + 3600, time.time() + 10 * YEAR, 0, -10 * YEAR))
    place = case.draw.choice(("inputs", "outputs", "truncated"))
    if place == "truncated":
        file = case.choose(BOLDS)
        case.damage(file, file.read_bytes()[: file.stat().st_size // 2])
        os.utime(file, (seconds, seconds))
        return expect("truncated")
    folder = case.dataset
    if place == "outputs":
        folder = case.output
        copy_tree(case.clean, folder)
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (seconds, seconds))
    return expect("done")


@kind("leftovers", 6)
def plant_leftovers(case: Case) -> Expected:
    """Half files, locks and folders of killed calls lie in the output."""
    if case.draw.random() < 0.3:
        copy_tree(case.clean, case.output)
    files = [file for file in list_files(case.clean).values() if is_lasting(file)]
    for file in case.draw.sample(files, 5):
        folder = case.output / file.parent.relative_to(case.clean)
        folder.mkdir(parents=True, exist_ok=True)
        half = folder / name_leftover(case, file.name)
        half.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    prepared = case.output / "sub-01/func" / name_leftover(case, f"{RUNS[0]}_prepared")
    prepared.mkdir(parents=True)
    (prepared / "signal.npy").write_bytes(b"half")
    (case.output / "logs").mkdir(exist_ok=True)
    (case.output / "logs/sub-01.lock").write_text("a host and a number that say nothing")
    return expect("done")


def name_leftover(case: Case, name: str) -> str:
    return f"{TEMPORARY}{case.draw.getrandbits(48):012x}-{name}"


@kind("output-damaged", 14)
def damage_output(case: Case) -> Expected:
    """What an earlier call wrote of a run is cut, emptied, changed or gone."""
    copy_tree(case.clean, case.output)
    damage_one(case, [*list_products(case), *case.output.glob("logs/*status.json")])
    return expect("done")


def list_products(case: Case) -> list[Path]:
    """List what an earlier call wrote of runs: tables, images and sidecars."""
    endings = (".tsv", ".json", ".nii.gz")
    return [file for file in case.output.glob("*/func/*") if file.name.endswith(endings)]


def damage_one(case: Case, files: Iterable[Path]) -> Path:
    """Cut, empty, change or remove one of some files, for good, and return which."""
    file = case.draw.choice(sorted(files))
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
    return file


@kind("work-removed", 5, processes=(1, 2))
def remove_work(case: Case) -> Expected:
    """The work folder vanishes while the call goes on."""
    case.start_and_wait(for_plan=True)
    shutil.rmtree(case.work, ignore_errors=True)
    return expect("done", "not-writable", "internal")


@kind("little-memory", 6, processes=(1, 1, 2))
def limit_memory(case: Case) -> Expected:
    """The call may have so much memory, and no more."""
    enough = 1.25 * 1024 * case.stage.memory_kib[case.command]
    case.prefix = ("prlimit", f"--as={int(case.draw.uniform(0.2, 1.0) * enough)}")
    case.undo.callback(setattr, case, "prefix", ())
    return expect("done", "out-of-memory", "internal")
