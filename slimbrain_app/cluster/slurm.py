"""Job scripts for Slurm."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# srun starts the processes itself, so Slurm's signal reaches each of them; torchrun would pass on
# SIGTERM and SIGINT only. What torchrun would put into the environment is set from Slurm's own.
_BODY = """
# One process per GPU, or per node without any. Before the time limit Slurm sends each of them USR1:
# they save and end with code 75, and the job queues again to go on from there.
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

mkdir -p -- "${folders[@]}"
code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=60 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec "$@"' slimbrain "${command[@]}" || code=$?

# However often something else asks for another try, it ends.
if [[ $code -eq 75 && ${SLURM_RESTART_COUNT:-0} -lt 50 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
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
    head = [f"#SBATCH --{name}={value}" for name, value in _list_requests(job).items()]
    return "\n".join(
        (
            "#!/bin/bash",
            *head,
            "#SBATCH --requeue",
            "",
            _list_words("folders", map(str, folders)),
            _list_words("command", command),
            _BODY,
        )
    )


def _list_words(name: str, words: Iterable[str]) -> str:
    return "\n".join((f"{name}=(", *(f"    {shlex.quote(word)}" for word in words), ")"))


def _list_requests(job: Job) -> dict[str, object]:
    requests: dict[str, object | None] = {
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
    }
    return {name: value for name, value in requests.items() if value is not None}
