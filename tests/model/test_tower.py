"""Towers against plain loops in float64; a request by itself and in any batch."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from stcli.errors import InputError, TensorError
from stcli.model import tower as module
from stcli.model.tower import History, Tower
from stcli.model.tower_config import parse_tower
from stcli.ops.hstu_attention import SHORTEST, groups, hstu_attention, time_bounds, time_buckets
from tests import oracles_tower as oracle

HSTU = {
    "kind": "hstu", "dim": 6, "max_history": 40, "width": 8, "blocks": 2, "heads": 2, "qk_dim": 5, "v_dim": 3,
    "time_buckets": 20, "columns": [{"name": "ctx__hour", "kind": "number"}], "hidden": [7], "tasks": ["like", "share"],
}  # fmt: skip
CONFIGS = {
    "hstu": HSTU,
    "hstu alone": {**HSTU, "width": 6, "columns": [], "hidden": [], "tasks": [], "head": False, "time_buckets": 0},
    "hstu one head": {**HSTU, "heads": 1, "blocks": 1, "normalize": True},
    "mean_pool": {"kind": "mean_pool", "dim": 6, "columns": HSTU["columns"], "hidden": [5, 4], "activation": "gelu"},
    "mean_pool alone": {"kind": "mean_pool", "dim": 6, "head": False, "normalize": True},
    "mlp": {"kind": "mlp", "dim": 6, "columns": HSTU["columns"], "activation": "relu", "hidden": [16]},
}
LENGTHS = (5, 0, 1, 17, 40, 16, 33, 0, 2)


def make(config: dict, seed: int = 0) -> Tower:
    parsed = parse_tower(config, "tower.json")
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in parsed.shapes().items()}
    return Tower(parsed, weights)


def requests(tower: Tower, lengths=LENGTHS, seed: int = 1) -> tuple[History, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)
    items = torch.randn(int(offsets[-1]), tower.config.dim, generator=generator)
    times = torch.randint(0, 10**6, (len(items),), generator=generator)
    width = tower.config.head_widths[0] - tower.config.state_dim
    return History(items, offsets, times), torch.randn(len(lengths), width, generator=generator)


def take(history: History, features: torch.Tensor, which: list[int]) -> tuple[History, torch.Tensor]:
    """The requests of the list, in its order."""
    parts = [slice(int(history.offsets[i]), int(history.offsets[i + 1])) for i in which]
    offsets = torch.tensor([0, *np.cumsum([part.stop - part.start for part in parts])], dtype=torch.int64)
    events = torch.cat([torch.arange(part.start, part.stop) for part in parts])
    return History(history.items[events], offsets, history.times[events]), features[which]


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_plain_loops(name):
    tower = make(CONFIGS[name])
    history, features = requests(tower)
    found = tower(None if tower.config.kind == "mlp" else history, features)
    assert found.shape == (len(LENGTHS), max(len(tower.config.tasks), 1), 6)
    weights = {name: tower.weights[name].double().numpy() for name in tower.config.shapes()}
    for request in range(len(LENGTHS)):
        part = slice(int(history.offsets[request]), int(history.offsets[request + 1]))
        items, times = history.items[part].double().tolist(), history.times[part].tolist()
        expected = oracle.tower(tower.config, weights, items, times, features[request].double().tolist())
        # Float32 through two blocks of layer norms, which stretch what is near zero.
        np.testing.assert_allclose(found[request].numpy(), np.array(expected), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_request_does_not_depend_on_its_batch(name, monkeypatch):
    tower = make(CONFIGS[name])
    history, features = requests(tower)

    def vectors(which: list[int]) -> torch.Tensor:
        some, numbers = take(history, features, which)
        return tower(None if tower.config.kind == "mlp" else some, numbers)

    together = vectors(list(range(len(LENGTHS))))
    for request in range(len(LENGTHS)):
        assert torch.equal(vectors([request])[0], together[request])
    order = [4, 8, 1, 0, 7, 2, 6, 5, 3]
    assert torch.equal(vectors(order), together[order])
    assert torch.equal(vectors([3] * 70), together[[3] * 70])
    monkeypatch.setattr(module, "EVENTS", 20)
    assert torch.equal(vectors(order), together[order])


@pytest.mark.parametrize("name", CONFIGS)
def test_no_requests_and_only_empty_histories(name):
    tower = make(CONFIGS[name])
    for lengths in ((), (0,), (0, 0, 0)):
        history, features = requests(tower, lengths)
        found = tower(None if tower.config.kind == "mlp" else history, features)
        assert found.shape[0] == len(lengths)
        assert bool(found.isfinite().all())


def test_histories_are_padded_only_among_their_like():
    lengths = torch.tensor([1, 16, 17, 300, 0, 15, 1000])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    seen = []
    for group in groups(offsets):
        own = group.valid.sum(1)
        assert group.valid.numel() >= 1024
        assert bool((group.valid.shape[1] < 2 * own)[own > SHORTEST].all())
        seen += group.events[group.valid].tolist()
    assert sorted(seen) == list(range(int(offsets[-1])))


def test_long_histories_are_attended_in_pieces():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(700, 2, 4, generator=generator) for _ in range(3))
    bias = torch.randn(2 * 800 - 1, generator=generator)
    found = hstu_attention(q, k, v, torch.tensor([0, 700]), bias)
    scores = torch.einsum("ihd,jhd->hij", q.double(), k.double())
    place = torch.arange(700)
    scores = scores + bias.double()[799 + place[None, :] - place[:, None]]
    weights = torch.tril(torch.nn.functional.silu(scores)) / 800
    expected = torch.einsum("hij,jhd->ihd", weights, v.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_attention_worked_example():
    """Two events, one head, all ones: the first sees itself (bias 0), the second also the one before (bias 1)."""
    ones = torch.ones(2, 1, 1)
    found = hstu_attention(ones, ones, ones, torch.tensor([0, 2]), torch.tensor([1.0, 0.0, 9.0]))
    own, before = 1 / (1 + math.exp(-1)) / 2, 2 / (1 + math.exp(-2)) / 2
    np.testing.assert_allclose(found.flatten().numpy(), [own, own + before], rtol=1e-6)


def test_buckets_of_time_follow_the_logarithm():
    bounds = time_bounds(128)
    for number, bound in enumerate(bounds[:100], 1):
        for difference in (bound - 1, bound, bound + 1):
            expected = oracle.bucket(difference, 128)
            assert (difference >= bound) == (expected >= number), (number, difference)
    assert sorted(bounds) == bounds
    times = torch.tensor([0, 1, 10, 10**9, -(10**12), 5])
    (found,) = time_buckets(times, torch.tensor([0, 6]), 30)
    after = [*times.tolist()[1:], 5]
    expected = [[oracle.bucket(a - t, 30) for t in times.tolist()] for a in after]
    assert found[0, :6, :6].tolist() == expected


def test_wrong_tensors_are_refused():
    q = torch.zeros(3, 1, 2)
    with pytest.raises(TensorError, match=r"v: float32 \[S, H, V\] expected with S=3"):
        hstu_attention(q, q, q[:2], torch.tensor([0, 3]), torch.zeros(5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "sasrec"}, "'kind' is 'sasrec'; expected one of mlp, mean_pool, hstu"),
        ({"dim": 0}, "'dim' is 0"),
        ({"tasks": ["a", "a"]}, "'tasks' is"),
        ({"tasks": "like"}, "'tasks' is"),
        ({"heads": 0}, "'heads' is 0"),
        ({"blocks": 10**9}, "'blocks' is 1000000000"),
        ({"max_history": 5000}, "'max_history' is 5000"),
        ({"time_buckets": -1}, "'time_buckets' is -1"),
        ({"hidden": [0]}, "hidden[0] is 0"),
        ({"head": "no"}, "'head' is 'no'; expected true or false"),
        ({"head": False}, "has no head"),
        ({"layers": 3}, "unknown key 'layers'"),
        ({"kind": "mlp"}, "unknown key"),
        ({"columns": [{"name": "a", "kind": "text"}]}, "expected one of number, category"),
    ],
)
def test_wrong_configs_are_refused(change, words):
    with pytest.raises(InputError, match=re.escape(words)):
        parse_tower({**HSTU, **change}, "tower.json")


def test_an_mlp_without_columns_is_refused():
    with pytest.raises(InputError, match="needs 'columns' and a head"):
        parse_tower({"kind": "mlp", "dim": 4}, "tower.json")
