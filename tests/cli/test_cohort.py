from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from slimbrain_app.cli.tools import main

HOSTILE = "a'b $(touch harm) ; #`touch harm`"


@pytest.fixture
def here(tmp_path, monkeypatch, simulated):
    """A folder with two people's derivatives in ``in``."""
    (tmp_path / "in").symlink_to(simulated)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str, passed: tuple[str, ...] = ()) -> int:
    asked = ["slurm", "participant", "in", "out", "--time=60", "--output=jobs", *words]
    return main([*asked, *(("--", *passed) if passed else ())])


def read_array(script: Path, name: str) -> list[str]:
    return shlex.split(script.read_text().partition(f"{name}=(")[2].partition("\n)\n")[0])


def read_tasks(here: Path) -> list[str]:
    return (here / "jobs/tasks.txt").read_text().splitlines()


def list_people(here: Path, *labels: str, name: str = "people.txt") -> str:
    (here / name).write_text("".join(f"{label}\n" for label in labels))
    return f"--participants={name}"


def test_jobs_are_written_for_all_and_how_to_submit_them_is_said(here, capsys):
    assert call() == 0
    assert capsys.readouterr().out == f"bash {here}/jobs/submit.sh\n"
    assert read_tasks(here) == ["01", "02"]
    command = read_array(here / "jobs/participants.slurm", "command")
    assert command == [
        *("slimbrain", f"{here}/in", f"{here}/out", "participant"),
        f"--config={here}/jobs/settings.toml",
    ]
    group = read_array(here / "jobs/group.slurm", "command")
    assert group == ["slimbrain", f"{here}/in", f"{here}/out", "group", "--model=tiny"]


def test_options_after_the_dashes_hold_for_each_task(here):
    (here / "mine.toml").write_text("[rank]\nwindows = 5\n")
    (here / "filters.json").write_text('{"bold": {"task": "rest"}}')
    passed = ("--config", "mine.toml", "--bids-filter-file=filters.json", "--seed", "3", "-vv")
    assert call(passed=(*passed, "--model=./mine")) == 0
    settings = tomllib.loads((here / "jobs/settings.toml").read_text())
    assert settings["rank"]["windows"] == 5
    assert settings["select"]["filters"] == {"task": ["rest"]}
    assert settings["seed"] == 3
    assert settings["model"] == f"{here}/mine"
    command = read_array(here / "jobs/participants.slurm", "command")
    assert command[-3:-1] == ["--verbose", "--verbose"]
    assert "--model=mine" in read_array(here / "jobs/group.slurm", "command")


def test_participants_are_chosen_by_label_and_the_settings_name_none(here):
    assert call(passed=("--participant_label", "sub-02")) == 0
    assert read_tasks(here) == ["02"]
    settings = tomllib.loads((here / "jobs/settings.toml").read_text())
    assert settings["select"]["participants"] == []


def test_who_has_no_run_that_the_filters_leave_is_left_out(here, simulated):
    (here / "in").unlink()
    shutil.copytree(simulated, here / "in")
    for file in (here / "in/sub-01/func").iterdir():
        file.rename(file.with_name(file.name.replace("task-rest", "task-nback")))
    assert call(passed=("--task-id", "nback")) == 0
    assert read_tasks(here) == ["01"]


def test_several_share_a_task_if_wished_or_on_a_gpu(here):
    people = list_people(here, *(f"p{number}" for number in range(1, 11)))
    assert call(people, "--participants-per-task=4") == 0
    assert read_tasks(here) == ["p1 p2 p3 p4", "p5 p6 p7 p8", "p9 p10"]
    assert call(people, "--gpu", "--output=others") == 0
    assert len((here / "others/tasks.txt").read_text().splitlines()) == 2
    text = (here / "others/participants.slurm").read_text()
    assert "#SBATCH --gpus-per-node=1\n" in text
    assert "#SBATCH --cpus-per-task=8\n#SBATCH --mem=16G\n" in text
    settings = tomllib.loads((here / "others/settings.toml").read_text())
    assert settings["compute"]["device"] == "cuda"


def test_a_cohort_that_fmriprep_has_yet_to_make_keeps_the_order_of_its_list(here):
    (here / "in").unlink()
    assert call(list_people(here, "sub-30", "4", "11"), "--after=99") == 0
    assert read_tasks(here) == ["30", "4", "11"]
    assert "after=aftercorr:99\n" in (here / "jobs/submit.sh").read_text()


def test_on_a_gpu_too_each_waits_for_a_task_of_its_own(here):
    assert call(list_people(here, "1", "2"), "--after=99", "--gpu") == 0
    assert read_tasks(here) == ["1", "2"]


def test_an_image_sees_input_settings_model_and_output(here):
    passed = ("--model=./mine",)
    assert call("--image=s.sif", "--gpu", passed=passed) == 0
    command = read_array(here / "jobs/participants.slurm", "command")
    words = " ".join(command)
    assert command[0] == "apptainer"
    assert "--nv" in command
    real = (here / "in").resolve()
    for path in (real, here / "jobs/settings.toml", here / "mine"):
        assert re.search(rf"source={path},destination={path},ro\b", words), path
    assert re.search(rf"source={here}/out,destination={here}/out(?!,ro)", words)
    position = command.index(f"{here}/s.sif")
    assert command[position + 1 : position + 4] == ["slimbrain", str(real), f"{here}/out"]
    assert f"{here}/s.sif" in read_array(here / "jobs/group.slurm", "command")


def test_hostile_names_do_no_harm(here):
    (here / "in").rename(here / HOSTILE)
    words = ["slurm", "participant", HOSTILE, f"out {HOSTILE}", "--time=60"]
    assert main([*words, f"--output=jobs {HOSTILE}", "--", "--model", f"./{HOSTILE}"]) == 0
    jobs = here / f"jobs {HOSTILE}"
    for script in ("participants.slurm", "group.slurm", "submit.sh"):
        subprocess.run(["bash", "-n", jobs / script], check=True)
    assert f"{here}/{HOSTILE}" in read_array(jobs / "participants.slurm", "command")
    assert not (here / "harm").exists()


def test_a_folder_with_something_in_it_is_left_alone(here):
    (here / "jobs").mkdir()
    (here / "jobs/mine").touch()
    assert call() == 64
    assert [file.name for file in (here / "jobs").iterdir()] == ["mine"]


BAD = [
    ((), ("--presett=base",), 64, "preset"),
    ((), ("--windows=0",), 64, "windows"),
    ((), ("--model=tiny", "group"), 64, "group"),
    ((), ("--work-dir=w",), 64, "--work-dir: each task makes one"),
    ((), ("--dry-run",), 64, "--dry-run"),
    ((), ("--participant-label=09",), 66, "no-participant"),
    ((), ("--task-id=nothing",), 66, "no-runs"),
    ((), ("--config=none.toml",), 78, "settings-bad"),
    (("--time=4h",), (), 64, "Slurm does not understand"),
    (("--mem=8 G",), (), 64, "Slurm does not understand"),
    (("--partition=a b",), (), 64, "Slurm does not understand"),
    (("--participants-per-task=0",), (), 64, "number from 1"),
    (("--after=99",), (), 64, "--after without --participants"),
    (("--participants=none.txt",), (), 64, "none.txt"),
    (("--output=in/sub-01/jobs",), (), 64, "same-folder"),
    (("--output=out",), (), 64, "same-folder"),
    (("--output=100%",), (), 64, "patterns"),
]


@pytest.mark.parametrize(("words", "passed", "code", "told"), BAD)
def test_what_would_not_work_is_refused_before_anything_is_written(
    here, capsys, words, passed, code, told
):
    assert call(*words, passed=passed) == code
    captured = capsys.readouterr()
    assert told in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert [file.name for file in here.iterdir()] == ["in"]


@pytest.mark.parametrize("lines", [["01", "no label"], ["01", "", "02"], ["01", "sub-01"], []])
def test_a_list_with_anything_but_labels_each_once_is_refused(here, capsys, lines):
    assert call(list_people(here, *lines)) == 64
    assert "people.txt" in capsys.readouterr().err
    assert not (here / "jobs").exists()


def test_several_in_a_task_cannot_each_wait_for_a_task(here, capsys):
    people = list_people(here, "01", "02")
    assert call(people, "--after=99", "--participants-per-task=2") == 64
    assert "--after with several" in capsys.readouterr().err


def test_a_list_and_labels_exclude_each_other(here, capsys):
    assert call(list_people(here, "01"), passed=("--participant-label=01",)) == 64
    assert "--participant-label and --participants" in capsys.readouterr().err


def test_raw_data_and_an_absent_input_are_refused(here, capsys):
    (here / "in").unlink()
    assert call() == 66
    (here / "in").mkdir()
    (here / "in/dataset_description.json").write_text(
        json.dumps({"Name": "x", "BIDSVersion": "1.9.0", "DatasetType": "raw"})
    )
    assert call(list_people(here, "01")) == 66
    assert "raw-dataset" in capsys.readouterr().err
    assert not (here / "jobs").exists()


def test_an_output_that_cannot_be_written_is_refused(here, capsys):
    (here / "out").touch()
    assert call() == 73
    assert "not-writable" in capsys.readouterr().err
    assert not (here / "jobs").exists()


@pytest.fixture
def slurm(here, monkeypatch):
    """Jobs of two tasks that were submitted, and an empty queue."""
    commands = here / "bin"
    commands.mkdir()
    for name, text in {"squeue": "", "scontrol": "", "sbatch": "echo 5\n", "scancel": ""}.items():
        (commands / name).write_text(f'#!/bin/bash\necho "{name} $@" >> {here}/calls\n{text}')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    assert call() == 0
    (here / "jobs/jobs.txt").write_text("participants\t3\tall\ngroup\t4\tall\n")
    return here


def tell(here: Path, **codes: int) -> None:
    for task, code in codes.items():
        told = {"job": "3", "node": "n", "code": code}
        (here / "jobs/status" / f"{task.strip('t')}.json").write_text(json.dumps(told))


def test_status_is_one_table_and_the_worst_exit_code(slurm, capsys):
    tell(slurm, t1=0, t2=65, group=0)
    capsys.readouterr()
    assert main(["slurm", "status", "jobs"]) == 65
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:4] == ["state", "code", "tasks", "participants"]
    assert rows[1] == ["done", "0", "1", "1", "1"]
    assert rows[2] == ["refused", "65", "1", "1", "2", "see", "logs/2.log"]
    assert rows[3] == ["done", "0", "group"]


def test_retry_says_what_it_submits_and_submits_no_more(slurm, capsys):
    tell(slurm, t1=0, t2=70, group=65)
    capsys.readouterr()
    assert main(["slurm", "retry", "jobs"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("submits 1 failed, and the group level\n")
    calls = (slurm / "calls").read_text()
    assert "--array=2 " in calls
    assert calls.count("sbatch") == 2


def test_nothing_missing_is_said_and_nothing_submitted(slurm, capsys):
    tell(slurm, t1=0, t2=65, group=0)
    capsys.readouterr()
    assert main(["slurm", "retry", "jobs"]) == 0
    assert capsys.readouterr().out.startswith("nothing to submit")
    assert "sbatch" not in (slurm / "calls").read_text()
    assert main(["slurm", "retry", "jobs", "--refused"]) == 0
    assert "--array=2 " in (slurm / "calls").read_text()


@pytest.mark.parametrize("action", ["status", "retry"])
def test_a_folder_without_jobs_is_refused(here, capsys, action):
    assert main(["slurm", action, "nowhere"]) == 66
    assert "jobs-bad" in capsys.readouterr().err
