"""Several items worked on at once, results in order."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from slimbrain_app.prepare import parallel


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_come_in_order(threads):
    def slow_first(item):
        time.sleep(0.02 * (item % threads == 0))
        return item**2

    results = list(parallel.map_in_order(slow_first, range(20), threads))
    assert results == [item**2 for item in range(20)]


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_items_are_in_use_than_promised(threads):
    drawn, done, most = 0, 0, 0

    def items():
        nonlocal drawn, most
        for item in range(30):
            drawn += 1
            most = max(most, drawn - done)
            yield item

    for _ in parallel.map_in_order(lambda item: item, items(), threads):
        done += 1
    assert done == 30
    assert most == threads + parallel.AHEAD


def test_error_of_a_worker_reaches_the_reader():
    def fail(item):
        if item == 3:
            raise ValueError("three")
        return item

    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="three"):
        list(parallel.map_in_order(fail, range(10), 2))
    assert set(threading.enumerate()) <= before


def test_workers_take_over_what_blas_was_allowed():
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(2, user_api="blas"):
        with parallel.workers() as threads:
            assert (threads, blas_threads()) == (2, {1})
        assert blas_threads() == {2}
