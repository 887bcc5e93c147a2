"""Reading odd warnings."""

from __future__ import annotations

import json
import shutil

from slimbrain_app import files
from slimbrain_app.model.packages import (
    create_package,
    load_encoder,
    load_package,
    load_readout,
    save_package,
)

from .breaks import shrink_the_gpu
from .scenario import MODEL, change_header, change_image, keep_front, provokes


@provokes("known-fault")
def take_a_release_with_a_fault(place):
    place.say_maker("fMRIPrep", "25.1.3")
    return place.embed("--dry-run")


@provokes("no-description")
def leave_out_the_description(place):
    (place.dataset / "dataset_description.json").unlink()
    return place.embed("--dry-run")


@provokes("caution")
def take_the_shipped_model(place):
    return place.embed("--dry-run")


@provokes("Model mine")
def take_a_model_that_has_learnt_nothing(place):
    create_package(place.folder / "mine", "tiny", seed=0)
    return place.embed("--dry-run", "--model", place.folder / "mine")


@provokes("no-confounds", "unguarded", "tr-from-header", "several-spellings")
def leave_out_confounds_and_sidecar_beside_another_spelling(place):
    place.confounds.unlink()
    place.sidecar.unlink()
    for ending in ("desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz"):
        path = place.find(f"{MODEL}_{ending}")
        shutil.copy(path, path.with_name(path.name.replace("run-01", "run-1")))
    return place.report()


@provokes("guard-relaxed", "low-coverage 2", "mask-other-grid", "constant-voxels", "tr-disagrees")
def move_with_a_mask_that_is_too_small_and_still_voxels(place):
    moving = ["0.1"] * 20 + ["0.8"] * 19
    place.confounds.write_text("\n".join(["framewise_displacement", "n/a", *moving]) + "\n")
    change_image(place.mask, lambda mask: keep_front(mask, 0.65))
    place.mask.rename(place.find(f"{MODEL}_res-3_desc-brain_mask.nii.gz"))
    change_image(place.bold, still)
    change_header(place.bold, pixdim=[1, 6, 6, 6, 1, 0, 0, 0])
    return place.report("--windows", 4)


def still(series):
    series[15:18, 15:18, 15:18] = 9_000
    return series


@provokes("moved-to-cpu")
def leave_the_device_to_slimbrain(place):
    shrink_the_gpu(place)
    return place.report("--device", "auto")


@provokes("confounds-unreadable", "several-grids", "denoised-source", "mask-from-series")
def give_a_series_of_xcp_d_in_two_resolutions(place):
    place.say_maker("xcp_d", "0.10.7")
    place.rename("desc-preproc", "desc-denoised")
    place.mask.unlink()
    bold = place.find(f"{MODEL}_desc-denoised_bold.nii.gz")
    shutil.copy(bold, place.find(f"{MODEL}_res-3_desc-denoised_bold.nii.gz"))
    text = place.confounds.read_text()
    place.confounds.write_text(text.replace("framewise_displacement", "fd"))
    return place.report()


@provokes("not-ranked", "no-covariance", "seen-in-training")
def cut_a_run_to_one_window_that_the_model_has_seen(place):
    tiny = load_package("tiny")
    seen = json.dumps({"sha256": [files.sha256_of(place.bold)]})
    save_package(
        place.folder / "mine",
        tiny.config,
        load_encoder(tiny),
        readout=load_readout(tiny),
        card="# mine",
        records={"seen.json": seen},
    )
    return place.report("--model", place.folder / "mine", "--dummy-scans", 24)
