"""Which tokens exist, their order, and their patches."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimbrain_app.model.presets import PRESETS, divide
from slimbrain_app.model.tokens import build_table, gather_patches, keep_brain, reroll, unroll

LEVELS = [(name, level) for name, sizes in PRESETS.items() for level in range(len(sizes.cells))]
# Counts with the template's brain: cubes of 4, 8 and 16 voxels that hold any of it.
BRAIN_CUBES = {4: 4_523, 8: 714, 16: 130}


def everything(sizes):
    return torch.ones(sizes.grid, dtype=torch.bool)


def coordinates(table, level):
    grid = divide(table.sizes.grid, table.sizes.cells[level])
    places = torch.unravel_index(table.levels[level].cells, grid)
    return torch.stack([table.levels[level].views, *places], dim=1)


def masked(preset, brain, generator):
    """Three views of a preset in which 30 % of the final brain cells are kept."""
    sizes = PRESETS[preset]
    kept = torch.rand(3, *sizes.final_grid, generator=generator) < 0.3
    for axis, size in enumerate(sizes.cells[-1]):
        kept = kept.repeat_interleave(size, axis + 1)
    return build_table(kept & keep_brain(brain, replace(sizes, deletion="token")), sizes)


@pytest.mark.parametrize(("preset", "level"), LEVELS)
def test_reroll_undoes_unroll(preset, level):
    sizes = PRESETS[preset]
    table = build_table(everything(sizes), sizes)
    count = math.prod(divide(sizes.grid, sizes.cells[level]))
    grid = torch.arange(count, dtype=torch.float32)[:, None]
    placed = reroll(grid[unroll(sizes, level)], table, level)
    assert torch.equal(placed.flatten(), grid.flatten())


def test_reroll_puts_zeros_where_nothing_exists(small, some):
    table = build_table(torch.stack([some, ~some]), small)
    placed = reroll(torch.ones(len(table.tokens), 1), table, 0)
    assert torch.equal(placed[..., 0], torch.stack([some, ~some]).float())


@pytest.mark.parametrize("preset", PRESETS)
def test_children_of_a_cell_are_neighbours_in_its_order(preset, template_brain, generator):
    table = masked(preset, template_brain, generator)
    for level, stride in enumerate(table.sizes.strides, start=1):
        children = coordinates(table, level - 1) // torch.tensor((1, *stride))
        parents = coordinates(table, level)
        assert torch.equal(children, parents.repeat_interleave(table.levels[level].children, 0))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_mask_unit_is_one_run_of_neighbours(preset, template_brain, generator):
    table = masked(preset, template_brain, generator)
    for level, cell in enumerate(table.sizes.cells):
        unit = torch.tensor((1, *divide(table.sizes.mask_unit, cell)))
        runs, lengths = torch.unique_consecutive(
            coordinates(table, level) // unit, dim=0, return_counts=True
        )
        assert len(runs) == len(torch.unique(runs, dim=0))
        assert torch.equal(lengths, table.levels[level].per_unit)


@given(seed=st.integers(0, 2**31), share=st.floats(0.01, 1))
@settings(max_examples=25)
def test_the_table_lists_exactly_what_is_kept(seed, share):
    sizes = replace(PRESETS["tiny"], shape=(8, 64, 32, 32))
    kept = torch.rand(2, *sizes.grid, generator=torch.Generator().manual_seed(seed)) < share
    kept[:, 0, 0, 0, 0] = True
    table = build_table(kept, sizes)
    listed = torch.zeros_like(kept)
    listed.flatten(1)[table.levels[0].views, table.tokens] = True
    assert len(table.tokens) == kept.sum()
    assert torch.equal(listed, kept)
    assert table.lengths == tuple(table.levels[-1].per_view.tolist())


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_padding_stays_below_15_percent(preset, template_brain, generator):
    brain = build_table(keep_brain(template_brain, PRESETS[preset]), PRESETS[preset])
    assert brain.padding < 0.15
    assert masked(preset, template_brain, generator).padding < 0.15


@pytest.mark.parametrize("edge", BRAIN_CUBES)
def test_tokens_with_brain_are_kept_at_every_time(edge, template_brain):
    sizes = replace(
        PRESETS["tiny"], patch=(4, edge, edge, edge), mask_unit=(2, 2, 2, 2), deletion="token"
    )
    kept = keep_brain(template_brain, sizes)
    assert kept.shape == sizes.grid
    assert torch.equal(kept.sum((1, 2, 3)), torch.full((10,), BRAIN_CUBES[edge]))


def test_deletion_by_unit_keeps_whole_units_and_none_keeps_all():
    sizes = replace(PRESETS["official"], shape=(8, 96, 32, 32))
    mask = torch.zeros(sizes.shape[1:], dtype=torch.bool)
    mask[40, 3, 31] = True
    kept = keep_brain(mask, sizes)
    assert kept[:, 8:16].all()
    assert kept.sum() == 8**4
    assert keep_brain(mask, replace(sizes, deletion="none")).all()
    assert keep_brain(mask, replace(sizes, deletion="token")).sum() == 8


@pytest.mark.parametrize("kept", [torch.ones(2, 2, 2, 2), torch.zeros(10, 12, 12, 12)])
def test_a_table_of_another_grid_or_without_tokens_is_refused(kept):
    with pytest.raises(ValueError, match="token"):
        build_table(kept.bool(), PRESETS["tiny"])


@pytest.mark.parametrize("channels", [1, 2])
def test_patches_equal_slices_of_the_dense_grid(small, some, generator, channels):
    sizes = replace(small, patch=(2, 4, 2, 4), mask_unit=(4, 4, 8, 4), channels=channels)
    kept = some[::2, ::2, :, ::2]
    table = build_table(kept, sizes)
    mask = torch.rand(sizes.shape[1:], generator=generator) < 0.7
    voxels = mask.flatten().nonzero()[:, 0]
    frames = torch.randn(channels, sizes.shape[0], len(voxels), generator=generator)
    dense = torch.zeros(channels, *sizes.shape)
    dense.flatten(2)[:, :, voxels] = frames

    patches = gather_patches(frames, voxels.int(), table)

    for row, place in zip(patches, coordinates(table, 0)[:, 1:].tolist(), strict=True):
        cut = [
            slice(at * size, (at + 1) * size) for at, size in zip(place, sizes.patch, strict=True)
        ]
        assert torch.equal(row, dense[(slice(None), *cut)].flatten())


def test_a_single_channel_needs_no_axis_of_its_own(small, some, generator):
    table = build_table(some, small)
    frames = torch.randn(small.shape[0], 100, generator=generator)
    voxels = torch.arange(100)
    assert torch.equal(
        gather_patches(frames, voxels, table), gather_patches(frames[None], voxels, table)
    )


def test_voxels_of_deleted_tokens_are_not_read(small, some, generator):
    table = build_table(some, small)
    voxels = torch.arange(math.prod(small.shape[1:]))
    frames = torch.randn(small.shape[0], len(voxels), generator=generator)
    deleted = some
    for axis, size in enumerate(small.patch):
        deleted = deleted.repeat_interleave(size, axis)
    spoilt = frames.masked_fill(~deleted.reshape(frames.shape), math.nan)
    assert torch.equal(gather_patches(spoilt, voxels, table), gather_patches(frames, voxels, table))


def test_views_lie_one_after_another(small, some):
    table = build_table(torch.stack([some, ~some]), small)
    alone = [build_table(kept, small) for kept in (some, ~some)]
    for level, first, second in zip(table.levels, *(one.levels for one in alone), strict=True):
        assert torch.equal(level.cells, torch.cat([first.cells, second.cells]))
    assert table.lengths == tuple(itertools.chain(*(one.lengths for one in alone)))
