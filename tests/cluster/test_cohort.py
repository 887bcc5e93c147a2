"""A cohort's jobs, run by bash with stand-ins for Slurm's commands and for slimbrain."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slimbrain_app.cluster.cohort import Cohort, check_name, read_jobs, write_jobs
from slimbrain_app.errors import CallRefused

# Notes its words and its surroundings, waits if it is told to, and ends with $CODE; so it does, in
# a while, at a signal that it is asked to heed.
WORK = """\
#!/bin/bash
printf '%s\\0' "$@" > "$HERE/words"
env > "$HERE/environment"
for last; do :; done
[[ -d $last ]] && echo yes > "$HERE/had_folder"
cp "$JOBS/status/7.json" "$HERE/running.json" 2> /dev/null
[[ -n ${HEED:-} ]] && trap 'sleep 0.2; echo "$HEED" > "$HERE/heeded"; exit $CODE' "$HEED"
touch "$HERE/begun"
[[ -n ${WAIT:-} ]] && { sleep "$WAIT" & wait; kill %1 2> /dev/null; }
exit "${CODE:-0}"
"""
# Tells how large an array may be if it is asked, and else notes what queues again.
SCONTROL = """\
#!/bin/bash
if [[ $1 == show ]]; then
    [[ -n ${LIMIT:-} ]] || { echo "slurm_load_ctl_conf error: no contact" >&2; exit 1; }
    printf 'MailProg                = /bin/mail\\nMaxArraySize            = %s\\n' "$LIMIT"
    exit
fi
ls -A "$HERE/tmp" > "$HERE/left"
echo "$@" >> "$HERE/requeued"
"""
# Numbers jobs from 100 and notes with what they were submitted.
SBATCH = """\
#!/bin/bash
echo "$@" >> "$HERE/submitted"
[[ -z ${REFUSE:-} ]] || { echo "sbatch: error: $REFUSE" >&2; exit 1; }
echo "$((99 + $(wc -l < "$HERE/submitted")))${CLUSTER:-}"
"""
SQUEUE = '#!/bin/bash\n[[ -s $HERE/queue ]] || exit 1\ncat "$HERE/queue"\n'
SCANCEL = '#!/bin/bash\necho "$@" >> "$HERE/cancelled"\n'


@pytest.fixture
def here(tmp_path):
    """A folder with stand-ins in ``bin`` and a place for temporary files in ``tmp``."""
    commands = {
        "work": WORK,
        "scontrol": SCONTROL,
        "sbatch": SBATCH,
        "squeue": SQUEUE,
        "scancel": SCANCEL,
    }
    for name in ("bin", "tmp"):
        (tmp_path / name).mkdir()
    for name, text in commands.items():
        file = tmp_path / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
    return tmp_path


def make_cohort(here: Path, **others) -> Cohort:
    cohort = Cohort(
        output=here / "out",
        tasks=(*(((f"{number}",)) for number in range(1, 7)), ("07", "b7"), ("8",)),
        settings="seed = 0\n",
        command=["work"],
        group_command=["work", "group"],
        time="01:00:00",
        mem="8G",
        cpus=4,
    )
    return replace(cohort, **others)


def surround(here: Path, **others: str) -> dict[str, str]:
    """Return the environment of the seventh task."""
    return {
        "PATH": f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HERE": str(here),
        "JOBS": str(here / "jobs"),
        "TMPDIR": str(here / "tmp"),
        "SLURM_JOB_ID": "57",
        "SLURM_ARRAY_JOB_ID": "50",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURMD_NODENAME": "node-3",
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_MEM_PER_NODE": "8192",
        **others,
    }


def run_task(here: Path, script: str = "participants.slurm", **others: str):
    return subprocess.run(
        ["bash", here / "jobs" / script], env=surround(here, **others), check=False
    ).returncode


def read_told(here: Path, task: str = "7"):
    return json.loads((here / "jobs/status" / f"{task}.json").read_text())


def read_lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def read_words(here: Path) -> list[str]:
    return (here / "words").read_bytes().decode().split("\0")[:-1]


def wait_for(file: Path) -> None:
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def stop_task(here: Path, number: signal.Signals, heed: str = "", **others: str) -> int:
    """Send a signal to the script alone, once its command is at work; return its exit code."""
    job = subprocess.Popen(
        ["bash", here / "jobs/participants.slurm"],
        env=surround(here, HEED=heed, WAIT="20", **others),
    )
    wait_for(here / "begun")
    job.send_signal(number)
    return job.wait(60)


def test_a_task_works_on_the_participants_of_its_line(here):
    write_jobs(here / "jobs", make_cohort(here))
    assert run_task(here) == 0
    words = read_words(here)
    assert words[:3] == ["--participant-label", "07", "b7"]
    assert words[3] == "--work-dir"


def test_the_work_folder_is_on_the_node_and_gone_afterwards(here):
    write_jobs(here / "jobs", make_cohort(here))
    run_task(here, CODE="70")
    assert Path(read_words(here)[-1]).parent == here / "tmp"
    assert (here / "had_folder").exists()
    assert list((here / "tmp").iterdir()) == []


def test_slurms_own_folder_on_the_node_goes_first(here):
    write_jobs(here / "jobs", make_cohort(here))
    (here / "scratch").mkdir()
    run_task(here, SLURM_TMPDIR=str(here / "scratch"))
    assert Path(read_words(here)[-1]).parent == here / "scratch"


@pytest.mark.parametrize("code", [0, 1, 65, 66, 70, 75, 78, 137])
def test_a_task_ends_as_slimbrain_did_and_says_so(here, code):
    write_jobs(here / "jobs", make_cohort(here))
    assert run_task(here, CODE=str(code), SLURM_RESTART_COUNT="2") == code
    told = read_told(here)
    assert (told["state"], told["code"]) == ("ended", code)
    assert (told["task"], told["job"], told["node"]) == ("7", "50_7", "node-3")
    assert told["restarts"] == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["begin"])
    assert told["begin"] <= told["end"]


def test_a_task_at_work_says_so_and_no_half_status_is_left(here):
    write_jobs(here / "jobs", make_cohort(here))
    run_task(here)
    told = json.loads((here / "running.json").read_text())
    assert (told["state"], told["code"], told["end"]) == ("running", None, None)
    assert [file.name for file in (here / "jobs/status").iterdir()] == ["7.json"]


@pytest.mark.parametrize("code", [75, 65])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGUSR1, "USR1"), (signal.SIGTERM, "TERM")])
def test_a_signal_reaches_slimbrain_whose_own_exit_code_counts(here, number, name, code):
    write_jobs(here / "jobs", make_cohort(here))
    assert stop_task(here, number, heed=name, CODE=str(code)) == code
    assert read_lines(here / "heeded") == [name]
    assert read_told(here)["code"] == code
    assert list((here / "tmp").iterdir()) == []


def test_the_work_folder_is_gone_however_the_script_ends(here):
    write_jobs(here / "jobs", make_cohort(here))
    stop_task(here, signal.SIGHUP)
    assert list((here / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slimbrain_stopped_before_it_can_heed_a_signal_is_to_be_tried_again(here, number):
    write_jobs(here / "jobs", make_cohort(here))
    assert stop_task(here, number) == 75


def test_a_killed_slimbrain_is_told_as_killed(here):
    write_jobs(here / "jobs", make_cohort(here, command=["bash", "-c", "kill -9 $$"]))
    assert run_task(here) == 137
    assert read_told(here)["code"] == 137


def test_a_task_warned_before_its_time_is_over_queues_again_by_itself_alone(here):
    write_jobs(here / "jobs", make_cohort(here))
    stop_task(here, signal.SIGUSR1, heed="USR1", CODE="75")
    # Job 57 may be the number of the whole array as well.
    assert read_lines(here / "requeued") == ["requeue 50_7"]
    assert read_lines(here / "left") == []


def test_a_cancelled_task_does_not_queue_again(here):
    write_jobs(here / "jobs", make_cohort(here))
    stop_task(here, signal.SIGTERM, heed="TERM", CODE="75")
    assert read_lines(here / "requeued") == []


@pytest.mark.parametrize("script", ["participants.slurm", "group.slurm"])
def test_a_job_queues_again_ten_times_and_no_more(here, script):
    write_jobs(here / "jobs", make_cohort(here))
    for restarts, calls in (("", 1), ("9", 2), ("10", 2)):
        others = {"SLURM_RESTART_COUNT": restarts} if restarts else {}
        assert run_task(here, script, CODE="75", **others) == 75
        assert len(read_lines(here / "requeued")) == calls


@pytest.mark.parametrize("code", [0, 65, 69, 73, 137])
def test_a_job_that_ended_otherwise_does_not_queue_again(here, code):
    write_jobs(here / "jobs", make_cohort(here))
    run_task(here, CODE=str(code))
    assert read_lines(here / "requeued") == []


def test_a_node_without_room_for_work_ends_the_task_with_73(here):
    write_jobs(here / "jobs", make_cohort(here))
    assert run_task(here, TMPDIR=str(here / "nowhere")) == 73
    assert read_told(here)["code"] == 73
    assert not (here / "words").exists()


def test_an_image_learns_the_work_folder_the_limits_and_the_gpu(here):
    write_jobs(here / "jobs", make_cohort(here))
    run_task(here, APPTAINER_BIND="/opt/site", CUDA_VISIBLE_DEVICES="2")
    told = dict(line.split("=", 1) for line in read_lines(here / "environment") if "=" in line)
    work = read_words(here)[-1]
    assert told["APPTAINER_BIND"] == f"{work},/opt/site"
    inside = {name: value for name, value in told.items() if name.startswith("APPTAINERENV_")}
    assert inside == {
        "APPTAINERENV_TMPDIR": work,
        "APPTAINERENV_CUDA_VISIBLE_DEVICES": "2",
        "APPTAINERENV_SLURM_CPUS_PER_TASK": "4",
        "APPTAINERENV_SLURM_MEM_PER_NODE": "8192",
    }
    assert (here / "out").is_dir()


def test_the_group_job_tells_how_it_ended_too(here):
    write_jobs(here / "jobs", make_cohort(here))
    assert run_task(here, "group.slurm", CODE="65") == 65
    assert read_words(here) == ["group"]
    told = read_told(here, "group")
    assert (told["job"], told["code"]) == ("57", 65)


HOSTILE = "a'b $(touch harm) \\\\; #`touch harm`"


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=4))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_arrive_as_they_are(here, words):
    subprocess.run(["rm", "-rf", here / "jobs"], check=True)
    write_jobs(here / "jobs", make_cohort(here, command=["work", *words]))
    assert run_task(here) == 0
    assert read_words(here)[: len(words)] == words


def test_hostile_names_do_no_harm(here):
    name = HOSTILE.replace("\\", "")
    jobs, output = here / name, here / f"out {HOSTILE}"
    write_jobs(jobs, make_cohort(here, output=output))
    for script in ("participants.slurm", "group.slurm", "submit.sh"):
        subprocess.run(["bash", "-n", jobs / script], check=True)
    environment = surround(here, JOBS=str(jobs))
    subprocess.run(["bash", jobs / "participants.slurm"], env=environment, cwd=here, check=True)
    subprocess.run(["bash", jobs / "submit.sh"], env=environment, cwd=here, check=True)
    assert json.loads((jobs / "status/7.json").read_text())["code"] == 0
    assert output.is_dir()
    assert not (here / "harm").exists()
    assert read_jobs(jobs).output == output


@pytest.mark.parametrize("name", ['a"b', "a%b", "a\\b", "a\nb"])
def test_a_folder_whose_name_is_a_pattern_to_slurm_is_refused(name):
    with pytest.raises(CallRefused, match="usage"):
        check_name(Path("/data") / name)


def read_requests(here: Path, script: str) -> dict[str, str]:
    text = (here / "jobs" / script).read_text()
    requests = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE)
    lines = text.splitlines()
    assert [line.startswith("#SBATCH") for line in lines[1 : len(requests) + 1]] == [True] * len(
        requests
    )
    assert len(requests) == text.count("#SBATCH")
    return dict(requests)


def test_slurm_is_asked_for_what_was_wished_before_any_command(here):
    cohort = make_cohort(here, gpu=True, at_once=3, partition="gpu", account="lab")
    write_jobs(here / "jobs", cohort)
    asked = read_requests(here, "participants.slurm")
    assert (asked["array"], asked["cpus-per-task"], asked["mem"]) == ("1-8%3", "4", "8G")
    assert (asked["gpus-per-node"], asked["partition"], asked["account"]) == ("1", "gpu", "lab")
    assert (asked["time"], asked["signal"]) == ("01:00:00", "B:USR1@120")
    assert asked["output"] == f'"{here}/jobs/logs/%a.log"'
    assert asked["open-mode"] == "append"
    assert "requeue" in asked
    group = read_requests(here, "group.slurm")
    assert (group["partition"], group["account"]) == ("gpu", "lab")
    assert not {"gpus-per-node", "array"} & group.keys()


def test_what_was_not_wished_is_left_to_slurm(here):
    write_jobs(here / "jobs", make_cohort(here))
    asked = read_requests(here, "participants.slurm")
    assert asked["array"] == "1-8"
    assert not {"gpus-per-node", "partition", "account"} & asked.keys()


def submit(here: Path, *words: str, **others: str) -> list[list[str]]:
    """Return the words of each call of sbatch."""
    (here / "submitted").unlink(missing_ok=True)
    command = ["bash", here / "jobs/submit.sh", *words]
    subprocess.run(command, env=surround(here, **others), check=True)
    return [shlex.split(line) for line in read_lines(here / "submitted")]


def test_all_tasks_are_submitted_and_the_group_job_after_them(here):
    write_jobs(here / "jobs", make_cohort(here))
    first, second = submit(here)
    assert first == ["--parsable", f"{here}/jobs/participants.slurm"]
    assert second == ["--parsable", "--dependency=afterany:100", f"{here}/jobs/group.slurm"]
    assert read_lines(here / "jobs/jobs.txt") == ["participants\t100\tall", "group\t101\tall"]


def test_some_tasks_are_submitted_as_many_at_once_as_all(here):
    write_jobs(here / "jobs", make_cohort(here, at_once=2))
    assert "--array=3,7-8%2" in submit(here, "3,7-8")[0]
    assert "--array=3,7-8%1" in submit(here, "3,7-8%1")[0]


def test_tasks_wait_for_those_of_fmriprep_with_the_same_number(here):
    write_jobs(here / "jobs", make_cohort(here, after=44))
    first, second = submit(here)
    assert {"--dependency=aftercorr:44", "--kill-on-invalid-dep=yes"} <= set(first)
    assert "--dependency=afterany:100" in second


def test_another_dependency_or_none_can_be_given(here):
    write_jobs(here / "jobs", make_cohort(here, after=44))
    assert "--dependency=afterok:12" in submit(here, "7", "afterok:12")[0]
    assert submit(here, "7", "")[0] == [
        "--parsable",
        "--array=7",
        f"{here}/jobs/participants.slurm",
    ]


def test_one_group_job_waits_for_all_arrays_that_are_still_there(here):
    write_jobs(here / "jobs", make_cohort(here))
    submit(here, "1")
    (here / "jobs/jobs.txt").write_text(
        "participants\t90\t1\ngroup\t91\tall\nparticipants\t92\t2\ngroup\t93\tall\n"
    )
    (here / "queue").write_text("90\n90\n")  # Two tasks of the first; the second is over.
    assert "--dependency=afterany:100:90" in submit(here, "3")[1]
    assert read_lines(here / "cancelled")[-1] == "--quiet --state=PENDING 93"


def test_the_group_job_can_be_submitted_alone(here):
    write_jobs(here / "jobs", make_cohort(here))
    assert submit(here, "none") == [["--parsable", f"{here}/jobs/group.slurm"]]


def test_the_number_is_taken_from_what_a_federation_says(here):
    write_jobs(here / "jobs", make_cohort(here))
    assert "--dependency=afterany:100" in submit(here, CLUSTER=";far")[1]
    assert read_lines(here / "jobs/jobs.txt")[1] == "group\t101\tall"


def test_jobs_that_slurm_does_not_take_are_not_noted(here):
    write_jobs(here / "jobs", make_cohort(here))
    command = ["bash", here / "jobs/submit.sh"]
    done = subprocess.run(
        command, env=surround(here, REFUSE="no such account"), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "no such account" in done.stderr
    assert read_lines(here / "jobs/jobs.txt") == []


def refuse_size(here: Path, limit: int, *words: str) -> str:
    """Return what is said of tasks that this cluster's arrays don't reach."""
    done = subprocess.run(
        ["bash", here / "jobs/submit.sh", *words],
        env=surround(here, LIMIT=str(limit)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 64
    assert not (here / "submitted").exists()
    assert not (here / "jobs/jobs.txt").exists()
    return done.stderr


def list_tasks(people: int, size: int = 1) -> tuple[tuple[str, ...], ...]:
    labels = [f"{number:05}" for number in range(people)]
    return tuple(tuple(labels[first : first + size]) for first in range(0, people, size))


@pytest.mark.parametrize(
    ("people", "size", "limit", "advice"),
    [
        (10_000, 1, 1001, "--participants-per-task 10, and 10 times the --time"),
        (10_001, 1, 1001, "--participants-per-task 11, and 11 times the --time"),
        (10_000, 4, 1001, "--participants-per-task 10, and 3 times the --time"),
        (9, 1, 9, "--participants-per-task 2, and 2 times the --time"),
    ],
)
def test_an_array_too_large_for_the_cluster_is_refused_with_the_size_that_fits(
    here, people, size, limit, advice
):
    tasks = list_tasks(people, size)
    write_jobs(here / "jobs", make_cohort(here, tasks=tasks))
    told = refuse_size(here, limit)
    assert told.startswith(
        f"submit.sh: task {len(tasks)}, but an array ends at {limit - 1} here (MaxArraySize); "
    )
    assert advice in told
    fitting = int(advice.split()[1].rstrip(","))
    assert -(-people // fitting) < limit
    assert -(-people // (fitting - 1)) >= limit


def test_some_tasks_beyond_the_largest_array_are_refused_and_others_are_not(here):
    write_jobs(here / "jobs", make_cohort(here, tasks=list_tasks(20)))
    for tasks in ("12", "3,7-12", "9-12%3", "12-13,1"):
        assert "MaxArraySize" in refuse_size(here, 12, tasks)
    assert "--array=3,7-11%12" in submit(here, "3,7-11%12", LIMIT="12")[0]


def test_who_follows_an_array_of_fmriprep_too_large_for_the_cluster_splits_the_list(here):
    write_jobs(here / "jobs", make_cohort(here, tasks=list_tasks(20), after=44))
    assert "for lists of at most 11 lines, one for each array" in refuse_size(here, 12)


@pytest.mark.parametrize("limit", ["9", "0", ""])
def test_where_arrays_are_large_enough_or_their_size_is_not_told_sbatch_decides(here, limit):
    write_jobs(here / "jobs", make_cohort(here))
    assert len(submit(here, LIMIT=limit)) == 2


def test_the_group_job_needs_no_array(here):
    write_jobs(here / "jobs", make_cohort(here))
    assert submit(here, "none", LIMIT="2") == [["--parsable", f"{here}/jobs/group.slurm"]]


def test_jobs_are_read_back(here):
    write_jobs(here / "jobs", make_cohort(here))
    jobs = read_jobs(here / "jobs")
    assert jobs.output == here / "out"
    assert jobs.tasks == make_cohort(here).tasks


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"output_dir": 3}'])
def test_a_folder_that_is_not_understood_is_refused(here, text):
    write_jobs(here / "jobs", make_cohort(here))
    (here / "jobs/cohort.json").write_text(text)
    with pytest.raises(CallRefused, match="jobs-bad"):
        read_jobs(here / "jobs")
