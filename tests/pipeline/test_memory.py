"""The memory limit and what a run took."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from stcli.config import available_memory
from stcli.errors import InputError
from stcli.pipeline.memory import MemoryWatch, memory_limit, private_bytes


def test_the_limit_as_given():
    assert memory_limit("2GB") == 2 * 10**9
    assert memory_limit(300 * 10**6) == 300 * 10**6


def test_the_limit_without_one_is_a_share_of_what_is_free():
    assert 256 * 10**6 <= memory_limit(None) < available_memory()


@pytest.mark.parametrize("given", ["255MB", 1, "0"])
def test_a_limit_too_small_to_work(given):
    with pytest.raises(InputError, match=f"--memory-limit {given}: expected at least 256MB"):
        memory_limit(given)


def test_the_peak_holds_what_was_taken_and_given_back():
    gc.collect()  # what other tests left would be given back meanwhile
    before = private_bytes()
    with MemoryWatch() as watch:
        block = np.ones(240 * 10**6, np.uint8)
        watch.peak_private = max(watch.peak_private, private_bytes())  # do not wait for the sampler
        del block
    summary = watch.summary()
    assert summary["peak_private"] >= before + 200 * 10**6
    assert summary["peak_resident"] >= summary["peak_private"] - 10**7
