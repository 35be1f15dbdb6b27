"""Work in processes whose results come in order, with only a few of them waiting in memory."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from medusa_cl.stopping import deaf, end_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_options(workers: int) -> dict[str, Any]:
    """Return the options of a `DataLoader` that loads in so many processes."""
    options: dict[str, Any] = {"num_workers": workers, "worker_init_fn": deaf}
    if workers and multiprocessing.get_start_method(allow_none=True) == "loky":  # joblib's, which starts only its own
        options["multiprocessing_context"] = "fork"
    return options


def in_order(
    jobs: Sequence[Job],
    work: Callable[[Job], Result],
    workers: int | None = None,
    start: Callable[..., object] | None = None,
    given: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yield `work(job)` of each job, in order, from processes where that pays.

    Args:
        jobs: What there is to do.
        work: A function that can be pickled.
        workers: Processes; None = the processors this process may use, 1 = none besides this one.
        start: Called once in each process before it works, with `given`.
        given: What each process is given once, rather than with every job.
    """
    workers = min(processors() if workers is None else workers, len(jobs))
    made = 0
    if workers > 1:
        try:
            for result in _from_processes(jobs, work, workers, start, given):
                yield result
                made += 1
        except BrokenProcessPool:
            # Started from a prompt or an unguarded script, spawned processes cannot import the main module.
            _log.warning("Worker processes cannot start or were killed; going on in this process alone.")
    if start is not None and made < len(jobs):
        start(*given)
    for job in jobs[made:]:
        yield work(job)


def _begin(start: Callable[..., object] | None, given: tuple[Any, ...]) -> None:
    deaf()
    end_with_parent()
    if start is not None:
        start(*given)


def _from_processes(
    jobs: Sequence[Job],
    work: Callable[[Job], Result],
    workers: int,
    start: Callable[..., object] | None,
    given: tuple[Any, ...],
) -> Iterator[Result]:
    """Spawned, not forked: the parent may hold threads and locks of torch."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (start, given))
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
