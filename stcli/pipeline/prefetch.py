"""Work ahead: the next items of an iterator are made while the caller works on the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END = object()


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator, each made one step ahead in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(next, items, _END)
        while (item := ahead.result()) is not _END:
            ahead = pool.submit(next, items, _END)
            yield item  # type: ignore[misc]


def in_turn(work: Callable[[T], R], items: Iterator[T], at_once: int) -> Iterator[R]:
    """Yield what `work` makes of each item, in order: so many at once, each in a thread, while the caller is busy.

    Where `items` fails, what was made of those before is yielded first.
    """
    pool = ThreadPoolExecutor(at_once)
    running: deque[Future[R]] = deque()
    end: Exception | None = None
    try:
        while end is None:
            try:
                running.append(pool.submit(work, next(items)))
            except Exception as error:  # StopIteration among others
                end = error
            while running and (end is not None or len(running) > at_once):
                yield running.popleft().result()
        if not isinstance(end, StopIteration):
            raise end
    finally:
        pool.shutdown(cancel_futures=True)
