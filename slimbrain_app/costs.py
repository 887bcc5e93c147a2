"""What a run costs, as measured on runs of fMRIPrep's grids: to foresee others by, roughly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Peaks in GB: a few volumes, the store in blocks, one window's activations, their gradients.
MEMORY_GB: Mapping[str, float] = {
    "prepare": 1.0,
    "rank": 1.0,
    "encode": 2.0,
    "explain": 3.0,
    "write": 0.8,
}
# Of outputs, the share of report and folders included: 0.6 MB and 18 files were measured.
RUN_BYTES, RUN_FILES = 1_000_000, 20
# The template's brain, a byte for each voxel: 272 MiB for 1,200 volumes.
VOLUME_BYTES = 237_473
# While a run is prepared its values lie beside it in float32.
WHILE_MADE = 5

# Processor seconds: of a run's figures and files; of its transforms; of each volume; of each view
# and million weights, and how many times that a gradient costs, of which sixteen are taken or more.
_RUN, _WARP, _VOLUME, _VIEW, _GRADIENTS = 1.5, 1.0, 0.009, 0.26, 2.5 * 16


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one processor; GB of memory; bytes that stay, and bytes while at work."""

    seconds: float
    memory_gb: float
    kept_bytes: int
    work_bytes: int


def foresee(
    *, volumes: int, warped: bool, views: int, weights: int, explained: int, saved: bool
) -> Cost:
    """Return what a run will cost on a CPU.

    Parameters
    ----------
    volumes : int
    warped : bool
        Whether it reaches the model grid through transforms.
    views : int
    weights : int
        Of the encoder.
    explained : int
        Outputs of heads that are to be explained.
    saved : bool
        Whether the prepared run is kept.
    """
    view = _VIEW * weights / 1e6
    seconds = _RUN + _WARP * warped + _VOLUME * volumes
    seconds += views * view * (1 + _GRADIENTS * explained)
    prepared = volumes * VOLUME_BYTES
    verbs = (verb for verb in MEMORY_GB if verb != "explain" or explained)
    return Cost(
        seconds=seconds,
        memory_gb=max(MEMORY_GB[verb] for verb in verbs),
        kept_bytes=RUN_BYTES + prepared * saved,
        work_bytes=prepared * WHILE_MADE,
    )


def tell_size(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
