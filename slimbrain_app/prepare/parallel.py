"""Several volumes worked on at once, results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_info, threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")

# More would wait for the one thread that decompresses, and each holds a batch in memory.
_MOST = 4
# Besides the items that are worked on there is one whose result is being used.
AHEAD = 1


@contextmanager
def workers() -> Iterator[int]:
    """Yield how many threads may work: as many as BLAS was allowed, which now gets one each.

    A product by one thread has the same bits whatever the limit of the caller.
    """
    allowed = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    with threadpool_limits(1, user_api="blas"):
        yield min(_MOST, max(allowed, default=1))


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``, a few ahead of the reader.

    ``items`` are drawn in the caller's thread. Never are more than ``threads + AHEAD`` of them in
    use: a result is done with when the reader asks for the next one.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
