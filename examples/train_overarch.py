"""Train a two-tower model with a Mixture-of-Logits OverArch for two tasks, and compare it with the dot product.

    python examples/train_overarch.py --out trained
    python examples/train_overarch.py --out trained --interactions movielens/interactions.parquet

An interactions table has `user_id`, `item_id`, `timestamp` (integers) and `like` (a boolean): every row is a click,
some are likes. Without one, a world is made where users have two interests (`overarch_data.py` describes it). Two
models are trained:

- `dot`: user vector times item embedding, one user vector a task;
- `overarch`: a Mixture-of-Logits of two components over user vector and item embedding.

Both have the same tower, embeddings of the same size that begin alike, as many steps of training, and as many trials,
chosen on the first seed by an event of each user that is not reported. Then each is written as stcli reads it, built,
packed, and retrieved with three value models. The table tells how often the last event of a user, which nothing has
seen, is among the first 10 and 50 of all items. Every item is scored, so that no search stands between the two scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import stcli
from overarch_data import COLUMNS, Histories, make_interactions, split_by_time
from overarch_nets import OLDER_COLUMN, TASKS, Net, Setting
from overarch_training import hit_rate, start_embeddings, train
from sparse_svd import embedding_column
from stcli.storage.weights import write_weights

VALUE_MODELS = ("click=task.click", "like=task.like", "feed=task.click + 0.5 * task.like")
NAMES = [model.split("=")[0] for model in VALUE_MODELS]
TRIALS = {
    "dot": [Setting(0.001), Setting(0.003), Setting(0.01)],
    "overarch": [Setting(0.003, 0.1), Setting(0.003, 0.05), Setting(0.01, 0.1)],
}
CUTS = (10, 50)
REQUESTS = 4_000
"""Users that are retrieved for."""


def tune(data: Histories, start: torch.Tensor, trials: Sequence[Setting], steps: int) -> tuple[Setting, Net]:
    """The setting with the best HR@50 of clicks on the event to tune by, and its net."""
    best: tuple[float, Setting, Net] | None = None
    for setting in trials:
        net = fit(data, start, setting, steps, seed=0)
        found = hit_rate(net, data, data.mean_of_older(start), 50)
        print(f"  {setting}: HR@50 {found:.4f}", flush=True)
        if best is None or found > best[0]:
            best = (found, setting, net)
    assert best is not None
    return best[1], best[2]


def fit(data: Histories, start: torch.Tensor, setting: Setting, steps: int, seed: int) -> Net:
    """A trained net."""
    net = Net(start, setting, seed)
    train(net, data, data.mean_of_older(start), steps, setting.rate, seed)
    return net


def write_model(net: Net, data: Histories, folder: Path) -> None:
    """Write a net and its items, and build and pack them: `folder/model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    items = {"item_id": data.item_ids, "embedding": embedding_column(net.embeddings.detach().numpy())}
    pq.write_table(pa.table(items), folder / "items.parquet")
    write_weights(folder / "tower.json", net.tower_config, net.tower_weights)
    write_weights(folder / "overarch.json", net.mol_config or {"kind": "dot", "tasks": list(TASKS)}, net.mol)
    stcli.build_index(folder / "items.parquet", folder / "items.index", overwrite=True)
    stcli.pack_model(
        folder / "items.index",
        folder / "model.safetensors",
        tower=str(folder / "tower.json"),
        overarch=str(folder / "overarch.json"),
        value_models=VALUE_MODELS,
        overwrite=True,
    )


def write_requests(data: Histories, start: torch.Tensor, path: Path) -> None:
    """A request for each of the first REQUESTS users and each value model; those of a user follow one another."""
    num_users = min(len(data.recent), REQUESTS)
    older = np.split(data.item_ids[data.older.numpy()], data.offsets[1:-1].numpy())
    recent = data.item_ids[data.recent.numpy()]
    user = np.repeat(np.arange(num_users), len(NAMES))
    means = data.mean_of_older(start).numpy()[user]
    columns = {
        "query_id": np.arange(len(user)),
        "uih__item_id": list(recent[user]),
        "seen": [np.concatenate([older[u], recent[u]]) for u in user],
        "value_model": NAMES * num_users,
    }
    columns |= {OLDER_COLUMN.format(number): values for number, values in enumerate(means.T)}
    pq.write_table(pa.table(columns), path)


def hit_rates(folder: Path, requests: Path, data: Histories) -> dict[str, float]:
    """Retrieve with a packed model, and find the last event of each user in its results.

    Returns:
        For each value model HR@10, HR@50 and NDCG@50; of `like` over the users who liked that event, else over all.
    """
    stcli.retrieve(
        folder / "model.safetensors",
        requests,
        folder / "results",
        value_model_column="value_model",
        exclude_column="seen",
        rescore=len(data.item_ids),
        k=max(CUTS),
        exact=True,
        overwrite=True,
    )
    results = pq.read_table(folder / "results", columns=["query_id", "item_id"]).sort_by("query_id")
    found_ids = results["item_id"].to_pylist()
    num_users = len(found_ids) // len(NAMES)
    targets = data.item_ids[data.held_out[:num_users, 1].numpy()].tolist()
    liked = data.held_out_liked[:num_users, 1].numpy()
    found: dict[str, float] = {}
    for number, name in enumerate(NAMES):
        answers = zip(found_ids[number :: len(NAMES)], targets, strict=True)
        ranks = np.array([ids.index(target) if target in ids else len(data.item_ids) for ids, target in answers])
        ranks = ranks[liked] if name == "like" else ranks
        found |= {f"{name} HR@{cut}": float((ranks < cut).mean()) for cut in CUTS}
        found[f"{name} NDCG@50"] = float(np.where(ranks < 50, 1 / np.log2(ranks + 2), 0).mean())
    return found


def run(
    out: Path, interactions: Path | None, seeds: int, steps: int, dim: int, size: dict[str, int]
) -> list[dict[str, Any]]:
    """Tune on the first seed, train and measure on each.

    Returns:
        One row for each seed and model: `seed`, `model` and the rates of `hit_rates`.
    """
    chosen: dict[str, Setting] = {}
    rows = []
    for seed in range(seeds):
        table = (
            make_interactions(seed, **size) if interactions is None else pq.read_table(interactions, columns=COLUMNS)
        )
        data = split_by_time(table)
        start = start_embeddings(data, dim)
        write_requests(data, start, out / "requests.parquet")
        for name, trials in TRIALS.items():
            if name in chosen:
                net = fit(data, start, chosen[name], steps, seed)
            else:
                print(f"{name}: {len(trials)} trials", flush=True)
                chosen[name], net = tune(data, start, trials, steps)
            folder = out / f"{name}-{seed}"
            write_model(net, data, folder)
            rows.append({"seed": seed, "model": name} | hit_rates(folder, out / "requests.parquet", data))
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    texts = [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *texts]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run, and print the table."""
    parser = argparse.ArgumentParser(description="Train dot products and a Mixture-of-Logits OverArch; compare them.")
    parser.add_argument("--out", type=Path, required=True, help="folder for models, requests and results")
    parser.add_argument("--interactions", type=Path, help="Parquet table; default: made")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default 3); made data differ with the seed")
    parser.add_argument("--steps", type=int, default=200, help="training steps of 64 users (default 200)")
    parser.add_argument("--dim", type=int, default=16, help="even; of embeddings and user vectors (default 16)")
    parser.add_argument("--users", type=int, default=12_000, help="of made data (default 12000)")
    parser.add_argument("--items", type=int, default=2_000, help="of made data (default 2000)")
    arguments = parser.parse_args(argv)
    if min(arguments.seeds, arguments.steps) < 1 or arguments.dim < 2 or arguments.dim % 2:
        parser.error("--seeds and --steps of at least 1 and an even --dim expected")
    if arguments.items < 100 or arguments.users < 10:
        parser.error("--items of at least 100 and --users of at least 10 expected")
    torch.set_num_threads(1)  # the layers are small: a second thread mostly waits
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    size = {"num_items": arguments.items, "num_users": arguments.users}
    rows = run(arguments.out, arguments.interactions, arguments.seeds, arguments.steps, arguments.dim, size)
    print(show(rows))
    print(f"{time.perf_counter() - start:.0f} s, {time.process_time():.0f} s of CPU time")


if __name__ == "__main__":
    main()
