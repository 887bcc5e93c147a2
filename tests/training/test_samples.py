"""Which windows are read, when, and by whom."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.records import PreparedRun, Recording
from slimbrain_app.training.corpus import Item
from slimbrain_app.training.samples import cut_steps, draw_pass, share_step


def item_of(starts):
    prepared = PreparedRun(
        folder=Path("nowhere"),
        volumes=300,
        voxels=1,
        tr=2.0,
        dummy_scans=0,
        coverage=1.0,
        mean=0.0,
        deviation=1.0,
        constant_voxels=0,
        clipped_values=0,
        replaced_values=0,
        displacement=None,
        checksums=(),
        fingerprint="",
        notices=(),
    )
    recording = Recording(dataset="a", participant="01", run="r", prepared=prepared)
    return Item(recording, tuple(starts))


starts = st.lists(st.integers(0, 500), min_size=1, max_size=12, unique=True)
many_items = st.lists(starts.map(item_of), min_size=1, max_size=8)


@given(many_items, st.integers(1, 10), st.integers(0, 3), st.integers(0, 3))
def test_every_run_gives_as_many_different_windows_as_asked_for_or_all_it_has(
    items, windows, seed, pass_
):
    drawn = draw_pass(items, windows, seed, pass_)
    counts = Counter(sample.item for sample in drawn)
    assert counts == {n: min(windows, len(item.starts)) for n, item in enumerate(items)}
    assert len({(sample.item, sample.start) for sample in drawn}) == len(drawn)
    assert all(sample.start in items[sample.item].starts for sample in drawn)


@given(many_items, st.integers(1, 10), st.integers(0, 3), st.integers(0, 3))
def test_samples_are_numbered_in_the_order_in_which_they_are_read(items, windows, seed, pass_):
    drawn = draw_pass(items, windows, seed, pass_)
    assert [sample.number for sample in drawn] == list(range(len(drawn)))
    assert {sample.pass_ for sample in drawn} == {pass_}


def test_a_pass_can_be_drawn_again_and_differs_from_others_and_other_seeds():
    items = [item_of(range(0, 200, 20)) for _ in range(10)]

    def read(seed, pass_):
        return [(sample.item, sample.start) for sample in draw_pass(items, 4, seed, pass_)]

    assert read(0, 1) == read(0, 1)
    assert len({tuple(read(seed, pass_)) for seed in range(3) for pass_ in range(3)}) == 9
    assert sorted(read(0, 1)) != sorted(read(0, 2))


def test_over_many_passes_every_window_is_read_about_as_often():
    items = [item_of(range(0, 160, 20))]
    counts = Counter(
        sample.start for pass_ in range(800) for sample in draw_pass(items, 2, 0, pass_)
    )
    assert sum(counts.values()) == 1600
    # Binomial, 800 draws with a chance of 1/4: five deviations are 61.
    assert all(abs(count - 200) < 61 for count in counts.values())


@given(st.integers(0, 40), st.integers(1, 12))
def test_steps_are_the_pass_in_order_and_only_the_last_is_smaller(count, batch):
    samples = draw_pass([item_of([n]) for n in range(count)], 1, 0, 0)
    steps = cut_steps(samples, batch)
    assert [sample for step in steps for sample in step] == samples
    assert all(len(step) == batch for step in steps[:-1])
    assert not steps or 1 <= len(steps[-1]) <= batch


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9))
def test_shares_of_processes_are_disjoint_even_and_together_the_step(count, ranks, at_once):
    step = draw_pass([item_of([n]) for n in range(count)], 1, 0, 0)
    shares = [share_step(step, rank, ranks, at_once) for rank in range(ranks)]
    read = [sample for share in shares for part in share for sample in part]
    assert Counter(read) == Counter(step)
    sizes = [sum(len(part) for part in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(1 <= len(part) <= at_once for share in shares for part in share)
