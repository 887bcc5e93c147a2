"""Tests of the ranking of windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from slimbrain_app.model.extractor import ExtractorSizes, TemporalExtractor
from slimbrain_app.ranking import (
    combine_shares,
    draw_scores,
    have_partners,
    list_starts,
    rank_run,
    select_windows,
    spread_scores,
    standardise,
    subspace_shares,
)
from slimbrain_app.records import Contract, PreparedRun, RankedRun
from slimbrain_app.settings import Rank

FRAMES, CELLS, ARTEFACT = 415, 90, 200


def make_cells(seed: int, artefact: bool = False) -> np.ndarray:
    """Ten networks and noise, all slow; the artefact is a wandering pattern of its own."""
    random = np.random.default_rng(seed)
    smooth = scipy.linalg.toeplitz(0.9 ** np.arange(FRAMES), np.eye(FRAMES)[0])
    networks = smooth @ random.normal(size=(FRAMES, 10)) @ random.normal(size=(10, CELLS))
    cells = networks + smooth @ random.normal(size=(FRAMES, CELLS)) + 1000
    if artefact:
        course = np.cumsum(random.normal(size=40))
        cells[ARTEFACT : ARTEFACT + 40] += 30 * np.outer(course, random.normal(size=CELLS))
    return cells.astype(np.float32)


def score(cells: np.ndarray, starts: np.ndarray, mode: str = "mutual") -> np.ndarray:
    return combine_shares(*subspace_shares(standardise(cells), starts, 40), mode)


def shares_by_loops(cells: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    series = (cells - cells.mean(0)) / cells.std(0)
    _, _, axes = scipy.linalg.svd(series, full_matrices=False)
    components = series @ axes[:64].T
    own = []
    for start in starts:
        covariance = np.cov(components[start : start + 40], rowvar=False)
        own.append(covariance / np.trace(covariance))
    inward, outward = [], []
    for place, start in enumerate(starts):
        others = [own[i] for i, other in enumerate(starts) if abs(other - start) >= 40]
        rest = np.mean(others, axis=0)
        inward.append(captured(own[place], rest))
        outward.append(captured(rest, own[place]))
    return np.array(inward), np.array(outward)


def captured(of: np.ndarray, within: np.ndarray) -> float:
    left, _, _ = scipy.linalg.svd(within)
    projector = left[:, :10] @ left[:, :10].T
    return float(np.trace(projector @ of @ projector) / np.trace(of))


def test_two_minutes_give_windows_every_twenty_frames_and_one_at_the_end() -> None:
    assert list_starts(167).tolist() == [0, 20, 40, 60, 80, 100, 120, 125]


def test_no_window_where_none_fits() -> None:
    assert list_starts(39).tolist() == []
    assert list_starts(0).tolist() == []
    assert list_starts(44).tolist() == [0]


@given(
    frames=st.integers(0, 3000),
    tokens=st.integers(1, 12),
    stride=st.integers(1, 12),
    token=st.integers(1, 8),
)
def test_windows_are_whole_tokens_that_reach_from_end_to_end(
    frames: int, tokens: int, stride: int, token: int
) -> None:
    window, stride = tokens * token, stride * token
    starts = list_starts(frames, window, stride, token)
    assert len(starts) == 0 if frames < window else starts[0] == 0
    assert np.all(starts % token == 0)
    assert np.all(np.diff(starts) > 0) and np.all(np.diff(starts) <= stride)
    assert all(0 <= frames - (last + window) < token for last in starts[-1:])


@pytest.mark.parametrize("seed", range(3))
def test_shares_equal_plain_loops(seed: int) -> None:
    cells, starts = make_cells(seed), list_starts(FRAMES)
    actual = subspace_shares(standardise(cells), starts, 40)
    np.testing.assert_allclose(actual, shares_by_loops(cells, starts), atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_artefact_is_last_in_mutual_and_first_in_novelty(seed: int) -> None:
    cells, starts = make_cells(seed, artefact=True), list_starts(FRAMES)
    last = starts[np.argmin(score(cells, starts, "mutual"))]
    first = starts[np.argmax(score(cells, starts, "novelty"))]
    assert abs(last - ARTEFACT) < 40
    assert abs(first - ARTEFACT) < 40


def test_scaling_the_run_changes_nothing() -> None:
    cells, starts = make_cells(0), list_starts(FRAMES)
    np.testing.assert_allclose(score(cells * 37, starts), score(cells, starts), atol=1e-4)
    np.testing.assert_allclose(score(cells * 2**20, starts), score(cells, starts), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_permuted_windows_have_permuted_scores(seed: int) -> None:
    cells, starts = make_cells(1), list_starts(FRAMES)
    order = np.random.default_rng(seed).permutation(len(starts))
    expected = score(cells, starts)[order]
    np.testing.assert_allclose(score(cells, starts[order]), expected, atol=1e-9)


def test_constant_cells_count_for_nothing() -> None:
    cells = make_cells(2)
    flat = np.full((FRAMES, 5), 1234.5, dtype=np.float32)
    flat[::7] *= 1 + 1e-7
    both = standardise(np.hstack([cells, flat]))
    assert np.all(both[:, CELLS:] == 0)
    np.testing.assert_allclose(
        subspace_shares(both, list_starts(FRAMES), 40),
        subspace_shares(standardise(cells), list_starts(FRAMES), 40),
        atol=1e-9,
    )


def test_flat_window_is_explained_by_nothing_and_says_nothing() -> None:
    cells, starts = make_cells(3), list_starts(FRAMES)
    cells[ARTEFACT : ARTEFACT + 40] = cells[ARTEFACT]
    inward, outward = subspace_shares(standardise(cells), starts, 40)
    flat = starts.tolist().index(ARTEFACT)
    assert inward[flat] == outward[flat] == 0
    assert np.all(np.isfinite(inward)) and np.all(np.isfinite(outward))


def test_window_that_all_others_overlap_gets_their_mean() -> None:
    inward, outward = subspace_shares(standardise(make_cells(0)), np.array([0, 20, 40]), 40)
    assert inward[1] == pytest.approx((inward[0] + inward[2]) / 2)
    assert outward[1] == pytest.approx((outward[0] + outward[2]) / 2)


def test_shares_without_spread_do_not_rank() -> None:
    rounding = 1 + np.array([1, -2, 3, 0]) * 1e-16
    assert combine_shares(rounding, rounding, "mutual").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("starts", "expected"),
    [([], False), ([0], False), ([0, 20, 35], False), ([0, 20, 40], True)],
)
def test_comparison_takes_two_windows_apart(starts: list[int], expected: bool) -> None:
    assert have_partners(np.array(starts, dtype=np.int64), 40) is expected


def test_random_scores_depend_on_seed_and_name_alone() -> None:
    scores = draw_scores(20, 0, "sub-01_task-rest")
    assert np.array_equal(scores, draw_scores(20, 0, "sub-01_task-rest"))
    assert not np.array_equal(scores, draw_scores(20, 0, "sub-02_task-rest"))
    assert not np.array_equal(scores, draw_scores(20, 1, "sub-01_task-rest"))
    assert np.array_equal(scores[:5], draw_scores(5, 0, "sub-01_task-rest"))


def test_uniform_spreads_over_windows_that_pass_the_guard() -> None:
    moving = np.zeros(20)
    moving[[3, 4, 5, 6]] = 0.5
    assert np.flatnonzero(spread_scores(moving, 4)).tolist() == [2, 10, 14, 18]


@given(windows=st.integers(1, 60), k=st.integers(1, 60))
def test_uniform_picks_are_evenly_spaced(windows: int, k: int) -> None:
    picks = np.flatnonzero(spread_scores(np.zeros(windows), k))
    assert len(picks) == min(k, windows)
    gaps = np.diff(np.concatenate([[-picks[0] - 1], picks, [2 * windows - 1 - picks[-1]]]))
    assert np.ptp(gaps) <= 2


@st.composite
def candidates(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, starts in time, shares of moving frames."""
    starts = list_starts(draw(st.integers(40, 500)))
    count = len(starts)
    scores = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    moving = draw(
        st.lists(st.sampled_from([0, 0.1, 0.2, 0.3, 0.9]), min_size=count, max_size=count)
    )
    return np.array(scores, dtype=float), starts, np.array(moving)


@given(candidates(), st.integers(1, 30))
def test_greedy_choice_never_overlaps_by_more_than_half(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray], k: int
) -> None:
    scores, starts, _ = drawn
    chosen = select_windows(scores, starts, 40, k, np.zeros(len(starts)))
    apart = np.abs(np.subtract.outer(starts[chosen], starts[chosen]))
    assert len(starts) <= k or np.all(apart[~np.eye(len(chosen), dtype=bool)] >= 20)


@given(candidates(), st.integers(1, 30))
def test_greedy_choice_skips_no_better_window_without_reason(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray], k: int
) -> None:
    scores, starts, _ = drawn
    chosen = select_windows(scores, starts, 40, k, np.zeros(len(starts))).tolist()
    ranking = sorted(range(len(starts)), key=lambda place: (-scores[place], starts[place]))
    assert chosen == [place for place in ranking if place in chosen]
    for place in ranking[: ranking.index(chosen[-1])]:
        better = chosen[: sum(ranking.index(c) < ranking.index(place) for c in chosen)]
        assert place in chosen or any(abs(starts[c] - starts[place]) < 20 for c in better)


@given(candidates(), st.integers(0, 5))
def test_as_many_as_there_are_or_more_gives_all_once(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray], more: int
) -> None:
    scores, starts, moving = drawn
    chosen = select_windows(scores, starts, 40, len(starts) + more, moving)
    assert sorted(chosen.tolist()) == list(range(len(starts)))


@given(candidates(), st.integers(1, 30))
def test_moving_windows_are_chosen_only_where_the_others_are_too_few(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray], k: int
) -> None:
    scores, starts, moving = drawn
    chosen = moving[select_windows(scores, starts, 40, k, moving)]
    if np.sum(moving <= 0.2) >= k:
        assert np.all(chosen <= 0.2)
    else:
        refill = chosen[chosen > 0.2]
        assert np.all(np.diff(refill) >= 0)
        assert np.all(chosen[: len(chosen) - len(refill)] <= 0.2)
        assert len(chosen) == min(k, len(starts))


@given(candidates())
def test_all_means_all_that_pass_the_guard(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    scores, starts, moving = drawn
    chosen = select_windows(scores, starts, 40, "all", moving)
    still = np.flatnonzero(moving <= 0.2).tolist() or list(range(len(starts)))
    assert sorted(chosen.tolist()) == still


def test_equal_scores_go_to_the_earlier_onset() -> None:
    scores, starts = np.array([1.0, 2, 2, 1, 1, 2]), list_starts(140)
    assert select_windows(scores, starts, 40, 4, np.zeros(6)).tolist() == [1, 2, 5, 0]


def store(folder: Path, cells: np.ndarray, **record: Any) -> PreparedRun:
    """Prepare a run with one voxel in each of so many cells."""
    mean, scale = cells.mean(0), cells.std(0) * np.float32(4 / 127)
    signal = np.clip(np.rint((cells - mean) / scale), -127, 127).astype(np.int8)
    places = np.stack(np.unravel_index(np.arange(cells.shape[1]) * 19, (12, 12, 12))) * 8 + 3
    voxels = np.ravel_multi_index(tuple(places), (96, 96, 96)).astype(np.int32)
    arrays = {"signal": signal, "mean": mean, "scale": scale, "voxels": voxels}
    folder.mkdir(exist_ok=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    return make_record(folder, volumes=len(cells), voxels=cells.shape[1], **record)


def make_record(folder: Path, **record: Any) -> PreparedRun:
    plain = PreparedRun(
        folder=folder,
        volumes=FRAMES,
        voxels=CELLS,
        tr=0.72,
        dummy_scans=0,
        coverage=1.0,
        mean=0.0,
        deviation=1.0,
        constant_voxels=0,
        clipped_values=0,
        replaced_values=0,
        displacement=(0.1,) * FRAMES,
        checksums=(),
        fingerprint="",
        notices=(),
    )
    return replace(plain, **record)


def rank(
    prepared: PreparedRun, extractor: TemporalExtractor | None = None, **settings: Any
) -> RankedRun:
    return rank_run(prepared, Contract(), extractor, Rank(**settings), 0, "sub-01_task-rest")


def codes(ranked: RankedRun) -> list[str]:
    return [notice.code for notice in ranked.notices]


def move(*spans: tuple[int, int]) -> tuple[float, ...]:
    """Make a displacement of 0.1 mm, and of 2 mm in the given volumes."""
    displacement = np.full(FRAMES, 0.1)
    for first, after in spans:
        displacement[first:after] = 2
    return tuple(displacement)


@pytest.fixture
def artefact(tmp_path: Path) -> PreparedRun:
    moving = move((ARTEFACT, ARTEFACT + 40))
    return store(tmp_path, make_cells(0, artefact=True), displacement=moving)


@pytest.mark.parametrize("mode", ["mutual", "representative", "novelty"])
def test_guard_keeps_the_artefact_out_of_the_selected(artefact: PreparedRun, mode: str) -> None:
    ranked = rank(artefact, mode=mode)
    assert len(ranked.selected) == 8
    assert all(window.censored_frames == 0 for window in ranked.selected)
    assert codes(ranked) == []


def test_novelty_without_guard_takes_the_artefact_and_warns(artefact: PreparedRun) -> None:
    ranked = rank(artefact, mode="novelty", fd_threshold=0)
    assert abs(ranked.selected[0].start - ARTEFACT) < 40
    assert codes(ranked) == ["unguarded"]


def test_mutual_without_guard_puts_the_artefact_last(artefact: PreparedRun) -> None:
    ranked = rank(artefact, fd_threshold=0)
    last = max(ranked.windows, key=lambda window: window.rank)
    assert abs(last.start - ARTEFACT) < 40
    assert codes(ranked) == []


def test_unknown_motion_switches_the_guard_off_and_says_so(artefact: PreparedRun) -> None:
    ranked = rank(replace(artefact, displacement=None))
    assert codes(ranked) == ["unguarded"]
    assert all(window.censored_frames == 0 for window in ranked.windows)
    assert ranked.windows == rank(artefact, fd_threshold=0).windows


def test_too_few_still_windows_are_refilled_and_said(tmp_path: Path) -> None:
    prepared = store(tmp_path, make_cells(0), displacement=move((0, 260), (320, 340)))
    ranked = rank(prepared)
    still = [window for window in ranked.selected if window.censored_frames <= 8]
    assert [window.rank for window in still] == [1, 2, 3, 4]
    assert [window.censored_frames for window in ranked.selected[4:]] == [20, 20, 20, 40]
    assert codes(ranked) == ["guard-relaxed"]
    assert ranked.notices[0].message == (
        "5 of 20 windows pass the motion guard; 4 of the 8 selected do not: "
        "62% of their frames are above 0.5 mm"
    )


def test_frames_at_the_threshold_are_still(tmp_path: Path) -> None:
    prepared = store(tmp_path, make_cells(0), displacement=(0.5,) * FRAMES)
    assert all(window.censored_frames == 0 for window in rank(prepared).windows)


@pytest.mark.parametrize("frames", [40, 79])
def test_run_of_overlapping_windows_is_ordered_by_onset_and_said(
    tmp_path: Path, frames: int
) -> None:
    prepared = store(tmp_path, make_cells(0)[:frames], displacement=(0.0,) * frames)
    ranked = rank(prepared)
    assert codes(ranked) == ["not-ranked"]
    assert all(window.saliency == 0 and window.selected for window in ranked.windows)
    assert [window.rank for window in ranked.windows] == list(range(1, len(ranked.windows) + 1))
    assert "not ranked" in ranked.method


def test_onsets_count_from_the_first_volume_of_the_source(tmp_path: Path) -> None:
    prepared = make_record(tmp_path, volumes=100, tr=2.0, dummy_scans=3, displacement=(0.0,) * 100)
    windows = rank(prepared, mode="first").windows
    assert [window.start for window in windows] == [*range(0, 221, 20), 235]
    assert windows[0].onset == 6.0
    assert windows[-1].onset == pytest.approx(6 + 235 * 0.72)
    assert windows[0].duration == pytest.approx(28.8)


@pytest.mark.parametrize("mode", ["mutual", "representative", "novelty", "random", "first"])
def test_ranks_follow_the_score_among_selected_and_among_others(
    artefact: PreparedRun, mode: str
) -> None:
    windows = sorted(rank(artefact, mode=mode, windows=5).windows, key=lambda w: w.rank)
    assert [window.rank for window in windows] == list(range(1, len(windows) + 1))
    assert [window.selected for window in windows] == [True] * 5 + [False] * (len(windows) - 5)
    for group in (windows[:5], windows[5:]):
        scores = [window.saliency for window in group]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("mode", ["random", "uniform", "first"])
def test_modes_that_do_not_judge_do_not_read_the_signal(tmp_path: Path, mode: str) -> None:
    ranked = rank(make_record(tmp_path / "nothing here"), mode=mode)
    assert len(ranked.selected) == 8
    assert ranked.method.startswith(mode)


def test_scores_are_those_of_the_signal_before_storing(tmp_path: Path) -> None:
    cells = make_cells(1)
    prepared = store(tmp_path, cells)
    saliency = [window.saliency for window in rank(prepared).windows]
    assert np.corrcoef(saliency, score(cells, list_starts(FRAMES)))[0, 1] > 0.99


def test_scaled_run_is_ranked_alike(tmp_path: Path) -> None:
    one = store(tmp_path / "one", make_cells(1))
    two = store(tmp_path / "two", make_cells(1) * 8)
    assert rank(one).windows == rank(two).windows


@pytest.mark.parametrize("judge", ["weightless", "extractor"])
def test_threads_do_not_change_the_ranking(tmp_path: Path, judge: str) -> None:
    prepared = store(tmp_path, make_cells(1))
    extractor = TemporalExtractor(ExtractorSizes()) if judge == "extractor" else None
    with threadpool_limits(1):
        one = rank(prepared, extractor)
    with threadpool_limits(2):
        two = rank(prepared, extractor)
    assert one == two
    assert judge in one.method


def test_method_tells_what_scored(artefact: PreparedRun) -> None:
    assert rank(artefact).method == (
        "mutual, weightless: subspace shares of 64 principal components"
    )


def test_more_windows_than_there_are_selects_all(artefact: PreparedRun) -> None:
    ranked = rank(artefact, windows=100)
    assert len(ranked.selected) == len(ranked.windows)
    assert codes(ranked) == ["guard-relaxed"]
