"""Fixtures for the model's tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slimbrain_app.model.presets import EncoderSizes


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20251125)


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
