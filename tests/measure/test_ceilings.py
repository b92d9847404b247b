import torch

import stcli
from stcli.filters.source import GivenFilters
from stcli.measure import ceilings
from stcli.model.planner import SearchOptions, default_candidates


def test_measured(monkeypatch):
    monkeypatch.setattr(ceilings, "COPIED_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "SIDE", 64)
    threads = torch.get_num_threads()
    found = ceilings.measure_ceilings(torch.device("cpu"))
    assert found["copy_bytes_per_s"] > 0
    assert found["int8_multiply_adds_per_s"] is None or found["int8_multiply_adds_per_s"] > 0
    assert torch.get_num_threads() == threads


def test_work_and_share(tiny):
    model = stcli.open_artifact(tiny.model)
    filters = tiny.filters[:9]
    options = SearchOptions(10, default_candidates(10), probes=4)
    results = model.search(torch.from_numpy(tiny.vectors[:9]), GivenFilters(model.planner, filters), options)
    work = ceilings.stage_work(model, results, options, 8)
    assert work["filter_match"] == {"bytes": 8 * 8 * 32}  # 2,000 items are 32 words
    searched = work["search_clusters"]["multiply_adds"] + work["search_rows"]["multiply_adds"]
    assert searched == 32 * int(results.work.sum())
    assert work["rescore"] == {"bytes": 9 * 42 * 16 * 2}
    limits = {"int8_multiply_adds_per_s": None, "copy_bytes_per_s": 4096.0}
    told = ceilings.shares(work, {"filter_match": 2.0, "rescore": 0.0, "search_rows": 1.0}, limits)
    assert told == {"filter_match": {"bytes": 2048, "per_s": 1024, "share": 0.25}}
