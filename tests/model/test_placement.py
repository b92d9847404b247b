"""Placement is arithmetic on made numbers: no GPU is needed to see what would lie where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stcli
from stcli.errors import DeviceError, InputError
from stcli.model import placement
from stcli.model.placement import choose_placement, group_bytes, query_bytes
from stcli.storage.artifact import open_artifact_file
from tests.far_device import FAR

GB = 10**9
EIGHTY_MILLION = {"search": 12 * GB, "filter": 10 * GB, "embeddings": 21 * GB, "terms": 7 * GB}


def test_eighty_million_items_on_a_large_gpu():
    chosen = choose_placement(EIGHTY_MILLION, 80_000_000, 264, 139 * GB)
    assert list(chosen.gpu) == ["search", "filter", "embeddings"]
    assert list(chosen.host) == ["terms"]
    assert chosen.tile_queries == 4096
    assert 43 * GB < chosen.peak_bytes < 139 * GB


def test_embeddings_stay_on_the_host_where_they_do_not_fit():
    chosen = choose_placement(EIGHTY_MILLION, 80_000_000, 264, 40 * GB)
    assert list(chosen.gpu) == ["search", "filter"]
    assert chosen.host == {"embeddings": 21 * GB, "terms": 7 * GB}
    assert chosen.tile_queries == 512


def test_what_is_asked_for_goes_first():
    chosen = choose_placement(EIGHTY_MILLION, 80_000_000, 264, 139 * GB, wanted={"terms": "gpu", "embeddings": "host"})
    assert list(chosen.gpu) == ["search", "filter", "terms"]
    assert list(chosen.host) == ["embeddings"]


def test_a_batch_size_is_kept():
    assert choose_placement(EIGHTY_MILLION, 80_000_000, 264, 139 * GB, batch_size=500).tile_queries == 500


def test_what_does_not_fit_is_one_sentence():
    with pytest.raises(DeviceError, match=r"8.0 GB free; .* take 24.* larger GPU or --device cpu"):
        choose_placement(EIGHTY_MILLION, 80_000_000, 264, 8 * GB)
    with pytest.raises(DeviceError, match=r"does not hold search, filter, embeddings; leave embeddings on the host"):
        choose_placement(EIGHTY_MILLION, 80_000_000, 264, 40 * GB, wanted={"embeddings": "gpu"})


@pytest.mark.parametrize("wanted", [{"search": "host"}, {"terms": "disk"}, {"nothing": "gpu"}])
def test_unknown_places_are_refused(wanted):
    with pytest.raises(InputError, match=r"--place .*expected embeddings or terms, each =gpu or =host"):
        choose_placement(EIGHTY_MILLION, 80_000_000, 264, 139 * GB, wanted=wanted)


@given(st.integers(1, 10**8), st.integers(1, 13_000), st.integers(0, 200 * GB))
def test_what_is_placed_fits(num_items, candidates, free):
    sizes = {"search": 150 * num_items, "filter": 60 * num_items, "embeddings": 257 * num_items, "terms": 80}
    try:
        chosen = choose_placement(sizes, num_items, candidates, free)
    except DeviceError:
        least = 210 * num_items + placement.LEAST_QUERIES * placement.AT_ONCE * query_bytes(num_items, candidates)
        assert least + placement.RESERVE_BYTES > free
        return
    assert chosen.peak_bytes + placement.RESERVE_BYTES <= free
    assert chosen.gpu | chosen.host == sizes
    assert placement.LEAST_QUERIES <= chosen.tile_queries <= placement.MOST_QUERIES


def test_bytes_of_groups_leave_out_what_stays_on_the_host_anyway():
    assert group_bytes({"codes": 3, "scales": 1, "own_words": 5, "item_ids": 7, "term_values": 2}) == {
        "search": 4,
        "filter": 5,
        "terms": 2,
    }


def test_as_many_bytes_go_to_the_device_as_are_counted(tiny):
    sizes = {name: array.nbytes for name, array in open_artifact_file(tiny.model).arrays.items()}
    counted = group_bytes(sizes)
    (segment,) = stcli.open_artifact(tiny.model, device=FAR).segments
    placed = {name: buffer.nbytes for name, buffer in segment.named_buffers() if buffer.device == FAR}
    assert sum(placed.values()) == counted["search"] + counted["filter"] + counted["embeddings"]
    assert placed["id_rank"] == sizes["id_rank"]
    assert "id_order" not in placed
