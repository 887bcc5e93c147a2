from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.bids.status import write_status
from slimbrain_app.cluster.cohort import Cohort, write_jobs
from slimbrain_app.cluster.progress import (
    Standing,
    choose_missing,
    decide_exit,
    join_numbers,
    read_standings,
    submit_again,
)
from slimbrain_app.errors import CallRefused
from slimbrain_app.records import Refusal, RunStatus


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Jobs of three tasks of two people, submitted as 12, and a Slurm that knows none by now."""
    folder = tmp_path / "jobs"
    cohort = Cohort(
        output=tmp_path / "out",
        tasks=(("1", "2"), ("3", "4"), ("5", "6")),
        settings="",
        command=["slimbrain"],
        group_command=["slimbrain"],
        time="60",
        mem="8G",
        cpus=1,
    )
    write_jobs(folder, cohort)
    (folder / "jobs.txt").write_text("participants\t12\tall\ngroup\t13\tall\n")
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    let_squeue_say(folder)
    return folder


def let_squeue_say(jobs: Path, *lines: str, code: int = 0) -> None:
    file = jobs.parent / "bin" / "squeue"
    printed = "".join(f"echo '{line}'\n" for line in lines)
    file.write_text(f"#!/bin/bash\n{printed}exit {code}\n")
    file.chmod(0o755)


def tell(jobs: Path, task: str, code: int | None, job: str | None = None) -> None:
    told = {
        "task": task,
        "job": job or f"12_{task}",
        "node": "node-3",
        "restarts": 0,
        "state": "running" if code is None else "ended",
        "code": code,
        "begin": "2026-01-01T00:00:00Z",
        "end": None,
    }
    (jobs / "status" / f"{task}.json").write_text(json.dumps(told))


def read_states(jobs: Path) -> dict[str, str]:
    return {one.task: one.state for one in read_standings(jobs)}


def refuse(jobs: Path, label: str, code: str) -> None:
    refusal = Refusal(
        run=f"sub-{label}_task-rest", code=code, file=None, expected="a", found="b", advice="c"
    )
    write_status(jobs.parent / "out", label, [RunStatus.of_refusal(refusal)])


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, "done"), (65, "refused"), (75, "to be tried again"), (70, "failed"), (137, "failed")],
)
def test_a_task_that_ended_stands_where_its_exit_code_says(jobs, code, state):
    tell(jobs, "2", code)
    standing = read_standings(jobs)[1]
    assert (standing.task, standing.participants) == ("2", ("3", "4"))
    assert (standing.state, standing.code) == (state, code)


def test_a_task_that_says_it_runs_but_that_slurm_does_not_know_is_lost(jobs):
    tell(jobs, "1", None)
    tell(jobs, "2", None)
    let_squeue_say(jobs, "12_1 RUNNING")
    assert read_states(jobs) == {"1": "running", "2": "lost", "3": "lost", "group": "lost"}
    assert "node-3" in read_standings(jobs)[1].why


def test_what_slurm_knows_counts_before_what_an_earlier_job_has_left(jobs):
    tell(jobs, "1", 75)
    tell(jobs, "2", 70)
    (jobs / "jobs.txt").write_text("participants\t12\tall\nparticipants\t20\t2\ngroup\t21\tall\n")
    let_squeue_say(jobs, "12_1 PENDING", "20_2 COMPLETING", "12_3 REQUEUED", "21 PENDING")
    assert read_states(jobs) == {
        "1": "waiting",
        "2": "running",
        "3": "waiting",
        "group": "waiting",
    }


SPOKEN = [
    ("Priority", "Priority", None),
    ("Resources", "Resources", None),
    ("JobArrayTaskLimit", "JobArrayTaskLimit", None),
    ("AssocGrpCpuLimit", "AssocGrpCpuLimit", None),
    ("QOSMaxCpuPerUserLimit", "QOSMaxCpuPerUserLimit", None),
    ("AssocGrpCPURunMinutesLimit", "AssocGrpCPURunMinutesLimit", None),
    ("ReqNodeNotAvail, UnavailableNodes:n[1-3]", "ReqNodeNotAvail, UnavailableNodes:n[1-3]", None),
    ("DependencyNeverSatisfied", "DependencyNeverSatisfied: ", "what it waits for has failed"),
    ("PartitionConfig", "PartitionConfig: ", "no node there has what it asks for"),
    ("BadConstraints", "BadConstraints: ", "no node there has what it asks for"),
    ("PartitionTimeLimit", "PartitionTimeLimit: ", "more than is allowed"),
    ("AssocMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit: ", "not allowed"),
    ("QOSMinMemory", "QOSMinMemory: ", "not allowed"),
    ("InvalidAccount", "InvalidAccount: ", "the account may not work there"),
    ("JobHeldUser", "JobHeldUser: ", "scontrol releases"),
    ("launch failed requeued held", "launch failed requeued held: ", "scontrol releases"),
    (
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in other partitions",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in other partitions: ",
        "sinfo -R",
    ),
]


@pytest.mark.parametrize(("reason", "begins", "hint"), SPOKEN)
def test_why_a_task_waits_is_told_in_slurms_words_with_what_helps_if_waiting_does_not(
    jobs, reason, begins, hint
):
    let_squeue_say(jobs, f"12_1 PENDING {reason}", "12_2 RUNNING None", "13 PENDING Dependency")
    first, second, _, group = read_standings(jobs)
    assert (first.state, second.state, group.why) == ("waiting", "running", "Dependency")
    assert first.why.startswith(begins)
    assert second.why == ""
    assert hint in first.why if hint else first.why == reason
    assert first.exit_code == 75


@pytest.mark.parametrize("line", ["12_1 PENDING None", "12_1 PENDING", "12_1 PENDING "])
def test_a_task_of_which_slurm_has_not_thought_yet_waits_for_no_reason(jobs, line):
    let_squeue_say(jobs, line)
    first = read_standings(jobs)[0]
    assert (first.state, first.why) == ("waiting", "")


def test_what_runs_counts_before_what_waits_in_whatever_order(jobs):
    lines = ["12_1 RUNNING None", "20_1 PENDING Priority", "20_2 PENDING Priority", "12_2 RUNNING"]
    (jobs / "jobs.txt").write_text("participants\t12\tall\nparticipants\t20\t1-2\n")
    for told in (lines, lines[::-1]):
        let_squeue_say(jobs, *told)
        assert [one.state for one in read_standings(jobs)[:2]] == ["running", "running"]


@pytest.mark.parametrize(
    ("tasks", "waiting"),
    [("[1-3]", {1, 2, 3}), ("[2-3%1]", {2, 3}), ("[1,3]", {1, 3}), ("[1-3:2%7]", {1, 3})],
)
def test_an_array_that_slurm_tells_in_one_line_is_known_task_by_task(jobs, tasks, waiting):
    let_squeue_say(jobs, f"12_{tasks} PENDING Nodes required for job are DOWN, DRAINED")
    states = read_states(jobs)
    assert {int(task) for task, state in states.items() if state == "waiting"} == waiting


def test_jobs_of_others_do_not_count(jobs):
    tell(jobs, "1", 0)
    let_squeue_say(jobs, "112_1 RUNNING", "1_2 RUNNING", "99 RUNNING")
    assert read_states(jobs) == {"1": "done", "2": "lost", "3": "lost", "group": "lost"}


def test_a_task_submitted_by_hand_is_known_by_what_it_says(jobs):
    tell(jobs, "2", None, job="77_2")
    let_squeue_say(jobs, "77_2 RUNNING")
    assert read_states(jobs)["2"] == "running"


def test_refused_participants_are_told_with_their_reasons(jobs):
    tell(jobs, "1", 65)
    tell(jobs, "2", 65)
    refuse(jobs, "2", "no-mask")
    first, second, *_ = read_standings(jobs)
    assert first.why == "sub-2 no-mask"
    assert second.why == "see logs/2.log"


def test_a_damaged_status_is_refused_by_name(jobs):
    (jobs / "status/2.json").write_text('{"job": 3}')
    with pytest.raises(CallRefused, match="jobs-bad") as caught:
        read_standings(jobs)
    assert str(caught.value.file).endswith("status/2.json")


def test_a_slurm_that_does_not_answer_is_told_in_its_words(jobs):
    file = jobs.parent / "bin/squeue"
    file.write_text("#!/bin/bash\necho 'slurm_load_jobs error: no contact' >&2\nexit 1\n")
    with pytest.raises(CallRefused, match="slurm-missing") as caught:
        read_standings(jobs)
    assert caught.value.found == "slurm_load_jobs error: no contact"


def test_a_machine_without_slurm_is_told_so(jobs, monkeypatch):
    (jobs.parent / "bin/squeue").unlink()
    monkeypatch.setenv("PATH", str(jobs.parent / "bin"))
    with pytest.raises(CallRefused, match="slurm-missing"):
        read_standings(jobs)


def stand(state: str, code: int | None = None, task: str = "1") -> Standing:
    return Standing(task=task, participants=("1",), state=state, code=code)


@pytest.mark.parametrize(
    ("standings", "code"),
    [
        ([stand("done", 0), stand("done", 0)], 0),
        ([stand("done", 0), stand("refused", 65)], 65),
        ([stand("failed", 70), stand("refused", 65)], 70),
        ([stand("failed", 66)], 66),
        ([stand("failed", 137), stand("refused", 65)], 69),
        ([stand("failed", 70), stand("running")], 75),
        ([stand("waiting")], 75),
        ([stand("lost")], 75),
        ([stand("to be tried again", 75)], 75),
    ],
)
def test_the_worst_exit_code_stands_for_all(standings, code):
    assert decide_exit(standings) == code


def test_what_is_missing_is_chosen_and_refused_data_only_if_mended():
    lost, failed, again = stand("lost"), stand("failed", 69), stand("to be tried again", 75)
    refused = stand("refused", 65)
    others = [stand("done", 0), stand("running"), stand("waiting")]
    every = [*others, lost, failed, again, refused]
    assert choose_missing(every, refused=False) == (lost, failed, again)
    assert choose_missing(every, refused=True) == (lost, failed, again, refused)


def note_submissions(jobs: Path) -> None:
    (jobs / "submit.sh").write_text(f'printf "%s|" "$@" > {jobs.parent}/words; echo submitted\n')


def test_only_what_is_missing_is_submitted_and_waits_for_nothing(jobs):
    note_submissions(jobs)
    missing = [stand("lost", task="2"), stand("lost", task="group"), stand("failed", task="3")]
    assert submit_again(jobs, missing) == "submitted\n"
    assert (jobs.parent / "words").read_text() == "2-3||"


def test_the_group_level_alone_is_submitted_alone(jobs):
    note_submissions(jobs)
    submit_again(jobs, [stand("lost", task="group")])
    assert (jobs.parent / "words").read_text() == "none||"


def test_what_was_never_submitted_is_not_submitted_again(jobs):
    note_submissions(jobs)
    (jobs / "jobs.txt").unlink()
    with pytest.raises(CallRefused, match="jobs-bad"):
        submit_again(jobs, [stand("lost")])
    assert not (jobs.parent / "words").exists()


def test_a_refused_submission_is_told_in_slurms_words(jobs):
    (jobs / "submit.sh").write_text('echo "sbatch: error: no account" >&2; exit 1\n')
    with pytest.raises(CallRefused, match="slurm-missing") as caught:
        submit_again(jobs, [stand("lost")])
    assert caught.value.found == "sbatch: error: no account"


@given(st.sets(st.integers(1, 40)))
def test_numbers_are_joined_as_slurm_reads_them(numbers):
    read = set()
    for span in filter(None, join_numbers(numbers).split(",")):
        first, _, last = span.partition("-")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == numbers
