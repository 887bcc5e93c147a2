"""Job scripts for Slurm."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Where a script ends that knows its ``code``, its ``job`` and how often it may queue again.
QUEUE_AGAIN = """
# However often something else asks for another try, it ends.
if [[ $code -eq 75 && ${SLURM_RESTART_COUNT:-0} -lt $most_restarts ]]; then
    scontrol requeue "$job"
fi
exit "$code"
"""

# srun starts the processes itself, so Slurm's signal reaches each of them; torchrun would pass on
# SIGTERM and SIGINT only. What torchrun would put into the environment is set from Slurm's own.
_BODY = """
# One process per GPU, or per node without any. Before the time limit Slurm sends each of them USR1:
# they save and end with code 75, and the job queues again to go on from there.
set -euo pipefail

job=$SLURM_JOB_ID most_restarts=50
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

mkdir -p -- "${folders[@]}"
code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=60 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec "$@"' slimbrain "${command[@]}" || code=$?
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is asked of Slurm. Values stand in the script as they are: no blanks, no quotes.

    Attributes
    ----------
    nodes, gpus_per_node : int
        Without GPUs each node gets one process.
    time : str
        Limit, in one of Slurm's spellings, such as ``HH:MM:SS``.
    partition, account : str or None
        The cluster's defaults if None.
    """

    nodes: int
    gpus_per_node: int
    time: str
    partition: str | None = None
    account: str | None = None


def write_pretraining(job: Job, command: Sequence[str], folders: Sequence[Path]) -> str:
    """Return the script of a job that pretrains, is warned before its limit, and queues again.

    Parameters
    ----------
    job : Job
    command : sequence of str
        What each process executes.
    folders : sequence of Path
        One or several, made before: an image only sees what is there.
    """
    requests = {
        "job-name": "slimbrain-pretrain",
        "nodes": job.nodes,
        "ntasks-per-node": job.gpus_per_node or 1,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": 8,
        "time": job.time,
        "signal": "USR1@300",
        "output": "slimbrain-%j.log",
        "open-mode": "append",
        "partition": job.partition,
        "account": job.account,
        "requeue": True,
    }
    words = {"folders": [str(folder) for folder in folders], "command": command}
    return write_script(requests, words, _BODY + QUEUE_AGAIN)


def write_script(
    requests: Mapping[str, object], words: Mapping[str, str | Sequence[str]], body: str
) -> str:
    """Return a script: what it asks of Slurm, what its variables hold, what it does.

    Parameters
    ----------
    requests : mapping
        Options of ``sbatch``. True stands for one without a value; one that is None is left out.
    words : mapping
        Variables of bash, a sequence for an array.
    body : str
    """
    return "\n".join(("#!/bin/bash", *_list_requests(requests), "", set_words(words), body))


def set_words(words: Mapping[str, str | Sequence[str]]) -> str:
    """Return the lines that set variables of bash, a sequence for an array."""
    return "\n".join(_set(name, value) for name, value in words.items())


def _set(name: str, value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        return f"{name}={shlex.quote(value)}"
    return "\n".join((f"{name}=(", *(f"    {shlex.quote(word)}" for word in value), ")"))


def _list_requests(requests: Mapping[str, object]) -> Iterator[str]:
    for name, value in requests.items():
        if value is not None:
            yield f"#SBATCH --{name}" + ("" if value is True else f"={value}")
