"""A run was refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np

from .scenario import (
    MODEL,
    change_header,
    change_image,
    change_json,
    cut_short,
    keep_front,
    provokes,
)


@provokes("too-short")
def leave_nothing_after_the_dummies(place):
    return place.embed("--dummy-scans", 30)


@provokes("no-space")
def give_an_infant_template(place):
    place.rename(MODEL, "space-MNIInfant_cohort-1")


@provokes("minimal-level")
def leave_out_the_series(place):
    place.bold.unlink()
    place.sidecar.unlink()


@provokes("echo-only")
def give_single_echoes(place):
    for echo in (1, 2):
        shutil.copy(place.bold, place.find(f"echo-{echo}_desc-preproc_bold.nii.gz"))
    place.bold.unlink()


@provokes("no-mask")
def leave_out_the_mask(place):
    place.mask.unlink()


@provokes("mask-mismatch")
def give_the_mask_of_another_grid(place):
    image = nibabel.load(place.mask)
    nibabel.Nifti1Image(image.dataobj[:, :, 1:], image.affine).to_filename(place.mask)


@provokes("empty-mask")
def empty_the_mask(place):
    change_image(place.mask, lambda mask: 0 * mask)


@provokes("low-coverage")
def halve_the_mask(place):
    change_image(place.mask, lambda mask: keep_front(mask, 0.45))


@provokes("missing-content")
def leave_a_link_to_nowhere(place):
    place.bold.unlink()
    place.bold.symlink_to("../../.git/annex/objects/MD5E-s1--0.nii.gz")


@provokes("denied")
def close_the_file(place):
    whole = Path.open

    def refuse(path, *arguments, **options):
        if path == place.bold:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return whole(path, *arguments, **options)

    place.bold.chmod(0o600)
    place.patch.setattr(Path, "open", refuse)


@provokes("unreadable")
def give_a_page_of_the_web(place):
    place.bold.write_bytes(b"<html><body>Please log in</body></html>")


@provokes("truncated")
def cut_the_file_short(place):
    cut_short(place.bold, place.bold.stat().st_size // 2)
    os.utime(place.bold, (0, 0))


@provokes("not-4d")
def give_one_volume_without_time(place):
    change_image(place.bold, lambda series: series[..., 0])


@provokes("nan-volumes")
def lose_two_volumes(place):
    def lose(series):
        series[..., (7, 23)] = np.nan
        return series

    change_image(place.bold, lose)


@provokes("flat")
def repeat_one_volume(place):
    change_image(place.bold, lambda series: np.repeat(series[..., :1], series.shape[3], axis=3))


@provokes("no-geometry")
def take_the_form_codes(place):
    change_header(place.bold, sform_code=0, qform_code=0)


@provokes("bad-affine")
def move_one_of_the_forms(place):
    change_header(place.bold, sform_code=1, qform_code=1, qoffset_x=-90.5)


@provokes("no-tr")
def take_the_repetition_time(place):
    place.sidecar.write_text("{}")
    change_header(place.bold, pixdim=[1, 6, 6, 6, 0, 0, 0, 0])


@provokes("tr-conflict")
def say_another_repetition_time(place):
    return place.embed("--tr", 2.5)


@provokes("tr-range")
def write_milliseconds(place):
    change_json(place.sidecar, RepetitionTime=2000)


@provokes("irregular-timing")
def leave_gaps_between_volumes(place):
    place.sidecar.write_text(json.dumps({"VolumeTiming": [0, 2, 4, 9, 11]}))


@provokes("bad-sidecar")
def break_the_sidecar(place):
    place.sidecar.write_text('{"RepetitionTime": 2.0')


@provokes("bad-confounds")
def take_the_last_row_of_the_confounds(place):
    lines = place.confounds.read_text().splitlines()
    place.confounds.write_text("\n".join(lines[:-1]) + "\n")


@provokes("ambiguous")
def put_the_plain_file_beside_it(place):
    place.bold.with_suffix("").write_bytes(nibabel.load(place.bold).to_bytes())


@provokes("transform-missing")
def give_the_anatomy_s_space_only(place):
    place.rename(MODEL, "space-T1w")


@provokes("transform-bad")
def cut_the_warp_short(place):
    place.rename(MODEL, "space-T1w")
    warp = place.dataset / "sub-01/anat/sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5"
    warp.parent.mkdir()
    warp.write_bytes(b"")


@provokes("no-template")
def give_another_template(place):
    place.rename(MODEL, "space-MNI152NLin6Asym")
    place.patch.setenv("TEMPLATEFLOW_HOME", str(place.folder / "templateflow"))
