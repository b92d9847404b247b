"""What a batch needs for its search, made and sent to the devices while the batch before it is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from stcli.filters.program import Planner
from stcli.filters.source import FilterSource, PlannedFilters
from stcli.model.corpus import Corpus
from stcli.types import mapped

T = TypeVar("T")


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
