"""`retrieve` that is killed, stopped or short of disk at any moment loses nothing and can be resumed."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import ExistsError, FormatError, InputError
from tests import process
from tests.conftest import Tiny
from tests.pipeline.retrieve_cases import FILTERED, bad_queries, contents, kept, read, write_queries  # noqa: F401

RUN = {"part_rows": 30, "bad_rows": "quarantine", "max_bad_fraction": 0.2, "columns": ["filter"], **FILTERED}


class Killed(BaseException):
    """The process ends here; nothing below catches it."""


def test_killed_before_any_step_and_resumed(tiny, tmp_path, monkeypatch):
    """Every rename, removal and write of a small file, one after another, is the last that does not happen."""
    queries = bad_queries(tmp_path / "q.parquet", tiny)
    stcli.retrieve(tiny.model, queries, tmp_path / "whole", **RUN)
    expected, rejected = contents(tmp_path / "whole"), (tmp_path / "whole.rejected.parquet").read_bytes()
    resumed = set()
    for last in range(100):
        out = tmp_path / f"out{last}"
        steps = 0

        def step(function):
            def run(*args, **more):
                nonlocal steps
                steps += 1
                if steps > last:  # noqa: B023
                    raise Killed
                return function(*args, **more)

            return run

        with monkeypatch.context() as patch:
            for where, name in (
                (os, "replace"),
                (os, "rename"),
                (Path, "unlink"),
                (Path, "write_text"),
                (Path, "mkdir"),
            ):
                patch.setattr(where, name, step(getattr(where, name)))
            try:
                stcli.retrieve(tiny.model, queries, out, **RUN)
            except Killed:
                pass
        broken = steps > last
        summary = stcli.retrieve(tiny.model, queries, out, resume=True, **RUN)
        resumed.add(summary["counts"]["parts_resumed"])
        assert contents(out) == expected, last
        assert (tmp_path / f"out{last}.rejected.parquet").read_bytes() == rejected
        assert not (tmp_path / f"out{last}.partial").exists()
        if not broken:
            break
    assert not broken
    assert last > 10
    assert resumed == {0, 1, 2}


def stop_at(count: int):
    """A progress callback that interrupts once so many queries are answered."""

    def progress(stage: str, done: int, total: int, unit: str) -> None:
        if stage == "retrieve" and done >= count:
            raise KeyboardInterrupt

    return progress


def interrupted(tiny: Tiny, out: Path, **more) -> None:
    with pytest.raises(KeyboardInterrupt):
        stcli.retrieve(tiny.model, tiny.queries, out, progress=stop_at(60), **{**RUN, **more})


def test_resume_writes_only_what_is_missing(tiny, tmp_path):
    out = tmp_path / "out"
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "whole", **RUN)
    interrupted(tiny, out)
    assert not out.exists()
    there = tmp_path / "out.partial" / "part-00000.parquet"
    before = there.stat().st_mtime_ns, there.stat().st_ino
    summary = stcli.retrieve(tiny.model, tiny.queries, out, resume=True, **RUN)
    assert summary["counts"]["parts_resumed"] in (1, 2)
    after = (out / "part-00000.parquet").stat()
    assert (after.st_mtime_ns, after.st_ino) == before
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"k": 11}, "k changed since that run .k was 10, is 11"),
        ({"filter_column": None}, "filter_column changed.*is null"),
        ({"part_rows": 31, "target_recall": 0.9}, "part_rows, target_recall changed"),
        ({"columns": []}, "columns changed"),
        ({"explode": True}, "explode changed"),
        ({"seed": 1}, "seed changed"),
        ({"exact": True}, "exact changed"),
    ],
    ids=str,
)
def test_resume_with_other_options_is_refused(tiny, tmp_path, changed, named):
    interrupted(tiny, tmp_path / "out")
    before = contents(tmp_path / "out.partial")
    with pytest.raises(InputError, match=named):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **{**RUN, **changed})
    assert contents(tmp_path / "out.partial") == before


def test_resume_with_other_inputs_is_refused(tiny, kept, tmp_path):
    interrupted(tiny, tmp_path / "out")
    other = write_queries(tmp_path / "q.parquet", tiny.vectors, filter=pa.array(tiny.filters, pa.string()))
    with pytest.raises(InputError, match=r"the query table changed since that run; give"):
        stcli.retrieve(tiny.model, other, tmp_path / "out", resume=True, **RUN)
    with pytest.raises(InputError, match=r"the artifact changed since that run; give"):
        stcli.retrieve(kept, tiny.queries, tmp_path / "out", resume=True, **{**RUN, "filter_column": "filter"})


@pytest.mark.parametrize("more", [{"batch_size": 5}, {"threads": 1}, {"memory_limit": "2GB"}], ids=str)
def test_resume_with_what_changes_no_result(tiny, tmp_path, more):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "whole", **RUN)
    interrupted(tiny, tmp_path / "out")
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **RUN, **more)
    assert read(tmp_path / "out").equals(read(tmp_path / "whole"))


def test_an_interrupted_run_is_not_started_over_unasked(tiny, tmp_path):
    interrupted(tiny, tmp_path / "out")
    with pytest.raises(ExistsError, match=r"out.partial: an interrupted run is there; add --resume"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", **RUN)
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", overwrite=True, **RUN)
    assert summary["counts"]["parts_resumed"] == 0


def test_resume_of_a_whole_run_does_nothing(tiny, tmp_path):
    out = tmp_path / "out"
    first = stcli.retrieve(tiny.model, tiny.queries, out, resume=True, **RUN)  # nothing there: begins
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = stcli.retrieve(tiny.model, tiny.queries, out, resume=True, **RUN)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert again["fingerprint"] == first["fingerprint"]
    assert again["counts"] == first["counts"] | {"parts_resumed": 4}
    assert any("whole already" in text for text in again["warnings"])
    with pytest.raises(InputError, match=r"k changed"):
        stcli.retrieve(tiny.model, tiny.queries, out, resume=True, **{**RUN, "k": 5})
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_damaged_part_is_named(tiny, tmp_path):
    interrupted(tiny, tmp_path / "out")
    part = tmp_path / "out.partial" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"part-00000.parquet: is no whole part.*remove it and resume"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **RUN)
    part.unlink()
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **RUN)
    assert read(tmp_path / "out").num_rows == 120


def test_a_full_disk_keeps_what_is_whole(tiny, tmp_path, monkeypatch):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "whole", **RUN)
    write, calls = pq.ParquetWriter.write_batch, iter(range(100))

    def full(self, *args, **more):
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_batch", full)
        with pytest.raises(OSError, match=r"No space left"):
            stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", **RUN)
    assert not (tmp_path / "out").exists()
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **RUN)
    assert summary["counts"]["parts_resumed"] == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


LONG = {"part_rows": 10, "batch_size": 10, "k": 20, "filter_column": "filter"}

WAITING = """
import sys, time
from stcli.cli import main, output

answered = int(sys.argv.pop(1))

def wait(self, stage, done, total, unit):
    if stage == "retrieve" and done > answered:
        print("waiting", flush=True)
        for _ in range(60_000):  # not once: a signal between the call and the sleep would wait for the end of it
            time.sleep(0.01)

output.Output.progress = wait
main.main()
"""
"""The command line, which waits for its end as soon as more than so many queries are answered."""


@pytest.fixture(scope="module")
def long_run(tiny, tmp_path_factory) -> Path:
    """The results of an unbroken run of 12 parts."""
    folder = tmp_path_factory.mktemp("long") / "whole"
    stcli.retrieve(tiny.model, tiny.queries, folder, **LONG)
    return folder


@pytest.mark.parametrize(
    ("parts", "how", "code"),
    [
        (0, signal.SIGKILL, -9),
        (11, signal.SIGKILL, -9),
        (3, signal.SIGINT, 130),
        (3, signal.SIGTERM, 143),
    ],
    ids=str,
)
def test_a_process_that_is_ended_can_be_resumed(tiny, long_run, tmp_path, parts, how, code):
    out = tmp_path / "out"
    options = [word for name, value in LONG.items() for word in ("--" + name.replace("_", "-"), value)]
    words = ("retrieve", tiny.model, tiny.queries, "-o", out, *options)
    running = process.start(*words, python=("-c", WAITING, parts * LONG["part_rows"]))
    assert running.stdout is not None
    assert running.stdout.readline() == "waiting\n", running.communicate()
    running.send_signal(how)
    stdout, stderr = running.communicate()
    assert (running.returncode, stdout) == (code, "")
    assert "Traceback" not in stderr
    assert ("--resume" in stderr) == (how == signal.SIGINT)
    assert not out.exists()
    summary = stcli.retrieve(tiny.model, tiny.queries, out, resume=True, **LONG)
    assert summary["counts"]["parts_resumed"] == parts
    assert contents(out) == contents(long_run)
