"""Tests of the ranking of windows."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.ranking import (
    combine_shares,
    draw_scores,
    have_partners,
    list_starts,
    select_windows,
    spread_scores,
    standardise,
    subspace_shares,
)

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
