"""A device that runs out of memory: fewer queries at once, the same results, and a warning."""

import pytest
import torch

import stcli
from stcli.errors import RunError
from stcli.model import tiles
from stcli.model.placement import choose_placement


@pytest.fixture
def model(tiny):
    return stcli.open_artifact(tiny.model)


def small_device(monkeypatch, holds: int) -> list[int]:
    """Tiles of more than `holds` queries fail; returns the sizes of all tiles tried."""
    tried = []
    search = tiles.search_tile

    def limited(model, vectors, *rest):
        tried.append(len(vectors))
        if len(vectors) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return search(model, vectors, *rest)

    monkeypatch.setattr(tiles, "search_tile", limited)
    return tried


def many(tiny, count=600):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, tiny.vectors.shape[1], generator=generator), (tiny.filters * 10)[:count]


def test_smaller_tiles_give_the_same_results(tiny, model, monkeypatch):
    vectors, filters = many(tiny)
    expected = model(vectors, filters, 10, exact=True)
    tried = small_device(monkeypatch, 200)
    found = model(vectors, filters, 10, exact=True)
    assert torch.equal(expected.rows, found.rows)
    assert torch.equal(expected.score_matrix, found.score_matrix)
    assert tried == [600, 300, 150, 150, 150, 150]
    assert model.warnings == [
        "cpu ran out of memory; going on with 300 queries at once",
        "cpu ran out of memory; going on with 150 queries at once",
    ]


def test_it_gives_up_in_one_sentence(tiny, model, monkeypatch):
    small_device(monkeypatch, 10)
    with pytest.raises(RunError, match=r"cpu: out of memory with 64 queries at once; .*--rescore"):
        model(*many(tiny), 10, exact=True)


def test_retrieve_tells_of_it(tiny, tmp_path, monkeypatch):
    small_device(monkeypatch, 70)
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "r", k=5)
    assert "cpu ran out of memory; going on with 64 queries at once" in summary["warnings"]


def test_tensors_that_stay_on_the_host(tiny):
    """The CPU stands for the GPU: what a placement leaves out is used where it is."""
    sizes = {"search": 10**6, "filter": 10**5, "embeddings": 10**5, "terms": 10**5}
    vectors, filters = many(tiny, 100)
    expected = stcli.open_artifact(tiny.model)(vectors, filters, 10, exact=True)
    for wanted in ({"embeddings": "host"}, {"terms": "gpu"}):
        placement = choose_placement(sizes, 2000, 100, 3 * 10**9, wanted=wanted, batch_size=33)
        opened = stcli.open_artifact(tiny.model, placement=placement)
        assert opened.tile_queries == 33
        assert torch.equal(opened(vectors, filters, 10, exact=True).rows, expected.rows)
