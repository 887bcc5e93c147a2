"""Fixtures for the model's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slimbrain_app.model.batches import MaskedView, find_places, measure_fill
from slimbrain_app.model.masking import draw_mask
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import build_table, gather_patches, keep_brain
from slimbrain_app.settings import Hide


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20251125)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Spare small networks the threads, which cost more than they bring, on a busy machine most."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small() -> EncoderSizes:
    """Two poolings of differing stride, unit and global attention, a last stage without pooling."""
    return EncoderSizes(
        shape=(8, 16, 16, 16),
        patch=(1, 2, 2, 2),
        width=8,
        heads=1,
        depths=(1, 2, 2, 1),
        strides=((2, 2, 2, 2), (1, 2, 2, 2)),
        mask_unit=(4, 4, 8, 8),
        unit_attention=(True, True, False, False),
        deletion="token",
    )


@pytest.fixture
def some(small: EncoderSizes, generator: torch.Generator) -> Tensor:
    """Half of the tokens, none in one unit, one in another."""
    kept = torch.rand(small.grid, generator=generator) < 0.5
    kept[:4, :4, :, :8] = False
    kept[:4, 4:, :, :8] = False
    kept[0, 4, 0, 0] = True
    return kept


@pytest.fixture(scope="session")
def template_brain() -> Tensor:
    """Brain voxels of the template on the model grid."""
    import numpy as np

    from slimbrain_app.prepare.grid import template_brain as read

    return torch.from_numpy(np.array(read()))


@pytest.fixture
def fine(small: EncoderSizes) -> EncoderSizes:
    """As ``small``, with more and smaller final cells: 4 times, 4 x 4 x 4 places."""
    return replace(small, strides=((2, 1, 1, 1), (1, 2, 2, 2)), mask_unit=(4, 4, 4, 8))


@pytest.fixture
def brain(generator: torch.Generator) -> Tensor:
    """Voxels of a ragged ball in 16 x 16 x 16, so that patches and cells are partly empty."""
    axis = torch.arange(16) - 7.5
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return distance + 2 * torch.rand(16, 16, 16, generator=generator) < 8


@pytest.fixture
def view_of(brain: Tensor, generator: torch.Generator) -> Callable[..., MaskedView]:
    """Make a masked view of given or random frames, its three kinds unequal."""

    def make(sizes: EncoderSizes, sample: int = 0, frames: Tensor | None = None) -> MaskedView:
        voxels = brain.flatten().nonzero()[:, 0]
        if frames is None:
            frames = torch.randn(sizes.shape[0], len(voxels), generator=generator)
        kept = keep_brain(brain, sizes)
        return MaskedView(
            patches=gather_patches(frames, voxels, build_table(kept, sizes)),
            kept=kept,
            fill=measure_fill(brain, sizes),
            mask=draw_mask(
                find_places(kept, sizes),
                sizes.final_grid[0],
                Hide(visible_times=0.75, visible_places=0.6),
                (0, 0, sample),
            ),
        )

    return make
