"""What may be wrong after a fault: with calls, with files that they left, with what they told."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import stat
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import numpy as np

from campaign.calls import EMBED, Call, read_words
from campaign.case import Case, sum_files
from campaign.kinds import Expected, expect
from campaign.stage import RUNS
from slimbrain_app.bids.status import read_status
from slimbrain_app.files import TEMPORARY, sha256_of
from slimbrain_app.records import decide_exit

# What the JSONs of two equal calls may differ in.
VOLATILE = {"seconds", "peak_mib", "state", "outputs", "ModifiedNanoseconds"}
# JSONs of a training that tell how long it took, or the checksum of one that does.
TIMED = ("training.json", "checksums.json", "run.json")
NUMBERS = (".tsv", ".nii.gz", ".npy", ".safetensors")
OTHER_BYTES = "other bytes than a clean call's"

Column = Literal["hang", "wrong exit", "half-written", "input changed", "not resumable"]
COLUMNS: tuple[Column, ...] = get_args(Column)


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is wrong after a fault."""

    column: Column
    text: str


def judge_again(case: Case) -> Iterator[Flaw]:
    """Start the same command without the fault; yield what does not come right."""
    case.calls.clear()
    case.told.clear()
    case.altered = False
    case.bound = case.stage.call_seconds
    case.start()
    yield from judge_calls(case, expect("done"), again=True)
    for text in list_differences(case.output, case.clean):
        yield Flaw("not resumable", text)


def judge_calls(case: Case, expected: Expected, *, again: bool = False) -> Iterator[Flaw]:
    """Wait for all calls of a case, and yield what is wrong with how they ended."""
    exit_column: Column = "not resumable" if again else "wrong exit"
    file_column: Column = "not resumable" if again else "half-written"
    yield from await_end(case)
    for text in list_surprises(case, expected):
        yield Flaw(exit_column, text)
    if sum_files(case.dataset) != case.sums:
        yield Flaw("input changed", "a file of the input is not as it was")
    killed = any(call.process.returncode == -signal.SIGKILL for call in case.calls)
    hidden = [] if killed else case.output.rglob(f"{TEMPORARY}*")
    for path in filter(may_be_removed, hidden):
        yield Flaw(file_column, f"left over: {path.relative_to(case.output)}")
    for text in list_torn(case, killed=killed):
        yield Flaw(file_column, text)
    if case.command == EMBED and len(case.calls) == 1:
        for text in list_untold(case, case.calls[0]):
            yield Flaw(file_column, text)


def await_end(case: Case) -> Iterator[Flaw]:
    """End whatever does not end by itself in time."""
    end = time.monotonic() + case.bound
    for call in case.calls:
        try:
            call.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            yield Flaw("hang", f"no end after {case.bound:.0f} s; {call.read_last()}")
            os.killpg(call.process.pid, signal.SIGKILL)
            call.process.wait()
    end = time.monotonic() + case.stage.signal_seconds
    while (left := case.list_processes()) and time.monotonic() < end:
        time.sleep(0.1)
    for process in left:
        words = read_words(process)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            yield Flaw("hang", f"a process was left behind: {words[-80:]}")


def list_surprises(case: Case, expected: Expected) -> Iterator[str]:
    """Yield the ends of calls that are not among those expected."""
    for call in case.calls:
        code, reasons = call.process.returncode, call.list_reasons()
        if code not in expected.exits or not reasons <= expected.reasons:
            wanted = ", ".join(sorted(expected.reasons)[:4])
            told = ", ".join(sorted(reasons)) or "no reason"
            yield f"exit {code} ({told}), not {wanted}; {call.read_last()}"


def may_be_removed(path: Path) -> bool:
    """Whether its folder lets files be removed; root may by mode, so that is looked at too."""
    return bool(path.parent.stat().st_mode & stat.S_IWUSR) and os.access(path.parent, os.W_OK)


def list_torn(case: Case, *, killed: bool) -> Iterator[str]:
    """Yield the files below the output that are not whole, or not what a clean call writes."""
    clean = list_files(case.clean)
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
                yield f"{name}: {OTHER_BYTES}"


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
        own, other = ours[name], theirs[name]
        if name.endswith(NUMBERS) and own.read_bytes() != other.read_bytes():
            yield f"{name}: {OTHER_BYTES}"
        if name.endswith(".json") and own.name not in TIMED and settle(own) != settle(other):
            yield f"{name}: says something else than a clean call's"


def is_lasting(file: Path) -> bool:
    """Whether every call leaves this file: no log of a call, no lock, no drawing."""
    in_log = file.parent.parent.name == "logs"
    return not (in_log or file.suffix in (".lock", ".svg"))


def settle(file: Path) -> Any:
    """Return what a JSON says, without what differs from call to call."""

    def leave_out(content: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in content.items() if key not in VOLATILE}

    content = json.loads(file.read_text(), object_hook=leave_out)
    if isinstance(content, dict) and "Outputs" in content:  # JSONs among them tell of times.
        digests = content["Outputs"].items()
        content["Outputs"] = {name: one for name, one in digests if not name.endswith(".json")}
    return content
