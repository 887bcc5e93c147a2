"""Each check of the doctor, made to find something in fact."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slimbrain_app.bids.discover import list_participants
from slimbrain_app.cluster import doctor
from slimbrain_app.cluster.doctor import Demand, examine
from slimbrain_app.cluster.mounts import Mount
from slimbrain_app.files import TEMPORARY
from slimbrain_app.model.packages import create_package, installed_packages
from slimbrain_app.workflow.resources import list_memory, list_processors

NOBODY = 65534


@pytest.fixture
def dataset(simulated: Path, tmp_path: Path) -> Path:
    """Derivatives of two people that a test may damage."""
    return shutil.copytree(simulated, tmp_path / "fmriprep")


@contextmanager
def small_disk(folder: Path, options: str = "rw") -> Iterator[Path]:
    """Mount a file system in memory of 1 MiB and 20 files, where this process may."""
    folder.mkdir()
    options = f"size=1m,nr_inodes=20,{options}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only the administrator of a machine can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that this process may not write, nor enter its ``within``; even as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "within").mkdir(mode=0)
        folder.chmod(0o555)
        become(NOBODY)
        try:
            yield folder
        finally:
            become(0)
            folder.chmod(0o755)


def become(user: int) -> None:
    """Go on as another user, as only root can, and as root again."""
    if os.getresuid()[2] == 0:
        os.setresuid(user, user, 0)


def bold_of(dataset: Path, label: str) -> Path:
    return next((dataset / f"sub-{label}").glob("**/*_desc-preproc_bold.nii.gz"))


def drop_content(file: Path) -> None:
    file.unlink()
    file.symlink_to("../../.git/annex/objects/X/key")


def check(look, *arguments, **named):
    return examine(lambda: look(*arguments, **named))


# Input


def test_derivatives_are_well_and_their_maker_is_named(dataset):
    finding = check(doctor.check_input, dataset)
    assert finding.state == "well"
    assert "2 participants, made by SlimBrain simulator" in finding.found


def test_a_missing_input_fails(tmp_path):
    finding = check(doctor.check_input, tmp_path / "nowhere")
    assert (finding.state, finding.exit_code) == ("fails", 66)


def test_raw_data_fail(dataset):
    (dataset / "dataset_description.json").write_text('{"Name": "x", "DatasetType": "raw"}')
    finding = check(doctor.check_input, dataset)
    assert (finding.state, finding.exit_code) == ("fails", 66)


def test_an_unknown_maker_is_to_be_minded(dataset):
    (dataset / "dataset_description.json").unlink()
    assert check(doctor.check_input, dataset).state == "mind"


def test_a_read_only_mount_is_said_and_fine(simulated, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        shutil.copy(simulated / "dataset_description.json", disk)
        (disk / "sub-01").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        finding = check(doctor.check_input, disk)
    assert finding.state == "well"
    assert finding.found.endswith("tmpfs, read-only")


def test_the_first_participant_is_well(dataset):
    finding = check(doctor.check_first, dataset)
    assert finding.state == "well"
    assert "1 of 1 run can be used, from MNI152NLin2009cAsym" in finding.found


def test_only_the_first_participant_is_looked_at(dataset, monkeypatch):
    bold_of(dataset, "02").write_bytes(b"no image")
    seen = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(Path(path)) or scandir(path))
    assert check(doctor.check_first, dataset).state == "well"
    assert doctor.measure_demand(dataset) == Demand(participants=2, runs=1, volumes=40)
    assert not [path for path in seen if "sub-02" in path.parts]


def test_links_without_content_fail_as_missing_input(dataset):
    drop_content(bold_of(dataset, "01"))
    finding = check(doctor.check_first, dataset)
    assert (finding.state, finding.exit_code) == ("fails", 66)
    assert "missing-content" in finding.found
    assert "datalad get" in finding.advice


def test_confounds_that_may_not_be_read_are_to_be_minded(simulated, closed):
    dataset = closed / "fmriprep"
    become(0)
    closed.chmod(0o755)
    shutil.copytree(simulated, dataset)
    confounds = next((dataset / "sub-01").glob("**/*_desc-confounds_timeseries.tsv"))
    confounds.chmod(0)
    become(NOBODY)
    finding = check(doctor.check_first, dataset)
    assert finding.state == "mind"
    assert f"{confounds.name} may not be read" in finding.found


def test_runs_that_are_all_refused_fail_with_the_code_of_their_data(dataset):
    bold_of(dataset, "01").write_bytes(b"no image")
    finding = check(doctor.check_first, dataset)
    assert (finding.state, finding.exit_code) == ("fails", 65)


def test_one_refused_run_among_others_is_to_be_minded(dataset):
    bold = bold_of(dataset, "01")
    bold.with_name(bold.name.replace("task-rest", "task-other")).write_bytes(b"no image")
    assert check(doctor.check_first, dataset).state == "mind"


def test_a_first_participant_without_series_is_to_be_minded(dataset):
    (dataset / "sub-00" / "anat").mkdir(parents=True)
    assert check(doctor.check_first, dataset).state == "mind"


def test_no_participant_at_all_fails(dataset):
    for label in list_participants(dataset):
        shutil.rmtree(dataset / f"sub-{label}")
    finding = check(doctor.check_first, dataset)
    assert (finding.state, finding.exit_code) == ("fails", 66)
    assert doctor.measure_demand(dataset) == Demand()


# Output


def test_writing_leaves_nothing_not_even_the_folder(tmp_path):
    for look in (doctor.check_output, doctor.check_locks):
        assert check(look, tmp_path / "new" / "out").state == "well"
        assert check(look, tmp_path).state == "well"
    assert list(tmp_path.iterdir()) == []


def test_writing_takes_place_in_the_folder_that_is_to_be_written(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    places = []
    mkdir = Path.mkdir

    def watch(path, *arguments, **named):
        places.append(path)
        mkdir(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", watch)
    check(doctor.check_output, tmp_path / "out")
    assert places
    assert {place.parent for place in places} == {tmp_path / "out"}
    assert all(place.name.startswith(TEMPORARY) for place in places)


@pytest.mark.parametrize("name", ["out", "within/out"])
def test_an_output_without_permission_fails(closed, name):
    for look in (doctor.check_output, doctor.check_locks):
        finding = check(look, closed / name)
        assert (finding.state, finding.exit_code) == ("fails", 73)
        assert finding.found == f"{closed / name}: expected to write here; found Permission denied"


def test_a_file_in_place_of_the_output_fails(tmp_path):
    (tmp_path / "out").touch()
    for folder in (tmp_path / "out", tmp_path / "out" / "below"):
        finding = check(doctor.check_output, folder)
        assert (finding.state, finding.exit_code) == ("fails", 73)


def test_a_read_only_output_fails(tmp_path):
    with small_disk(tmp_path / "disk", "ro") as disk:
        finding = check(doctor.check_output, disk / "out")
    assert (finding.state, finding.exit_code) == ("fails", 73)


def test_the_dataset_of_another_tool_as_output_fails(dataset):
    finding = check(doctor.check_output, dataset)
    assert (finding.state, finding.exit_code) == ("fails", 64)


def test_a_lock_that_keeps_nobody_off_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    finding = check(doctor.check_locks, tmp_path)
    assert (finding.state, finding.exit_code) == ("fails", 73)


def test_a_file_system_without_locks_is_to_be_minded(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    finding = check(doctor.check_locks, tmp_path)
    assert (finding.state, finding.exit_code) == ("mind", 0)
    assert "the file system has none; a folder with a heart-beat keeps others off" in finding.found
    assert list(tmp_path.iterdir()) == []


def test_locks_of_one_node_only_are_to_be_minded(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_mount", lambda _: Mount("lustre", {"localflock"}))
    finding = check(doctor.check_locks, tmp_path)
    assert finding.state == "mind"
    assert "localflock" in finding.found


def test_room_for_the_runs_is_well_and_a_lack_fails(tmp_path):
    assert check(doctor.check_space, tmp_path / "new", Demand()).state == "well"
    finding = check(doctor.check_space, tmp_path, Demand(participants=10**9))
    assert (finding.state, finding.exit_code) == ("fails", 73)


def test_a_lack_of_files_alone_fails(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        finding = check(doctor.check_space, disk, Demand(volumes=0))
        assert (finding.state, finding.exit_code) == ("fails", 73)
        subprocess.run(["mount", "-o", "remount,nr_inodes=99", str(disk)], check=True)
        assert check(doctor.check_space, disk, Demand(volumes=0)).state == "well"


def test_a_lack_of_room_for_prepared_runs_is_to_be_minded(tmp_path):
    with small_disk(tmp_path / "disk", "nr_inodes=99") as disk:
        finding = check(doctor.check_space, disk, Demand())
    assert finding.state == "mind"
    assert "285 MB" in finding.found  # 272 MiB


# Work folder


def test_a_work_folder_on_disk_with_room_is_well(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_mount", lambda _: Mount("ext4"))
    assert check(doctor.check_work, tmp_path, Demand(volumes=40), 2).state == "well"
    assert list(tmp_path.iterdir()) == []


def test_a_work_folder_in_memory_is_to_be_minded(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        finding = check(doctor.check_work, disk, Demand(volumes=0), 2)
    assert finding.state == "mind"
    assert "it is memory" in finding.found


def test_a_work_folder_without_room_for_one_run_fails(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        finding = check(doctor.check_work, disk, Demand(), 1)
    assert (finding.state, finding.exit_code) == ("fails", 73)


def test_a_work_folder_without_room_for_all_at_once_is_to_be_minded(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_mount", lambda _: Mount("ext4"))
    finding = check(doctor.check_work, tmp_path, Demand(volumes=1), 10**9)
    assert finding.state == "mind"


def test_a_work_folder_without_permission_fails(closed):
    finding = check(doctor.check_work, closed / "work", Demand(), 1)
    assert (finding.state, finding.exit_code) == ("fails", 73)


def test_no_temporary_folder_fails(monkeypatch):
    def refuse():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    finding = check(doctor.find_work, None)
    assert (finding.state, finding.exit_code) == ("fails", 73)


# Limits


def test_every_limit_is_told_with_its_origin_the_narrowest_first(tmp_path):
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    limits = {**list_processors({"SLURM_CPUS_PER_TASK": "2"}, tmp_path), "affinity": 8, "host": 8}
    finding = check(doctor.check_processors, limits, 1)
    told = "1 by cgroup v2, 2 by SLURM_CPUS_PER_TASK, 8 by host; 1 thread in a step"
    assert (finding.state, finding.found) == ("well", told)


def test_memory_below_one_step_is_to_be_minded(tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1500000000\n")
    finding = check(doctor.check_memory, list_memory({}, tmp_path), 2.0, 4)
    assert finding.state == "mind"
    assert finding.found.startswith("1.5 GB by cgroup v1, ")


def test_memory_says_how_many_runs_go_at_once():
    limits = {"host": 64.0, "cgroup v1": 9.2e9, "cgroup v2": 7.0}
    finding = check(doctor.check_memory, limits, 2.0, 4)
    assert finding.state == "well"
    assert finding.found == (
        "7.0 GB by cgroup v2, 64.0 GB by host; a step takes up to 2 GB: 3 at once, of 4 by "
        "processors"
    )


# Device

VERSION = """\
NVRM version: NVIDIA UNIX {}  {}  Mon Jan  1 00:00:00 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
KINDS = ("x86_64 Kernel Module", "Open Kernel Module for x86_64", "aarch64 Kernel Module")


@pytest.fixture
def no_card(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def install_driver(folder: Path, version: str, kind: str = KINDS[0]) -> Path:
    file = folder / "version"
    file.write_text(VERSION.format(kind, version))
    return file


def test_a_processor_computes_as_it_should(no_card, tmp_path):
    finding = check(doctor.check_device, "auto", tmp_path / "none")
    assert finding.state == "well"
    assert finding.found.startswith("cpu computes as it should; torch ")


def test_a_device_that_is_not_there_fails(no_card, tmp_path):
    finding = check(doctor.check_device, "cuda:1", tmp_path / "none")
    assert (finding.state, finding.exit_code) == ("fails", 69)
    assert "apptainer" in finding.advice


def test_a_device_of_no_kind_fails_as_usage(tmp_path):
    assert check(doctor.check_device, "gpu", tmp_path / "none").exit_code == 64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "state"), [("auto", "mind"), ("cuda", "fails"), ("cpu", "well")])
def test_a_card_beside_a_torch_for_processors_is_said(no_card, tmp_path, name, state, kind):
    import torch

    no_card.setattr(torch.version, "cuda", None)
    finding = check(doctor.check_device, name, install_driver(tmp_path, "535.104.05", kind))
    assert finding.state == state
    if state == "well":
        assert "driver 535.104.05" in finding.found
    else:
        assert "a driver for cards, but a torch for CPUs" in finding.found


def test_a_driver_too_old_for_the_build_is_said_with_both_numbers(no_card, tmp_path):
    import torch

    no_card.setattr(torch.version, "cuda", "12.8")
    finding = check(doctor.check_device, "cuda", install_driver(tmp_path, "470.82.01"))
    assert (finding.state, finding.exit_code) == ("fails", 69)
    assert "driver 470.82.01 is too old for CUDA 12.8, which needs 525 or newer" in finding.found


def test_a_card_that_does_not_answer_is_to_be_minded(no_card, tmp_path):
    import torch

    no_card.setattr(torch.version, "cuda", "12.4")
    finding = check(doctor.check_device, "auto", install_driver(tmp_path, "550.54.15"))
    assert finding.state == "mind"
    assert "no card answers" in finding.found
    assert "--nv" in finding.advice


def test_a_device_that_computes_wrongly_fails(no_card, tmp_path):
    import torch

    real = torch.Tensor.to
    # Half the numbers, as a device without sound memory may give them.
    no_card.setattr(torch.Tensor, "to", lambda *arguments: real(*arguments) * 0.5)
    finding = check(doctor.check_device, "cpu", tmp_path / "none")
    assert (finding.state, finding.exit_code) == ("fails", 69)
    assert "computes wrongly" in finding.found


# Model, templates, home


def test_the_shipped_package_is_whole_and_its_caution_is_said():
    finding = check(doctor.check_model, "tiny", None)
    assert finding.state == "mind"
    assert "trained, whole; 40 frames of 0.72 s, voxel channel" in finding.found
    assert "not for findings" in finding.advice


def test_an_untrained_package_of_the_output_is_to_be_minded(tmp_path):
    create_package(tmp_path / "models" / "mine", "tiny", 0)
    finding = check(doctor.check_model, "mine", tmp_path)
    assert finding.state == "mind"
    assert "untrained" in finding.found


def test_a_package_with_one_other_byte_fails(tmp_path):
    shutil.copytree(installed_packages() / "tiny", tmp_path / "tiny")
    weights = tmp_path / "tiny" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    finding = check(doctor.check_model, str(tmp_path / "tiny"), None)
    assert (finding.state, finding.exit_code) == ("fails", 78)
    assert "model.safetensors" in finding.found


def test_a_package_that_is_not_there_fails():
    assert check(doctor.check_model, "nothing", None).exit_code == 78


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy of the templates that ship."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file in doctor.DATA.glob("*.np?"):
        shutil.copy(file, folder)
    return folder


def test_every_template_that_ships_is_checked(data):
    assert {file.name for file in data.iterdir()} == set(doctor.SHIPPED)
    assert check(doctor.check_templates, data).state == "well"


@pytest.mark.parametrize("name", doctor.SHIPPED)
def test_a_template_with_one_other_byte_or_none_fails(data, name):
    content = bytearray((data / name).read_bytes())
    content[len(content) // 2] ^= 1
    (data / name).write_bytes(content)
    for _ in range(2):
        finding = check(doctor.check_templates, data)
        assert (finding.state, finding.exit_code) == ("fails", 69)
        assert name in finding.found
        (data / name).unlink(missing_ok=True)


def test_a_transform_of_templateflow_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    assert "there is not TemplateFlow's" in check(doctor.check_templates).found
    name = "tpl-MNI152NLin2009cAsym/tpl-MNI152NLin2009cAsym_from-MNI152NLin6Asym_mode-image_xfm.h5"
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"content")
    assert "there is TemplateFlow's" in check(doctor.check_templates).found


def test_what_nobody_foresaw_is_a_finding_too():
    def fall():
        raise ZeroDivisionError("by nothing")

    finding = examine(fall)
    assert (finding.state, finding.exit_code) == ("fails", 70)
    assert finding.found == "ZeroDivisionError: by nothing"
