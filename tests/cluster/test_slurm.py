"""Job scripts, run by bash with stand-ins for Slurm's own commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slimbrain_app.cluster.slurm import Job, write_pretraining

JOB = Job(nodes=2, gpus_per_node=4, time="04:00:00")
# Runs the second of eight processes, after dropping srun's own options.
SRUN = """\
#!/bin/bash
echo "$@" > srun.txt
while [[ $1 == --* ]]; do shift; done
export SLURM_PROCID=5 SLURM_LOCALID=1 SLURM_NTASKS=8
"$@"
"""
SCONTROL = """\
#!/bin/bash
case $1 in
    show) printf 'node-07\\nnode-08\\n' ;;
    requeue) echo "$2" >> requeued.txt ;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with ``srun``, ``scontrol`` and a ``train`` that ends with ``$CODE``."""
    train = '#!/bin/bash\nenv > environment.txt\nprintf "%s\\0" "$@" > words.txt\nexit $CODE\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "train": train}.items():
        file = tmp_path / name
        file.write_text(text)
        file.chmod(0o755)
    return tmp_path


def run_job(folder: Path, script: str, code: int = 0, restarts: int | None = None, job: int = 1234):
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "node-[07-08]",
        "SLURM_CPUS_PER_TASK": "8",
        "CODE": str(code),
    }
    if restarts is not None:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, text=True)
    requeued = folder / "requeued.txt"
    calls = requeued.read_text().split() if requeued.exists() else []
    requeued.unlink(missing_ok=True)
    return done.returncode, calls


def test_a_job_that_had_to_stop_queues_again_and_one_that_is_done_does_not(cluster):
    script = write_pretraining(JOB, ["train"], [Path("out")])
    assert run_job(cluster, script, code=75) == (75, ["1234"])
    assert run_job(cluster, script, code=0, restarts=1) == (0, [])


@pytest.mark.parametrize("code", [1, 65, 69, 70, 78, 137])
def test_a_job_that_failed_does_not_queue_again(cluster, code):
    assert run_job(cluster, write_pretraining(JOB, ["train"], [Path("out")]), code) == (code, [])


def test_a_job_queues_again_fifty_times_and_no_more(cluster):
    script = write_pretraining(JOB, ["train"], [Path("out")])
    assert run_job(cluster, script, code=75, restarts=49) == (75, ["1234"])
    assert run_job(cluster, script, code=75, restarts=50) == (75, [])


def read_environment(folder: Path) -> dict[str, str]:
    lines = (folder / "environment.txt").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_each_process_learns_who_it_is_and_where_the_first_one_listens(cluster):
    run_job(cluster, write_pretraining(JOB, ["train"], [Path("out")]))
    found = read_environment(cluster)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == ("5", "1", "8")
    assert found["MASTER_ADDR"] == "node-07"


@pytest.mark.parametrize("job", [1, 9999, 12345, 4_000_000_000])
def test_jobs_that_follow_one_another_take_different_ports_that_anybody_may_use(cluster, job):
    script = write_pretraining(JOB, ["train"], [Path("out")])
    ports = []
    for number in (job, job + 1):
        run_job(cluster, script, job=number)
        ports.append(int(read_environment(cluster)["MASTER_PORT"]))
    assert all(1024 <= port < 32768 for port in ports)
    assert ports[0] != ports[1]


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=4))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_arrive_as_they_are(cluster, words):
    assert run_job(cluster, write_pretraining(JOB, ["train", *words], [Path("out")]))[0] == 0
    arrived = (cluster / "words.txt").read_bytes().decode().split("\0")[:-1]
    assert arrived == (words or [""])


def test_folders_are_there_when_the_processes_start(cluster):
    folder = cluster / "my results" / "out"
    run_job(cluster, write_pretraining(JOB, ["train"], [folder]))
    assert folder.is_dir()


def read_requests(script: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE)
    assert len(lines) == script.count("#SBATCH")
    return dict(lines)


def test_each_gpu_has_a_process(cluster):
    asked = read_requests(write_pretraining(JOB, ["train"], [Path("out")]))
    assert (asked["nodes"], asked["gpus-per-node"], asked["ntasks-per-node"]) == ("2", "4", "4")
    assert "requeue" in asked
    assert not {"partition", "account"} & asked.keys()


def test_a_node_without_gpus_has_one_process(cluster):
    job = Job(nodes=3, gpus_per_node=0, time="60", partition="short", account="lab")
    asked = read_requests(write_pretraining(job, ["train"], [Path("out")]))
    assert asked["ntasks-per-node"] == "1"
    assert "gpus-per-node" not in asked
    assert (asked["partition"], asked["account"], asked["time"]) == ("short", "lab", "60")


def test_requests_stand_before_all_commands_for_slurm_reads_no_further():
    lines = write_pretraining(JOB, ["train"], [Path("out")]).splitlines()
    assert lines[0] == "#!/bin/bash"
    requests = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert requests == list(range(1, len(requests) + 1))
