"""Files of a set on several devices: who has which, and a search that mixes no tensors of two devices.

One of two devices is far away here (see `tests/far_device.py`): an operation that brings its tensors together with
those of the CPU is an error, as it is on a GPU.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stcli
from stcli.config import RetrieveConfig
from stcli.errors import DeviceError, InputError
from stcli.model import search
from stcli.model.placement import RESERVE_BYTES, Spread, choose_placement, share_out
from stcli.ops import cuda
from stcli.pipeline import place, run
from tests.conftest import lists
from tests.far_device import FAR, Watch, to_far
from tests.pipeline.retrieve_cases import contents

CPU = torch.device("cpu")
GPUS = (torch.device("cuda", 0), torch.device("cuda", 1))
DIM, QUERIES = 8, 30
FILTERS = (None, "tag = 't3'", "tag = 't77' OR price < 30", "NOT tag = 't1'")
FIELDS = ("rows", "score_matrix", "work", "routes", "probes", "admitted")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """An artifact of three blocks of rows, the same as a set of two files, and a query table."""
    folder, rng = tmp_path_factory.mktemp("spread"), np.random.default_rng(4)
    embeddings = rng.normal(size=(9000, DIM)).astype(np.float32)
    embeddings[-500:] = embeddings[:500]
    tags = pa.array([f"t{number}" for number in rng.integers(0, 90, 9000)])
    items = {"item_id": rng.permutation(9000), "embedding": lists(embeddings), "tag": tags,
             "price": rng.integers(0, 1000, 9000)}  # fmt: skip
    pq.write_table(pa.table(items), folder / "items.parquet")
    stcli.build_index(folder / "items.parquet", folder / "index", feature_columns=["tag", "price"], clusters=32)
    stcli.pack_model(folder / "index", folder / "whole")
    stcli.pack_model(folder / "index", folder / "set", shards=2)
    queries = {"query_id": range(QUERIES), "embedding": lists(rng.normal(size=(QUERIES, DIM)).astype(np.float32)),
               "filter": pa.array([FILTERS[number % len(FILTERS)] for number in range(QUERIES)])}  # fmt: skip
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    return folder


def asked(folder):
    table = pq.read_table(folder / "queries.parquet")
    vectors = np.stack(table["embedding"].to_pylist()).astype(np.float32)
    return vectors, table["filter"].to_pylist()


def sent_away(segment) -> None:
    for name, buffer in list(segment.named_buffers(recurse=False)):
        setattr(segment, name, to_far(buffer))


@pytest.mark.parametrize("far", [0, 1])
@pytest.mark.parametrize("how", [{"exact": True}, {"probes": 5}, {"target_recall": None}], ids=str)
def test_no_tensors_of_two_devices_meet(corpus, monkeypatch, how, far):
    vectors, filters = asked(corpus)
    exclude = [None, [3, 10, 17]] * (QUERIES // 2)
    expected = stcli.open_artifact(corpus / "whole")(vectors, filters, 7, exclude=exclude, **how)
    model = stcli.open_artifact(corpus / "set")
    sent_away(model.segments[far])
    assert {segment.device for segment in model.segments} == {CPU, FAR}
    monkeypatch.setattr(search, "at_once", lambda one, runs: [one(run) for run in runs])  # a watch sees one thread
    with Watch(reads=True, both=True):
        found = model(vectors, filters, 7, exclude=exclude, **how)
    for name in FIELDS:
        assert torch.equal(getattr(expected, name), getattr(found, name)), name


@pytest.mark.parametrize("far", [0, 1])
def test_requests_of_several_tasks_are_scored_on_the_device_of_the_first(corpus, monkeypatch, far):
    vectors, filters = asked(corpus)
    users = {"like": vectors, "buy": vectors[::-1].copy()}
    expected = stcli.open_artifact(corpus / "whole")(users, filters, 7, probes=5)
    model = stcli.open_artifact(corpus / "set")
    sent_away(model.segments[far])
    monkeypatch.setattr(search, "at_once", lambda one, runs: [one(run) for run in runs])
    with Watch(reads=True, both=True):
        found = model(users, filters, 7, probes=5)
    for name in ("rows", "score_matrix", "task_matrix", "work"):
        assert torch.equal(getattr(expected, name), getattr(found, name)), name


def test_the_watch_sees_a_mixture(corpus, monkeypatch):
    """Were the queries not sent along, the test above would fail."""
    vectors, filters = asked(corpus)
    model = stcli.open_artifact(corpus / "set", backend="torch")
    sent_away(model.segments[1])
    monkeypatch.setattr(search, "at_once", lambda one, runs: [one(run) for run in runs])
    monkeypatch.setattr(search, "moved", lambda value, device: value)
    with Watch(reads=True, both=True), pytest.raises(AssertionError, match="mixes tensors of two devices"):
        model(vectors[:4], filters[:4], 7, probes=5)


def test_devices_search_at_the_same_time():
    meeting = threading.Barrier(2, timeout=60)
    runs = [SimpleNamespace(segment=SimpleNamespace(device=device)) for device in GPUS]
    assert search.at_once(lambda run: (meeting.wait(), run)[1], runs) == runs
    alone = [SimpleNamespace(segment=SimpleNamespace(device=CPU), thread=None) for _ in range(2)]
    assert search.at_once(lambda run: threading.current_thread(), alone) == [threading.main_thread()] * 2


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [([5, 5], 2, [0, 1]), ([1, 9, 2], 2, [1, 0, 1]), ([4, 4, 4, 4, 4], 2, [0, 1, 0, 1, 0]), ([7], 3, [0])],
)
def test_files_are_shared_out_by_bytes(sizes, count, expected):
    assert share_out(sizes, count) == expected


def needed(path) -> int:
    """Free bytes that an artifact and its smallest tile need on one device."""
    low, high = RESERVE_BYTES, 2 * RESERVE_BYTES
    config = RetrieveConfig(k=7)
    while low < high:
        middle = (low + high) // 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, "free_bytes", lambda device, free=middle: free)
            try:
                place.place_artifact(path, GPUS[:1], config)
                high = middle
            except DeviceError:
                low = middle + 1
    return low


def test_a_copy_where_it_fits_else_the_files_one_by_one(corpus, monkeypatch):
    whole, config = needed(corpus / "set"), RetrieveConfig(k=7)
    monkeypatch.setattr(place, "free_bytes", lambda device: whole)
    assert place.place_artifact(corpus / "set", GPUS, config).free_bytes == whole
    monkeypatch.setattr(place, "free_bytes", lambda device: whole - 1)
    spread = place.place_artifact(corpus / "set", GPUS, config)
    assert sorted(map(str, spread.devices)) == ["cuda:0", "cuda:1"]
    parts = [placement.resident_bytes for placement in spread.each.values()]
    assert sum(parts) > max(parts) > 0
    assert set(spread.summary()) == {"cuda:0", "cuda:1"}
    little = needed(corpus / "whole") - 1
    monkeypatch.setattr(place, "free_bytes", lambda device: little)
    with pytest.raises(DeviceError, match=r"GB free; .* or pack the index with --shards 2, whose files"):
        place.place_artifact(corpus / "whole", GPUS, config)
    with pytest.raises(DeviceError, match="use a larger GPU"):
        place.place_artifact(corpus / "set", GPUS[:1], config)


def test_retrieve_searches_all_files_in_one_process(corpus, tmp_path, monkeypatch):
    """The driver answers by itself; two CPUs stand for two GPUs that are too small."""
    options = {"k": 7, "filter_column": "filter", "target_recall": 0.9, "audit": 20}
    one = stcli.retrieve(corpus / "set", corpus / "queries.parquet", tmp_path / "one", device="cpu", **options)
    sizes = {"search": 10**6, "filter": 10**5, "embeddings": 10**5}
    spread = Spread((CPU, CPU), {CPU: choose_placement(sizes, 9000, 100, 3 * 10**9, batch_size=11)})
    monkeypatch.setattr(run, "choose_devices", lambda name: [CPU, CPU])
    monkeypatch.setattr(run, "place_artifact", lambda *given: spread)
    monkeypatch.setattr(run, "local_workers", None)  # none is made
    many = stcli.retrieve(corpus / "set", corpus / "queries.parquet", tmp_path / "many", device="cuda:all", **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert one["audit"] == many["audit"]
    assert many["placement"]["tile_queries"] == 11
    with pytest.raises(InputError, match=r"no GPU holds the artifact by itself.*leave out --workers"):
        stcli.retrieve(
            corpus / "set", corpus / "queries.parquet", tmp_path / "no", device="cuda:all", workers=2, **options
        )


def test_the_kernels_are_launched_for_the_device_of_their_tensors():
    """Not for the first GPU: `cuda.launch` refuses tensors of two devices before anything is launched."""
    with pytest.raises(DeviceError, match="contiguous tensors on one device expected"):
        cuda.launch("rescore.cu", "rescore", 1, 32, torch.zeros(3), torch.zeros(3, device="meta"))
