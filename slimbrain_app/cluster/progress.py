"""How far a cohort's jobs are: what each task has left behind, and what Slurm still knows of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slimbrain_app.bids.status import read_status
from slimbrain_app.cluster.cohort import (
    GROUP,
    LOGS,
    STATUS,
    SUBMIT,
    SUBMITTED,
    read_jobs,
)
from slimbrain_app.errors import CallRefused, Exit, worst

if TYPE_CHECKING:
    from pydantic import TypeAdapter

State = Literal["done", "refused", "to be tried again", "failed", "running", "waiting", "lost"]

_ENDED: Mapping[int, State] = {
    Exit.DONE: "done",
    Exit.DATA: "refused",
    Exit.TRY_AGAIN: "to be tried again",
}
_UNFINISHED: tuple[State, ...] = ("to be tried again", "running", "waiting", "lost")
# Tasks in these states are submitted again; refused data must be mended before.
_MISSING: tuple[State, ...] = ("to be tried again", "failed", "lost")
_MEND = "cancel it, mend its #SBATCH lines, submit it again"
# Slurm's reasons for waiting that waiting alone does not end, by how they begin.
_ENDLESS: Mapping[str, str] = {
    "DependencyNeverSatisfied": "what it waits for has failed; cancel it, then submit it again",
    "PartitionConfig|BadConstraints": f"no node there has what it asks for; {_MEND}",
    "(PartitionTime|PartitionNode|MaxMemPer)Limit": f"it asks for more than is allowed; {_MEND}",
    r"(Assoc|QOS)Max\w+Per(Job|Node)|QOSMin": f"it asks for what is not allowed; {_MEND}",
    "(Invalid|Account|QOS)(Account|QOS|NotAllowed)": f"the account may not work there; {_MEND}",
    "JobHeld|JobHoldMaxRequeue|RequeueExitHold|launch failed": "held until scontrol releases it",
    "Nodes.required": "its nodes are down or kept for others; sinfo -R tells why",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a task stands; ``task`` is its number, or `GROUP`."""

    task: str
    participants: tuple[str, ...]
    state: State
    code: int | None = None
    why: str = ""

    @property
    def exit_code(self) -> int:
        """The exit code that this state stands for; of a failure that isn't ours, 69."""
        if self.state in _UNFINISHED:
            return Exit.TRY_AGAIN
        if self.state == "failed" and self.code not in set(Exit):
            return Exit.UNAVAILABLE
        return self.code or Exit.DONE


@dataclass(frozen=True, kw_only=True, slots=True)
class _Told:
    """What a task has last written of itself; without a ``code`` it runs, or was killed."""

    job: str
    node: str
    code: int | None


@dataclass(frozen=True, slots=True)
class _Queued:
    """Whether Slurm has begun with a task, and why not, in its words and ours."""

    state: Literal["running", "waiting"]
    why: str = ""

    @classmethod
    def of(cls, state: str, reason: str = "None") -> _Queued:
        if not re.match("PENDING|REQUEUE|SPECIAL_EXIT", state):
            return cls("running")
        hints = (hint for beginning, hint in _ENDLESS.items() if re.match(beginning, reason))
        return cls("waiting", "" if reason == "None" else ": ".join((reason, *hints)))


def read_standings(folder: Path) -> tuple[Standing, ...]:
    """Return where each task stands, and the group level at the end.

    Raises
    ------
    CallRefused
        ``jobs-bad``; ``slurm-missing`` if Slurm doesn't tell what it is at work on.
    """
    jobs = read_jobs(folder)
    queue = _read_queue()  # Before the files: what has ended since has written its own.
    people = {str(number): labels for number, labels in enumerate(jobs.tasks, start=1)}
    people[GROUP] = ()
    told = {task: _read_told(folder, task) for task in people}
    queued = _match_queue(queue, [*_read_submitted(folder), *_list_jobs(told.values())])
    return tuple(
        _judge(task, labels, queued.get(task), told[task], jobs.output)
        for task, labels in people.items()
    )


def decide_exit(standings: Iterable[Standing]) -> int:
    """Return the one exit code for all tasks."""
    return worst(standing.exit_code for standing in standings)


def choose_missing(standings: Iterable[Standing], *, refused: bool) -> tuple[Standing, ...]:
    """Return what is to be submitted again, with tasks whose data were ``refused`` if wished."""
    states = (*_MISSING, "refused") if refused else _MISSING
    return tuple(standing for standing in standings if standing.state in states)


def submit_again(folder: Path, missing: Sequence[Standing]) -> str:
    """Submit tasks, and the group level after them; return what the script says.

    Raises
    ------
    CallRefused
        ``jobs-bad`` if nothing was submitted yet; ``slurm-missing`` if Slurm doesn't take it.
    """
    if not _read_submitted(folder):
        raise CallRefused(
            "jobs-bad",
            file=folder / SUBMITTED,
            expected="jobs that were submitted before",
            found="none",
            advice=f"submit them with bash {folder / SUBMIT}",
        )
    tasks = join_numbers(int(one.task) for one in missing if one.task != GROUP) or "none"
    # Without the dependency: what they were to wait for the first time is over.
    return _ask_slurm(["bash", str(folder / SUBMIT), tasks, ""])


def join_numbers(numbers: Iterable[int]) -> str:
    """Return numbers as Slurm spells them: ``1-3,7``."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    spans = ([number for _, number in run] for _, run in runs)
    return ",".join(f"{span[0]}-{span[-1]}" if span[1:] else f"{span[0]}" for span in spans)


def _read_queue() -> dict[str, _Queued]:
    """Return the state of every job that waits or runs, tasks of arrays by themselves."""
    told = _ask_slurm(["squeue", "--noheader", "--array", "--format=%i %T %r"])
    lines = (line.split(maxsplit=2) for line in told.splitlines())
    told_of = ((names, _Queued.of(*rest)) for names, *rest in lines)
    return {job: queued for names, queued in told_of for job in _expand(names)}


def _expand(name: str) -> Iterator[str]:
    """Yield the jobs of a line of Slurm's: of ``12_[1-3,7%2]`` each task."""
    job, bracket, tasks = name.partition("_[")
    if not bracket:
        yield name
        return
    for span in tasks.rstrip("]").partition("%")[0].split(","):
        first, _, last = span.partition("-")
        last, _, step = last.partition(":")
        for task in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{job}_{task}"


def _ask_slurm(command: Sequence[str]) -> str:
    found = "squeue is not there"
    if shutil.which("squeue"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        found = done.stderr.strip().replace("\n", "; ") or f"exit code {done.returncode}"
    raise CallRefused(
        "slurm-missing",
        expected="an answer of Slurm's",
        found=found,
        advice="call it where jobs are submitted, and when Slurm is up",
    )


def _read_submitted(folder: Path) -> list[str]:
    """Return the numbers of all jobs that were submitted."""
    try:
        lines = (folder / SUBMITTED).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [line.split("\t")[1] for line in lines]


def _read_told(folder: Path, task: str) -> _Told | None:
    """Return what a task has written of itself; None if it has never begun."""
    place = folder / STATUS / f"{task}.json"
    try:
        return _checker().validate_json(place.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CallRefused(
            "jobs-bad",
            file=place,
            expected="what a task writes of itself",
            found=str(error).replace("\n", " "),
            advice="remove the file: its task then counts as lost, and can be submitted again",
        ) from error


@cache
def _checker() -> TypeAdapter[_Told]:
    from pydantic import TypeAdapter

    return TypeAdapter(_Told)


def _list_jobs(told: Iterable[_Told | None]) -> Iterator[str]:
    """Yield numbers of jobs that tasks ran in: some may have been submitted by hand."""
    for one in told:
        if one:
            yield one.job.partition("_")[0]


def _match_queue(queue: Mapping[str, _Queued], jobs: Sequence[str]) -> dict[str, _Queued]:
    """Return which tasks wait or run, by any of these jobs."""
    own, found = set(jobs), dict[str, _Queued]()
    for name, queued in queue.items():
        job, _, task = name.partition("_")
        before = found.get(task or GROUP)
        if job in own and not (before and before.state == "running"):
            found[task or GROUP] = queued
    return found


def _judge(
    task: str,
    participants: tuple[str, ...],
    queued: _Queued | None,
    told: _Told | None,
    output: Path,
) -> Standing:
    code, why = None, ""
    state: State
    if queued:
        state, why = queued.state, queued.why
    elif told is None:
        state, why = "lost", "not submitted, cancelled, or what it waited for has failed"
    elif told.code is None:
        state, why = "lost", f"killed on {told.node}, or its time was over"
    else:
        code = told.code
        state = _ENDED.get(code, "failed")
        if state != "done":
            why = _tell_reasons(participants, output) or f"see {LOGS}/{task}.log"
    return Standing(task=task, participants=participants, state=state, code=code, why=why)


def _tell_reasons(participants: Iterable[str], output: Path) -> str:
    """Return why runs were refused: ``sub-01 too-short, no-mask; sub-02 no-tr``."""
    told = []
    for label in participants:
        refusals = [status.refusal for status in read_status(output, label) if status.refusal]
        if refusals:
            codes = dict.fromkeys(refusal.code for refusal in refusals)
            told.append(f"sub-{label} {', '.join(codes)}")
    return "; ".join(told)
