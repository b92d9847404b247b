"""examples/train_overarch.py at toy size, and its net against the modules of stcli."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import overarch_training
import train_overarch as example
from overarch_data import HELD_OUT, RECENT, Histories, _directions, make_interactions, split_by_time
from overarch_nets import Net, Setting
from overarch_training import hit_rate
from stcli.model.mol import Mol
from stcli.model.overarch_config import parse_overarch


def test_the_last_two_events_are_held_out() -> None:
    events = RECENT + HELD_OUT + 5
    table = pa.table(
        {
            "user_id": [7] * events + [3] * (events - 2) + [5] * events,
            "item_id": [*range(100, 100 + events), *[100] * (events - 2), *range(300, 300 + events)],
            "timestamp": [*range(events, 0, -1), *[0] * (events - 2), *range(events)],
            "like": [False] * (3 * events - 3) + [True],
        }
    )
    data = split_by_time(table)  # user 3 has too few events, user 5 comes first
    assert data.item_ids[data.recent[0]].tolist() == list(range(305, 305 + RECENT))
    assert data.item_ids[data.recent[1]].tolist() == list(range(101 + RECENT, 101, -1))
    assert data.item_ids[data.held_out].tolist() == [[300 + events - 2, 300 + events - 1], [101, 100]]
    assert data.held_out_liked.tolist() == [[False, True], [False, False]]
    assert data.offsets.tolist() == [0, 5, 10]
    assert data.item_ids[data.older].tolist() == [300, 301, 302, 303, 304, *range(99 + events, 94 + events, -1)]
    means = data.mean_of_older(torch.from_numpy(data.item_ids).float()[:, None])
    assert means.tolist() == [[302.0], [97.0 + events]]


def test_made_events_are_near_one_of_two_interests() -> None:
    """Older events agree with one direction; a recent one is as near to it half the time."""
    table = make_interactions(3, num_items=2_000, num_users=50)
    chosen = table["item_id"].to_numpy().reshape(50, 24 + RECENT + HELD_OUT)
    items = _directions(np.random.default_rng(3), 2_000, 6)[chosen]
    centre = items[:, :24].mean(1)
    cosines = (items * centre[:, None]).sum(2) / np.linalg.norm(centre, axis=1)[:, None]
    assert cosines[:, :24].mean() > 0.8
    assert 0.4 < (cosines[:, 24:] > 0.5).mean() < 0.7
    assert all(len(set(line[:24])) == 24 for line in chosen.tolist())
    assert 0.4 < table["like"].to_numpy(zero_copy_only=False).mean() < 0.6
    assert table.equals(make_interactions(3, num_items=2_000, num_users=50))


def test_scores_are_those_of_the_modules_of_stcli() -> None:
    """What is trained is what is packed: same weights, same numbers."""
    start = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    net = Net(start, Setting(rate=0.01, tau=0.1), seed=3)
    with torch.no_grad():
        users = net.users(torch.arange(20).view(2, 10), torch.randn(2, 8))
        ours = net.scores(users, 1, torch.arange(30))
    weights = {name: value.detach() for name, value in net.mol.items()}
    assert net.mol_config is not None
    mol = Mol(parse_overarch(net.mol_config, "overarch"), weights, {}, lambda rows: start[rows], "torch")
    expected = mol(users[:, 1].contiguous(), torch.arange(30).repeat(2, 1), "like")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tau", [None, 0.1])
def test_a_net_begins_as_the_means_of_both_kinds_of_events(tau: float | None) -> None:
    start = torch.randn(20, 4, generator=torch.Generator().manual_seed(5))
    net = Net(start, Setting(rate=0.01, tau=tau), seed=0)
    older = torch.tensor([[0.5, -1.0, 2.0, 3.0]])
    recent = start[:10].mean(0)
    expected = recent + older[0]
    if tau is not None:
        expected = torch.cat([older[0, :2], 2 * recent[:2] - older[0, :2]])
    with torch.no_grad():
        net.tower_weights["head.1.weight"][:, 16:] = 0  # the random part
        users = net.users(torch.arange(10)[None], older)
    torch.testing.assert_close(users, expected.expand(1, 2, 4))


def test_a_sum_over_random_items_trains_as_that_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    data = split_by_time(make_interactions(0, num_items=300, num_users=200))
    start = overarch_training.start_embeddings(data, 8)
    older = data.mean_of_older(start)
    found = []
    for most in (4096, 100):
        monkeypatch.setattr(overarch_training, "ALL_ITEMS", most)
        net = Net(start, Setting(rate=0.01), seed=0)
        overarch_training.train(net, data, older, steps=25, rate=0.01, seed=0)
        found.append(hit_rate(net, data, older, 50))
    assert found[0] > 0.3  # 50 of 300 by chance: 0.17
    assert found[1] == pytest.approx(found[0], abs=0.1)


def test_runs_from_a_made_table_to_a_table_of_hit_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One trial each; what is retrieved is what the trained net ranks."""
    monkeypatch.setattr(example, "TRIALS", {name: trials[:1] for name, trials in example.TRIALS.items()})
    nets: dict[str, Net] = {}
    data: dict[str, Histories] = {}
    write = example.write_model

    def keep(net: Net, histories: Histories, folder: Path) -> None:
        nets[folder.name], data[folder.name] = net, histories
        write(net, histories, folder)

    monkeypatch.setattr(example, "write_model", keep)
    table = tmp_path / "interactions.parquet"
    pq.write_table(make_interactions(0, num_items=150, num_users=40), table)
    rows = example.run(tmp_path, table, seeds=1, steps=3, dim=8, size={})
    assert [(row["seed"], row["model"]) for row in rows] == [(0, "dot"), (0, "overarch")]
    for row in rows:
        name = f"{row['model']}-0"
        older = data[name].mean_of_older(example.start_embeddings(data[name], 8))
        expected = hit_rate(nets[name], data[name], older, 50, event=1)
        # Embeddings are packed as float16, so that an item at the edge may change places.
        assert row["click HR@50"] == pytest.approx(expected, abs=0.05)
        assert 0 <= row["feed NDCG@50"] <= row["feed HR@50"] <= 1
    assert example.show(rows).count("\n") == 3
    assert "trials" in capsys.readouterr().out
