"""Group pretraining on small prepared runs; in processes of its own where it is to be stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from slimbrain_app.errors import CallRefused, Exit, RunRefused
from slimbrain_app.files import lock
from slimbrain_app.model.packages import load_package
from slimbrain_app.settings import PretrainSettings, read_settings
from slimbrain_app.training.log import End, Extract, Resume, Step, Validation, pick, read_log
from slimbrain_app.workflow.pretraining import GroupCall, carry_out, forecast

BINARIES = Path(sys.executable).parent
PEOPLE = 4
# Per pass: three people, two windows each, in steps of four.
STEPS = 2
SETTINGS = """
package_name = "mine"
[extract]
passes = 2
[train]
passes = 3
batch = 4
windows_per_run = 2
[pace]
workers = 0
at_once = 4
[compute]
nprocs = 1
device = "cpu"
"""


class Listener:
    """Remembers what it is told."""

    def __init__(self):
        self.said = []
        self.plans = []

    def show_plan(self, plan):
        self.plans.append(plan)

    def count(self, what, done, total):
        self.said.append(f"{what} {done}/{total}")

    def say(self, text):
        self.said.append(text)

    def tell(self, event):
        self.said.append(event)


@pytest.fixture(scope="session")
def cohort(prepared_runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "cohort"
    prepared_runs(folder, PEOPLE)
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{number:02}" for number in range(1, PEOPLE + 1)],
            "SITE_ID": ["east", "west"] * (PEOPLE // 2),
        }
    )
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("config") / "small.toml"
    file.write_text(SETTINGS)
    return file


@pytest.fixture(scope="session")
def settings(config) -> PretrainSettings:
    return read_settings(PretrainSettings, config, {})


@pytest.fixture(scope="session")
def trained(cohort, config, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "out"
    command = command_of(cohort, output, config)
    return output, subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def stopped(cohort, config, tmp_path_factory):
    """An output whose training was asked to stop after its first pass, its code and errors."""
    output = tmp_path_factory.mktemp("stopped") / "out"
    command = command_of(cohort, output, config)
    return output, *stop_when(command, output / "models/mine/checkpoints/state.pt", signal.SIGTERM)


@pytest.fixture
def half_done(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped[0], tmp_path / "copy"))


def command_of(dataset, output, config) -> list[str]:
    words = [dataset, output, "group", "--action", "pretrain", "--config", config]
    return [str(BINARIES / "slimbrain"), *map(str, words)]


def stop_when(command: list[str], file: Path, number: int) -> tuple[int, str]:
    """Start a command, send it a signal as soon as a file is there; return its code and errors."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not file.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def call_of(dataset, output, settings, *others) -> GroupCall:
    return GroupCall(
        datasets=(dataset, *others),
        output=output,
        settings=settings,
        work_dir=None,
        command=("slimbrain",),
    )


def pretrain(dataset, output, settings, *others):
    return carry_out(call_of(dataset, output, settings, *others), Listener())


def read_package(package: Path) -> dict[str, bytes]:
    files = [file for file in package.iterdir() if file.name != "training.jsonl"]
    return {file.name: file.read_bytes() for file in files}


def read_table(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "desc-slimbrain_corpus.tsv", sep="\t").set_index("run")


def test_training_leaves_a_whole_package_and_no_checkpoints(trained):
    output, result = trained
    assert result.returncode == Exit.DONE, result.stderr
    package = load_package(output / "models/mine")
    assert package.trained
    assert not (output / "models/mine/checkpoints").exists()
    assert (output / "group.html").stat().st_size > 10_000


def test_log_tells_every_pass(trained):
    events = read_log(trained[0] / "models/mine/training.jsonl")
    assert [event.pass_ for event in pick(events, Extract)] == [1, 2]
    assert [event.step for event in pick(events, Step)] == list(range(1, 3 * STEPS + 1))
    assert [event.pass_ for event in pick(events, Validation)] == [1, 2, 3]
    assert [event.finished for event in pick(events, End)] == [True]


def test_terminal_gets_a_line_for_each_pass_and_what_to_do_next(trained):
    output, result = trained
    lines = [line for line in result.stderr.splitlines() if line.startswith("Pass ")]
    assert [line.split(":")[0] for line in lines] == [f"Pass {n} of 3" for n in (1, 2, 3)]
    assert all("waiting for windows" in line for line in lines)
    assert f"{output} participant --model mine" in result.stderr
    assert result.stdout.strip() == str(output / "models/mine")


def test_corpus_table_lists_every_run_with_its_part_and_site(trained):
    table = read_table(trained[0])
    assert sorted(table["split"]) == ["train"] * (PEOPLE - 1) + ["validation"]
    assert list(table["site"]) == ["east", "west"] * (PEOPLE // 2)
    columns = json.loads((trained[0] / "desc-slimbrain_corpus.json").read_text())
    assert list(columns) == list(table.reset_index()[list(columns)])


def test_finished_training_is_found_finished(cohort, settings, trained):
    before = read_package(trained[0] / "models/mine")
    done = pretrain(cohort, trained[0], settings)
    assert done.before
    assert done.package.sha256 == load_package(trained[0] / "models/mine").sha256
    assert read_package(trained[0] / "models/mine") == before


def test_another_training_does_not_take_a_package_s_place(cohort, settings, trained):
    before = read_package(trained[0] / "models/mine")
    with pytest.raises(CallRefused, match="--package-name"):
        pretrain(cohort, trained[0], replace(settings, seed=1))
    assert read_package(trained[0] / "models/mine") == before


@pytest.mark.parametrize(
    "file",
    [
        pytest.param("extractor.pt", marks=pytest.mark.slow),
        pytest.param("corpus.json", marks=pytest.mark.slow),
        "state.pt",
    ],
)
def test_killed_training_goes_on_to_the_same_package(
    cohort, config, settings, trained, tmp_path, file
):
    output = tmp_path / "out"
    stop_when(
        command_of(cohort, output, config),
        output / "models/mine/checkpoints" / file,
        signal.SIGKILL,
    )
    assert not (output / "models/mine/checksums.json").exists()
    pretrain(cohort, output, settings)
    assert read_package(output / "models/mine") == read_package(trained[0] / "models/mine")
    steps = pick(read_log(output / "models/mine/training.jsonl"), Step)
    assert [step.step for step in steps] == list(range(1, 3 * STEPS + 1))


def test_sigterm_ends_with_a_checkpoint_and_the_code_to_try_again(stopped):
    output, code, errors = stopped
    assert code == Exit.TRY_AGAIN, errors
    assert "start the same command again" in errors
    (end,) = pick(read_log(output / "models/mine/checkpoints/training.jsonl"), End)
    assert not end.finished
    assert end.reason is not None and end.reason.startswith("Stopped by a signal")
    assert (output / "group.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_other_signals_do_as_sigterm(cohort, config, tmp_path, number):
    state = tmp_path / "out/models/mine/checkpoints/state.pt"
    code, errors = stop_when(command_of(cohort, tmp_path / "out", config), state, number)
    assert code == Exit.TRY_AGAIN, errors


def test_stopped_training_goes_on_to_the_same_package(cohort, settings, trained, half_done):
    pretrain(cohort, half_done, settings)
    assert read_package(half_done / "models/mine") == read_package(trained[0] / "models/mine")
    (resumed,) = pick(read_log(half_done / "models/mine/training.jsonl"), Resume)
    assert resumed.step >= STEPS


def test_corpus_that_grew_since_the_checkpoint_is_refused_and_nothing_is_touched(
    half_done, cohort, settings, prepared_runs, tmp_path
):
    more = tmp_path / "more"
    prepared_runs(more, 1, seed=100)
    before = read_all(half_done / "models/mine/checkpoints")
    with pytest.raises(CallRefused, match=r"more/sub-01_task-rest_run-1 is new") as refused:
        pretrain(cohort, half_done, settings, more)
    assert refused.value.reason == "corpus-changed"
    assert read_all(half_done / "models/mine/checkpoints") == before


def test_settings_that_changed_since_the_checkpoint_are_refused(half_done, cohort, settings):
    before = read_all(half_done / "models/mine/checkpoints")
    with pytest.raises(CallRefused, match="settings-changed"):
        pretrain(cohort, half_done, replace(settings, rank=replace(settings.rank, windows=3)))
    assert read_all(half_done / "models/mine/checkpoints") == before


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_two_processes_train_as_one_does(cohort, config, trained, tmp_path):
    output = tmp_path / "out"
    launch = [BINARIES / "torchrun", "--standalone", "--nproc-per-node", 2, "-m", "slimbrain_app"]
    command = [*map(str, launch), *command_of(cohort, output, config)[1:]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == Exit.DONE, result.stderr
    assert result.stderr.count("Pass 1 of 3") == 1
    ours, theirs = (
        [step.loss for step in pick(read_log(folder / "models/mine/training.jsonl"), Step)]
        for folder in (output, trained[0])
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_damaged_run_is_listed_and_the_others_train(cohort, settings, tmp_path):
    dataset = Path(shutil.copytree(cohort, tmp_path / "cohort"))
    (signal_file,) = (dataset / "sub-02").rglob("signal.npy")
    os.truncate(signal_file, 1000)
    short = replace(
        settings,
        extract=replace(settings.extract, passes=0),
        train=replace(settings.train, passes=1),
    )
    done = pretrain(dataset, tmp_path / "out", short)
    assert [refusal.code for refusal in done.refusals] == ["prepared-bad"]
    assert done.package.trained
    table = read_table(tmp_path / "out")
    assert len(table) == PEOPLE
    assert table.loc["sub-02_task-rest_run-1", "code"] == "prepared-bad"


def test_runs_prepared_for_another_grid_are_refused(cohort, settings, tmp_path):
    dataset = Path(shutil.copytree(cohort, tmp_path / "cohort"))
    for number, record in enumerate(sorted(dataset.rglob("run.json"))):
        making = json.loads(record.read_text())
        making["contract"] += number
        record.write_text(json.dumps(making))
    with pytest.raises(CallRefused, match="too-few"):
        pretrain(dataset, tmp_path / "out", settings)
    assert list(read_table(tmp_path / "out")["code"]) == ["other-contract"] * (PEOPLE - 1)


def test_one_person_is_too_few(cohort, settings, tmp_path):
    one = replace(settings, select=replace(settings.select, participants=("01",)))
    with pytest.raises(CallRefused, match="one person"):
        pretrain(cohort, tmp_path / "out", one)


def test_no_usable_run_is_told_run_by_run(prepared_runs, settings, tmp_path):
    dataset = tmp_path / "short"
    prepared_runs(dataset, 2, volumes=10)
    with pytest.raises(CallRefused, match="no usable run"):
        pretrain(dataset, tmp_path / "out", settings)
    assert list(read_table(tmp_path / "out")["code"]) == ["too-short"] * 2


def test_package_in_the_making_elsewhere_is_left_alone(cohort, settings, tmp_path):
    with (
        lock(tmp_path / "out/logs/mine.lock", ""),
        pytest.raises(RunRefused, match="models/mine") as refused,
    ):
        pretrain(cohort, tmp_path / "out", settings)
    assert refused.value.exit_code == Exit.TRY_AGAIN
    assert not (tmp_path / "out/models").exists()


def test_forecast_is_what_comes_true_and_writes_nothing(cohort, settings, tmp_path):
    told = forecast(call_of(cohort, tmp_path / "out", settings))
    assert (len(told.plan.recordings), told.people, told.held_out) == (PEOPLE, PEOPLE, 1)
    assert (told.steps, told.batch, told.load.at_once) == (3 * STEPS, 4, 4)
    assert not (tmp_path / "out").exists()
