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
left out otherwise. The kinds are in benchmarks/campaign, a file for what they strike.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import campaign.group  # noqa: F401  It asks for the other kinds in the order of the table.
from campaign.case import run_quietly
from campaign.inputs import replace_input
from campaign.judging import COLUMNS, Flaw, judge_again, judge_calls
from campaign.kinds import KINDS, Kind
from campaign.stage import Stage, set_stage

CLONE_NEWNS = 0x20000  # Of <sched.h>.


@dataclass(frozen=True, slots=True)
class Result:
    """How one fault went: all exit codes of its calls but the last one, and what was wrong."""

    kind: str
    number: int
    exits: tuple[int, ...]
    flaws: tuple[Flaw, ...]


def try_fault(stage: Stage, kind: Kind, number: int, seed: int, keep: bool) -> Result:
    """Put one fault into calls, judge them, and start again without it."""
    place = stage.folder / f"{kind.name}-{number}"
    case = stage.begin(place, kind.command, f"{seed} {kind.name} {number}")
    with case.clear:
        with case.undo:
            expected = kind.strike(case)
            flaws = list(judge_calls(case, expected))
            exits = tuple(call.process.returncode for call in case.calls)
        flaws += judge_again(case)
    if not flaws or not keep:
        shutil.rmtree(case.folder, ignore_errors=True)
    return Result(kind.name, number, exits, tuple(flaws))


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


def tabulate(results: Sequence[Result]) -> str:
    """Return the table of all kinds, as Markdown."""
    lines = [
        f"| kind | fault | faults | {' | '.join(COLUMNS)} | exit codes |",
        f"| --- | --- | {'---: | ' * (len(COLUMNS) + 1)}--- |",
    ]
    for name, kind in KINDS.items():
        own = [result for result in results if result.kind == name]
        if own:
            lines.append(f"| `{name}` | {kind.meaning} | {count_row(own)} |")
    return "\n".join([*lines, f"| **all** | | {count_row(results)} |"]) + "\n"


def count_row(results: Iterable[Result]) -> str:
    """Return the number of faults, of those with each flaw, and the exit codes seen."""
    columns = [{flaw.column for flaw in result.flaws} for result in results]
    counts = [sum(column in seen for seen in columns) for column in COLUMNS]
    exits = Counter(code for result in results for code in result.exits)
    seen = ", ".join(f"{code} x {count}" for code, count in sorted(exits.items()))
    return " | ".join(map(str, [len(columns), *counts, seen]))


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
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.keep))
    results = []
    try:
        folder.chmod(0o755)
        replaced = any(kind.inject is replace_input for kind, _ in faults)
        stage = set_stage(folder, [kind.command for kind, _ in faults], replaced=replaced)
        told = ", ".join(f"{seconds:.1f}" for seconds in stage.seconds.values())
        print(f"{len(faults)} faults; clean calls take {told} s", flush=True)
        for result in try_faults(stage, faults, options.seed, options.jobs, bool(options.keep)):
            results.append(result)
            done = f"[{len(results)}/{len(faults)}]"
            print(f"{done} {result.kind}-{result.number}: {result.exits}", flush=True)
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
