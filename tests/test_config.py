"""Options that need no files: sizes, ranges, and which exclude each other."""

from __future__ import annotations

import pytest

import stcli
from stcli import config
from stcli.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("123B", 123),
        ("2GB", 2 * 10**9),
        (" 2 gb ", 2 * 10**9),
        ("1.5kB", 1500),
        ("512MiB", 512 * 2**20),
        ("1TiB", 2**40),
        (4096, 4096),
    ],
)
def test_sizes(text, size):
    assert config.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2 G B", "2GX", "1,5GB", "1e9", "two"])
def test_texts_that_are_no_size(text):
    with pytest.raises(InputError, match="expected a number with a unit, such as 2GB or 512MiB"):
        config.parse_bytes(text)


def test_available_memory_is_a_sane_number():
    assert 2**20 < config.available_memory() < 2**50


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "--k 0: expected a whole number of at least 1"),
        ({"probes": 0}, "--probes 0: expected a whole number of at least 1"),
        ({"k": 10, "rescore": 9}, "--rescore 9: expected a whole number of at least 10"),
        ({"part_rows": 0}, "--part-rows 0"),
        ({"limit": 0}, "--limit 0"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"score_dtype": "int8"}, "--score-dtype 'int8': expected one of float32, float16, none"),
        ({"target_recall": 0}, "--target-recall 0: expected a share above 0 and up to 1"),
        ({"target_recall": 1.01}, "--target-recall 1.01"),
        ({"max_bad_fraction": -0.1}, "--max-bad-fraction -0.1: expected a fraction from 0 to 1"),
        ({"exact": True, "probes": 3}, "--exact looks at every cluster, so --probes has no meaning"),
        ({"resume": True, "overwrite": True}, "--resume goes on .* and --overwrite replaces it; choose one"),
    ],
)
def test_options_of_retrieve(options, words):
    config.RetrieveConfig().check()
    with pytest.raises(InputError, match=words):
        config.RetrieveConfig(**options).check()


@pytest.mark.parametrize("options", [{"k": 0}, {"sample": 0}, {"repeat": 0}, {"batch_size": 0}])
def test_options_of_bench(options):
    config.BenchConfig().check()
    with pytest.raises(InputError, match="expected a whole number of at least 1"):
        config.BenchConfig(**options).check()


@pytest.mark.parametrize(
    ("call", "given", "near"),
    [
        (stcli.retrieve, "topk", "k"),
        (stcli.retrieve, "top_k", "k"),
        (stcli.retrieve, "nprobe", "probes"),
        (stcli.bench, "samples", "sample"),
        (stcli.build_index, "n_clusters", "clusters"),
        (stcli.pack_model, "dtype", "embedding_dtype"),
        (stcli.update, "Overwrite", "overwrite"),
    ],
)
def test_an_option_that_there_is_not_ends_the_call_in_one_sentence(call, given, near, tmp_path):
    inputs = ["model", "queries"] if call in (stcli.retrieve, stcli.bench) else ["items"]
    words = (
        rf"{call.__name__}: there is no option '{given}'; the nearest is '{near}', and stcli.config.\w+Config lists all"
    )
    with pytest.raises(stcli.StcliError, match=words):
        call(*inputs, tmp_path / "out", **{given: 5})
    assert not list(tmp_path.iterdir())
