"""SlimBrain as the suite has its models: a transform of samples, and a module over batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slimbrain_app.api.notices import warn_of_runs
from slimbrain_app.brainmarks.samples import WINDOWS, read_sample
from slimbrain_app.brainmarks.space import NAME, find_way, read_suite_mask
from slimbrain_app.embedding import BATCHES, single_threads
from slimbrain_app.model.packages import Package, load_encoder
from slimbrain_app.model.tokens import TokenTable, build_table, gather_patches, keep_brain

if TYPE_CHECKING:
    from collections.abc import Sequence

Embedded = tuple[Tensor, Tensor, Tensor]
_USED = ("bold", "mean", "std", "tr")


class Transform:
    """Turn a sample into the windows that the participant level would encode.

    A sample has ``bold`` (volumes, voxels), normalised, with ``mean`` and ``std`` (1, voxels) and
    ``tr`` (s). What it becomes has ``windows`` (windows, channels, frames, voxels), ``present``
    (windows,) and ``voxels`` (voxels,) instead, and whatever else it had. Where a sample has fewer
    windows than there is room for, the others are zeros and not present.

    Warns
    -----
    SlimBrainWarning
        ``template-assumed``, when it is made, where TemplateFlow's transform is not at hand; of
        samples ``mirrored``, and what the participant level warns of.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._mask = read_suite_mask()
        self._way, notice = find_way()
        if notice is not None:
            warn_of_runs([(package.name, notice)])

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        values = sample["bold"].float() * sample["std"] + sample["mean"]
        # The suite keeps it in float32.
        tr = round(float(sample["tr"]), 6)
        read = read_sample(values.numpy(), tr, self._mask, self._way, self._package)
        warn_of_runs(("sample", notice) for notice in read.notices)
        count = len(read.frames)
        windows = np.zeros((WINDOWS, *read.frames.shape[1:]), np.float32)
        windows[:count] = read.frames
        kept = {key: value for key, value in sample.items() if key not in _USED}
        return {
            **kept,
            "windows": torch.from_numpy(windows),
            "present": torch.arange(WINDOWS) < count,
            "voxels": torch.from_numpy(read.voxels),
        }


class Wrapper(nn.Module):
    """The encoder over a batch of samples as `Transform` leaves them.

    Three representations come out:

    ``cls`` (batch, 1, width)
        The run's embedding, the one that the participant level writes: the mean over its windows.
    ``reg`` (batch, windows, width)
        The windows' embeddings, best first: each is a summary beside the patches, as registers are.
    ``patch`` (batch, windows x cells, width)
        The final cells of all windows, each normed: what is left of places and times, for heads
        that attend.

    A window that a short run doesn't have gets the mean of those that it has, so that means over
    windows are what they would be without it.

    The suite's mixed precision is switched off within: a number here is that number anywhere.
    """

    __space__ = NAME

    def __init__(self, package: Package) -> None:
        super().__init__()
        self.encoder = load_encoder(package)
        self._name = package.name

    def extra_repr(self) -> str:
        return f"'{self._name}', '{self.__space__}'"

    def forward(self, batch: dict[str, Tensor]) -> Embedded:
        windows, kind = batch["windows"], batch["windows"].device.type
        with torch.autocast(kind, enabled=False):
            samples = [
                self._embed(frames[present], voxels, len(present))
                for frames, present, voxels in zip(
                    windows, batch["present"], batch["voxels"], strict=True
                )
            ]
        runs, rows, cells = (torch.stack(parts) for parts in zip(*samples, strict=True))
        return runs, rows, cells

    def _embed(self, frames: Tensor, voxels: Tensor, room: int) -> Embedded:
        """Embed the windows (windows, channels, frames, voxels) of one sample."""
        sizes, device = self.encoder.sizes, frames.device
        brain = torch.zeros(sizes.shape[1:], dtype=torch.bool)
        brain.view(-1)[voxels.cpu().long()] = True
        kept = keep_brain(brain, sizes)
        # Passes of the same shape as elsewhere, so that bits are the same.
        at_once = BATCHES[device.type]
        single = build_table(kept, sizes).to(device)
        table = build_table(kept.expand(at_once, *kept.shape), sizes).to(device)
        patches = [gather_patches(window, voxels, single) for window in frames]
        with single_threads():
            passes = [
                self._encode(patches[first : first + at_once], table)
                for first in range(0, len(patches), at_once)
            ]
        rows, cells = (torch.cat(parts) for parts in zip(*passes, strict=True))
        run = _average(rows)
        return run, _fill(rows, room), _fill(cells, room).flatten(0, 1)

    def _encode(self, patches: Sequence[Tensor], table: TokenTable) -> tuple[Tensor, Tensor]:
        """Return embeddings (windows, width) and normed cells (windows, cells, width)."""
        count, size = len(patches), len(table.lengths)
        padded = [*patches, *[patches[-1]] * (size - count)]
        cells = self.encoder.encode_cells(torch.cat(padded), table)
        rows = self.encoder.pool_cells(cells, table)
        normed = self.encoder.encoder_norm(cells).unflatten(0, (size, -1))
        return rows[:count], normed[:count]


def _average(rows: Tensor) -> Tensor:
    """Return the mean over the first axis, which stays, summed in its order and in float64."""
    exact = rows.cpu().double()  # Not every device knows float64.
    total = exact[:1]
    for row in exact[1:]:
        total = total + row
    return (total / len(exact)).to(rows)


def _fill(rows: Tensor, room: int) -> Tensor:
    """Make room for as many rows, those that are missing the mean of those that are there."""
    return torch.cat([rows, _average(rows).expand(room - len(rows), *rows.shape[1:])])
