"""Windows of a run, from the one that stands for the run best to the one that does so least.

A window is judged in two directions: how well the rest of the run explains it (*inward*), and how
much it says about the rest (*outward*). A trained temporal extractor measures both; without one
they are shares of variance in low-dimensional subspaces. The motion guard and the overlap rule
then decide which windows are selected.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.records import Contract, Notice, PreparedRun, RankedRun, Window
from slimbrain_app.settings import Rank, Ranking

if TYPE_CHECKING:
    from slimbrain_app.model.extractor import TemporalExtractor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

JUDGED: tuple[Ranking, ...] = ("mutual", "representative", "novelty")
MOVING_SHARE = 0.2
COMPONENTS = 64
DIRECTIONS = 10
DECIMALS = 6


def rank_run(
    prepared: PreparedRun,
    contract: Contract,
    extractor: TemporalExtractor | None,
    settings: Rank,
    seed: int,
    run_name: str,
) -> RankedRun:
    """Order the windows of a run and select the best.

    Parameters
    ----------
    prepared : PreparedRun
    contract : Contract
        Frame time and frames per window.
    extractor : TemporalExtractor or None
        A trained one, or None: windows are then judged without weights.
    settings : Rank
    seed : int
        With ``run_name``, all that the mode ``random`` depends on.
    run_name : str

    Returns
    -------
    RankedRun
        With the notices ``not-ranked``, ``unguarded`` and ``guard-relaxed`` where they hold.
    """
    from slimbrain_app.prepare.store import count_frames

    frames = count_frames(prepared, contract.frame_time)
    starts = list_starts(frames, contract.frames)
    censored = _count_censored(prepared, contract, settings, frames, starts)
    moving = censored / contract.frames
    notices = _list_guard_notices(prepared, settings)

    if settings.mode not in JUDGED:
        scores, method = _score_unread(settings, moving, seed, run_name)
    elif have_partners(starts, contract.frames):
        scores, method = _judge(prepared, contract, extractor, settings.mode, starts)
    else:
        scores, method = np.zeros(len(starts)), f"{settings.mode}, not ranked: by onset"
        notices += (_not_ranked(len(starts)),)

    chosen = select_windows(scores, starts, contract.frames, settings.windows, moving)
    if np.any(moving[chosen] > MOVING_SHARE):
        notices += (_guard_relaxed(settings, moving, chosen),)
    by_score = _by_score(scores, starts)
    order = np.concatenate([chosen, by_score[~np.isin(by_score, chosen)]])
    return RankedRun(
        windows=_describe(prepared, contract, starts, scores, censored, order, len(chosen)),
        method=method,
        notices=notices,
    )


def list_starts(frames: int, window: int = 40, stride: int = 20, token: int = 5) -> Integers:
    """Return the first frame of every candidate window, in time.

    Windows follow each other by ``stride``; the last one starts at the largest multiple of
    ``token`` that fits, so that each is a whole number of the extractor's tokens. A run shorter
    than one window has none.
    """
    last = (frames - window) // token * token
    if last < 0:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.append(np.arange(0, last + 1, stride), last)).astype(np.int64)


def have_partners(starts: Integers, window: int) -> bool:
    """Whether any two windows do not overlap: without such a pair nothing can be compared."""
    return len(starts) > 1 and int(np.ptp(starts)) >= window


def standardise(cells: NDArray[np.floating[Any]]) -> Floats:
    """Bring each cell to mean 0 and deviation 1 over the run; a constant cell to 0.

    Parameters
    ----------
    cells : ndarray, shape (frames, cells)
    """
    mean = cells.mean(axis=0, dtype=np.float64)
    deviation = cells.std(axis=0, dtype=np.float64)
    # A change as small as the rounding of float32 is none.
    deviation[deviation <= 1e-6 * np.abs(mean)] = 0
    return _divide(cells - mean, deviation)


def subspace_shares(series: Floats, starts: Integers, window: int) -> tuple[Floats, Floats]:
    """Judge windows without weights, by the directions in which the signal varies.

    The run is reduced to its first principal components. With C the covariance of a window
    divided by its trace, and R the sum of C over the windows that don't overlap it, divided by
    its trace: *inward* is the share of C in the leading directions of R, *outward* that of R in
    those of C. Dividing by the trace keeps a loud artefact from owning the run's directions,
    leaving out overlaps keeps it from explaining itself.

    Parameters
    ----------
    series : ndarray, shape (frames, cells)
        Standardised cells.
    starts : ndarray of int, shape (windows,)
    window : int
        Frames per window.

    Returns
    -------
    inward, outward : ndarray, shape (windows,)
        Between 0 and 1. A window that every other one overlaps gets the mean of the others.
    """
    own = _window_covariances(_reduce(series), starts, window)
    rest, partners = _sum_apart(own, starts, window)
    rest = _per_trace(rest)
    inward, outward = _share(own, rest), _share(rest, own)
    for share in (inward, outward):
        share[partners == 0] = share[partners > 0].mean()
    return inward, outward


def combine_shares(inward: Floats, outward: Floats, mode: Ranking) -> Floats:
    """Turn the two directions of judgement into one score per window.

    ``mutual`` takes the worse of the two, each as a robust z within the run: what the run does not
    explain is no good, however much it says. A sum would let an artefact buy itself off, for it
    lowers the *outward* share of all windows but those that hold it: of 216 simulated runs, an
    artefact came last in 94 by the sum, in 182 by the minimum. Plain z do as well in that (65 and
    190), but the artefact would move the scores of all other windows. ``representative`` is the
    *inward* share, ``novelty`` its negative.
    """
    if mode == "mutual":
        return np.minimum(_z_score(inward), _z_score(outward))
    return -inward if mode == "novelty" else inward


def draw_scores(windows: int, seed: int, run_name: str) -> Floats:
    """Draw scores that depend on nothing but the seed and the run's name."""
    identity = np.frombuffer(hashlib.sha256(run_name.encode()).digest(), dtype="<u4")
    return np.random.default_rng([seed, *identity.tolist()]).random(windows)


def spread_scores(moving: Floats, k: int | Literal["all"]) -> Floats:
    """Score 1 for ``k`` windows evenly spaced among those that the motion guard lets pass."""
    still = np.flatnonzero(moving <= MOVING_SHARE)
    count = len(still) if k == "all" else min(k, len(still))
    scores = np.zeros(len(moving))
    scores[still[((np.arange(count) + 0.5) * len(still) / max(count, 1)).astype(np.int64)]] = 1
    return scores


def select_windows(
    scores: Floats, starts: Integers, window: int, k: int | Literal["all"], moving: Floats
) -> Integers:
    """Choose windows: motion guard first, then greedily by score.

    A window that overlaps a chosen one by more than half is skipped. If fewer than ``k`` pass the
    guard, the least-moving of the others follow them. No more candidates than ``k``: all of them,
    once each. ``"all"`` means all that pass the guard, or all where none does.

    Parameters
    ----------
    scores : ndarray, shape (windows,)
        Equal scores go to the earlier onset.
    starts : ndarray of int, shape (windows,)
    window : int
        Frames per window.
    k : int or "all"
    moving : ndarray, shape (windows,)
        Share of each window's frames above the threshold of framewise displacement.

    Returns
    -------
    ndarray of int
        Places of the chosen windows in ``starts``, first chosen first.
    """
    by_score = _by_score(scores, starts)
    passes = moving[by_score] <= MOVING_SHARE
    still, others = by_score[passes], by_score[~passes]
    wanted = (len(still) or len(others)) if k == "all" else k
    if len(still) < wanted:
        still = np.append(still, others[np.argsort(moving[others], kind="stable")])
    if len(still) <= wanted:
        return still
    chosen: list[int] = []
    for candidate in still:
        apart = np.abs(starts[chosen] - starts[candidate])
        if len(chosen) < wanted and np.all(2 * apart >= window):
            chosen.append(candidate)
    return np.array(chosen, dtype=np.int64)


def _judge(
    prepared: PreparedRun,
    contract: Contract,
    extractor: TemporalExtractor | None,
    mode: Ranking,
    starts: Integers,
) -> tuple[Floats, str]:
    from slimbrain_app.prepare.store import cell_means, interpolate

    means, cell_index = cell_means(prepared)
    series = standardise(interpolate(means, prepared.tr, contract.frame_time))
    if extractor is None:
        inward, outward = subspace_shares(series, starts, contract.frames)
        judge = f"weightless: subspace shares of {COMPONENTS} principal components"
    else:
        from slimbrain_app.model.extractor import score_windows

        inward, outward = score_windows(
            extractor, series, cell_index, starts, contract.frames, contract.frame_time
        )
        judge = "trained extractor: masked reconstruction"
    return _rounded(combine_shares(inward, outward, mode)), f"{mode}, {judge}"


def _score_unread(settings: Rank, moving: Floats, seed: int, run_name: str) -> tuple[Floats, str]:
    """Score without a look at the signal."""
    if settings.mode == "random":
        return _rounded(draw_scores(len(moving), seed, run_name)), f"random, seed {seed}"
    if settings.mode == "uniform":
        return spread_scores(moving, settings.windows), "uniform: evenly spaced onsets"
    return np.zeros(len(moving)), "first: by onset"


def _count_censored(
    prepared: PreparedRun, contract: Contract, settings: Rank, frames: int, starts: Integers
) -> Integers:
    """Count each window's frames above the threshold; none where the guard is off."""
    from slimbrain_app.prepare.confounds import frame_displacement

    if prepared.displacement is None or settings.fd_threshold == 0:
        return np.zeros(len(starts), dtype=np.int64)
    displacement = frame_displacement(
        np.asarray(prepared.displacement), prepared.tr, frames, contract.frame_time
    )
    above: Integers = np.cumsum(np.append(0, displacement > settings.fd_threshold))
    return above[starts + contract.frames] - above[starts]


def _describe(
    prepared: PreparedRun,
    contract: Contract,
    starts: Integers,
    scores: Floats,
    censored: Integers,
    order: Integers,
    selected: int,
) -> tuple[Window, ...]:
    skipped = prepared.dummy_scans * prepared.tr
    ranks = np.empty(len(starts), dtype=np.int64)
    ranks[order] = np.arange(1, len(starts) + 1)
    return tuple(
        Window(
            start=int(start),
            onset=skipped + int(start) * contract.frame_time,
            duration=contract.window_seconds,
            saliency=float(score),
            rank=int(rank),
            selected=bool(rank <= selected),
            censored_frames=int(count),
        )
        for start, score, rank, count in zip(starts, scores, ranks, censored, strict=True)
    )


def _list_guard_notices(prepared: PreparedRun, settings: Rank) -> tuple[Notice, ...]:
    if settings.fd_threshold > 0 and prepared.displacement is None:
        return (
            Notice(
                code="unguarded",
                message="framewise displacement is unknown: the motion guard is off",
            ),
        )
    if settings.fd_threshold == 0 and settings.mode == "novelty":
        return (
            Notice(
                code="unguarded",
                message="the motion guard is switched off: novelty then picks motion",
            ),
        )
    return ()


def _not_ranked(windows: int) -> Notice:
    few = f"no two of {windows} windows lie apart" if windows > 1 else "there is one window only"
    return Notice(code="not-ranked", message=f"{few}, so nothing was ranked: order by onset")


def _guard_relaxed(settings: Rank, moving: Floats, chosen: Integers) -> Notice:
    relaxed = chosen[moving[chosen] > MOVING_SHARE]
    return Notice(
        code="guard-relaxed",
        message=(
            f"{np.sum(moving <= MOVING_SHARE)} of {len(moving)} windows pass the motion guard; "
            f"{len(relaxed)} of the {len(chosen)} selected do not: "
            f"{moving[relaxed].mean():.0%} of their frames are above {settings.fd_threshold:g} mm"
        ),
    )


def _by_score(scores: Floats, starts: Integers) -> Integers:
    return np.lexsort((starts, -scores))


def _rounded(scores: Floats) -> Floats:
    # The order must not hang on the last bits, which threads and batches change.
    return np.round(scores, DECIMALS) + 0.0


def _z_score(values: Floats) -> Floats:
    """Return distances from the median, in deviations estimated by the median one."""
    centred = values - np.median(values)
    deviation = 1.4826 * np.median(np.abs(centred))
    # A spread as small as rounding is none.
    return centred / deviation if deviation > 1e-9 else np.zeros_like(values)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, with 0 where the denominator is 0."""
    quotient = np.zeros_like(numerator)
    return np.divide(numerator, denominator, out=quotient, where=denominator > 0)


def _reduce(series: Floats) -> Floats:
    """Project onto the run's leading principal components."""
    from scipy.linalg import eigh

    cells = series.shape[1]
    leading = (max(cells - COMPONENTS, 0), cells - 1)
    _, axes = eigh(series.T @ series, subset_by_index=leading)
    components: Floats = series @ axes
    return components


def _window_covariances(components: Floats, starts: Integers, window: int) -> Floats:
    """Return each window's covariance divided by its trace, ``(windows, k, k)``."""
    samples = components[starts[:, None] + np.arange(window)]
    samples -= samples.mean(axis=1, keepdims=True)
    covariances = samples.transpose(0, 2, 1) @ samples
    return _per_trace(covariances)


def _per_trace(matrices: Floats) -> Floats:
    traces = np.trace(matrices, axis1=1, axis2=2)
    # What is left of a flat window is rounding.
    traces[traces <= 1e-12 * traces.max()] = 0
    return _divide(matrices, traces[:, None, None])


def _sum_apart(values: Floats, starts: Integers, window: int) -> tuple[Floats, Integers]:
    """Sum, for each window, over those that don't overlap it; linear in the windows."""
    order = np.argsort(starts)
    running = np.cumsum(values[order], axis=0)
    running = np.concatenate([np.zeros_like(running[:1]), running])
    first = np.searchsorted(starts[order], starts - window, side="right")
    after = np.searchsorted(starts[order], starts + window, side="left")
    return running[-1] - (running[after] - running[first]), len(starts) - (after - first)


def _share(of: Floats, within: Floats) -> Floats:
    """Return the share of each matrix's trace in the leading directions of another."""
    variances, axes = np.linalg.eigh(within)
    # A direction without variance is an accident of rounding.
    real = variances[:, -DIRECTIONS:] > 1e-10
    captured = np.einsum("wid,wij,wjd->wd", axes[..., -DIRECTIONS:], of, axes[..., -DIRECTIONS:])
    return np.asarray(np.sum(captured * real, axis=1))
