"""Artifacts whose arrays lead out of others: refused in one sentence before anything follows them."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import FormatError, InputError
from stcli.model.placement import Placement
from stcli.ops import cuda
from stcli.storage.artifact import open_artifact_file, write_artifact
from tests.conftest import DIM, lists
from tests.far_device import FAR

PLACED = Placement(dict.fromkeys(("search", "filter", "embeddings", "terms"), 0), {}, 64, 0, 0)

AT_OPENING, ON_A_GPU = ("cluster_offsets", "bloom_offsets"), ("term_offsets", "id_order", "id_rank", "own_row")

WAYS = {
    "descending": lambda numbers: numbers[::-1],
    "negative": lambda numbers: put(numbers, len(numbers) // 2, -(2**30)),
    "past the end": lambda numbers: put(numbers, len(numbers) // 2, 2**30),
    "last past the end": lambda numbers: put(numbers, -1, 2**30),
    "first negative": lambda numbers: put(numbers, 0, -2),
    "twice the same": lambda numbers: put(numbers, 0, numbers[1] or 5),
    "short": lambda numbers: numbers[:-1],
}


def put(numbers, place, value):
    changed = numbers.copy()
    changed[place] = value
    return changed


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Nine thousand items in three blocks, with Bloom rows and string ids."""
    folder, rng = tmp_path_factory.mktemp("damaged"), np.random.default_rng(5)
    items = {
        "item_id": [f"i{number:04d}" for number in rng.permutation(9000)],
        "embedding": lists(rng.normal(size=(9000, DIM)).astype(np.float32)),
        "tags": pa.array([[f"t{tag:03d}" for tag in np.unique(rng.integers(0, 300, 4))] for _ in range(9000)]),
        "color": rng.choice(["red", "green", "blue"], 9000),
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    stcli.build_index(
        folder / "items.parquet", folder / "index", feature_columns=["tags", "color"], clusters=32, filter_bytes=5
    )
    stcli.pack_model(folder / "index", folder / "model")
    arrays = open_artifact_file(folder / "model").arrays
    assert len(arrays["bloom_offsets"]) == 4
    assert len(arrays["bloom_words"]) > 0
    assert len(arrays["own_words"]) > 1
    return folder / "model"


def damaged(model: Path, path: Path, name: str, how: str) -> Path:
    """The artifact with one array changed, and hashes that agree with it."""
    opened = open_artifact_file(model)
    arrays = {key: np.array(array) for key, array in opened.arrays.items()}
    arrays[name] = np.ascontiguousarray(WAYS[how](arrays[name]))
    body = {key: value for key, value in opened.manifest.items() if key not in ("format", "version", "fingerprint")}
    write_artifact(path, arrays, body)
    return path


class NoLaunch:
    def launch(self, *_) -> None:
        raise AssertionError("a kernel was launched")


def wrong(name: str, how: str) -> bool:
    """Whether an array changed so leads astray."""
    is_offsets = name.endswith("offsets")
    if name == "own_row":  # terms may share a row, the wrong ones then
        return how not in ("descending", "twice the same")
    return how != "twice the same" or not is_offsets


CASES = [(name, how) for name in (*AT_OPENING, *ON_A_GPU) for how in WAYS if wrong(name, how)]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_no_kernel_follows_a_damaged_array(model, tmp_path, name, how):
    path = damaged(model, tmp_path / "m", name, how)
    with (
        cuda.launching_with(NoLaunch()),
        pytest.raises(FormatError, match=rf"/m: {name[:3]}.*, so the content is dam") as said,
    ):
        stcli.open_artifact(path, device=FAR, placement=PLACED)
    assert said.value.exit_code == 2
    assert "\n" not in str(said.value)
    if name != "term_offsets":  # which stay on the host
        with pytest.raises(FormatError, match="damaged"):
            stcli.open_artifact(path, device=FAR)


@pytest.mark.parametrize(("name", "how"), [case for case in CASES if case[0] in AT_OPENING or case[1] == "short"])
def test_nor_does_the_cpu(model, tmp_path, name, how):
    with pytest.raises(FormatError, match=rf"/m: {name} .*expected|/m: {name} does not run from 0"):
        stcli.open_artifact(damaged(model, tmp_path / "m", name, how))


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(("name", "how"), [case for case in CASES if case[0] in ON_A_GPU and case[1] != "short"])
def test_the_cpu_checks_what_it_follows(model, tmp_path, name, how, backend):
    """Where an array is as long as there are rows, it opens; a search gives a result or an error of ours."""
    vectors = np.random.default_rng(6).normal(size=(12, DIM)).astype(np.float32)
    opened = stcli.open_artifact(damaged(model, tmp_path / "m", name, how), backend=backend)
    for filters in ("tags = 't001'", "NOT tags = 't002' OR color < 'green'", "tags IN ('t003', 't250')"):
        for options in ({"exact": True}, {"probes": 8}, {"probes": 8, "filter_scope": "probed"}):
            with contextlib.suppress(InputError):
                found = opened(vectors, filters, 5, **options)
                assert int(found.rows.max()) < 9000
                assert len(opened.ids.take(found.rows[found.rows >= 0].numpy())) == int(found.counts.sum())


@pytest.mark.parametrize("how", ["negative", "past the end", "first negative"])
def test_own_rows_are_looked_at_before_a_filter_is(model, tmp_path, how):
    opened, vectors = stcli.open_artifact(damaged(model, tmp_path / "m", "own_row", how)), np.ones((2, DIM), np.float32)
    assert int(opened(vectors, None, 5).counts.sum()) == 10
    for _ in range(2):
        with pytest.raises(FormatError, match=r"/m: own_row leads to .*expected numbers in -1 … .*, so the content is"):
            opened(vectors, "tags = 't001'", 5)


def test_a_whole_one_is_placed(model):
    opened = stcli.open_artifact(model, device=FAR, placement=PLACED)
    assert {opened.device, opened.terms.offsets.device} == {FAR}
    assert stcli.open_artifact(model, device=FAR).device == FAR


@pytest.mark.parametrize("shards", [1, 2])
def test_files_of_a_set_are_whole_too(model, tmp_path, shards):
    stcli.pack_model(model.parent / "index", tmp_path / "set", shards=shards, overwrite=True)
    stcli.open_artifact(tmp_path / "set", device=FAR, placement=PLACED)


@pytest.mark.parametrize("how", ["negative", "past the end"])
@pytest.mark.parametrize("name", ["id_order", "id_rank"])
def test_a_damaged_fresh_file(model, tmp_path, name, how):
    items = pq.read_table(model.parent / "items.parquet").slice(0, 50)
    pq.write_table(items, tmp_path / "new.parquet")
    stcli.update(model, tmp_path / "set", upsert=tmp_path / "new.parquet")
    (fresh,) = (tmp_path / "set").glob("fresh*.safetensors")
    opened = open_artifact_file(fresh)
    raw = bytearray(fresh.read_bytes())
    at = raw.index(np.ascontiguousarray(opened.arrays[name]).tobytes())
    raw[at : at + 8] = np.int64({"negative": -(2**40), "past the end": 2**40}[how]).tobytes()
    shutil.rmtree(tmp_path / "again", ignore_errors=True)
    shutil.copytree(tmp_path / "set", tmp_path / "again")
    (tmp_path / "again" / fresh.name).write_bytes(raw)
    with pytest.raises(
        FormatError, match=r"id_(order|rank) leads to .*expected numbers in 0 … 49, so the content is dam"
    ):
        stcli.open_artifact(tmp_path / "again")
