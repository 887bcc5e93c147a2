"""What goes with a BOLD file: its brain mask and its confounds table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slimbrain_app.bids.entities import Name
from slimbrain_app.bids.folders import VOLUMES, File, Participant
from slimbrain_app.bids.headers import (
    SHIFT,
    Header,
    describe_grid,
    read_header,
    require_content,
    same_grid,
)
from slimbrain_app.bids.runs import RunFiles
from slimbrain_app.bids.series import is_denoised
from slimbrain_app.bids.spaces import ANATOMIES, NATIVE, find_way_between, only_one, space_of
from slimbrain_app.errors import RunRefused
from slimbrain_app.records import Notice


@dataclass(frozen=True, slots=True)
class Mask:
    """A brain mask, and the transforms that take points of the BOLD's space to the mask's."""

    path: Path
    transforms: tuple[Path, ...] = ()
    notices: tuple[Notice, ...] = ()


def choose_mask(bold: File, header: Header, run: RunFiles, participant: Participant) -> Mask:
    """Choose the person's own brain mask for a BOLD file.

    In this order: of the same grid; of another resolution of the same space; of another space, by
    the person's own transforms; what is not zero in a series that xcp_d has denoised, and masked;
    the anatomical one in the BOLD's space. All but the first come with a notice. A template's mask
    never stands in for a person's.

    Raises
    ------
    RunRefused
        ``no-mask``, ``ambiguous``; ``mask-mismatch`` where the mask that by its name is of the same
        grid is not.
    """
    masks = [file for file in run.files if _is_brain_mask(file.name)]
    in_space = [mask for mask in masks if space_of(mask.name) == space_of(bold.name)]
    same = [mask.path for mask in in_space if mask.name.get("res") == bold.name.get("res")]
    if same:
        path = only_one(same, "brain mask", participant)
        require_same_grid(path, participant.show(path), bold.path.name, header)
        return Mask(path)
    if in_space:
        return _take_over(in_space[0].path, (), bold, participant)
    for mask in sorted(masks, key=_distance):
        transforms = find_way_between(space_of(bold.name), space_of(mask.name), run, participant)
        if transforms is not None:
            return _take_over(mask.path, transforms, bold, participant)
    if is_denoised(bold):
        return _take_series(bold, participant)
    anatomical = participant.find_anatomical(lambda name: _fits_space(name, bold), run.session)
    if not anatomical:
        raise _no_mask(bold, masks, participant)
    path = only_one([mask.path for mask in anatomical], "brain mask", participant)
    return _take_over(path, (), bold, participant)


def choose_confounds(run: RunFiles, participant: Participant) -> Path | None:
    """Choose the confounds table of a run, by any name it ever had; None if there is none.

    xcp_d's table of motion stands in where there is no other.

    Raises
    ------
    RunRefused
        ``ambiguous`` where there are two.
    """
    for tables in (_list_confounds(run), _list_motion(run, None), _list_motion(run, "filtered")):
        if tables:
            table = only_one(tables, "confounds table", participant)
            require_content(table, participant.show(table))
            return table
    return None


def require_same_grid(mask: Path, shown: str, bold: str, header: Header) -> None:
    """Refuse a mask that doesn't lie voxel by voxel on a BOLD series: ``mask-mismatch``."""
    other = read_header(mask, shown)
    if not same_grid(header, other):
        raise RunRefused(
            "mask-mismatch",
            file=shown,
            expected=f"the grid of {bold}: {describe_grid(header)}, within {SHIFT:g} mm",
            found=describe_grid(other),
            advice="check that both files come from the same run of fMRIPrep",
        )


def _is_brain_mask(name: Name) -> bool:
    return (
        name.suffix == "mask"
        and name.get("desc") == "brain"
        and name.extension in VOLUMES
        and name.get("echo") is None
        and name.get("part") != "phase"
    )


def _fits_space(name: Name, bold: File) -> bool:
    """Whether an anatomical mask lies in the BOLD's space; the anatomy's own goes without one."""
    space = bold.name.get("space")
    own = space in ANATOMIES and name.get("space") is None
    return _is_brain_mask(name) and space is not None and (own or space_of(name) == space)


def _list_confounds(run: RunFiles) -> list[Path]:
    return [
        file.path
        for file in run.files
        if file.name.suffix in ("timeseries", "regressors")
        and file.name.get("desc") == "confounds"
        and _is_table(file.name)
    ]


def _list_motion(run: RunFiles, desc: str | None) -> list[Path]:
    return [
        file.path
        for file in run.files
        if file.name.suffix == "motion" and file.name.get("desc") == desc and _is_table(file.name)
    ]


def _is_table(name: Name) -> bool:
    return name.extension == ".tsv" and name.get("echo") is None and name.get("part") != "phase"


def _take_over(
    mask: Path, transforms: tuple[Path, ...], bold: File, participant: Participant
) -> Mask:
    """Take a mask that lies elsewhere, with a notice."""
    for path in (mask, *transforms):
        require_content(path, participant.show(path))
    message = f"the brain mask of {bold.path.name} comes from another grid"
    if transforms:
        message += f", by {' and '.join(path.name for path in transforms)}"
    notice = Notice(code="mask-other-grid", message=message, file=participant.show(mask))
    return Mask(mask, transforms, (notice,))


def _take_series(bold: File, participant: Participant) -> Mask:
    """Take a series for its own mask: xcp_d writes none, but zeros where its mask was not."""
    message = "no brain mask beside the series: the brain is where it is not zero"
    notice = Notice(code="mask-from-series", message=message, file=participant.show(bold.path))
    return Mask(bold.path, (), (notice,))


def _distance(mask: File) -> int:
    """Rank masks by how often they were resampled: native, anatomy, template."""
    space = space_of(mask.name)
    return (NATIVE, *ANATOMIES, space).index(space)


def _no_mask(bold: File, masks: list[File], participant: Participant) -> RunRefused:
    spaces = sorted({space_of(mask.name) for mask in masks})
    return RunRefused(
        "no-mask",
        file=participant.show(bold.path),
        expected=f"a brain mask in the space of the BOLD series, {space_of(bold.name)}, "
        "or with transforms to it",
        found=f"masks in {', '.join(spaces)} only" if spaces else "none",
        advice="copy the file *_desc-brain_mask.nii.gz beside the BOLD series, or make it again",
    )
