"""A kernel that has lost a barrier is caught: the emulation gives another result, or says what is wrong."""

import faulthandler
import multiprocessing
import os
import signal

import pytest
import torch

from stcli.ops import cuda
from stcli.ops.keys import EMPTY_KEY, split_keys
from tests.emulation.emulate import COMPILER, KERNELS, WHY_MISSING, load, run
from tests.kernels import launches, test_probe_tiles, test_score
from tests.kernels.test_select_keys import some_keys
from tests.kernels.test_take_best import expect, some_candidates
from tests.ops.search_cases import expected, named_case

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)

BARRIER, OF_A_WARP = "__syncthreads();", "__syncwarp();"


def text_of(file: str) -> str:
    """A kernel with its headers, as it is compiled at run time."""
    return cuda.flat_source(KERNELS / f"{file}.cu")


def without(monkeypatch, file: str, number: int, barrier: str = BARRIER) -> None:
    """From now on `file` runs without its barrier `number`."""
    parts = text_of(file).split(barrier)
    text = barrier.join(parts[: number + 1]) + barrier.join(["", *parts[number + 1 :]]).removeprefix(barrier)
    assert text.count(barrier) == len(parts) - 2
    load(text)  # here, so that no child is stopped while it compiles
    whole = launches.run_kernel

    def run_kernel(source, kernel, **launch):
        if source != file:
            return whole(source, kernel, **launch)
        return run(text, kernel, **launch)

    monkeypatch.setattr(launches, "run_kernel", run_kernel)


def search(form: str, seed: int) -> bool:
    """Whether a search whose rows come in several stages has the right answer."""
    case = named_case("odd_width")
    found, _ = launches.search(case, launches.FORMS[form], test_score.by_rows(case), 1024, 1000, seed)
    rows, scores = expected("odd_width", every_cluster=True)
    return found.rows.tolist() == rows and found.scores.tolist() == scores


def select_and_sort(seed: int) -> bool:
    """Whether some 400 of the best of 1,500 keys stay, and the best 400 are in order."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.stack([some_keys(generator, 1500, 1500, style) for style in ("random", "few_scores")])
    best = keys.sort(dim=1, descending=True).values
    # Half of the threads find no gap, but keys to move into gaps.
    stays = (torch.arange(1500) < 400) & (torch.arange(1500) % 64 < 32)
    keys[0, stays] = best[0, : int(stays.sum())]
    keys[0, ~stays] = best[0, int(stays.sum()) :].flip(0)
    counts = torch.full((2,), 1500)
    thresholds, spare, redo = torch.full((3, 2), EMPTY_KEY)
    launches.select(keys, counts, 400, thresholds, spare, redo, seed=seed)
    if not all(400 <= count <= launches.most_for(400) for count in counts.tolist()):
        return False
    for line, mine, count in zip(best, keys, counts.tolist(), strict=True):
        if not torch.equal(mine[:count].sort(descending=True).values, line[:count]):
            return False
    found = launches.sort(keys, counts, 400, seed=seed)
    return torch.equal(found.rows, split_keys(best[:, :400]).rows)


def order(seed: int) -> bool:
    """Whether 1,500 candidates, some with many others of their score, come in order."""
    rows, scores, ranks = some_candidates(seed, 1500, "few_scores")
    found = launches.take_best(rows, scores, ranks, 1500, seed=seed)
    lines = zip(rows.tolist(), scores.tolist(), strict=True)
    return found.rows.tolist() == [expect(*line, ranks, 1500)[0] for line in lines]


def tiles(seed: int) -> bool:
    """Whether the pairs of so many clusters that they are summed up in two parts are in the right tiles."""
    return test_probe_tiles.is_right(50, 6000, 100, seed)


def is_right(question, *arguments) -> bool:
    """The answer of a process of its own: a broken kernel may write anywhere, or never end."""

    def answer() -> None:
        signal.alarm(20)
        faulthandler.disable()
        os._exit(0 if question(*arguments) else 1)

    process = multiprocessing.get_context("fork").Process(target=answer)
    process.start()
    process.join()
    return process.exitcode == 0


def test_with_all_of_them_it_is_right():
    assert all(is_right(question, seed) for question in (select_and_sort, order, tiles) for seed in range(3))
    assert all(is_right(search, form, 0) for form in launches.FORMS)


@pytest.mark.parametrize("number", range(text_of("select_keys").count(BARRIER)))
def test_each_barrier_of_the_selection(monkeypatch, number):
    without(monkeypatch, "select_keys", number)
    assert not all(is_right(select_and_sort, seed) for seed in range(10))


@pytest.mark.parametrize("number", range(text_of("take_best").count(BARRIER)))
def test_each_barrier_of_the_last_order(monkeypatch, number):
    without(monkeypatch, "take_best", number)
    assert not all(is_right(order, seed) for seed in range(10))


@pytest.mark.parametrize("number", range(text_of("probe_tiles").count(BARRIER)))
def test_each_barrier_of_the_tiles(monkeypatch, number):
    without(monkeypatch, "probe_tiles", number)
    assert not all(is_right(tiles, seed) for seed in range(10))


@pytest.mark.slow
@pytest.mark.parametrize(("form", "number"), [("mma", 0), ("mma_narrow", 0), ("dp4a", 1)])
def test_the_barrier_of_a_warp_before_its_list_is_read(monkeypatch, form, number):
    """The other one of each file, before the list is written again, is not seen to be missing.

    What a lane reads in the list decides what it brings to the collective that comes next, a match of the score's query
    or a ballot of what is kept. So no lane writes before all have read, be it here or on a GPU. The barrier stays,
    since only it orders memory by CUDA's rules, where the others order no more than the lanes.
    """
    file = launches.FORMS[form].file
    assert text_of(file).count(OF_A_WARP) == 2
    without(monkeypatch, file, number, OF_A_WARP)
    assert not is_right(search, form, 0)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mma", "mma_narrow"])
def test_the_barrier_between_the_stages_of_the_rows(monkeypatch, form):
    without(monkeypatch, "score_mma", 0)
    assert not is_right(search, form, 0)
