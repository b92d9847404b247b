"""One artifact on several devices: which worker has which, and who searches the samples of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from stcli.model.retriever import Retriever
from stcli.pipeline.memory import memory_limit

if TYPE_CHECKING:
    from stcli.pipeline.run import Job, Run

T = TypeVar("T")


def worker_jobs(job: Job, devices: Sequence[torch.device]) -> list[Job]:
    """What each worker is made from: a device in turn, its share of the cores and of the memory.

    There are as many as `--workers` says, and at least one a device.
    """
    config = job.config
    count = max(config.workers, len(devices))
    threads = config.threads or max((os.cpu_count() or 1) // count, 1)
    memory = memory_limit(config.memory_limit) // count
    return [
        replace(
            job,
            config=replace(
                config, threads=threads, memory_limit=memory, device=str(devices[number % len(devices)]), workers=1
            ),
        )
        for number in range(count)
    ]


def on_first_device(run: Run, opened: Callable[[Job], Run], work: Callable[[Retriever], T]) -> T:
    """Search samples with the model of the run, or with one that is on the first of its devices meanwhile.

    Args:
        run: whose model searches on its only device, on all together, or on none.
        opened: opens a run of a job.
        work: called with the model.
    """
    if len(run.devices) == 1 or run.is_spread:
        return work(run.model)
    first = replace(run.job, config=replace(run.config, device=str(run.devices[0])))
    found = work(opened(first).model)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the worker of the device needs the room
    return found
