"""Views of the selected windows, and embeddings that depend on nothing else."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app import embedding
from slimbrain_app.embedding import embed_run, list_views
from slimbrain_app.errors import RunRefused
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.packages import Config, create_package, load_encoder, save_package
from slimbrain_app.model.presets import PRESETS
from slimbrain_app.model.tokens import build_table, gather_patches, keep_brain
from slimbrain_app.prepare.store import count_frames, mask_image, read_frames
from slimbrain_app.records import Contract, PreparedRun, RankedRun, Window
from slimbrain_app.settings import Encode

CONTRACT = Contract()


def rank(starts, selected=None, ranks=None):
    """Windows at these frames, in time, of which some are selected."""
    count = len(starts)
    return RankedRun(
        windows=tuple(
            Window(
                start=start,
                onset=3.0 + start * CONTRACT.frame_time,
                duration=CONTRACT.window_seconds,
                saliency=0.0,
                rank=one,
                selected=chosen,
                censored_frames=0,
            )
            for start, one, chosen in zip(
                starts, ranks or range(1, count + 1), selected or [True] * count, strict=True
            )
        ),
        method="by hand",
        notices=(),
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedRun:
    """Smooth noise in a ball of 20 mm, 70 volumes of 1.1 s: 106 frames."""
    folder = tmp_path_factory.mktemp("prepared")
    x, y, z = np.ogrid[:96, :96, :96]
    voxels = np.flatnonzero((x - 45) ** 2 + (y - 50) ** 2 + (z - 40) ** 2 < 20**2)
    random = np.random.default_rng(1)
    steps = random.normal(size=(70, len(voxels))).cumsum(axis=0)
    steps = (steps - steps.mean(axis=0)) / steps.std(axis=0)
    np.save(folder / "signal.npy", np.clip(steps * 127 / 4, -127, 127).astype(np.int8))
    np.save(folder / "voxels.npy", voxels.astype(np.int32))
    np.save(folder / "scale.npy", np.full(len(voxels), 0.1, np.float32))
    np.save(folder / "mean.npy", random.uniform(90, 110, len(voxels)).astype(np.float32))
    return PreparedRun(
        folder=folder,
        volumes=70,
        voxels=len(voxels),
        tr=1.1,
        dummy_scans=0,
        coverage=1.0,
        mean=100.0,
        deviation=7.0,
        constant_voxels=0,
        clipped_values=0,
        replaced_values=0,
        displacement=None,
        checksums=(),
        fingerprint="",
        notices=(),
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return create_package(tmp_path_factory.mktemp("models") / "fresh", "tiny", seed=3)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def embed(prepared, ranked, package, views=1):
    return embed_run(prepared, ranked, package, Encode(views=views), "cpu")


def test_one_view_is_the_window_itself():
    views = list_views(rank([0, 20, 66]), 1, frames=106, contract=CONTRACT)
    assert [view.start for view in views] == [0, 20, 66]
    assert [view.onset for view in views] == [window.onset for window in rank([0, 20, 66]).windows]


@given(frames=st.integers(40, 300), per_window=st.integers(1, 9), place=st.floats(0, 1))
def test_views_lie_inside_the_run_and_near_their_window(frames, per_window, place):
    start = int(place * (frames - 40))
    views = list_views(rank([start]), per_window, frames, CONTRACT)
    starts = np.array([view.start for view in views])
    assert len(starts) == per_window
    assert starts.min() >= 0 and starts.max() + CONTRACT.frames <= frames
    assert np.abs(starts - start).max() <= 10
    onsets = np.array([view.onset for view in views])
    np.testing.assert_allclose(onsets, 3.0 + starts * CONTRACT.frame_time)


def test_views_are_spread_evenly_over_half_a_stride_to_either_side():
    views = list_views(rank([30]), 5, frames=106, contract=CONTRACT)
    assert [view.start for view in views] == [20, 25, 30, 35, 40]


def test_at_the_ends_of_the_run_views_are_spread_over_what_is_inside():
    first, last = rank([0]), rank([66])
    assert [view.start for view in list_views(first, 3, 106, CONTRACT)] == [0, 5, 10]
    assert [view.start for view in list_views(last, 3, 106, CONTRACT)] == [56, 61, 66]


def test_views_name_their_window_and_come_best_window_first():
    ranked = rank([0, 20, 40, 60], selected=[True, False, True, True], ranks=[3, 4, 1, 2])
    views = list_views(ranked, 2, frames=106, contract=CONTRACT)
    assert [view.window for view in views] == [2, 2, 3, 3, 0, 0]


def test_embeddings_are_those_of_the_windows_read_by_hand(prepared, package):
    ranked = rank([5, 60])
    embedded = embed(prepared, ranked, package)
    encoder = load_encoder(package)
    table = build_table(
        keep_brain(torch.from_numpy(mask_image(prepared)), encoder.sizes), encoder.sizes
    )
    voxels = torch.from_numpy(np.load(prepared.folder / "voxels.npy"))
    for row, window in zip(embedded.views, ranked.windows, strict=True):
        frames = torch.from_numpy(read_frames(prepared, window.start, 40, 0.72, "voxel"))
        with torch.no_grad():
            alone = encoder(gather_patches(frames, voxels, table), table)[0]
        np.testing.assert_allclose(row, alone.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(embedded.mean, embedded.views.mean(axis=0), rtol=0, atol=1e-6)
    assert embedded.views.dtype == embedded.mean.dtype == np.float32
    assert embedded.views.shape == (2, 192)
    assert embedded.windows == (0, 1)
    assert embedded.onsets == tuple(window.onset for window in ranked.windows)
    assert embedded.device == "cpu"


def test_two_calls_agree_to_the_bit(prepared, package):
    first, again = (embed(prepared, rank([0, 40]), package, views=2) for _ in range(2))
    assert np.array_equal(first.views, again.views)
    assert np.array_equal(first.mean, again.mean)


def test_threads_do_not_change_a_bit(prepared, package, threads):
    rows = []
    for count in (1, 2, 3):
        threads(count)
        rows.append(embed(prepared, rank([0, 40]), package).views)
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_a_window_does_not_depend_on_the_others_nor_on_their_order(prepared, package):
    together = embed(prepared, rank([0, 20, 60]), package).views
    reversed_ = embed(prepared, rank([0, 20, 60], ranks=[3, 2, 1]), package).views
    alone = embed(prepared, rank([20]), package).views
    assert np.array_equal(together, reversed_[::-1])
    assert np.array_equal(together[1], alone[0])


@pytest.mark.parametrize("batch", [2, 4])
def test_an_incomplete_batch_is_padded_without_effect(prepared, package, monkeypatch, batch):
    ranked = rank([0, 20, 60])
    one_by_one = embed(prepared, ranked, package).views
    monkeypatch.setitem(embedding.BATCHES, "cpu", batch)
    np.testing.assert_allclose(
        embed(prepared, ranked, package).views, one_by_one, rtol=0, atol=1e-5
    )


def test_embeddings_differ_between_windows(prepared, package):
    rows = embed(prepared, rank([0, 60]), package).views
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


def test_the_channels_of_the_contract_are_read(prepared, tmp_path):
    embedded = {}
    for channels in (("voxel",), ("global",), ("voxel", "global"), ("global", "voxel")):
        contract = replace(CONTRACT, channels=channels)
        sizes = replace(PRESETS["tiny"], channels=len(channels))
        config = Config(preset="tiny", trained=False, seed=0, contract=contract, encoder=sizes)
        made = save_package(tmp_path / "made", config, Encoder(sizes), card="# made")
        embedded[channels] = embed(prepared, rank([10]), made).views
    rows = list(embedded.values())
    for number, row in enumerate(rows):
        assert all(np.abs(row - other).max() > 1e-4 for other in rows[:number])


def test_the_frame_time_of_the_contract_is_used(prepared, tmp_path):
    contract = replace(CONTRACT, frame_time=1.0)
    config = Config(
        preset="tiny", trained=False, seed=0, contract=contract, encoder=PRESETS["tiny"]
    )
    made = save_package(tmp_path / "made", config, Encoder(PRESETS["tiny"]), card="# made")
    last = count_frames(prepared, 1.0) - 40
    embedded = embed(prepared, rank([last]), made, views=2)
    assert embedded.onsets[1] == pytest.approx(embedded.onsets[0] + 10 * 1.0)


@pytest.fixture
def crowd(monkeypatch):
    """Let passes of more than so many views find too little memory; note the sizes that ran."""

    def leave_room(most, batch=8):
        ran = []
        encode = Encoder.encode_cells

        def encode_if_it_fits(self, patches, table):
            if len(table.lengths) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")
            ran.append(len(table.lengths))
            return encode(self, patches, table)

        monkeypatch.setattr(Encoder, "encode_cells", encode_if_it_fits)
        monkeypatch.setitem(embedding.BATCHES, "cpu", batch)
        return ran

    return leave_room


def test_want_of_memory_halves_the_batch_for_all_views_alike(prepared, package, crowd):
    ranked = rank([0, 20, 60])
    one_by_one = embed(prepared, ranked, package).views
    ran = crowd(most=2)
    rows = embed(prepared, ranked, package).views
    assert ran == [2, 2]
    np.testing.assert_allclose(rows, one_by_one, rtol=0, atol=1e-5)


def test_no_room_for_one_view_is_out_of_memory(prepared, package, crowd):
    crowd(most=0)
    with pytest.raises(RunRefused, match="out-of-memory") as caught:
        embed(prepared, rank([0]), package)
    assert "3 GiB" in caught.value.found


@pytest.mark.parametrize("or_cpu", [False, True])
def test_the_cpu_takes_over_only_where_that_is_allowed(prepared, package, monkeypatch, or_cpu):
    ranked, embed_on = rank([0, 20]), embedding._embed_on
    on_cpu = embed(prepared, ranked, package)

    def embed_where_there_is_room(device, *others):
        if device != "cpu":
            raise RunRefused("out-of-memory", expected="room", found="none", advice="")
        return embed_on(device, *others)

    monkeypatch.setattr(embedding, "_embed_on", embed_where_there_is_room)
    monkeypatch.setattr(embedding, "hold_device", lambda _: nullcontext())
    if not or_cpu:
        with pytest.raises(RunRefused, match="out-of-memory"):
            embed_run(prepared, ranked, package, Encode(), "cuda", or_cpu=or_cpu)
        return
    moved = embed_run(prepared, ranked, package, Encode(), "cuda", or_cpu=or_cpu)
    assert moved.device == "cpu"
    assert np.array_equal(moved.views, on_cpu.views)
