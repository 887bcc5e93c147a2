"""Masks: exact shares, the form of what is hidden, and who may influence a draw."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.utils.data import DataLoader, Dataset

from slimbrain_app.errors import RunRefused
from slimbrain_app.model.masking import BACKGROUND, CONTEXT, draw_mask
from slimbrain_app.settings import Hide

WHOLE = torch.ones(6, 6, 6, dtype=torch.bool)
BRAINS = arrays.arrays(bool, arrays.array_shapes(min_dims=3, max_dims=3, max_side=6))
SHARES = st.floats(0.05, 0.95)


def split_labels(mask):
    """Return which times and which places are seen, read off the cells with brain."""
    brain = (mask.labels != BACKGROUND).any(0)
    cells = mask.labels[:, brain]
    return ~(cells % 2).bool().any(1), ~(cells >= 2).any(0)


def count_runs(hidden):
    return sum(key for key, _ in itertools.groupby(hidden.tolist()))


@given(BRAINS, st.integers(2, 12), SHARES, SHARES, st.integers(0, 2**32))
def test_both_shares_are_met_exactly(brain, times, share_of_times, share_of_places, seed):
    settings = Hide(visible_times=share_of_times, visible_places=share_of_places)
    places = int(brain.sum())
    wanted = round(times * share_of_times), round(places * share_of_places)
    assume(0 < wanted[0] < times and 0 < wanted[1] < places)
    mask = draw_mask(torch.from_numpy(brain), times, settings, (seed, 0, 0))
    seen_times, seen_places = split_labels(mask)
    assert (int(seen_times.sum()), int(seen_places.sum())) == wanted


@given(BRAINS, st.integers(2, 12), st.integers(0, 2**32))
def test_context_and_kinds_are_all_products_of_times_and_places_and_fill_the_brain(
    brain, times, seed
):
    assume(brain.sum() > 1)
    mask = draw_mask(torch.from_numpy(brain), times, Hide(), (seed, 0, 0))
    assert torch.equal(
        mask.labels == BACKGROUND, torch.from_numpy(~brain).expand(times, -1, -1, -1)
    )
    seen_times, seen_places = split_labels(mask)
    cells = mask.labels[:, torch.from_numpy(brain)]
    expected = (~seen_times[:, None]).long() + 2 * (~seen_places).long()
    assert torch.equal(cells, expected)
    assert set(cells.unique().tolist()) == {CONTEXT, 1, 2, 3}


@given(st.integers(0, 2**32), st.sampled_from([8, 64, 256, 2000]))
def test_targets_are_hidden_cells_of_each_kind_up_to_the_cap(seed, cap):
    mask = draw_mask(WHOLE, 10, Hide(targets=cap), (seed, 0, 0))
    labels = mask.labels.flatten()
    assert len(mask.targets.unique()) == len(mask.targets)
    for kind in (1, 2, 3):
        assert (labels[mask.targets] == kind).sum() == min(cap, int((labels == kind).sum()))
    assert not (labels[mask.targets] <= CONTEXT).any()


@given(st.integers(0, 2**32), st.integers(6, 250))
def test_targets_under_a_cap_are_spread_evenly_over_times(seed, cap):
    mask = draw_mask(WHOLE, 10, Hide(targets=cap), (seed, 0, 0))
    labels = mask.labels.flatten()[mask.targets]
    for kind in (1, 2, 3):
        times = mask.targets[labels == kind] // WHOLE.numel()
        counts = times.bincount(minlength=10)[(mask.labels == kind).flatten(1).any(1)]
        assert int(counts.max() - counts.min()) <= 1


def test_every_hidden_cell_has_the_same_chance_to_be_a_target():
    brain = torch.zeros(6, 6, 6, dtype=torch.bool)
    brain[:3, 0, 0] = True
    hits = torch.zeros(3)
    for seed in range(1500):
        mask = draw_mask(brain, 2, Hide(targets=1, visible_places=2 / 3), (seed, 0, 0))
        chosen = (mask.labels == 1).flatten().nonzero()[:, 0]
        target = mask.targets[mask.labels.flatten()[mask.targets] == 1]
        hits[:2] += (chosen == target).float()
    share = hits[0] / hits.sum()
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 1500)


@given(st.integers(2, 12), SHARES, st.integers(0, 2**32))
def test_hidden_times_are_one_run_or_two(times, share, seed):
    assume(0 < round(times * share) < times)
    mask = draw_mask(WHOLE, times, Hide(visible_times=share), (seed, 0, 0))
    assert count_runs(~split_labels(mask)[0]) in (1, 2)


def test_both_one_run_and_two_are_drawn_and_every_time_and_place_can_be_hidden_or_seen():
    masks = [draw_mask(WHOLE, 10, Hide(), (0, 0, sample)) for sample in range(200)]
    times, places = (
        torch.stack([part.flatten() for part in parts])
        for parts in zip(*map(split_labels, masks), strict=True)
    )
    assert {count_runs(~seen) for seen in times} == {1, 2}
    for seen in (times, places):
        assert seen.float().mean(0).min() > 0
        assert seen.float().mean(0).max() < 1


def test_hidden_places_lie_together(template_brain):
    brain = template_brain.reshape(6, 16, 6, 16, 6, 16).any(5).any(3).any(1)
    draw = np.random.default_rng(0)

    def count_neighbours(hidden):
        pairs = [hidden.narrow(axis, 1, 5) & hidden.narrow(axis, 0, 5) for axis in range(3)]
        return sum(int(pair.sum()) for pair in pairs)

    for sample in range(20):
        mask = draw_mask(brain, 10, Hide(), (0, 0, sample))
        hidden = (mask.labels >= 2).any(0)
        scattered = torch.zeros_like(hidden)
        scattered[brain] = torch.from_numpy(draw.permutation(hidden[brain].numpy()))
        assert count_neighbours(hidden) > 1.3 * count_neighbours(scattered)


class Masks(Dataset):
    """Masks as a loader's workers draw them."""

    def __len__(self):
        return 12

    def __getitem__(self, sample):
        mask = draw_mask(WHOLE, 10, Hide(targets=8), (7, 3, sample))
        return mask.labels, mask.targets


def test_masks_are_the_same_for_any_number_of_workers():
    alone, among_workers = (
        list(DataLoader(Masks(), batch_size=5, num_workers=workers)) for workers in (0, 2)
    )
    for one, other in zip(alone, among_workers, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_a_draw_neither_hangs_on_other_draws_nor_disturbs_them():
    torch.manual_seed(0)
    first = draw_mask(WHOLE, 10, Hide(), (1, 2, 3))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(draw_mask(WHOLE, 10, Hide(), (1, 2, 3)).labels, first.labels)


def test_seed_epoch_and_sample_each_change_the_mask():
    seeds = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3)]
    labels = [draw_mask(WHOLE, 10, Hide(), seed).labels for seed in seeds]
    for one, other in itertools.combinations(labels, 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize(("places", "times"), [(0, 10), (1, 10), (6, 1), (6, 0)])
def test_a_mask_too_small_for_all_kinds_is_refused_by_name(places, times):
    brain = torch.zeros(6, 6, 6, dtype=torch.bool)
    brain[2, 3, :places] = True
    with pytest.raises(RunRefused) as caught:
        draw_mask(brain, times, Hide(), (0, 0, 0), file="sub-01_mask.nii.gz")
    assert caught.value.reason == "low-coverage"
    assert caught.value.file == "sub-01_mask.nii.gz"
    assert f"{places} places at {times} times" in caught.value.found
