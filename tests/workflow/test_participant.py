"""How a whole cohort is carried out: locks, and what other calls have done meanwhile."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from slimbrain_app.errors import Exit
from slimbrain_app.files import lock
from slimbrain_app.settings import Compute, ParticipantSettings, Rank
from slimbrain_app.workflow.participant import carry_out
from slimbrain_app.workflow.plan import make_plan

SLIMBRAIN = str(Path(sys.executable).with_name("slimbrain"))
SETTINGS = ParticipantSettings(rank=Rank(windows=2), compute=Compute(device="cpu", nprocs=1))


def plan(dataset, output):
    return make_plan(dataset, output, SETTINGS)


def carry(plan):
    statuses = carry_out(plan, None, ["slimbrain"], lambda *_: None)
    return {status.run.split("_")[0]: status for status in statuses}


def test_a_cohort_may_be_larger_than_the_number_of_open_files(tmp_path):
    dataset, people = tmp_path / "fmriprep", 70
    for number in range(people):
        # Refused, which is quick: there is only an empty file.
        func = dataset / f"sub-{number:02}/func"
        func.mkdir(parents=True)
        name = f"sub-{number:02}_task-a_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
        (func / name).touch()
    words = [dataset, tmp_path / "out", "participant", "--nprocs", 1, "--device", "cpu"]
    done = subprocess.run(
        [SLIMBRAIN, *map(str, words)],
        capture_output=True,
        text=True,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert done.returncode == Exit.DATA, done.stderr
    told = json.loads((tmp_path / "out/logs/status.json").read_text())
    assert [run["reason"] for person in told for run in person["runs"]] == ["unreadable"] * people


def test_whoever_is_held_elsewhere_is_left_out_and_the_others_are_done(simulated, tmp_path):
    output = tmp_path / "out"
    with lock(output / "logs/sub-01.lock", ""):
        ended = carry(plan(simulated, output))
    assert ended["sub-01"].refusal.code == "locked"
    assert ended["sub-02"].state == "done"
    assert not (output / "sub-01").exists() and not (output / "sub-01.html").exists()


def test_what_another_call_did_since_the_plan_was_made_is_not_done_again(simulated, tmp_path):
    output = tmp_path / "out"
    early = plan(simulated, output)
    carry(plan(simulated, output))
    written = {path: path.stat().st_mtime_ns for path in output.glob("sub-*/**/*.tsv")}
    assert [status.state for status in carry(early).values()] == ["current"] * 2
    assert {path: path.stat().st_mtime_ns for path in output.glob("sub-*/**/*.tsv")} == written


@pytest.mark.parametrize("done", [False, True], ids=["to do", "done before"])
def test_half_written_files_of_people_are_gone_afterwards(simulated, tmp_path, done):
    output = tmp_path / "out"
    if done:
        carry(plan(simulated, output))
    left = [
        output / ".slimbrain-0123456789ab-sub-01.html",
        output / "logs/.slimbrain-0123456789ab-sub-01_status.json",
        output / "sub-01/func/.slimbrain-0123456789ab-x.tsv",
    ]
    elsewhere = output / "logs/.slimbrain-0123456789ab-sub-99_status.json"
    for path in (*left, elsewhere):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    carry(plan(simulated, output))
    assert [path for path in (*left, elsewhere) if path.exists()] == [elsewhere]
