"""The suite's space ``mni``: the template's brain voxels in MNI152NLin6Asym at 2 mm, in a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.bids.spaces import choose_template_transform, find_template_file
from slimbrain_app.errors import CallRefused
from slimbrain_app.prepare.grid import Grid
from slimbrain_app.prepare.reading import read_mask
from slimbrain_app.records import Contract, Notice

NAME = "mni"
TEMPLATE = "MNI152NLin6Asym"
VOXELS = 228_483

_MASK = "res-02_desc-brain_mask.nii.gz"


def suite_grid() -> Grid:
    """Return the grid of the suite, which is that of fMRIPrep's and TemplateFlow's ``res-2``."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-90, -126, -72)
    return Grid((91, 109, 91), affine)


def read_suite_mask() -> NDArray[np.bool_]:
    """Return the template's brain on the suite's grid, shape (z, y, x).

    A row of a sample has its voxels in C order.

    Raises
    ------
    CallRefused
        ``template-missing`` if TemplateFlow's mask is not on this machine, or is another.
    """
    path = find_template_file(_MASK, TEMPLATE)
    if path is None:
        raise _no_mask("none in TEMPLATEFLOW_HOME")
    mask, grid = read_mask(path, path.name)
    suite = suite_grid()
    found = f"shape {' x '.join(map(str, mask.shape))}, {np.count_nonzero(mask):,} voxels"
    if grid.shape != suite.shape or np.abs(grid.affine - suite.affine).max() > 1e-3:
        raise _no_mask(f"another grid: {found}")
    if np.count_nonzero(mask) != VOXELS:
        raise _no_mask(found)
    return mask.T


def find_way() -> tuple[tuple[Path, ...], Notice | None]:
    """Return the transforms from the model grid to the suite's space, and what to say of it.

    Where TemplateFlow's transform is not at hand, there is none: the two templates are taken for
    one.
    """
    transform = choose_template_transform(TEMPLATE)
    if transform is not None:
        return (transform,), None
    message = (
        f"TemplateFlow's transform from {TEMPLATE} to {Contract().space} is not in "
        "TEMPLATEFLOW_HOME: the two are taken for one, which puts a place 2 mm off in the median "
        "of the brain, and 4.7 mm or more in a twentieth of it"
    )
    return (), Notice(code="template-assumed", message=message)


def _no_mask(found: str) -> CallRefused:
    return CallRefused(
        "template-missing",
        file=f"tpl-{TEMPLATE}_{_MASK}",
        expected=f"TemplateFlow's brain mask of {VOXELS:,} voxels, the suite's {NAME} space",
        found=found,
        advice='fetch it once: python -c "from templateflow.api import get; '
        f"get('{TEMPLATE}', desc='brain', resolution=2, suffix='mask')\"",
    )
