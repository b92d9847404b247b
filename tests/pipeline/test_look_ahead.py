"""`retrieve` prepares a batch while others are searched, two at once on a GPU; nothing but the time tells."""

import gc
import threading
import time
import weakref

import numpy as np
import pyarrow as pa
import pytest
import torch

import stcli
from stcli.errors import InputError
from stcli.model.retriever import Retriever
from stcli.model.segment import Segment
from stcli.pipeline import engine, run
from stcli.pipeline.prefetch import in_turn
from stcli.storage import atomic
from stcli.storage.parquet import Table
from tests.pipeline.retrieve_cases import FILTERED, bad_queries, contents, write_queries

SMALL = {"batch_size": 13, "part_rows": 50, "probes": 3, "device": "cpu"}


def tables(tiny, folder):
    """A query table of each kind, and the options for it."""
    bound = write_queries(
        folder / "bound.parquet", tiny.vectors, own=[f"t{number % 60:02d}" for number in range(120)],
        seen=pa.array([[3, 10, 17 + 7 * number] for number in range(120)]),
    )  # fmt: skip
    tasks = write_queries(
        folder / "tasks.parquet", tiny.vectors, filter=pa.array(tiny.filters, pa.string()),
        like=pa.array(tiny.vectors.tolist(), pa.list_(pa.float32())),
        buy=pa.array(tiny.vectors[::-1].tolist(), pa.list_(pa.float32())),
    )  # fmt: skip
    return {
        "filters": (tiny.queries, FILTERED),
        "template": (bound, {"k": 5, "filter": "tags = $own", "exclude_column": "seen"}),
        "bad rows": (bad_queries(folder / "bad.parquet", tiny),
                     {**FILTERED, "bad_rows": "quarantine", "max_bad_fraction": 0.2}),
        "tasks": (tasks, {**FILTERED, "task_embeddings": "like=like,buy=buy"}),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["filters", "template", "bad rows", "tasks"])
def test_the_results_and_their_order_are_the_same(tiny, tmp_path, monkeypatch, name):
    queries, options = tables(tiny, tmp_path)[name]
    ahead = stcli.retrieve(tiny.model, queries, tmp_path / "ahead", **options, **SMALL)
    monkeypatch.setattr(engine, "prefetch", iter)
    plain = stcli.retrieve(tiny.model, queries, tmp_path / "plain", **options, **SMALL)
    assert contents(tmp_path / "ahead") == contents(tmp_path / "plain")
    assert ahead["counts"] == plain["counts"]
    assert ahead["warnings"] == plain["warnings"]


def two_at_once(monkeypatch):
    """As on a GPU, where no words are kept from one tile to the next."""

    def room(segment, lines, most):
        return torch.empty(lines, segment.num_words, dtype=torch.int64)

    monkeypatch.setattr(engine, "searches_at_once", lambda model: 2)
    monkeypatch.setattr(Segment, "_room", room)


@pytest.mark.parametrize("name", ["filters", "template", "bad rows", "tasks"])
def test_two_searches_at_once_give_the_same_in_the_same_order(tiny, tmp_path, monkeypatch, name):
    queries, options = tables(tiny, tmp_path)[name]
    plain = stcli.retrieve(tiny.model, queries, tmp_path / "plain", **options, **SMALL)
    two_at_once(monkeypatch)
    both = stcli.retrieve(tiny.model, queries, tmp_path / "both", **options, **SMALL)
    assert contents(tmp_path / "both") == contents(tmp_path / "plain")
    assert both["counts"] == plain["counts"]


def test_two_batches_are_searched_at_the_same_time(tiny, tmp_path, monkeypatch):
    two_at_once(monkeypatch)
    together, search = threading.Barrier(2, timeout=60), Retriever.search

    def searching(*given):
        together.wait()  # for the other one; each of four comes in a pair
        return search(*given)

    monkeypatch.setattr(Retriever, "search", searching)
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", probes=3, batch_size=30, **FILTERED)


def test_an_error_of_one_of_two_searches_is_raised(tiny, tmp_path, monkeypatch):
    two_at_once(monkeypatch)

    def failing(*_):
        raise InputError("no such thing")

    monkeypatch.setattr(Retriever, "search", failing)
    with pytest.raises(InputError, match="no such thing"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", probes=3, batch_size=30, **FILTERED)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_in_turn_keeps_the_order_and_runs_no_more_than_asked(at_once):
    running, most = set(), []

    def work(number):
        running.add(number)
        most.append(len(running))
        time.sleep(0.01 * (number % 3))
        running.remove(number)
        return number

    assert list(in_turn(work, iter(range(12)), at_once)) == list(range(12))
    assert max(most) <= at_once


@pytest.mark.parametrize("at_once", [1, 2])
def test_in_turn_goes_on_while_the_caller_is_busy(at_once):
    begun = [threading.Event() for _ in range(6)]

    def work(number):
        begun[number].set()
        return number

    for number in in_turn(work, iter(range(6)), at_once):
        assert all(event.wait(60) for event in begun[number + 1 : number + 1 + at_once])


def test_in_turn_stops_where_the_caller_does():
    begun, going_on = [], threading.Event()

    def work(number):
        begun.append(number)
        if number:
            going_on.wait(60)

    results = in_turn(work, iter(range(100)), 1)
    next(results)
    going_on.set()
    results.close()
    assert len(begun) <= 3


def test_in_turn_gives_what_was_made_before_its_items_failed():
    def items():
        yield from range(3)
        raise InputError("no fourth")

    results = in_turn(lambda number: number, items(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="no fourth"):
        next(results)


def test_nothing_is_kept_of_a_run(tiny, tmp_path, monkeypatch):
    """On a GPU the memory of a model has to be free for the next one, whenever the collector of cycles comes by."""
    opened = []

    def opening(*given, **options):
        model = whole(*given, **options)
        opened.append(weakref.ref(model))
        return model

    whole = run.open_artifact
    monkeypatch.setattr(run, "open_artifact", opening)
    gc.collect()
    gc.disable()
    try:
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", probes=3, part_rows=60, **FILTERED)
        assert [reference() for reference in opened] == [None]
    finally:
        gc.enable()


def test_a_table_that_becomes_shorter_is_noticed(tiny, tmp_path, monkeypatch):
    whole = Table.batches

    def shorter(table, columns, most, start=0, stop=None):
        return (batch for batch in whole(table, columns, most, start, stop) if batch[0] != 90)

    monkeypatch.setattr(Table, "batches", shorter)
    with pytest.raises(InputError, match="rows 60 to 119 are no longer what they were"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", probes=3, batch_size=30, part_rows=60, k=5)
    assert [path.name for path in (tmp_path / "out.partial").glob("part-*.parquet")] == ["part-00000.parquet"]


def test_the_next_part_is_searched_while_one_is_finished(tiny, tmp_path, monkeypatch):
    searched, search, sync, waits = threading.Semaphore(0), Retriever.search, atomic.sync, []

    def searching(*given):
        searched.release()
        return search(*given)

    def syncing(path):
        if "part-00000" in path.name:  # two batches of its own, and one of the next
            waits.append([searched.acquire(timeout=60) for _ in range(3)])
        sync(path)

    monkeypatch.setattr(Retriever, "search", searching)
    monkeypatch.setattr(atomic, "sync", syncing)
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", probes=3, batch_size=30, part_rows=60, **FILTERED)
    assert waits == [[True, True, True]]


def test_a_bad_row_does_not_cost_the_part_before_it(tiny, tmp_path):
    vectors = tiny.vectors.copy()
    vectors[60] = np.nan
    queries = write_queries(tmp_path / "bad.parquet", vectors)
    with pytest.raises(InputError, match="row 60"):
        stcli.retrieve(tiny.model, queries, tmp_path / "out", probes=3, batch_size=30, part_rows=60)
    assert [path.name for path in (tmp_path / "out.partial").glob("part-*.parquet")] == ["part-00000.parquet"]


def test_the_next_batch_is_planned_while_one_is_searched(tiny, tmp_path, monkeypatch):
    planned = [threading.Event() for _ in range(4)]
    places, searched = iter(planned), []
    plan, search = engine.plan_ahead, Retriever.search

    def planning(*given):
        found = plan(*given)
        next(places).set()
        return found

    def searching(*given):
        searched.append(len(searched))
        if len(searched) < len(planned):
            assert planned[len(searched)].wait(60), "the next batch waits for the search of this one"
        return search(*given)

    monkeypatch.setattr(engine, "plan_ahead", planning)
    monkeypatch.setattr(Retriever, "search", searching)
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", probes=3, batch_size=30, **FILTERED)
    assert searched == [0, 1, 2, 3]
