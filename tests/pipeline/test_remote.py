"""The four commands on an object store: a server that speaks S3, started here on the loopback interface."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.cli.main import run
from stcli.errors import ExistsError, InputError, ThresholdError
from stcli.pipeline.inspect import inspect
from stcli.storage import remote
from tests.pipeline.retrieve_cases import FILTERED, read

server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[s3,server]'")

FEATURES = {"feature_columns": ["color", "tags", "price"]}


@pytest.fixture(scope="module")
def bucket(tiny, tmp_path_factory):
    """An empty bucket with the tables of the shared corpus."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    given = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        store = pafs.S3FileSystem(allow_bucket_creation=True, endpoint_override=given["AWS_ENDPOINT_URL"])
        store.create_dir("shop")
        for path in (tiny.items, tiny.queries):
            with store.open_output_stream(f"shop/in/{path.name}") as stream:
                stream.write(path.read_bytes())
        yield store
    running.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(store, folder):
    found = store.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(info.path for info in found if info.type == pafs.FileType.File)


def download(store, folder, to):
    to.mkdir()
    for name in names(store, folder):
        (to / name.rsplit("/", 1)[1]).write_bytes(store.open_input_file(name).read())
    return to


@pytest.fixture(scope="module")
def packed(bucket, tiny, tmp_path_factory):
    """An index and an artifact that were made on the object store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STCLI_CACHE", str(tmp_path_factory.mktemp("cache")))
        summary = stcli.build_index(f"s3://shop/in/{tiny.items.name}", "s3://shop/made/items.index", **FEATURES)
        assert summary["outputs"]["index"] == "s3://shop/made/items.index"
        stcli.pack_model("s3://shop/made/items.index", "s3://shop/made/model.safetensors")
    return bucket


def test_the_same_bytes_as_on_disk(packed, tiny, tmp_path, cache):
    stcli.build_index(tiny.items, tmp_path / "items.index", **FEATURES)
    stcli.pack_model(tmp_path / "items.index", tmp_path / "model.safetensors")
    index = download(packed, "shop/made/items.index", tmp_path / "copy")
    for path in (tmp_path / "items.index").iterdir():
        assert (index / path.name).read_bytes() == path.read_bytes()
    there = packed.open_input_file("shop/made/model.safetensors").read()
    assert there == (tmp_path / "model.safetensors").read_bytes()


def test_retrieve_from_and_to_the_store(packed, tiny, tmp_path, cache):
    given = ("s3://shop/made/model.safetensors", f"s3://shop/in/{tiny.queries.name}")
    summary = stcli.retrieve(*given, "s3://shop/out/results", part_rows=50, **FILTERED)
    assert summary["outputs"]["results"] == "s3://shop/out/results"
    stcli.retrieve(remote.local_copy(given[0]), tiny.queries, tmp_path / "local", part_rows=50, **FILTERED)
    assert read(download(packed, "shop/out/results", tmp_path / "copy")).equals(read(tmp_path / "local"))
    with pytest.raises(ExistsError, match="s3://shop/out/results: already exists"):
        stcli.retrieve(*given, "s3://shop/out/results", **FILTERED)
    stcli.retrieve(*given, "s3://shop/out/results", part_rows=1000, overwrite=True, **FILTERED)
    parts = [name for name in names(packed, "shop/out/results") if name.endswith(".parquet")]
    assert parts == ["shop/out/results/part-00000.parquet"]
    assert list((cache / "outputs").iterdir()) == []


def test_what_was_given_or_is_something_else_is_not_replaced(packed, tiny, cache):
    before = names(packed, "shop/made")
    given = ("s3://shop/made/model.safetensors", f"s3://shop/in/{tiny.queries.name}")
    with pytest.raises(InputError, match=r"s3://shop/made: would remove the input s3://shop/made/model\.safetensors"):
        stcli.retrieve(*given, "s3://shop/made", overwrite=True, **FILTERED)
    with pytest.raises(
        InputError, match=r"s3://shop/made/items\.index: is not results, and is kept; the output lies in"
    ):
        stcli.retrieve(*given, "s3://shop/made/items.index", overwrite=True, **FILTERED)
    assert names(packed, "shop/made") == before


def test_a_set_on_the_store(packed, tiny, tmp_path):
    """Made, updated and searched there: the rows are those of the same set on disk."""
    pq.write_table(pq.read_table(tiny.items).slice(0, 40), tmp_path / "new.parquet")
    pq.write_table(pq.read_table(tiny.items, columns=["item_id"]).slice(20, 60), tmp_path / "gone.parquet")
    change = {"upsert": tmp_path / "new.parquet", "delete": tmp_path / "gone.parquet"}
    for base, results in (("s3://shop/made", tmp_path / "there"), (str(tmp_path), tmp_path / "here")):
        stcli.pack_model("s3://shop/made/items.index", f"{base}/shards", shards=1)
        told = stcli.update(f"{base}/shards", f"{base}/updated", **change)
        assert told["outputs"]["model"] == f"{base}/updated"
        assert told["counts"]["num_items"] == 2000 - 40
        stcli.retrieve(f"{base}/updated", tiny.queries, results, exact=True, **FILTERED)
    assert read(tmp_path / "there").equals(read(tmp_path / "here"))


def test_an_artifact_is_copied_once_until_it_changes(packed, cache):
    uri = "s3://shop/made/model.safetensors"
    copy = remote.local_copy(uri)
    first = copy.stat().st_mtime_ns
    assert remote.local_copy(uri).stat().st_mtime_ns == first
    with packed.open_output_stream("shop/made/model.safetensors") as stream:
        stream.write(copy.read_bytes())
    assert remote.local_copy(uri).stat().st_mtime_ns != first


def test_a_damaged_artifact_is_refused(packed, tiny, cache, tmp_path):
    data = bytearray(packed.open_input_file("shop/made/model.safetensors").read())
    data[-100] ^= 1
    with packed.open_output_stream("shop/made/bad.safetensors") as stream:
        stream.write(bytes(data))
    with pytest.raises(InputError, match="does not match its hash"):
        stcli.retrieve("s3://shop/made/bad.safetensors", tiny.queries, tmp_path / "out", **FILTERED)


def test_an_interrupted_run_publishes_nothing_and_resumes(packed, tiny, cache, tmp_path):
    given = ("s3://shop/made/model.safetensors", tiny.queries, "s3://shop/out/later")

    def stop(stage, done, total, unit):
        if stage == "retrieve" and done >= 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stcli.retrieve(*given, part_rows=30, progress=stop, **FILTERED)
    assert names(packed, "shop/out/later") == []
    summary = stcli.retrieve(*given, part_rows=30, resume=True, **FILTERED)
    assert summary["counts"]["parts_resumed"] >= 1
    assert "shop/out/later/_manifest.json" in names(packed, "shop/out/later")


def test_the_manifest_comes_last(packed, tiny, cache, monkeypatch):
    order = []
    copy = remote._copy
    monkeypatch.setattr(remote, "_copy", lambda source, target: (order.append(source), copy(source, target)))
    stcli.retrieve("s3://shop/made/model.safetensors", tiny.queries, "s3://shop/out/order", part_rows=50, **FILTERED)
    uploaded = [Path(stream.name).name for stream in order if hasattr(stream, "name")]
    assert uploaded[-1] == "_manifest.json"
    assert uploaded.count("_manifest.json") == 1


def test_results_below_a_threshold_stay_here_and_a_report_does_not(packed, tiny, cache):
    model = "s3://shop/made/model.safetensors"
    with pytest.raises(ThresholdError):
        stcli.retrieve(model, tiny.queries, "s3://shop/out/bad", probes=1, min_recall=1.0, **FILTERED)
    assert names(packed, "shop/out/bad") == []

    @remote.on_any_filesystem()
    def measure(output):
        output.mkdir()
        (output / "report.json").write_text("{}")
        raise ThresholdError("too low")

    with pytest.raises(ThresholdError, match="too low"):
        measure("s3://shop/out/report")
    assert names(packed, "shop/out/report") == ["shop/out/report/report.json"]


def test_inspect_and_what_is_not_there(packed, cache, tmp_path, tiny):
    assert inspect("s3://shop/made/model.safetensors")["kind"] == "stcli-artifact"
    assert inspect(f"s3://shop/in/{tiny.items.name}")["kind"] == "parquet"
    with pytest.raises(InputError, match=r"s3://shop/none\.safetensors: no such file"):
        stcli.retrieve("s3://shop/none.safetensors", tiny.queries, tmp_path / "out")


def test_the_command_line_takes_uris(packed, tiny, capsys):
    uris = "s3://shop/made/model.safetensors", f"s3://shop/in/{tiny.queries.name}"
    assert run(["retrieve", *uris, "-o", "s3://shop/out/cli", "--k", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"]["results"] == "s3://shop/out/cli"
    assert pq.read_table("shop/out/cli/part-00000.parquet", filesystem=packed).num_rows == 120
