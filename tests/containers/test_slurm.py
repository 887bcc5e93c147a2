"""Jobs of a cohort on a Slurm that is up: one node is enough."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

BINARIES = Path(sys.executable).parent
# Does as the file of a participant's label says: waits for a signal, or ends with a code.
STAND_IN = """\
#!/bin/bash
[[ $3 == group ]] && { ls "$2" > "$2/tables"; exit 0; }
label=${@: -3:1}
[[ -d $1/sub-$label ]] || exit 66
plan=$(cat "$1/sub-$label/plan")
if [[ $plan == wait && ! -e $2/$label.began ]]; then
    trap 'exit 75' USR1
    touch "$2/$label.began"
    sleep 60 &
    wait
fi
touch "$2/$label.done"
[[ $plan == wait ]] || exit "$plan"
"""

pytestmark = pytest.mark.containers


@pytest.fixture(autouse=True, scope="module")
def slurm() -> None:
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no Slurm answers")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder in which every slimbrain that Slurm starts is the stand-in."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/slimbrain").write_text(STAND_IN)
    (tmp_path / "bin/slimbrain").chmod(0o755)
    path = os.pathsep.join(map(str, (tmp_path / "bin", BINARIES, os.environ["PATH"])))
    monkeypatch.setenv("PATH", path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in list_submitted(tmp_path / "jobs"):
        subprocess.run(["scancel", "--quiet", name], check=False)


def plan(here: Path, **plans: str) -> None:
    """Tell the stand-in what becomes of each participant."""
    for label, text in plans.items():
        folder = here / "in" / f"sub-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan").write_text(text)


def write_jobs(here: Path, *words: str, labels: tuple[str, ...] = ("a", "b", "c")) -> None:
    (here / "people.txt").write_text("".join(f"{label}\n" for label in labels))
    asked = ("in", "out", "--output=jobs", "--time=5", "--cpus=1", "--mem=200M")
    call("participant", *asked, "--participants=people.txt", *words)


def call(action: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [BINARIES / "slimbrain-tools", "slurm", action, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def ask(*words: object) -> str:
    command = [str(word) for word in words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.5)


def list_submitted(jobs: Path) -> list[str]:
    file = jobs / "jobs.txt"
    return [line.split("\t")[1] for line in file.read_text().splitlines()] if file.exists() else []


def is_over(here: Path) -> bool:
    return not set(list_submitted(here / "jobs")) & set(ask("squeue", "-h", "-o%F").split())


def read_told(here: Path, task: str):
    return json.loads((here / "jobs/status" / f"{task}.json").read_text())


def read_rows() -> tuple[dict[str, str], int]:
    """Return the states by the table, each with its tasks, and the exit code with it."""
    done = call("status", "jobs")
    head, *rows = done.stdout.splitlines()
    which, why = head.index("which"), head.index("why")
    states = {row[which:why].strip(): re.split(" {2,}", row)[0] for row in rows}
    return states, done.returncode


def kill(array: str, task: str) -> None:
    """Kill all processes of a task on this machine, which is the node."""
    own = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={task}"}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has ended meanwhile.
            if own <= set((folder / "environ").read_text("utf-8", "replace").split("\0")):
                os.kill(int(folder.name), signal.SIGKILL)


def let_go(here: Path, job: str, task: str) -> None:
    """Let a task that has queued again start at once: Slurm holds it for two minutes."""

    def has_begun() -> bool:
        command = ["scontrol", "update", f"JobId={job}_{task}", "StartTime=now"]
        subprocess.run(command, capture_output=True, check=False)
        return read_told(here, task)["restarts"] == 1

    wait_until(has_begun)


def test_a_task_that_is_warned_goes_on_later_and_the_group_job_waits_for_it(here):
    plan(here, a="0", b="65", c="wait")
    write_jobs(here)
    ask("bash", "jobs/submit.sh")
    array, _ = list_submitted(here / "jobs")
    wait_until((here / "out/c.began").exists)
    wait_until(lambda: (here / "jobs/status/2.json").exists() and read_told(here, "2")["code"])
    ask("scancel", "--signal=USR1", "--batch", f"{array}_3")
    wait_until(lambda: read_told(here, "3")["code"] == 75)
    assert not (here / "out/tables").exists()
    let_go(here, array, "3")
    wait_until(lambda: is_over(here))
    assert [read_told(here, task)["code"] for task in ("1", "2", "3", "group")] == [0, 65, 0, 0]
    # The others have not run a second time.
    assert [read_told(here, task)["restarts"] for task in ("1", "2", "3")] == [0, 0, 1]
    assert {"a.done", "b.done", "c.done"} <= set((here / "out/tables").read_text().split())
    assert call("status", "jobs").returncode == 65


def start_fmriprep(here: Path, *words: str) -> str:
    """Submit an array that makes each participant of the list but the second, who fails."""
    script = (
        "#!/bin/bash\nsleep 2\n"
        f'label=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {here}/people.txt)\n'
        "[[ $label != b ]] || exit 1\n"
        f"mkdir -p {here}/in/sub-$label && echo 0 > {here}/in/sub-$label/plan\n"
    )
    (here / "fmriprep.sh").write_text(script)
    options = ("--parsable", "--mem=100", "--output=/dev/null", *words)
    return ask("sbatch", *options, here / "fmriprep.sh")


def test_each_task_follows_its_own_of_fmripreps_and_one_that_failed_holds_up_nobody(here):
    (here / "people.txt").write_text("a\nb\nc\n")
    job = start_fmriprep(here, "--array=1-3")
    write_jobs(here, f"--after={job}")
    ask("bash", "jobs/submit.sh")
    wait_until(lambda: is_over(here))
    assert (read_told(here, "1")["code"], read_told(here, "3")["code"]) == (0, 0)
    assert not (here / "jobs/status/2.json").exists()
    assert {"a.done", "c.done"} <= set((here / "out/tables").read_text().split())
    assert call("status", "jobs").returncode == 75
    plan(here, b="0")  # Made at last.
    assert call("retry", "jobs").returncode == 0
    wait_until(lambda: is_over(here))
    assert "b.done" in (here / "out/tables").read_text().split()
    assert call("status", "jobs").returncode == 0


def test_jobs_of_fmriprep_submitted_one_by_one_are_followed_one_by_one(here):
    (here / "people.txt").write_text("a\nb\nc\nd\n")
    write_jobs(here, labels=("a", "b", "c", "d"))
    for number in (1, 2, 3):
        job = start_fmriprep(here, f"--array={number}")
        ask("bash", "jobs/submit.sh", number, f"afterok:{job}")
    job = start_fmriprep(here, "--array=4")
    script = here / "jobs/participants.slurm"
    asked = ("--array=4", f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes")
    by_hand = ask("sbatch", "--parsable", *asked, script)
    wait_until(lambda: is_over(here) and by_hand not in ask("squeue", "-h", "-o%F").split())
    assert [read_told(here, task)["code"] for task in ("1", "3", "4", "group")] == [0, 0, 0, 0]
    assert not (here / "jobs/status/2.json").exists()
    assert {"a.done", "c.done"} <= set((here / "out/tables").read_text().split())
    # Of the group jobs the last one alone has run.
    _, first, _, second, _, last = list_submitted(here / "jobs")
    assert read_told(here, "group")["job"] == last
    assert "CANCELLED" in ask("scontrol", "show", "job", first)
    assert "CANCELLED" in ask("scontrol", "show", "job", second)


def test_logs_are_where_they_are_sought_whatever_the_folders_name(here):
    plan(here, a="0")
    name = "jobs of 'lab' $(touch harm); #1"
    (here / "jobs").symlink_to(name)
    write_jobs(here, f"--output={name}", labels=("a",))
    ask("bash", here / name / "submit.sh")
    wait_until(lambda: is_over(here))
    assert call("status", name).returncode == 0
    assert (here / name / "logs/1.log").exists()
    assert (here / name / "logs/group.log").exists()
    assert not (here / "harm").exists()


def test_twenty_people_are_done_though_a_task_is_killed(here, monkeypatch):
    """The whole way with slimbrain itself."""
    (here / "bin/slimbrain").unlink()
    (here / "node").mkdir()
    monkeypatch.setenv("TMPDIR", str(here / "node"))
    simulate = ("--participants=20", "--volumes=40", "--voxel-size=6")
    ask(BINARIES / "slimbrain-tools", "simulate", "in", *simulate)
    asked = ("--time=30", "--cpus=1", "--mem=3G", "--participants-per-task=5")
    call("participant", "in", "out", "--output=jobs", *asked)
    ask("bash", "jobs/submit.sh")
    array, _ = list_submitted(here / "jobs")
    log = here / "jobs/logs/2.log"
    wait_until(lambda: log.exists() and "[1/20]" in log.read_text(), 1200)
    kill(array, "2")
    wait_until(lambda: is_over(here), 3600)

    states, code = read_rows()
    assert states == {"1,3-4": "done", "2": "lost", "group": "done"}
    assert code == 75
    labels = [f"sub-{number:02}" for number in range(1, 21)]
    done = call("retry", "jobs")
    assert done.stdout.splitlines()[0] == "submits 1 lost, and the group level"
    wait_until(lambda: is_over(here), 1800)

    states, code = read_rows()
    assert states == {"1-4": "done", "group": "done"}
    assert code == 0
    for label in labels:
        assert (here / "out" / f"{label}.html").exists()
        assert len(list((here / "out" / label).rglob("*_stat-mean_*_embeddings.tsv"))) == 1
    told = {task: read_told(here, task)["job"] for task in ("1", "2", "3", "4")}
    assert [task for task, job in told.items() if job.partition("_")[0] != array] == ["2"]
    runs = pd.read_table(here / "out/desc-slimbrain_runs.tsv")
    assert sorted(runs["participant_id"]) == labels
    assert (runs["state"] == "done").all()
    # Nobody could remove what the killed one had there.
    assert len(list((here / "node").glob("slimbrain-*"))) == 1
    assert call("retry", "jobs").stdout.startswith("nothing to submit")
