"""`retrieve` with several processes or Ray actors: the same rows, whoever dies on the way."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import stcli
from stcli.config import RetrieveConfig
from stcli.errors import DeviceError, InputError, RunError
from stcli.pipeline import run, workers
from stcli.pipeline.replicas import worker_jobs
from stcli.pipeline.workers import local_workers, ray_workers
from tests import process
from tests.pipeline.retrieve_cases import FILTERED, bad_queries, contents
from tests.pipeline.scribe import Scribe, scribe_job, written

RUN = {"part_rows": 10, "exact": True, **FILTERED}


def descendants(number: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    children = map(int, Path(f"/proc/{number}/task/{number}/children").read_text().split())
    return [process for child in children for process in (child, *descendants(child))]


def test_every_piece_is_done_once(tmp_path):
    assert sorted(local_workers(Scribe, [scribe_job(tmp_path)] * 2, range(20))) == list(range(20))
    assert len(list(tmp_path.iterdir())) == 20


def test_a_worker_that_is_killed_is_replaced(tmp_path, caplog):
    retries = []
    done = local_workers(Scribe, [scribe_job(tmp_path, dies=3)] * 2, range(8), lambda: retries.append(1))
    assert sorted(done) == list(range(8))
    assert written(tmp_path) == set(range(8))
    assert retries == [1]
    (record,) = [record for record in caplog.records if record.name == "stcli"]
    assert record.event == "worker_died"
    assert 1 <= record.fields["pieces_left"] <= 8


def test_workers_that_keep_dying_end_the_run(tmp_path):
    with pytest.raises(RunError, match="worker processes died 3 times"):
        list(local_workers(Scribe, [scribe_job(tmp_path, dies=3, always=True)] * 2, [3]))


def test_an_error_of_a_worker_is_raised(tmp_path):
    with pytest.raises(InputError, match="piece 2 is wrong"):
        list(local_workers(Scribe, [scribe_job(tmp_path, fails=2)] * 2, range(4)))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process imports for itself")
def test_another_stcli_in_the_current_folder_is_not_taken(tmp_path, monkeypatch):
    assert workers.start_method() == "forkserver"
    monkeypatch.chdir(tmp_path)
    assert workers.start_method() == "forkserver"
    (tmp_path / "stcli").mkdir()
    assert workers.start_method() == "spawn"


@pytest.mark.parametrize("count", [2, 4])
def test_processes_give_the_same_rows(tiny, tmp_path, count):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "one", **RUN)
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "many", workers=count, threads=1, **RUN)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert summary["counts"]["queries"] == 120


def test_a_worker_on_each_device(tiny, tmp_path, monkeypatch):
    """The driver of several devices calibrates and audits on the first and answers nothing itself."""
    monkeypatch.setattr(run, "choose_devices", lambda name: [torch.device("cpu")] * (2 if name == "cuda:all" else 1))
    more = {"part_rows": 10, "target_recall": 0.9, "audit": 20, **FILTERED}
    one = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "one", device="cpu", **more)
    many = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "many", device="cuda:all", **more)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert one["audit"] == many["audit"]
    assert many["device"] == ", ".join([one["device"]] * 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_gpu_to_spread_over(tiny, tmp_path):
    with pytest.raises(DeviceError, match="--device cuda:all: torch"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", device="cuda:all")


def test_workers_take_the_devices_in_turn():
    job = run.Job("model", ("queries",), "out", RetrieveConfig(workers=5, threads=3, memory_limit="10GB"))
    jobs = worker_jobs(job, [torch.device("cuda", 0), torch.device("cuda", 1)])
    assert [part.config.device for part in jobs] == ["cuda:0", "cuda:1"] * 2 + ["cuda:0"]
    assert {(part.config.workers, part.config.threads, part.config.memory_limit) for part in jobs} == {
        (1, 3, 2 * 10**9)
    }


def test_processes_use_the_calibration_and_report_bad_rows(tiny, tmp_path):
    queries = bad_queries(tmp_path / "q.parquet", tiny)
    more = {"bad_rows": "quarantine", "max_bad_fraction": 0.2, "part_rows": 8, "target_recall": 0.9, **FILTERED}
    stcli.retrieve(tiny.model, queries, tmp_path / "one", **more)
    stcli.retrieve(tiny.model, queries, tmp_path / "many", workers=2, **more)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    one, many = ((tmp_path / f"{name}.rejected.parquet").read_bytes() for name in ("one", "many"))
    assert one == many


def test_the_driver_is_killed_and_the_run_resumed(tiny, tmp_path):
    """Its workers end by themselves, so that nothing writes behind the back of the resumed run."""
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "whole", **RUN | {"part_rows": 1})
    words = ["retrieve", tiny.model, tiny.queries, "-o", tmp_path / "out", "--filter-column", "filter", "--k", "10"]
    words += ["--exact", "--part-rows", "1"]
    running = process.start(*words, "--workers", "2")
    partial = tmp_path / "out.partial"
    while len(list(partial.glob("part-*.parquet"))) < 3:
        assert running.poll() is None
        time.sleep(0.01)
    children = descendants(running.pid)
    assert len(children) >= 2
    running.kill()
    running.communicate()
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **RUN | {"part_rows": 1})
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        time.sleep(0.05)


def test_ctrl_c_ends_the_workers(tiny, tmp_path):
    words = ["retrieve", tiny.model, tiny.queries, "-o", tmp_path / "out", "--k", "10", "--part-rows", "1"]
    running = process.start(*words, "--workers", "2")
    while not list((tmp_path / "out.partial").glob("part-*.parquet")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    running.communicate()
    assert running.returncode == 130
    assert not (tmp_path / "out").exists()


def test_no_workers_at_all(tiny, tmp_path):
    with pytest.raises(InputError, match="--workers 0"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", workers=0)
    with pytest.raises(InputError, match="--engine 'spark'"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", engine="spark")


@pytest.fixture(scope="module")
def ray_session():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'stcli[ray]'")
    with pytest.MonkeyPatch.context() as patch:  # in place of a runtime_env, for which Ray would start more processes
        root = str(Path(stcli.__file__).parent.parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_actors_give_the_same_rows(ray_session, tiny, tmp_path):
    pq.write_table(pq.read_table(tiny.items).slice(100, 50), tmp_path / "new.parquet")
    stcli.update(tiny.model, tmp_path / "set", upsert=tmp_path / "new.parquet")
    stcli.retrieve(tmp_path / "set", tiny.queries, tmp_path / "one", **RUN)
    stcli.retrieve(tmp_path / "set", tiny.queries, tmp_path / "ray", engine="ray", workers=2, threads=1, **RUN)
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_actor_that_is_killed_is_replaced(ray_session, tmp_path):
    done = ray_workers(Scribe, scribe_job(tmp_path, dies=3), range(8), 1, cpus=1, gpus=0)
    assert sorted(done) == list(range(8))
    assert written(tmp_path) == set(range(8))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_error_in_an_actor_is_ours(ray_session, tmp_path):
    with pytest.raises(InputError, match="piece 2 is wrong"):
        list(ray_workers(Scribe, scribe_job(tmp_path, fails=2), range(4), 1, cpus=1, gpus=0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sigterm_stops_the_driver_of_ray(ray_session, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ray_session.get_runtime_context().gcs_address)
    words = ["retrieve", tiny.model, tiny.queries, "-o", tmp_path / "out", "--k", "10", "--part-rows", "1"]
    running = process.start(*words, "--engine", "ray", "--threads", "1", "--log-json", tmp_path / "log")
    while not list((tmp_path / "out.partial").glob("part-*.parquet")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    running.communicate()
    assert running.returncode == 143
    assert '"event": "stopped"' in (tmp_path / "log").read_text().splitlines()[-1]
    assert not (tmp_path / "out").exists()
