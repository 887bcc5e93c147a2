"""What is given to be embedded -> a run with all its files, those that it lacks made for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from slimbrain_app.bids.discover import check_dataset, discover_participant
from slimbrain_app.bids.entities import VARIANT, Name, parse_name
from slimbrain_app.bids.headers import read_header, require_content, require_series
from slimbrain_app.bids.metadata import (
    Origin,
    first_timing,
    own_sidecar,
    resolve_repetition_time,
)
from slimbrain_app.bids.spaces import (
    MODEL,
    NATIVE,
    choose_template_transform,
    refuse_template,
    space_of,
)
from slimbrain_app.errors import CallRefused, RunRefused, SlimBrainError
from slimbrain_app.files import sha256_of
from slimbrain_app.prepare.grid import model_grid
from slimbrain_app.prepare.reading import open_series
from slimbrain_app.records import Run
from slimbrain_app.settings import Prepare, Select


@dataclass(frozen=True, slots=True)
class Item:
    """An image to embed: its run, and the folder where its mask is to be made, if it has none."""

    run: Run
    work: Path
    lacks_mask: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What is stated of images that don't say it themselves, or in place of what they say.

    Attributes
    ----------
    mask : str, Path, nibabel image or ndarray, optional
    confounds : str, Path or pandas.DataFrame, optional
    space : str, optional
        Of images that don't lie in a folder of derivatives.
    affine : ndarray, shape (4, 4), optional
        Of arrays: mm, RAS+, of the voxels' indices. The model grid's if None.
    """

    mask: Any = None
    confounds: Any = None
    space: str | None = None
    affine: Any = None


@contextmanager
def named(label: str) -> Iterator[None]:
    """Have refusals name the item they are about: their own paths may be short, or of its parts."""
    try:
        yield
    except SlimBrainError as error:
        file = error.file or label
        raise type(error)(
            error.reason,
            file=label if label.endswith(file) else f"{label}, {file}",
            expected=error.expected,
            found=error.found,
            advice=error.advice,
        ) from error


def find_item(given: Any, label: str, settings: Prepare, beside: Beside, work: Path) -> Item:
    """Find the run of what is given, or make one of it; new files go to ``work``.

    Parameters
    ----------
    given : str, Path, nibabel image, ndarray or Run
    label : str
        What messages call it.

    Raises
    ------
    CallRefused
        ``usage`` for what is no image; what `check_dataset` refuses.
    RunRefused
        As of the participant level.
    """
    item = _find_run(given, label, settings, beside, work)
    run = item.run
    if beside.confounds is not None:
        run = replace(run, confounds=_settle_table(beside.confounds, work / "confounds.tsv"))
    if beside.mask is None:
        return replace(item, run=run)
    mask = _settle_mask(beside, work / "mask.nii")
    return Item(replace(run, mask=mask, mask_transforms=()), work)


def make_mask(run: Run) -> None:
    """Write the brain mask of a lone image, made of its mean over time."""
    from nilearn.masking import compute_epi_mask

    with open_series(run.bold, run.relative(run.bold)) as series:
        header = series.header
        total = np.zeros(header.grid.shape[::-1])
        for batch in series.batches(0, [header.make_buffer()]):
            total += batch.sum(axis=0, dtype=np.float64)
    mean = (total / header.volumes * header.slope + header.inter).T
    image = nibabel.Nifti1Image(mean.astype(np.float32), header.grid.affine)
    compute_epi_mask(image).to_filename(run.mask)


def _find_run(given: Any, label: str, settings: Prepare, beside: Beside, work: Path) -> Item:
    if isinstance(given, Run):
        return Item(given, work)
    if isinstance(given, str | os.PathLike):
        return _find_file(Path(given).absolute(), label, settings, beside, work)
    image = _as_image(given, label, beside.affine)
    path = _save_image(image, work / f"{label}.nii")
    # Named by content: what is drawn for it must not hang on its place among others.
    return _describe_lone(path, sha256_of(path), settings, beside.space or MODEL.space, work)


def _find_file(path: Path, label: str, settings: Prepare, beside: Beside, work: Path) -> Item:
    require_content(path, label)
    name = parse_name(path.name)
    dataset = _find_dataset(path, name) if name else None
    if name and dataset:
        return Item(_discover_run(path, name, dataset, settings), work)
    stated = space_of(name) if name and name.get("sub") else MODEL.space
    space = beside.space or stated
    return _describe_lone(path, path.name.split(".")[0], settings, space, work)


def _as_image(given: Any, label: str, affine: Any) -> SpatialImage:
    """Return what is held in memory as an image."""
    if isinstance(given, SpatialImage):
        return given
    if isinstance(given, np.ndarray):
        return _place_array(given, label, affine)
    raise CallRefused(
        "usage",
        file=label,
        expected="the path of a 4D NIfTI image, a nibabel image, an array or a Run",
        found=type(given).__name__,
        advice="give one of them for each run",
    )


def _place_array(values: NDArray[Any], label: str, affine: Any) -> nibabel.Nifti1Image:
    """Return an array (x, y, z, ...) as an image, which lies on the model grid if nobody says."""
    grid = model_grid()
    if affine is None and values.shape[:3] != grid.shape:
        raise CallRefused(
            "usage",
            file=label,
            expected=f"an affine, or an array on the model grid, {grid.shape}",
            found=f"an array of shape {values.shape} without one",
            advice="give affine, or a nibabel image",
        )
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise CallRefused(
            "usage",
            file=label,
            expected="real numbers of 64 bits or fewer",
            found=str(values.dtype),
            advice="convert the array, to float32 say",
        )
    # NIfTI has no half precision and no booleans.
    kind = {"float16": "float32", "bool": "uint8"}.get(values.dtype.name, values.dtype.name)
    where = grid.affine if affine is None else np.asarray(affine, float)
    return nibabel.Nifti1Image(values.astype(kind, copy=False), where, dtype=kind)


def _find_dataset(path: Path, name: Name) -> Path | None:
    """Return the folder of derivatives that a file lies in, if it lies where its name says."""
    above = [f"{key}-{value}" for key, value in name.entities if key in ("sub", "ses")]
    folders = (*above, "func")
    if name.get("sub") is None or path.parts[-len(folders) - 1 : -1] != folders:
        return None
    return path.parents[len(folders)]


def _discover_run(path: Path, name: Name, dataset: Path, settings: Prepare) -> Run:
    """Find the run of a file as the participant level does, asked for the file's own space."""
    notices = check_dataset(dataset)
    label, identity = name.get("sub") or "", "_".join("-".join(p) for p in name.without(VARIANT))
    grid = "".join(f":{key}-{name.get(key)}" for key in ("res", "cohort") if name.get(key))
    wish = replace(settings, space=f"{name.get('space') or NATIVE}{grid}")
    sessions, tasks, runs = (tuple(filter(None, [name.get(k)])) for k in ("ses", "task", "run"))
    select = Select(sessions=sessions, tasks=tasks, runs=runs)
    found = discover_participant(dataset, label, select, wish)
    for run in found.runs:
        if run.bold == path:
            return replace(run, notices=(*notices, *run.notices))
    for refusal in found.refused:
        if refusal.run in (identity, f"sub-{label}"):
            raise RunRefused(
                refusal.code,
                file=refusal.file,
                expected=refusal.expected,
                found=refusal.found,
                advice=refusal.advice,
            )
    raise RunRefused(
        "ambiguous",
        file=path.name,
        expected="the series that the participant level takes of this run and space",
        found="another one than " + (", ".join(run.bold.name for run in found.runs) or "any"),
        advice="give that one",
    )


def _describe_lone(path: Path, identity: str, settings: Prepare, space: str, work: Path) -> Item:
    """Make a run of an image that comes without the files that fMRIPrep lays beside it."""
    header = read_header(path)
    require_series(header, path.name)
    own = own_sidecar(path)
    listed: list[tuple[Origin, Path]] = [("sidecar", own)] if own.is_file() else []
    stated, sidecars = first_timing(listed, path.parent)
    if settings.tr is None and stated is None:
        _require_timing(header.time_step, header.time_unit, path.name)
    tr, notices = resolve_repetition_time(settings.tr, stated, header, path.name)
    transforms = _lead_from(space, path.name)
    run = Run(
        entities=(("sub", identity),),
        dataset=path.parent,
        bold=path,
        mask=work / "made_mask.nii",
        confounds=None,
        sidecars=sidecars,
        transforms=transforms,
        space=space,
        rung=4 if transforms else 0,
        interpolations=2,
        repetition_time=tr,
        notices=notices,
    )
    return Item(run, work, lacks_mask=True)


def _lead_from(space: str, shown: str) -> tuple[Path, ...]:
    """Return the transforms by which points of the model grid reach a template's space."""
    if space == MODEL.space:
        return ()
    transform = choose_template_transform(space) if space.startswith("MNI152") else None
    if transform is not None:
        return (transform,)
    if space.startswith("MNI152"):
        raise refuse_template(shown, space)
    raise RunRefused(
        "no-space",
        file=shown,
        expected=f"an image in {MODEL.space} or another MNI152 space, if it doesn't lie in "
        "sub-*/func of derivatives",
        found=f"one in the space {space}",
        advice="give the file where fMRIPrep wrote it",
    )


def _require_timing(step: float, unit: str, shown: str) -> None:
    if (step, unit) == (1.0, "unknown"):
        raise RunRefused(
            "no-tr",
            file=shown,
            expected="a repetition time in the header",
            found="pixdim[4] = 1 with unit unknown, as nibabel leaves it in a new header",
            advice="state tr, or set zooms and units of the header",
        )


def _settle_table(given: Any, path: Path) -> Path:
    """Return the path of a confounds table, which is written there if it is held in memory."""
    if isinstance(given, str | os.PathLike):
        return Path(given).absolute()
    if not hasattr(given, "to_csv"):
        raise CallRefused(
            "usage",
            file="confounds",
            expected="the path of a table, or a pandas.DataFrame",
            found=type(given).__name__,
            advice="give the table that fMRIPrep wrote",
        )
    given.to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


def _settle_mask(beside: Beside, path: Path) -> Path:
    """Return the path of a mask, which is written there if it is held in memory."""
    if isinstance(beside.mask, str | os.PathLike):
        return Path(beside.mask).absolute()
    return _save_image(_as_image(beside.mask, "mask", beside.affine), path)


def _save_image(image: SpatialImage, path: Path) -> Path:
    """Write an image without loss: in the type of its values, which may not be its header's."""
    values = np.asanyarray(image.dataobj)
    nibabel.Nifti1Image(values, image.affine, image.header, dtype=values.dtype).to_filename(path)
    return path
