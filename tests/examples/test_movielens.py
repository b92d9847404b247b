"""examples/movielens.py on a tiny made folder in the format of ml-latest-small."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import movielens as example
from stcli.filters.parse import parse
from tests.examples.two_valued import count_eligible

DIM, HOLDOUT = 4, 3
NUM_USERS = 30

MOVIES = [
    (1, "Toy Story (1995)", "Adventure|Animation|Children|Comedy|Fantasy", "0114709"),
    (3, 'Old "Grumps", The (1993)', "Comedy|Romance", "0113228"),
    (10, "Night Café (1987)", "Drama|War", "0113277"),
    (12, "Nowhere Town (1988) ", "Horror|Western", ""),
    (40, "Untitled", "(no genres listed)", "0110000"),
    (50, "Never Rated (2001)", "Musical", "0110001"),
]


def write_csv(path: Path, header: str, rows: list[tuple]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def made_ratings() -> list[tuple[int, int, float, int]]:
    """One to five ratings a user in the order of the files, by user and movie; the times go criss-cross."""
    rng = np.random.default_rng(11)
    rows = []
    for user in range(1, NUM_USERS + 1):
        movies = rng.permutation([1, 3, 10, 12, 40])[: 1 + user % 5]
        for movie in sorted(movies.tolist()):
            rows.append((user, movie, float(rng.integers(1, 11)) / 2, int(rng.integers(10**9, 2 * 10**9))))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("movielens") / "ml-tiny"
    folder.mkdir()
    write_csv(folder / "movies.csv", "movieId,title,genres", [row[:3] for row in reversed(MOVIES)])
    write_csv(folder / "links.csv", "movieId,imdbId,tmdbId", [(row[0], row[3], "") for row in MOVIES])
    write_csv(folder / "ratings.csv", "userId,movieId,rating,timestamp", made_ratings())
    tags = [(2, 1, " Pixar ", 5), (3, 1, "pixar", 6), (4, 1, "fun, really", 7), (4, 1, "", 8), (4, 3, "it's old", 9)]
    tags += [(5, 12, f"tag {letter}", 1) for letter in "lkjihgfedcba"]
    write_csv(folder / "tags.csv", "userId,movieId,tag,timestamp", tags)
    return folder


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    out = folder.parent / "out"
    example.main([str(folder), "--out", str(out), "--dim", str(DIM), "--holdout", str(HOLDOUT)])
    return out


@pytest.fixture(scope="module")
def items(out: Path) -> pa.Table:
    return pq.read_table(out / "items.parquet")


@pytest.fixture(scope="module")
def queries(out: Path) -> pa.Table:
    return pq.read_table(out / "queries.parquet")


def expected_lists() -> dict[int, tuple[list[int], list[int]]]:
    """(seen, relevant) of each user by plain loops: the last three, at most half, are held out; from 4 on is liked."""
    lists = {}
    for user in range(1, NUM_USERS + 1):
        mine = sorted((time, movie, rating) for u, movie, rating, time in made_ratings() if u == user)
        cut = len(mine) - min(HOLDOUT, len(mine) // 2)
        lists[user] = [movie for _, movie, _ in mine[:cut]], [movie for _, movie, r in mine[cut:] if r >= 4]
    return lists


def test_items_hold_the_features_of_the_csv_files(items: pa.Table) -> None:
    rows = {row.pop("item_id"): row for row in items.drop_columns(["embedding"]).to_pylist()}
    assert list(rows) == [1, 3, 10, 12, 40, 50]
    assert rows[1] == {
        "title": "Toy Story (1995)",
        "year": 1995,
        "genres": ["Adventure", "Animation", "Children", "Comedy", "Fantasy"],
        "tags": ["pixar", "fun, really"],
        "imdb_id": "tt0114709",
    }
    assert rows[3]["title"] == 'Old "Grumps", The (1993)'
    assert rows[3]["tags"] == ["it's old"]
    assert rows[12]["year"] == 1988
    assert rows[12]["imdb_id"] is None
    assert rows[12]["tags"] == [f"tag {letter}" for letter in "abcdefghij"]
    assert rows[40]["year"] is None
    assert rows[40]["genres"] == rows[40]["tags"] == []


def test_seen_and_relevant_are_split_by_time(queries: pa.Table) -> None:
    columns = [queries[name].to_pylist() for name in ("query_id", "seen", "relevant")]
    found = {user: (seen, relevant) for user, seen, relevant in zip(*columns, strict=True)}
    assert found == expected_lists()
    assert any(relevant for _, relevant in found.values())


def test_embeddings_use_only_what_was_seen(items: pa.Table, queries: pa.Table) -> None:
    """The best rank-4 approximation of the training ratings is user embeddings times item embeddings."""
    ids = items["item_id"].to_pylist()
    ratings = {(user, movie): rating for user, movie, rating, _ in made_ratings()}
    training = np.zeros((NUM_USERS, len(ids)))
    for user, (seen, _) in expected_lists().items():
        for movie in seen:
            training[user - 1, ids.index(movie)] = ratings[user, movie]
    u, s, vt = np.linalg.svd(training, full_matrices=False)
    expected = (u[:, :DIM] * s[:DIM]) @ vt[:DIM]
    item_embeddings, query_embeddings = (np.stack(table["embedding"].to_numpy()) for table in (items, queries))
    # The sketch has more columns than the matrix, so only float32 squares stand between the two.
    np.testing.assert_allclose(query_embeddings @ item_embeddings.T, expected, atol=1e-3 * s[0])
    assert not item_embeddings[ids.index(50)].any()


def test_interactions_are_the_ratings_by_user_and_time(out: Path) -> None:
    rows = pq.read_table(out / "interactions.parquet").to_pylist()
    expected = sorted((user, time, movie, rating >= 4) for user, movie, rating, time in made_ratings())
    assert [(row["user_id"], row["timestamp"], row["item_id"], row["like"]) for row in rows] == expected


def test_filters_parse_and_fit_a_relevant_movie(items: pa.Table, queries: pa.Table) -> None:
    rows = queries.select(["filter", "relevant"]).to_pylist()
    filtered = [row for row in rows if row["filter"] is not None]
    assert len({row["filter"] for row in filtered}) >= 5
    for row in filtered:
        parse(row["filter"])
        first = items.slice(items["item_id"].to_pylist().index(row["relevant"][0]), 1)
        assert count_eligible(first, [row["filter"]]) == [1], row
    assert all(row["relevant"] for row in filtered)


def test_quotes_are_doubled() -> None:
    assert example.make_filter(5, ["Comedy"], ["it's old"], None) == "tags = 'it''s old'"


def test_a_missing_file_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n")
    with pytest.raises(SystemExit) as error:
        example.main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert error.value.code == 2
    assert "no ratings.csv, tags.csv, links.csv there" in capsys.readouterr().err


def test_a_rating_of_an_unknown_movie_is_named(folder: Path, tmp_path: Path) -> None:
    for name in example.COLUMNS:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write_csv(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp", [(1, 1, 5.0, 1), (1, 99, 5.0, 1)])
    with pytest.raises(SystemExit, match=r"movieId 99 is not in movies\.csv"):
        example.main([str(tmp_path), "--out", str(tmp_path / "out")])
