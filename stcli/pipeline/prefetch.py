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
    ended, failed = False, None
    try:
        while not ended:
            try:
                item = next(items, _END)
            except Exception as error:
                item, failed = _END, error
            ended = item is _END
            if not ended:
                running.append(pool.submit(work, item))  # type: ignore[arg-type]
            while running and (ended or len(running) > at_once):
                yield running.popleft().result()
        if failed is not None:
            raise failed
    finally:
        del failed  # its traceback has this frame, which has it: together they would keep all that `work` knows
        pool.shutdown(cancel_futures=True)
