"""Before anything starts."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import torch

from slimbrain_app.model.packages import installed_packages

from .scenario import RUN, cut_short, provokes, raise_as


@provokes("usage")
def misspell_an_option(place):
    return place.print("participant", "--partcipant-label", "01")


@provokes("no-input")
def name_a_folder_that_is_not_there(place):
    shutil.rmtree(place.dataset)


@provokes("raw-dataset")
def give_the_raw_data(place):
    raw = place.folder / "raw"
    func = raw / "sub-01/func"
    func.mkdir(parents=True)
    (func / f"{RUN}_bold.nii.gz").write_bytes(b"")
    shutil.move(place.dataset, raw / "derivatives/fmriprep")
    return place.print_plainly(raw, place.output, "participant")


@provokes("no-participant")
def ask_for_a_label_without_its_zero(place):
    return place.embed("--participant-label", "1")


@provokes("no-bold")
def give_a_person_without_functional_files(place):
    shutil.rmtree(place.dataset / "sub-01/func")


@provokes("no-runs")
def ask_for_another_task(place):
    return place.embed("--task-id", "nback")


@provokes("same-folder")
def write_into_the_input(place):
    return place.print_plainly(place.dataset, place.dataset, "participant")


@provokes("work-in-input")
def work_in_the_input(place):
    return place.embed("--work-dir", place.dataset / "work")


@provokes("not-writable")
def write_where_one_may_not(place):
    refused = PermissionError(errno.EACCES, "Permission denied")
    place.patch.setattr(Path, "mkdir", raise_as(refused))


@provokes("device-missing")
def ask_for_a_gpu_where_none_is(place):
    place.patch.setattr(torch.cuda, "device_count", lambda: 0)
    place.patch.setattr("slimbrain_app.device.read_driver", lambda *_: None)
    return place.embed("--device", "cuda")


@provokes("package-missing")
def misspell_the_model(place):
    return place.embed("--model", "tinny")


@provokes("package-bad")
def damage_the_model(place):
    package = place.folder / "mine"
    shutil.copytree(installed_packages() / "tiny", package)
    cut_short(package / "model.safetensors", -1)
    return place.embed("--model", package)


@provokes("no-head")
def explain_what_is_not_predicted(place):
    config = place.write("mine.toml", "[output]\nattribution = true\n")
    return place.embed("--config", config)


@provokes("settings-bad")
def misspell_a_setting(place):
    config = place.write("mine.toml", "[rank]\nwindow = 8\n")
    return place.embed("--config", config)
