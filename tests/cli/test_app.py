"""The whole command, as a user meets it: real processes, real files, real exit codes."""

from __future__ import annotations

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from slimbrain_app.cli.app import main
from slimbrain_app.errors import Exit
from slimbrain_app.model.packages import create_package, load_package

SLIMBRAIN = str(Path(sys.executable).with_name("slimbrain"))
RUN = "sub-01_task-rest_run-01"
STEM = f"{RUN}_space-MNI152NLin2009cAsym"
FILES = {
    ".bidsignore",
    "README.md",
    "dataset_description.json",
    "logs/CITATION.md",
    "logs/CALL/command.txt",
    "logs/CALL/slimbrain.log",
    "logs/CALL/slimbrain.toml",
    "logs/shared.lock",
    "logs/status.json",
    "logs/sub-01.lock",
    "logs/sub-01_status.json",
    "sub-01.html",
    f"sub-01/figures/{RUN}_desc-slimbrain_coverage.svg",
    f"sub-01/figures/{RUN}_desc-slimbrain_embedding.svg",
    f"sub-01/figures/{RUN}_desc-slimbrain_windows.svg",
    f"sub-01/func/{STEM}_desc-slimbrain_mask.json",
    f"sub-01/func/{STEM}_desc-slimbrain_mask.nii.gz",
    f"sub-01/func/{STEM}_desc-slimbrain_windows.json",
    f"sub-01/func/{STEM}_desc-slimbrain_windows.tsv",
    f"sub-01/func/{STEM}_stat-covariance_desc-slimbrain_embeddings.json",
    f"sub-01/func/{STEM}_stat-covariance_desc-slimbrain_embeddings.tsv",
    f"sub-01/func/{STEM}_stat-mean_desc-slimbrain_embeddings.json",
    f"sub-01/func/{STEM}_stat-mean_desc-slimbrain_embeddings.tsv",
}


def slimbrain(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [SLIMBRAIN, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, **options
    )


def list_files(folder: Path) -> set[str]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {_without_time(name).as_posix() for name in names}


def _without_time(name: Path) -> Path:
    parts = list(name.parts)
    if parts[0] == "logs" and len(parts) > 2:
        parts[1] = "CALL"
    return Path(*parts)


def read_numbers(folder: Path) -> dict[str, bytes]:
    endings = (".tsv", ".nii.gz", ".npy")
    files = [path for path in folder.rglob("*") if path.name.endswith(endings)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def one_person(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "fmriprep"
    shutil.copytree(simulated, folder)
    shutil.rmtree(folder / "sub-02")
    return folder


@pytest.fixture(scope="session")
def finished(one_person: Path, tmp_path_factory: pytest.TempPathFactory):
    output = tmp_path_factory.mktemp("finished") / "out"
    return output, slimbrain(one_person, output, "participant", "--nprocs", 1)


def test_one_call_writes_what_is_promised_and_nothing_else(finished):
    output, result = finished
    assert result.returncode == Exit.DONE, result.stderr
    found = list_files(output)
    assert found - FILES == set(), "found, not expected"
    assert FILES - found == set(), "expected, not found"


def test_log_tells_when_each_step_ended(finished):
    (log,) = finished[0].glob("logs/*/slimbrain.log")
    verbs = [line.split()[-2] for line in log.read_text().splitlines() if line.endswith(RUN)]
    assert verbs == ["prepare", "rank", "encode", "write"]


def test_what_the_shipped_model_was_trained_on_is_told_wherever_it_speaks(finished):
    output, result = finished
    caution = load_package("tiny").config.caution
    assert "in invented voxels" in caution
    assert f"Note [caution]: {caution}" in result.stderr
    assert caution in html.unescape((output / "sub-01.html").read_text())
    for sidecar in output.rglob("*_desc-slimbrain_*.json"):
        assert json.loads(sidecar.read_text())["Model"]["Trained"] is True


def test_untrained_weights_are_called_so(one_person, tmp_path):
    create_package(tmp_path / "drawn", "tiny", seed=1)
    out = tmp_path / "out"
    result = slimbrain(one_person, out, "participant", "--model", tmp_path / "drawn", "--dry-run")
    assert "UNTRAINED" in result.stderr


def test_output_is_a_valid_bids_derivative(finished):
    validator = shutil.which("bids-validator-deno", path=Path(sys.executable).parent)
    if validator is None:
        pytest.skip("no bids-validator-deno in this environment")
    config = Path(__file__).parents[2] / "bids_validator_config.json"
    command = [validator, "--json", "--config", str(config), str(finished[0])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] != "ignore"] == []


def test_output_holds_no_absolute_path(finished, one_person):
    output, _ = finished
    for file in output.rglob("*.*"):
        if file.is_file() and "logs" not in file.parts:
            content = file.read_bytes()
            assert str(one_person).encode() not in content
            assert str(output).encode() not in content


def test_a_second_identical_call_does_no_work_and_says_so(one_person, finished):
    output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("sub-*") if path.is_file()}
    result = slimbrain(one_person, output, "participant")
    assert result.returncode == Exit.DONE
    assert "Nothing was done" in result.stderr
    assert "up to date" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_results_depend_neither_on_the_folder_nor_on_processes_or_threads(
    one_person, finished, tmp_path
):
    options = ("--nprocs", 2, "--omp-nthreads", 2, "--work-dir", tmp_path / "work")
    result = slimbrain(one_person, tmp_path / "out", "participant", *options)
    assert result.returncode == Exit.DONE, result.stderr
    assert read_numbers(tmp_path / "out") == read_numbers(finished[0])


def test_work_folder_is_empty_after_success(one_person, tmp_path):
    work = tmp_path / "work"
    slimbrain(one_person, tmp_path / "out", "participant", "--nprocs", 1, "-w", work)
    assert list(work.iterdir()) == []


@pytest.mark.slow
def test_settings_that_were_written_give_the_same_result_when_fed_back(
    one_person, finished, tmp_path
):
    arguments = ["--nprocs", 1, "--windows", 2, "--ranking", "random", "--seed", 5]
    slimbrain(one_person, tmp_path / "a", "participant", *arguments)
    (written,) = (tmp_path / "a" / "logs").glob("*/slimbrain.toml")
    slimbrain(one_person, tmp_path / "b", "participant", "--config", written)
    assert read_numbers(tmp_path / "a") == read_numbers(tmp_path / "b")
    assert read_numbers(tmp_path / "a") != read_numbers(finished[0])


def test_a_changed_setting_redoes_the_run(one_person, finished, tmp_path):
    output = shutil.copytree(finished[0], tmp_path / "out")
    before = read_numbers(output)
    result = slimbrain(one_person, output, "participant", "--nprocs", 1, "--windows", 1)
    assert " done " in result.stdout
    assert read_numbers(output) != before


def test_one_bad_run_does_not_stop_the_other(simulated, tmp_path):
    dataset = tmp_path / "fmriprep"
    shutil.copytree(simulated, dataset)
    (bold,) = (dataset / "sub-02").rglob("*_bold.nii.gz")
    bold.write_bytes(bold.read_bytes()[: bold.stat().st_size // 2])
    os.utime(bold, (0, 0))  # A young one might still be growing.
    result = slimbrain(dataset, tmp_path / "out", "participant", "--nprocs", 1)
    assert result.returncode == Exit.DATA
    assert "[truncated]" in result.stderr
    assert bold.relative_to(dataset).as_posix() in result.stderr
    assert "What to do:" in result.stderr
    status = json.loads((tmp_path / "out/logs/status.json").read_text())
    assert [run["state"] for person in status for run in person["runs"]] == ["done", "refused"]
    assert not list((tmp_path / "out/sub-02").rglob("*.tsv"))
    assert "truncated" in (tmp_path / "out/sub-02.html").read_text()


def test_dry_run_tells_the_end_and_writes_nothing(one_person, tmp_path):
    output = tmp_path / "out"
    result = slimbrain(one_person, output, "participant", "--dry-run")
    assert result.returncode == Exit.DONE
    head, row = result.stdout.splitlines()
    assert head.split() == ["action", "run", "time", "memory", "disk", "why", "file"]
    assert row.split()[:2] == ["do", RUN]
    assert row.endswith(f"resampled  sub-01/func/{STEM}_desc-preproc_bold.nii.gz")
    assert "of one processor" in result.stderr
    assert not output.exists()


def test_dry_run_exits_as_the_real_run_would(one_person, tmp_path):
    arguments = (one_person, tmp_path / "out", "participant", "--dummy-scans", 35)
    dry = slimbrain(*arguments, "--dry-run")
    assert dry.returncode == slimbrain(*arguments, "--nprocs", 1).returncode == Exit.DATA
    assert "too-short" in dry.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{data}", "{out}", "participant", "--participant-label", "O1"], 66, ["O1", "01"]),
        (["{data}", "{out}", "participant", "--task-id", "movie"], 66, ["movie", "rest"]),
        (["{data}/gone", "{out}", "participant"], 66, ["gone"]),
        (["{data}", "{data}", "participant"], 64, ["same-folder"]),
        (["{data}", "{data}/sub-01/x", "participant"], 64, ["same-folder"]),
        (["{data}", "{out}", "participant", "-w", "{data}/work"], 64, ["work-in-input"]),
        (["{data}", "{out}", "participant", "--model", "tinny"], 78, ["tinny", "tiny"]),
        (["{data}", "{out}", "participant", "--config", "{data}/README"], 78, ["settings-bad"]),
        (["{data}", "{out}", "participant", "--windows", "0"], 64, ["--windows"]),
        (["{data}", "{out}", "participant", "--tr", "40"], 64, ["tr"]),
        (["{data}", "{out}", "participant", "--device", "cuda:9"], 69, ["device-missing"]),
        (["{data}", "{out}"], 64, ["analysis_level"]),
    ],
)
def test_a_call_that_cannot_start_says_why_and_leaves_no_trace(
    one_person, tmp_path, arguments, code, words
):
    output = tmp_path / "out"
    filled = [word.format(data=one_person, out=output) for word in arguments]
    result = slimbrain(*filled)
    assert result.returncode == code
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{here}/missing", "{here}/out", "participant"], True),
        (["{data}", "{here}/out", "participant", "--participant-label", "nobody"], True),
        (["{data}", "{here}/out", "participant", "--config", "{here}/missing.toml"], True),
        (["{data}", "{data}", "participant"], False),
    ],
)
def test_an_image_tells_what_is_mounted_where_a_place_is_wrong(tmp_path, monkeypatch, words, told):
    (tmp_path / "fmriprep/sub-01").mkdir(parents=True)
    filled = [word.format(data=tmp_path / "fmriprep", here=tmp_path) for word in words]
    plain = slimbrain(*filled)
    monkeypatch.setenv("SLIMBRAIN_IMAGE", "slimbrain:1")
    inside = slimbrain(*filled)
    assert (inside.returncode, inside.stdout) == (plain.returncode, plain.stdout)
    more = inside.stderr.removeprefix(plain.stderr).splitlines()
    assert [line.startswith("slimbrain: mounted here: ") for line in more] == [True] * told


def test_a_participant_at_work_elsewhere_is_left_to_the_other(one_person, tmp_path):
    output = tmp_path / "out"
    (output / "logs").mkdir(parents=True)
    script = (
        "import sys, time; from pathlib import Path; from slimbrain_app.files import lock\n"
        "with lock(Path(sys.argv[1]), ''): print('held', flush=True); time.sleep(100)"
    )
    command = [sys.executable, "-c", script, str(output / "logs/sub-01.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        result = slimbrain(one_person, output, "participant", "--nprocs", 1)
        holder.kill()
    assert result.returncode == Exit.TRY_AGAIN
    assert "locked" in result.stdout
    assert not (output / "sub-01.html").exists()
    assert slimbrain(one_person, output, "participant", "--nprocs", 1).returncode == Exit.DONE


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_ends_a_step_in_seconds_with_whole_files_only(
    simulated, tmp_path, processes, number
):
    output = tmp_path / "out"
    with start(simulated, output, processes) as process:
        at_work = _wait_for_worker(process) if processes > 1 else _wait_for_itself(process)
        process.send_signal(number)
        start_of_end = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == Exit.TRY_AGAIN, errors
    assert "start the same command again" in errors
    assert "Traceback" not in errors
    assert time.monotonic() - start_of_end < 30
    assert is_gone(at_work)
    assert not [name for name in list_files(output) if ".slimbrain-" in name]
    assert slimbrain(simulated, output, "participant", "--nprocs", 1).returncode == Exit.DONE


def is_gone(process: int) -> bool:
    """Whether a process has ended, its parent told or not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def start(dataset: Path, output: Path, processes: int = 2) -> subprocess.Popen[str]:
    arguments = [dataset, output, "participant", "--nprocs", processes, "--omp-nthreads", 1]
    return subprocess.Popen(
        [SLIMBRAIN, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_killed_worker_costs_nothing_but_time(simulated, tmp_path):
    """What it was at is done once more."""
    output = tmp_path / "out"
    with start(simulated, output) as process:
        os.kill(_wait_for_worker(process), signal.SIGKILL)
        table, errors = process.communicate(timeout=120)
    assert process.returncode == Exit.DONE, errors
    assert "a process was lost; once more" in errors
    assert table.count(" done ") == 2
    assert not [name for name in list_files(output) if ".slimbrain-" in name]


def test_killed_worker_ends_in_time(simulated, tmp_path):
    """Killed again and again, its runs are listed, and the next call does what is missing."""
    output = tmp_path / "out"
    with start(simulated, output) as process:
        while (worker := _find_worker(process)) or process.poll() is None:
            if worker:
                os.kill(worker, signal.SIGKILL)
            time.sleep(0.01)
        table, errors = process.communicate(timeout=120)
    assert process.returncode == Exit.DATA, errors
    assert table.count("worker-killed") == 2
    assert "killed twice, the second time alone" in errors
    assert not [name for name in list_files(output) if ".slimbrain-" in name]
    assert slimbrain(simulated, output, "participant", "--nprocs", 1).returncode == Exit.DONE


def test_workers_end_with_a_killed_call(simulated, tmp_path):
    with start(simulated, tmp_path / "out") as process:
        worker = _wait_for_worker(process)
        process.kill()
        process.communicate(timeout=30)  # Whoever is left would hold its output open.
    assert is_gone(worker)


def _wait_for_worker(process: subprocess.Popen[str]) -> int:
    """Return the id of a worker that is busy with a run."""
    while process.poll() is None:
        if worker := _find_worker(process):
            return worker
        time.sleep(0.01)
    raise AssertionError("no worker was seen at work")


def _wait_for_itself(process: subprocess.Popen[str]) -> int:
    """Return the id of the one process, once it is busy with a run."""
    while "igzip" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    return process.pid


def _find_worker(process: subprocess.Popen[str]) -> int | None:
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(child) for child in children if _is_at_work(Path("/proc") / child)), None)


def _is_at_work(child: Path) -> bool:
    try:
        is_worker = "spawn_main" in (child / "cmdline").read_text()
        return is_worker and "igzip" in (child / "maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False  # It has ended since it was listed.


def test_help_is_quick_because_it_loads_nothing_heavy():
    script = (
        "import sys\nfrom slimbrain_app.cli.app import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'nipype', 'nibabel', 'pandas', 'numpy', 'bids', 'rich', 'pydantic'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_no_socket_is_opened(one_person, tmp_path, monkeypatch):
    """Compute nodes have no network: nothing may look for news or templates there."""
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import socket\n"
        "def refuse(*_):\n    raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse\n"
        "socket.getaddrinfo = refuse\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = slimbrain(one_person, tmp_path / "out", "participant", "--nprocs", 1)
    assert result.returncode == Exit.DONE, result.stderr


def copy_run(source: Path, dataset: Path, label: str, task: str = "rest") -> Path:
    """Copy the one run of a person as another person's or task's; return the BOLD's path."""
    func = dataset / f"sub-{label}" / "func"
    func.mkdir(parents=True, exist_ok=True)
    for file in (source / "sub-01/func").iterdir():
        name = file.name.replace("sub-01", f"sub-{label}").replace("task-rest", f"task-{task}")
        shutil.copy(file, func / name)
    return (
        func / f"sub-{label}_task-{task}_run-01_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    )


def write_motion(bold: Path, dummies: int, displacement: list[float]) -> None:
    """Write a confounds table with nothing but motion and non-steady states."""
    table = bold.with_name(f"{bold.name.split('_space-')[0]}_desc-confounds_timeseries.tsv")
    columns = [f"non_steady_state_outlier{number:02}" for number in range(dummies)]
    rows = [
        "\t".join([moved, *(str(int(row == number)) for number in range(dummies))])
        for row, moved in enumerate(["n/a", *map(str, displacement[1:])])
    ]
    table.write_text("\n".join(["\t".join(["framewise_displacement", *columns]), *rows]) + "\n")


TR, DUMMIES = 2.0, 3
# Four of five volumes, and two that stand alone.
RESTLESS = [0.1 if volume % 5 == 0 else 2.0 for volume in range(40)]
JERKY = [2.0 if volume in (9, 30) else 0.1 for volume in range(40)]


@pytest.fixture(scope="session")
def mixed(simulated: Path, tmp_path_factory: pytest.TempPathFactory):
    """Runs that are done and runs that are refused, for two people; their output, and the call."""
    dataset = tmp_path_factory.mktemp("mixed") / "fmriprep"
    shutil.copytree(simulated, dataset)
    shutil.rmtree(dataset / "sub-01")
    shutil.rmtree(dataset / "sub-02")
    write_motion(copy_run(simulated, dataset, "01"), 0, RESTLESS)
    write_motion(copy_run(simulated, dataset, "02"), DUMMIES, JERKY)
    cut, bare, wrong = (copy_run(simulated, dataset, "02", task) for task in ("a", "b", "c"))
    cut.write_bytes(cut.read_bytes()[:-1000])
    os.utime(cut, (0, 0))
    bare.rename(bare.with_name(bare.name.replace("_space-MNI152NLin2009cAsym", "_space-Other")))
    write_motion(wrong, 0, RESTLESS[:-1])
    output = dataset.parent / "out"
    return dataset, output, slimbrain(dataset, output, "participant", "--nprocs", 1)


DONE = ("sub-01_task-rest_run-01", "sub-02_task-rest_run-01")


def read_states(output: Path) -> dict[str, tuple[str, str | None]]:
    people = json.loads((output / "logs/status.json").read_text())
    runs = [run for person in people for run in person["runs"]]
    assert len({run["run"] for run in runs}) == len(runs)
    return {run["run"]: (run["state"], run["reason"]) for run in runs}


def test_exit_code_and_status_agree(mixed):
    """Every run found is done, with its files, or listed with a reason, without any."""
    dataset, output, result = mixed
    laid = {path.name.split("_space-")[0] for path in dataset.rglob("*_desc-preproc_bold.nii.gz")}
    states = read_states(output)
    assert states == {
        **dict.fromkeys(DONE, ("done", None)),
        "sub-02_task-a_run-01": ("refused", "truncated"),
        "sub-02_task-b_run-01": ("refused", "no-space"),
        "sub-02_task-c_run-01": ("refused", "bad-confounds"),
    }
    assert states.keys() == laid
    assert result.returncode == Exit.DATA
    written = {path.name.split("_space-")[0] for path in output.glob("sub-*/func/*")}
    assert written == {run for run, (state, _) in states.items() if state == "done"}
    again = slimbrain(dataset, output, "participant", "--participant-label", "01", "--nprocs", 1)
    assert again.returncode == Exit.DONE
    assert slimbrain(dataset, output, "participant", "--dry-run").returncode == Exit.DATA


def denoise(dataset: Path) -> Path:
    """Make of derivatives what xcp_d makes of them; return the mask, which it would not write."""
    (bold,), (mask,) = dataset.rglob("*_desc-preproc_bold.nii.gz"), dataset.rglob("*_mask.nii.gz")
    image, brain = nibabel.load(bold), nibabel.load(mask).get_fdata() > 0
    values = image.get_fdata(dtype=np.float32)
    values = np.where(brain[..., None], values - values.mean(axis=-1, keepdims=True), 0)
    denoised = bold.with_name(bold.name.replace("preproc", "denoised"))
    nibabel.Nifti1Image(values, image.affine, image.header).to_filename(denoised)
    sidecar = bold.with_name(bold.name.replace(".nii.gz", ".json"))
    sidecar.rename(denoised.with_name(denoised.name.replace(".nii.gz", ".json")))
    (confounds,) = dataset.rglob("*_desc-confounds_timeseries.tsv")
    confounds.rename(confounds.with_name(f"{RUN}_motion.tsv"))
    bold.unlink()
    description = dataset / "dataset_description.json"
    makers = {"GeneratedBy": [{"Name": "xcp_d", "Version": "0.10.7"}]}
    description.write_text(json.dumps(json.loads(description.read_text()) | makers))
    return mask


def test_folder_of_xcp_d_gives_without_masks_what_it_gives_with_them(one_person, tmp_path):
    dataset = shutil.copytree(one_person, tmp_path / "xcp_d")
    mask = denoise(dataset)
    assert main([str(dataset), str(tmp_path / "with"), "participant", "--nprocs", "1"]) == 0
    mask.unlink()
    assert main([str(dataset), str(tmp_path / "without"), "participant", "--nprocs", "1"]) == 0
    assert read_numbers(tmp_path / "without") == read_numbers(tmp_path / "with")
    (sidecar,) = (tmp_path / "without").rglob("*_stat-mean_*.json")
    facts = json.loads(sidecar.read_text())
    assert {"denoised-source", "mask-from-series"} <= {one["code"] for one in facts["Warnings"]}
    assert not [source for source in facts["Sources"] if "mask" in source]


def test_run_of_outliers_ends_in_order(mixed):
    """Most of its volumes are above the threshold: that is said, and the others go on."""
    _, output, _ = mixed
    (sidecar,) = (output / "sub-01").rglob("*_windows.json")
    (warning,) = (
        warning
        for warning in json.loads(sidecar.read_text())["Warnings"]
        if warning["code"] == "guard-relaxed"
    )
    assert "% of their frames are above 0.5 mm" in warning["message"]
    assert warning["message"] in html.unescape((output / "sub-01.html").read_text())
    (other,) = (output / "sub-02").rglob("*_windows.json")
    assert "guard-relaxed" not in other.read_text()


def test_dummy_scans_and_motion_of_the_confounds_reach_the_windows(mixed):
    _, output, _ = mixed
    (table,) = (output / "sub-02").rglob("*_windows.tsv")
    header, *rows = (line.split("\t") for line in table.read_text().splitlines())
    windows = [dict(zip(header, row, strict=True)) for row in rows]
    assert float(windows[0]["onset"]) == DUMMIES * TR
    for window in windows:
        times = [float(window["onset"]) + frame * 0.72 for frame in range(40)]
        # A frame is as bad as the worse of the two volumes that it lies between.
        worst = [max(JERKY[int(time / TR)], JERKY[-int(-time // TR)]) for time in times]
        assert int(window["censored_frames"]) == sum(moved > 0.5 for moved in worst)
    assert {window["censored_frames"] == "0" for window in windows} == {True, False}


def test_every_source_uri_resolves(mixed):
    """By the links of the description, from wherever the output stands."""
    _, output, _ = mixed
    links = json.loads((output / "dataset_description.json").read_text())["DatasetLinks"]
    sidecars = list(output.glob("sub-*/func/*.json"))
    assert len(sidecars) > 4
    for sidecar in sidecars:
        sources = json.loads(sidecar.read_text())["Sources"]
        assert len(sources) == 4
        for source in sources:
            scheme, link, path = source.split(":", 2)
            assert scheme == "bids"
            assert (output / links[link] / path).is_file()


def test_resume_redoes_only_the_missing(mixed, tmp_path):
    """No work folder is needed, and what was only touched is told by its checksum."""
    folder = tmp_path / "mixed"
    shutil.copytree(mixed[0].parent, folder)
    output = folder / "out"
    (lost,) = (output / "sub-02").rglob("*_stat-mean_*_embeddings.json")
    lost.unlink()
    for path in (folder / "fmriprep/sub-01").rglob("*.nii.gz"):
        os.utime(path, (1e9, 1e9))
    kept = {path: path.stat().st_mtime_ns for path in (output / "sub-01/func").iterdir()}
    before = read_numbers(output)
    result = slimbrain(folder / "fmriprep", output, "participant", "--nprocs", 1)
    assert result.returncode == Exit.DATA, result.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert lost.is_file()
    assert read_numbers(output) == before
    earlier = {path.name for path in (mixed[1] / "logs").iterdir()}
    (log,) = (
        path for path in output.glob("logs/*/slimbrain.log") if path.parent.name not in earlier
    )
    ranked = [line.split()[-1] for line in log.read_text().splitlines() if " rank " in line]
    # Those that are refused are tried again, each time.
    assert set(ranked) & set(DONE) == {"sub-02_task-rest_run-01"}


def test_one_process_finishes(one_person, tmp_path, monkeypatch):
    """It starts no other one that it could wait for."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom multiprocessing.process import BaseProcess\n"
        "def refuse(*_):\n    raise SystemExit('a process was started')\n"
        "BaseProcess.start = os.fork = refuse\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = slimbrain(one_person, tmp_path / "out", "participant", "--nprocs", 1)
    assert result.returncode == Exit.DONE, result.stderr
    result = slimbrain(one_person, tmp_path / "two", "participant", "--nprocs", 2)
    assert "a process was started" in result.stderr


@pytest.mark.slow
def test_twenty_processes_share_one_output(simulated, tmp_path):
    """Two each for ten people, all at once: nothing is torn, and nobody is missing."""
    dataset, output = tmp_path / "fmriprep", tmp_path / "out"
    labels = [f"{number:02}" for number in range(10)]
    for label in labels:
        copy_run(simulated, dataset, label)
    shutil.copy(simulated / "dataset_description.json", dataset)
    command = [SLIMBRAIN, dataset, output, "participant", "--nprocs", 1, "--participant-label"]
    processes = [
        subprocess.Popen([*map(str, command), label], stdout=subprocess.DEVNULL)
        for label in labels * 2
    ]
    codes = [process.wait(timeout=600) for process in processes]
    assert set(codes) <= {Exit.DONE, Exit.TRY_AGAIN}
    assert all(Exit.DONE in pair for pair in zip(codes[:10], codes[10:], strict=True))
    assert not [name for name in list_files(output) if ".slimbrain-" in name]
    for path in output.rglob("*.json"):
        json.loads(path.read_text())
    assert slimbrain(*command[1:-1]).returncode == Exit.DONE
    assert read_states(output) == {
        f"sub-{label}_task-rest_run-01": ("done", None) for label in labels
    }
    means = [path.read_bytes() for path in output.rglob("*_stat-mean_*_embeddings.tsv")]
    assert len(means) == 10
    assert len(set(means)) == 1


def test_named_device_missing(one_person, tmp_path):
    """The likely cause is a container that was not handed the card: never a quiet fall-back."""
    output = tmp_path / "out"
    result = slimbrain(one_person, output, "participant", "--device", "cuda:9")
    assert result.returncode == Exit.UNAVAILABLE
    assert all(word in result.stderr for word in ("device-missing", "cuda:9", "--nv", "--gpus all"))
    assert not output.exists()


def test_version_tells_what_the_model_wants():
    """Four axes, one of time: which grid, which frames, how long."""
    told = slimbrain("--version").stdout
    assert all(
        word in told for word in ("MNI152NLin2009cAsym", "96", "2 mm", "40 frames", "0.72 s")
    )
