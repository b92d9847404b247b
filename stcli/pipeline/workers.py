"""Spread numbered pieces of work over processes of this machine, or over Ray actors of many.

Only numbers travel: each worker is made once from plain data, opens what it needs by itself (two workers on one host
share the pages of a mapped artifact) and leaves its result in a file that appears whole or not at all. So a piece may
be done again after a worker died, and nothing else needs to be undone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from stcli.errors import InputError, RunError, StcliError
from stcli.events import warn

MakeWorker = Callable[[Any], Callable[[int], None]]
"""Makes a worker from plain data; must be importable, since it is sent by its name."""

ATTEMPTS = 3
"""How often in a row the pool may lose a worker without finishing a piece, before the run gives up."""


def local_workers(
    make: MakeWorker, jobs: Sequence[Any], numbers: Sequence[int], retried: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Do the pieces in processes of this machine; yields the number of each as it is finished.

    A process that dies is replaced, and what it had not finished is done again.

    Args:
        make: makes the worker of a process.
        jobs: what the worker of each process is made from.
        numbers: of the pieces.
        retried: called each time that a process has died and the pieces left are begun again.

    Raises:
        RunError: processes keep dying.
        StcliError: as a worker raised it.
    """
    left, failures = set(numbers), 0
    while left:
        finished = len(left)
        try:
            for number in _one_pool(make, jobs, sorted(left)):
                left.discard(number)
                yield number
        except BrokenProcessPool as error:
            failures = failures + 1 if len(left) == finished else 1
            if failures >= ATTEMPTS:
                raise RunError(
                    f"worker processes died {failures} times without finishing a part, killed from outside or out of "
                    "memory; use fewer --workers or a lower --memory-limit, and --resume"
                ) from error
            warn("worker_died", stage="search", pieces_left=len(left))
            retried()


def _one_pool(make: MakeWorker, jobs: Sequence[Any], numbers: Sequence[int]) -> Iterator[int]:
    context, count = multiprocessing.get_context(start_method()), min(len(jobs), len(numbers))
    context.set_forkserver_preload(["stcli.pipeline.run"])
    waiting = context.SimpleQueue()
    for job in jobs[:count]:
        waiting.put(job)
    pool = ProcessPoolExecutor(count, context, _start, (make, waiting, dict(os.environ)))
    try:
        for future in as_completed([pool.submit(_do, number) for number in numbers]):
            yield future.result()
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def start_method() -> str:
    """How processes begin: on Linux as copies of one that has imported what they need, once for all runs of a process.

    Beside other work four processes began in 6 s of CPU time, 18 s if each imports for itself. The one that is copied
    never runs an operation, so that it has no threads that a copy would miss, and no GPU.
    """
    here = Path("stcli")
    shadowed = here.exists() and not here.samefile(Path(__file__).parents[1])  # it looks into the current folder first
    return "spawn" if shadowed or sys.platform != "linux" else "forkserver"


_worker: Callable[[int], None]


def _start(make: MakeWorker, waiting: Any, environment: dict[str, str]) -> None:
    """Make the worker of this process from the next job; it ends when its parent does, however that ends."""
    global _worker
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = make(waiting.get())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(number: int) -> int:
    _worker(number)
    return number


def ray_workers(
    make: MakeWorker, job: Any, numbers: Sequence[int], workers: int, cpus: int, gpus: int
) -> Iterator[int]:
    """Do the pieces in Ray actors, by Ray Data; yields the number of each as it is finished.

    Ray replaces actors that die and repeats their work. Uses the cluster that RAY_ADDRESS names, or this machine.

    Args:
        make: makes the worker of an actor.
        job: what it is made from; its paths must be readable on every node.
        numbers: of the pieces.
        workers: actors.
        cpus, gpus: that each actor reserves.

    Raises:
        InputError: Ray is not installed.
        StcliError: as a worker raised it.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError("--engine ray: Ray is not installed; pip install 'stcli[ray]'") from error
    if not numbers:
        return
    on_stop = signal.getsignal(signal.SIGTERM)
    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_stop)  # Ray has put its own there, which prints a trace and leaves with 15
    ray.data.DataContext.get_current().enable_progress_bars = False
    pieces = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    done = pieces.map_batches(
        RayWorker,
        fn_constructor_args=(make, job),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
        yield int(row["number"])


class RayWorker:
    """A worker as Ray Data wants it: a batch of numbers in, the batch with errors out.

    An error of ours is a result, not a failure that Ray would wrap, or answer by trying again.
    """

    def __init__(self, make: MakeWorker, job: Any) -> None:
        self._worker = make(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the pieces of a batch; `error` is a pickled exception, or empty."""
        errors = []
        for number in batch["number"]:
            try:
                self._worker(int(number))
                errors.append(b"")
            except StcliError as error:
                errors.append(pickle.dumps(error))
        return {**batch, "error": errors}
