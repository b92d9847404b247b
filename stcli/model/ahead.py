"""Batches side by side: what one needs for its search is made and sent while others are searched, two of them on a GPU.

Threads share the tensors of the model, which nobody changes; whatever else lies on the device belongs to one batch, and
what is launched for it follows one another in the stream of its thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from stcli.filters.program import Planner
from stcli.filters.source import FilterSource, PlannedFilters
from stcli.model.corpus import Corpus
from stcli.model.placement import AT_ONCE
from stcli.types import mapped

T = TypeVar("T")

_OF_THREAD = threading.local()


def searches_at_once(model: Corpus) -> int:
    """Batches of a model that may be searched at the same time, each in a thread and in the stream of `own_stream`.

    One on the CPU, whose threads a search keeps busy, and where the items lie on several devices: there a search has
    threads of its own.
    """
    devices = {segment.device for segment in model.segments}
    return AT_ONCE if len(devices) == 1 and model.device.type == "cuda" else 1


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """What this thread launches on a GPU goes into a stream of its own; other threads' work does not hold it up.

    What other threads launch for this one does not wait for that stream: see `search_stream`.
    """
    if device.type != "cuda":
        yield
        return
    streams: dict[torch.device, torch.cuda.Stream] = vars(_OF_THREAD).setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    with torch.cuda.stream(streams[device]):
        yield


def search_stream(model: Corpus) -> AbstractContextManager[None]:
    """Where the search of a batch goes: into a stream of its own where there are several.

    One that has a thread for each device keeps to their usual streams, which all of its threads share.
    """
    return own_stream(model.device) if searches_at_once(model) > 1 else nullcontext()


@dataclass(frozen=True)
class Arrival:
    """Copies on their way to devices.

    Attributes:
        events: of each GPU, recorded after the last copy to it.
        copies: the tensors there.
    """

    events: Sequence[tuple[torch.device, torch.cuda.Event]]
    copies: Sequence[torch.Tensor]

    def wait(self) -> None:
        """Let what is launched from now on, on the current stream of each device, find the copies whole.

        The host does not wait. The copies are not given to others before what is launched on that stream has ended.
        """
        for device, event in self.events:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(event)
            for copy in self.copies:
                if copy.device == device:
                    copy.record_stream(stream)


class Upload:
    """Copies to GPUs from pinned memory, on a stream of its own for each; a tensor for the CPU stays as it is.

    For one thread; the copies may be used by another, after `Arrival.wait`.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._copies: list[torch.Tensor] = []

    def send(self, value: T, device: torch.device) -> T:
        """A tensor, or a dataclass with every tensor in it, on another device."""
        return value if device.type == "cpu" else mapped(value, lambda tensor: self._copy(tensor, device))

    def _copy(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            copy = tensor.pin_memory().to(device, non_blocking=True)
        self._copies.append(copy)
        return copy

    def sent(self) -> Arrival:
        """What was sent since the last call."""
        copies, self._copies = self._copies, []
        events = [(device, stream.record_event()) for device, stream in self._streams.items()]
        return Arrival(events, copies)


def plan_ahead(model: Corpus, filters: FilterSource, upload: Upload) -> PlannedFilters:
    """Plan all filters for every segment of a model, and send the programs to where its bit matrices are."""

    def planned(planner: Planner, source: FilterSource, elsewhere: dict[int, PlannedFilters]) -> PlannedFilters:
        batch = source.batch(0, len(source))
        places = {segment.device for segment in model.segments if segment.planner is planner}
        sent = {place: upload.send(batch, place) for place in places if place.type != "cpu"}
        return PlannedFilters(source, replace(batch, sent=sent), elsewhere)

    others = {id(other): planned(other, filters.over(other), {}) for other in model.other_planners}
    return planned(model.planner, filters, others)
