"""Sending a batch to a device ahead of its search: the order of the calls, with streams that only write them down."""

import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import stcli
from stcli.filters.source import GivenFilters
from stcli.model import ahead
from stcli.model.ahead import Upload, own_stream, plan_ahead, search_stream, searches_at_once
from stcli.types import Lines

GPU, OTHER = torch.device("cuda", 0), torch.device("cuda", 1)


class Spy(torch.Tensor):
    """A tensor that tells what is done with it, and says afterwards that it is on the device it was copied to."""

    log: list
    place = torch.device("cpu")

    @property
    def device(self):
        return self.place

    def pin_memory(self):
        self.log.append("pin")
        return self

    def to(self, device, non_blocking=False):
        self.log.append(("copy", str(device), "behind the host" if non_blocking else "the host waits"))
        copy = spy(self.log)
        copy.place = device
        return copy

    def record_stream(self, stream):
        self.log.append(("kept for", stream.name))


def spy(log):
    made = torch.zeros(3).as_subclass(Spy)
    made.log = log
    return made


@pytest.fixture
def log(monkeypatch):
    """What is asked of streams."""
    calls = []

    def stream(name):
        return SimpleNamespace(
            name=name,
            record_event=lambda: calls.append(("mark", name)) or f"event of {name}",
            wait_event=lambda event: calls.append((name, "waits for", event)),
        )

    @contextmanager
    def on(chosen):
        calls.append(("on", chosen.name))
        yield
        calls.append(("off", chosen.name))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream(f"copies to {device}"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream(f"kernels on {device}"))
    return calls


def test_a_copy_is_made_on_a_stream_of_its_own_and_waited_for_on_the_device(log):
    upload = Upload()
    sent = upload.send(spy(log), GPU)
    arrival = upload.sent()
    assert sent.device == GPU
    assert log == [
        ("on", "copies to cuda:0"), "pin", ("copy", "cuda:0", "behind the host"), ("off", "copies to cuda:0"),
        ("mark", "copies to cuda:0"),
    ]  # fmt: skip
    log.clear()
    arrival.wait()
    assert log == [
        ("kernels on cuda:0", "waits for", "event of copies to cuda:0"),
        ("kept for", "kernels on cuda:0"),
    ]


def test_each_device_has_a_stream_and_each_arrival_its_own_copies(log):
    upload = Upload()
    lines = upload.send(Lines(spy(log), spy(log), spy(log)), GPU)
    upload.send(spy(log), OTHER)
    assert [part.device for part in (lines.values, lines.begins, lines.ends)] == [GPU] * 3
    first, second = upload.sent(), upload.sent()
    assert (len(first.copies), len(second.copies)) == (4, 0)
    log.clear()
    first.wait()
    waits = [entry for entry in log if "waits for" in entry]
    assert [entry[0] for entry in waits] == ["kernels on cuda:0", "kernels on cuda:1"]
    assert log.count(("kept for", "kernels on cuda:0")) == 3
    assert log.count(("kept for", "kernels on cuda:1")) == 1


def test_each_thread_has_a_stream_of_its_own(monkeypatch):
    """Made once, for each of its devices; nothing of the kind on the CPU."""
    made, entered = [], []

    def stream(device):
        made.append((device, threading.current_thread()))
        return len(made)

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda chosen: entered.append(chosen) or nullcontext())

    def work():
        for device in (GPU, torch.device("cpu"), OTHER, GPU):
            with own_stream(device):
                pass

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [device for device, _ in made] == [GPU, OTHER] * 2
    assert len({thread for _, thread in made}) == 2
    assert entered == [1, 2, 1, 3, 4, 3]


@pytest.mark.parametrize(("devices", "count"), [([GPU], 2), ([GPU, GPU], 2), ([GPU, OTHER], 1), (["cpu"], 1)], ids=str)
def test_how_many_batches_are_searched_at_once(devices, count, monkeypatch):
    entered = []
    monkeypatch.setattr(ahead, "own_stream", lambda device: entered.append(device) or nullcontext())
    segments = [SimpleNamespace(device=torch.device(device)) for device in devices]
    model = SimpleNamespace(segments=segments, device=segments[0].device)
    assert searches_at_once(model) == count
    with search_stream(model):
        assert entered == [model.device] * (count > 1)


def test_nothing_is_copied_for_the_cpu(log):
    upload, lines = Upload(), Lines(torch.arange(3), torch.zeros(1), torch.ones(1))
    assert upload.send(lines, torch.device("cpu")) is lines
    assert upload.send(None, GPU) is None
    upload.sent().wait()
    assert log == []


def test_filters_planned_ahead_are_those_that_are_planned_in_the_search(tiny):
    model = stcli.open_artifact(tiny.model)
    given = GivenFilters(model.planner, tiny.filters)
    planned = plan_ahead(model, given, Upload())
    assert len(planned) == len(tiny.filters)
    assert planned.unknown_values() == given.unknown_values() > 0
    for first, last in ((0, 120), (7, 33), (119, 120), (0, 1)):
        some = GivenFilters(model.planner, tiny.filters[first:last])
        (batch,) = (batches[0] for _, batches in model.batches(planned, first, last))
        (own,) = (batches[0] for _, batches in model.batches(some, 0, last - first))
        found, expected = model.admit((batch,))[0], stcli.open_artifact(tiny.model).admit((own,))[0]
        assert found.counts().tolist() == expected.counts().tolist()
        assert len(batch.filter_of_query) == last - first


def test_the_copies_of_programs_are_used_where_they_are(tiny):
    batch = stcli.open_artifact(tiny.model).planner.batch(tiny.filters)
    there = batch.slice(0, len(tiny.filters))
    assert there is batch
    assert replace(batch, sent={GPU: there}).to(GPU) is there
