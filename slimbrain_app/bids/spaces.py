"""The ladder: from which space a run is taken, and by which transforms it reaches the model's.

ITK's ``from-A_to-B`` resamples images of A onto B. As a function it takes points of B to points of
A, so it is the very file that a grid in B needs to sample data in A.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.bids.entities import Name
from slimbrain_app.bids.folders import File, Participant
from slimbrain_app.bids.headers import Header, read_header
from slimbrain_app.bids.runs import RunFiles
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.records import Contract

NATIVE = "boldref"
ANATOMIES = ("T1w", "T2w")
MODEL = Contract()

# What fMRIPrep's --output-spaces takes for the run's own space.
_NATIVE_WORDS = (NATIVE, "native", "func", "bold", "run", "sbref")
_WISH = re.compile(r"(?P<space>[A-Za-z0-9]+)(?::(?:res|cohort)-\w+)*")
# fMRIPrep 23.2 and later, nibabies and earlier, fMRIPrep 20.2 to 23.1.
_COREGISTRATIONS = (("boldref", "coreg"), ("boldref", None), ("scanner", None))


@dataclass(frozen=True, slots=True)
class Way:
    """How points of the model grid reach a space.

    ``transforms`` are in the order in which the points go through them.
    """

    space: str
    rung: int
    transforms: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """A space asked for, ``S[:res-R][:cohort-C]``."""

    space: str
    resolution: str | None
    cohort: str | None

    def fits(self, name: Name) -> bool:
        space = name.get("space") or NATIVE
        if (self.space in _NATIVE_WORDS) != (space in _NATIVE_WORDS):
            return False
        return (
            (self.space in _NATIVE_WORDS or self.space == space)
            and (self.cohort is None or self.cohort == name.get("cohort"))
            and (self.resolution is None or _same_resolution(self.resolution, name.get("res")))
        )


def parse_wish(text: str) -> Wish:
    """Take ``S[:res-R][:cohort-C]`` apart; ``anat`` means T1w, as in fMRIPrep.

    Raises
    ------
    CallRefused
        ``usage``: another form.
    """
    parts = _WISH.fullmatch(text)
    if parts is None:
        raise CallRefused(
            "usage",
            file="--space",
            expected="S[:res-R][:cohort-C], such as MNI152NLin6Asym:res-2",
            found=text,
            advice="name a space as it stands in the files' names, or leave the option out",
        )
    space = "T1w" if parts["space"] == "anat" else parts["space"]
    resolution, cohort = (re.search(rf":{key}-(\w+)", text) for key in ("res", "cohort"))
    return Wish(space, resolution and resolution[1], cohort and cohort[1])


def space_of(name: Name) -> str:
    """Return a file's space as names of transforms spell it, ``MNIInfant+1``."""
    space = name.get("space")
    if space is None or space in _NATIVE_WORDS:
        return NATIVE
    cohort = name.get("cohort")
    return space if cohort is None else f"{space}+{cohort}"


def choose_way(spaces: Iterable[str], run: RunFiles, participant: Participant) -> Way:
    """Climb the ladder: return the way of the first rung that holds.

    ===== ================================================================
    rung  source
    ===== ================================================================
    0     the model's space
    1     native, with coregistration and the person's warp to the template
    2     T1w or T2w, with that warp
    3     another template, by the person's own warps
    4     another MNI152 variant, by TemplateFlow's transform
    ===== ================================================================

    Raises
    ------
    RunRefused
        ``no-template`` where TemplateFlow's transform would help, since that needs no new run of
        fMRIPrep; else why the highest rung with data does not hold: ``transform-missing``,
        ``ambiguous`` or ``no-space``.
    """
    refusals = []
    for space in sorted(set(spaces), key=lambda space: (_rank(space), space)):
        try:
            return _find_way(space, run, participant)
        except RunRefused as refusal:
            refusals.append(refusal)
    raise next((one for one in refusals if one.reason == "no-template"), refusals[0])


def find_way_between(
    target: str, space: str, run: RunFiles, participant: Participant
) -> tuple[Path, ...] | None:
    """Return the person's own transforms that take points of one space to another, if they exist.

    They go by way of the anatomy. None lead away from the native space, since no warp starts there.
    """
    for anatomy in ANATOMIES:
        there = _find_part(anatomy, target, run, participant)
        back = _find_part(space, anatomy, run, participant)
        if there is not None and back is not None:
            return (*there, *back)
    return None


def choose_grid(files: Iterable[File], participant: Participant) -> tuple[File, Header]:
    """Choose one grid of a space: the model's own, else the nearest to its voxel size.

    Between two that are equally near, the finer. ``res-`` is only a label: sizes are the header's.
    Two files of the same grid are refused: ``ambiguous``.
    """
    files = list(files)
    for label in {file.name.get("res") for file in files}:
        claiming = [file.path for file in files if file.name.get("res") == label]
        only_one(claiming, "BOLD series on the same grid", participant)
    headers = [(file, read_header(file.path, participant.show(file.path))) for file in files]
    return min(headers, key=lambda pair: (not lies_on_model_grid(pair[1].affine), _off(pair[1])))


def lies_on_model_grid(affine: NDArray[np.float64]) -> bool:
    """Whether voxels fall on voxels of the model grid, flips and permutations included."""
    steps = affine[:3] / MODEL.voxel_size
    steps[:, 3] -= np.divide(MODEL.origin, MODEL.voxel_size)
    whole = np.abs(steps - np.round(steps)).max() < 1e-3
    return bool(whole and (np.abs(np.round(steps[:, :3])).sum(axis=0) == 1).all())


def choose_template_transform(space: str) -> Path | None:
    """Return TemplateFlow's transform from a template to the model's, if it is on this machine."""
    return find_template_file(f"from-{space}_mode-image_xfm.h5")


def refuse_template(shown: str, space: str) -> RunRefused:
    """Say that a file in another MNI152 space lacks TemplateFlow's way to the model's."""
    return RunRefused(
        "no-template",
        file=shown,
        expected=f"TemplateFlow's transform from {space} to {MODEL.space}",
        found="none in TEMPLATEFLOW_HOME",
        advice="set TEMPLATEFLOW_HOME to a folder that has it, or run fMRIPrep again with "
        f"--output-spaces {MODEL.space}:res-2",
    )


def find_template_file(ending: str, template: str = MODEL.space) -> Path | None:
    """Return TemplateFlow's file of a template with such an ending, if it is here.

    Only looked for by name: importing templateflow would lay out its folder and may reach for the
    network.
    """
    path = find_templates() / f"tpl-{template}" / f"tpl-{template}_{ending}"
    # Files of TemplateFlow's skeleton that were never fetched are empty.
    return path if path.is_file() and path.stat().st_size > 0 else None


def find_templates() -> Path:
    """Return where TemplateFlow's files are, if there are any."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("TEMPLATEFLOW_HOME") or user_cache_dir("templateflow"))


def _rank(space: str) -> int:
    if space == MODEL.space:
        return 0
    if space == NATIVE:
        return 1
    if space in ANATOMIES:
        return 2
    return 3 if space.startswith("MNI152") else 4


def _find_way(space: str, run: RunFiles, participant: Participant) -> Way:
    match _rank(space):
        case 0:
            return Way(space, 0, ())
        case 1:
            return _find_native_way(run, participant)
        case 2:
            warp = _require_warp(space, MODEL.space, run, participant)
            return Way(space, 2, (warp,))
        case _:
            return _find_template_way(space, run, participant)


def _find_native_way(run: RunFiles, participant: Participant) -> Way:
    for anatomy in ANATOMIES:
        coregistration = _find_coregistration(run, anatomy, participant)
        if coregistration is not None:
            warp = _require_warp(anatomy, MODEL.space, run, participant)
            return Way(NATIVE, 1, (warp, coregistration))
    name = "from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt"
    raise _missing(run, participant, name, "none beside the BOLD")


def _find_template_way(space: str, run: RunFiles, participant: Participant) -> Way:
    for anatomy in ANATOMIES:
        warp = _find_warp(anatomy, MODEL.space, run, participant)
        back = _find_warp(space, anatomy, run, participant)
        if warp is not None and back is not None:
            return Way(space, 3, (warp, back))
    if not space.startswith("MNI152"):
        found = f"{space}, without transforms that lead from it to {MODEL.space}"
        raise no_space(run, participant, found)
    transform = choose_template_transform(space)
    if transform is None:
        raise refuse_template(participant.show(run.bold[0].path), space)
    return Way(space, 4, (transform,))


def _find_part(
    origin: str, target: str, run: RunFiles, participant: Participant
) -> tuple[Path, ...] | None:
    """Return the file that takes points of the target to the origin; none where they are one."""
    if origin == target:
        return ()
    if origin == NATIVE:
        found = _find_coregistration(run, target, participant)
    else:
        found = _find_warp(origin, target, run, participant)
    return None if found is None else (found,)


def _find_coregistration(run: RunFiles, anatomy: str, participant: Participant) -> Path | None:
    for origin, desc in _COREGISTRATIONS:
        fitting = [
            file.path
            for file in run.files
            if _is_transform(file.name, origin, anatomy, ".txt") and file.name.get("desc") == desc
        ]
        if fitting:
            return only_one(fitting, "coregistration", participant)
    return None


def _require_warp(origin: str, target: str, run: RunFiles, participant: Participant) -> Path:
    warp = _find_warp(origin, target, run, participant)
    if warp is None:
        name = f"from-{origin}_to-{target}_mode-image_xfm.h5"
        raise _missing(run, participant, name, f"none below sub-{participant.label}")
    return warp


def _find_warp(origin: str, target: str, run: RunFiles, participant: Participant) -> Path | None:
    files = participant.find_anatomical(
        lambda name: _is_transform(name, origin, target, ".h5"), run.session
    )
    if len({file.path.parent for file in files}) > 1:
        found = "several in other sessions: " + ", ".join(
            participant.show(file.path) for file in files
        )
        name = f"from-{origin}_to-{target}_mode-image_xfm.h5"
        raise _missing(run, participant, f"{name} in the run's session or for all", found)
    paths = [file.path for file in files]
    return only_one(paths, f"transform from {origin} to {target}", participant) if paths else None


def no_space(run: RunFiles, participant: Participant, found: str) -> RunRefused:
    return RunRefused(
        "no-space",
        file=participant.show(run.bold[0].path),
        expected=f"a BOLD series in {MODEL.space}, or in a space with transforms to it",
        found=found,
        advice=f"run fMRIPrep again with --output-spaces {MODEL.space}:res-2",
    )


def only_one(paths: list[Path], role: str, participant: Participant) -> Path:
    """Return the one file of a role; refuse two: ``ambiguous``."""
    if len(paths) > 1:
        shown = [participant.show(path) for path in paths]
        raise RunRefused(
            "ambiguous",
            file=shown[0],
            expected=f"one {role} of the run",
            found=" and ".join(shown),
            advice="move all but one away, or name one with --space or --bids-filter-file",
        )
    return paths[0]


def _is_transform(name: Name, origin: str, target: str, extension: str) -> bool:
    return (
        name.suffix == "xfm"
        and name.extension == extension
        and (name.get("from"), name.get("to")) == (origin, target)
        and name.get("mode") in ("image", None)
    )


def _off(header: Header) -> tuple[float, float]:
    largest = round(max(header.edges), 3)
    return abs(largest - MODEL.voxel_size), largest


def _same_resolution(one: str, other: str | None) -> bool:
    if other is None or one == "native":
        return other is None and one == "native"
    return one.lstrip("0") == other.lstrip("0")


def _missing(run: RunFiles, participant: Participant, name: str, found: str) -> RunRefused:
    return RunRefused(
        "transform-missing",
        file=participant.show(run.bold[0].path),
        expected=f"*_{name}",
        found=found,
        advice="copy fMRIPrep's transforms to where it wrote them, or run it again with "
        f"--output-spaces {MODEL.space}:res-2",
    )
