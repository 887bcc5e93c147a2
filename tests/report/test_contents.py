"""Figures that a report derives from its records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from slimbrain_app.records import Window
from slimbrain_app.report.contents import ReportedRun, join_spans


def _window(onset: float, selected: bool = True) -> Window:
    return Window(
        start=0,
        onset=onset,
        duration=10,
        saliency=0,
        rank=1,
        selected=selected,
        censored_frames=0,
    )


def test_overlapping_windows_are_counted_once(make_run: Callable[..., ReportedRun]) -> None:
    windows = (_window(0), _window(5), _window(30), _window(50, selected=False))
    assert replace(make_run(), windows=windows).selected_seconds == 25


def test_touching_windows_become_one_span() -> None:
    assert join_spans([_window(10), _window(0), _window(40)]) == [(0, 20), (40, 50)]


def test_first_volume_has_no_part_in_the_mean_displacement(
    make_run: Callable[..., ReportedRun],
) -> None:
    run = replace(make_run(), displacement=(0.0, 0.1, 0.3))
    assert run.mean_displacement == pytest.approx(0.2)
    assert replace(run, displacement=None).mean_displacement is None


def test_selected_windows_come_best_first(make_run: Callable[..., ReportedRun]) -> None:
    ranks = [window.rank for window in make_run().selected]
    assert ranks == list(range(1, 9))


def test_norm_is_that_of_the_runs_embedding(make_run: Callable[..., ReportedRun]) -> None:
    run = replace(make_run(), embedding=np.array([3, 4], np.float32))
    assert run.norm == 5
