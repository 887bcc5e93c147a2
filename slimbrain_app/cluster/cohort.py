"""A cohort's jobs: the folder from which Slurm works on many participants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimbrain_app.cluster.containers import PASSED
from slimbrain_app.cluster.slurm import QUEUE_AGAIN, set_words, write_script
from slimbrain_app.errors import CallRefused
from slimbrain_app.files import parse_json, whole_folder

TASKS, SUBMIT, SUBMITTED = "tasks.txt", "submit.sh", "jobs.txt"
LOGS, STATUS = "logs", "status"
# The task beside those of the array, which are numbers.
GROUP = "group"
_SETTINGS, _COHORT = "settings.toml", "cohort.json"
_PARTICIPANTS_SCRIPT, _GROUP_SCRIPT = "participants.slurm", "group.slurm"
# They mean something in Slurm's patterns for names of files.
_PATTERNS = frozenset('%"\\\n')

# The bare number of an array's last task is the whole array's too: by it all would queue again.
_TASK = """
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID task=$SLURM_ARRAY_TASK_ID most_restarts=10
"""

_SINGLE = """
job=$SLURM_JOB_ID task=group most_restarts=10
"""

_RUN = r"""
set -uo pipefail

begin=$(date -u +%FT%TZ)
child='' signal=''

# Written aside and renamed: nobody reads half of it.
write_status() {
    local state=$1 code=$2 end=null
    if [[ $state == ended ]]; then end="\"$(date -u +%FT%TZ)\""; fi
    cat > "$jobs/status/.$task" << END && mv -- "$jobs/status/.$task" "$jobs/status/$task.json"
{"task": "$task", "job": "$job", "node": "${SLURMD_NODENAME:-}",
 "restarts": ${SLURM_RESTART_COUNT:-0}, "state": "$state", "code": $code,
 "begin": "$begin", "end": $end}
END
}

# Slurm warns this script alone (USR1), and ends all processes of a job (TERM).
pass_on() {
    signal=$1 interrupted=yes
    if [[ -n $child ]]; then kill -s "$signal" "$child" 2> /dev/null; fi
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

# Runs a command and sets the code that it has ended with.
run() {
    "$@" &
    child=$!
    if [[ -n $signal ]]; then pass_on "$signal"; fi
    interrupted=yes
    while [[ -n $interrupted ]]; do # A signal ends the wait, not the command.
        interrupted=''
        wait "$child"
        code=$?
    done
    case $signal:$code in
        USR1:138 | TERM:143) code=75 ;; # It was too young to end by itself.
    esac
}
"""

_PARTICIPANTS = """
read -ra labels < <(sed -n "${task}p" "$jobs/tasks.txt")
write_status running null
code=73
if mkdir -p -- "$output" &&
    work=$(mktemp -d -- "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/slimbrain-XXXXXXXX"); then
    trap 'rm -rf -- "$work"' EXIT
    # What an image can't know beforehand; its environment is its own.
    export APPTAINER_BIND="$work${APPTAINER_BIND:+,$APPTAINER_BIND}" APPTAINERENV_TMPDIR="$work"
    for name in "${passed[@]}"; do
        if [[ -v $name ]]; then export "APPTAINERENV_$name=${!name}"; fi
    done
    run "${command[@]}" --participant-label "${labels[@]}" --work-dir "$work"
    rm -rf -- "$work"
fi
"""

_GROUP = """
write_status running null
run "${command[@]}"
"""

_END = """
write_status ended "$code"

# After scancel nothing more is wanted, and after preemption Slurm itself queues the job again.
if [[ $signal == TERM ]]; then exit "$code"; fi
"""

_SUBMIT = r"""
tasks=${1:-all} dependency=${2-$after} array=''

note() { printf '%s\t%s\t%s\n' "$@" | tee -a "$jobs/jobs.txt"; }
list() { awk -v kind="$1" '$1 == kind { print $2 }' "$jobs/jobs.txt"; }

# Of all the tasks or some the last one's number, and the highest one that an array may have here;
# if Slurm does not tell, sbatch will.
last=$(wc -l < "$jobs/tasks.txt")
if [[ $tasks != all ]]; then last=$(tr -cs 0-9 '\n' <<< "${tasks%%%*}" | sort -n | tail -n 1); fi
limit=$(scontrol show config 2> /dev/null | awk '$1 == "MaxArraySize" { print $3 - 1 }') || true
if [[ ${last:-0} -gt ${limit:-0} && ${limit:-0} -gt 0 ]]; then
    people=$(wc -w < "$jobs/tasks.txt") size=$(wc -w <<< "$(sed -n 1p "$jobs/tasks.txt")")
    more=$(((people + limit - 1) / limit))
    advice="with --participants-per-task $more, and $(((more + size - 1) / size)) times the --time"
    if [[ -n $after ]]; then advice="for lists of at most $limit lines, one for each array"; fi
    echo "submit.sh: task $last, but an array ends at $limit here (MaxArraySize);" \
        "write the jobs into a new folder, $advice" >&2
    exit 64
fi

touch "$jobs/jobs.txt"
if [[ $tasks != none ]]; then
    options=(--parsable)
    if [[ $tasks == *%* ]]; then at_once=''; fi
    if [[ $tasks != all ]]; then options+=("--array=$tasks$at_once"); fi
    if [[ -n $dependency ]]; then
        options+=("--dependency=$dependency" --kill-on-invalid-dep=yes)
    fi
    array=$(sbatch "${options[@]}" "$jobs/participants.slurm")
    array=${array%%;*}
    note participants "$array" "$tasks"
fi

# One group job for all: it waits for the arrays of earlier calls too, if they are still there.
# Afterany: whoever is refused, or lost, must not keep the others out of the tables.
known=$(list participants | paste -sd ,)
arrays=$(
    {
        echo "$array"
        if [[ -n $known ]]; then squeue --noheader --format=%F --jobs="$known" 2> /dev/null; fi
    } | sed '/^$/d' | sort -u | paste -sd :
) || true # squeue complains of arrays that are long over.
last=$(list group | tail -n 1)
if [[ -n $last ]]; then scancel --quiet --state=PENDING "$last" || true; fi
group=$(sbatch --parsable ${arrays:+"--dependency=afterany:$arrays"} "$jobs/group.slurm")
note group "${group%%;*}" all
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """What is to be done with many participants, and what is asked of Slurm for it.

    Attributes
    ----------
    output : Path
        Whole.
    tasks : tuple of tuple of str
        The participants of each task.
    settings : str
        As TOML, for the participant level.
    command : sequence of str
        The participant level, but for a task's participants and work folder.
    group_command : sequence of str
    time, mem : str
        Limits of a task, in Slurm's spellings.
    cpus : int
    gpu : bool
    at_once : int or None
        Tasks at any time; as many as Slurm allows if None.
    partition, account : str or None
        The cluster's defaults if None.
    after : int or None
        Number of an array whose tasks those of the same numbers wait for.
    """

    output: Path
    tasks: tuple[tuple[str, ...], ...]
    settings: str
    command: Sequence[str]
    group_command: Sequence[str]
    time: str
    mem: str
    cpus: int
    gpu: bool = False
    at_once: int | None = None
    partition: str | None = None
    account: str | None = None
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Jobs:
    """What a folder of jobs says: the output folder, the participants of each task."""

    output: Path
    tasks: tuple[tuple[str, ...], ...]


def place_settings(folder: Path) -> Path:
    """Return where in a folder of jobs the settings are."""
    return folder / _SETTINGS


def check_name(folder: Path) -> None:
    """Refuse as ``usage`` a folder in which Slurm would not find the logs' place."""
    if _PATTERNS & set(str(folder)):
        raise CallRefused(
            "usage",
            file=ascii(str(folder)),
            expected='a path without %, ", backslash or line break: Slurm makes patterns of them',
            found="one with such a mark",
            advice="name another folder with --output",
        )


def write_jobs(folder: Path, cohort: Cohort) -> None:
    """Write all that is to be submitted into a new folder, whole or not at all.

    Raises
    ------
    CallRefused
        ``not-writable`` or ``disk-full``.
    """
    files = {
        TASKS: "".join(f"{' '.join(labels)}\n" for labels in cohort.tasks),
        _SETTINGS: cohort.settings,
        _COHORT: json.dumps({"output_dir": str(cohort.output)}) + "\n",
        _PARTICIPANTS_SCRIPT: _write_participants(folder, cohort),
        _GROUP_SCRIPT: _write_group(folder, cohort),
        SUBMIT: _write_submit(folder, cohort),
    }
    with whole_folder(folder) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        for name in (LOGS, STATUS):
            (temporary / name).mkdir()


def _write_participants(folder: Path, cohort: Cohort) -> str:
    requests = {
        "job-name": "slimbrain-participants",
        "array": f"1-{len(cohort.tasks)}{_tell_at_once(cohort)}",
        **_request_one(folder, cohort, "%a"),
        "cpus-per-task": cohort.cpus,
        "mem": cohort.mem,
        "gpus-per-node": 1 if cohort.gpu else None,
    }
    words = {
        "jobs": str(folder),
        "output": str(cohort.output),
        "command": cohort.command,
        "passed": PASSED,
    }
    body = _TASK + _RUN + _PARTICIPANTS + _END + QUEUE_AGAIN
    return write_script(requests, words, body)


def _write_group(folder: Path, cohort: Cohort) -> str:
    requests = {
        "job-name": "slimbrain-group",
        **_request_one(folder, cohort, GROUP),
        "cpus-per-task": 1,
        "mem": "4G",
    }
    words = {"jobs": str(folder), "command": cohort.group_command}
    return write_script(requests, words, _SINGLE + _RUN + _GROUP + _END + QUEUE_AGAIN)


def _request_one(folder: Path, cohort: Cohort, log: str) -> dict[str, Any]:
    return {
        "nodes": 1,
        "ntasks": 1,
        "time": cohort.time,
        "signal": "B:USR1@120",
        "requeue": True,
        "output": f'"{folder / LOGS / log}.log"',
        "open-mode": "append",
        "partition": cohort.partition,
        "account": cohort.account,
    }


def _write_submit(folder: Path, cohort: Cohort) -> str:
    lines = (
        "#!/bin/bash",
        f"# bash {SUBMIT} [TASKS [DEPENDENCY]]: submits tasks, and the group level after them.",
        "#   TASKS       all (the default), some such as 3,7-9, or none",
        "#   DEPENDENCY  what they wait for, as Slurm spells it: afterok:123",
        "set -euo pipefail",
        "",
        set_words(
            {
                "jobs": str(folder),
                "after": f"aftercorr:{cohort.after}" if cohort.after else "",
                "at_once": _tell_at_once(cohort),
            }
        ),
    )
    return "\n".join(lines) + "\n" + _SUBMIT


def _tell_at_once(cohort: Cohort) -> str:
    return f"%{cohort.at_once}" if cohort.at_once else ""


def read_jobs(folder: Path) -> Jobs:
    """Read back what `write_jobs` wrote.

    Raises
    ------
    CallRefused
        ``jobs-bad``
    """
    try:
        output = Path(parse_json((folder / _COHORT).read_text(encoding="utf-8"))["output_dir"])
        lines = (folder / TASKS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CallRefused(
            "jobs-bad",
            file=folder,
            expected="a folder as slimbrain-tools slurm participant writes it",
            found=str(error),
            advice="check the path, or write the folder again",
        ) from error
    return Jobs(output, tuple(tuple(line.split()) for line in lines))
