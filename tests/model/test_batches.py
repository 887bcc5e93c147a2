"""Batches: the right patches for the context, the right cells as targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from slimbrain_app.model.batches import (
    Targets,
    collate_views,
    find_places,
    measure_fill,
    spread_cells,
)
from slimbrain_app.model.masking import BACKGROUND, CONTEXT
from slimbrain_app.model.tokens import build_table, gather_patches, keep_brain


@pytest.fixture
def views(view_of, fine):
    return [view_of(fine, sample) for sample in range(3)]


def test_the_context_holds_the_patches_that_are_gathered_for_visible_cells_alone(
    view_of, fine, brain, generator
):
    voxels = brain.flatten().nonzero()[:, 0]
    frames = torch.randn(8, len(voxels), generator=generator)
    view = view_of(fine, frames=frames)
    batch = collate_views([view], fine)
    visible = torch.zeros(fine.grid, dtype=torch.bool)
    for t, x, y, z in (view.mask.labels == CONTEXT).nonzero().tolist():
        visible[2 * t : 2 * t + 2, 2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2] = True
    expected = gather_patches(frames, voxels, build_table(visible & view.kept, fine))
    assert torch.equal(batch.patches[batch.seen], expected)


def test_context_targets_and_background_are_disjoint(views, fine):
    batch = collate_views(views, fine)
    final = batch.context.levels[-1]
    for number, view in enumerate(views):
        labels = view.mask.labels.flatten()
        context = final.cells[final.views == number]
        assert torch.equal(context.sort()[0], (labels == CONTEXT).nonzero()[:, 0])
        of_view = batch.targets.views == number
        cells = batch.targets.cells[of_view]
        assert torch.equal(cells.sort()[0], (labels > CONTEXT).nonzero()[:, 0])
        assert torch.equal(batch.targets.kinds[of_view], labels[cells] - 1)


def test_rows_find_the_targets_among_all_final_cells(views, fine):
    batch = collate_views(views, fine)
    final = batch.whole.levels[-1]
    assert torch.equal(final.cells[batch.targets.rows], batch.targets.cells)
    assert torch.equal(final.views[batch.targets.rows], batch.targets.views)


def test_context_and_targets_cover_the_whole_brain(views, fine):
    whole = collate_views(views, fine).whole.levels[-1]
    labels = torch.stack([view.mask.labels.flatten() for view in views])
    assert len(whole.cells) == int((labels != BACKGROUND).sum())


def test_a_mask_of_another_brain_is_refused(views, fine):
    hole = views[0].kept.clone()
    hole[:, 4:6, 4:6, 4:6] = False
    holed = replace(views[0], kept=hole, patches=views[0].patches[: int(hole.sum())])
    with pytest.raises(ValueError, match="no token"):
        collate_views([holed], fine)


def test_places_are_cells_with_any_brain(brain, small):
    places = find_places(keep_brain(brain, small), small)
    assert torch.equal(places, brain.reshape(2, 8, 2, 8, 2, 8).any(5).any(3).any(1))


def test_fill_is_the_share_of_brain_voxels(brain, small):
    fill = measure_fill(brain, small)
    for x, y, z in torch.cartesian_prod(*(torch.arange(8),) * 3)[::17].tolist():
        block = brain[2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
        assert float(fill[x, y, z]) == int(block.sum()) / 8


def test_every_token_gets_what_its_cell_has(small):
    cells = torch.arange(4 * 2 * 2 * 2).reshape(1, 4, 2, 2, 2)
    tokens = spread_cells(cells, small)[0]
    assert tuple(tokens.shape) == small.grid
    for t, x, y, z in [(0, 0, 0, 0), (1, 3, 4, 7), (7, 4, 3, 0)]:
        assert tokens[t, x, y, z] == cells[0, t // 2, x // 4, y // 4, z // 4]


def test_errors_are_averaged_by_view_and_kind(generator):
    views, kinds = (torch.randint(high, (60,), generator=generator) for high in (2, 3))
    errors = torch.rand(60, generator=generator)
    nothing = torch.zeros(60, dtype=torch.int64)
    averages = Targets(nothing, nothing, views, kinds).average(errors, 2)
    for view in range(2):
        for kind in range(3):
            some = [
                e for e, v, k in zip(errors, views, kinds, strict=True) if (v, k) == (view, kind)
            ]
            assert_close(averages[view, kind], sum(some) / len(some))


def test_a_batch_goes_to_a_device_as_a_whole(views, fine):
    batch = collate_views(views, fine).to("meta")
    tensors = (batch.patches, batch.fill, batch.seen, batch.whole.tokens, batch.context.tokens)
    assert all(tensor.is_meta for tensor in (*tensors, batch.targets.rows, batch.layout.cells))
