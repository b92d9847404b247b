"""Turn a downloaded MovieLens folder (ml-latest-small or ml-32m) into items and queries.

    python examples/movielens.py ml-latest-small --out movielens

`items.parquet`: one row a movie with genres, tags, year and an embedding. `queries.parquet`: one row a user with an
embedding, a filter, the movies already rated (`seen`), and liked movies that the embedding has not used (`relevant`).
`interactions.parquet`: one row a rating, for `train_overarch.py`.

The embeddings are PureSVD: V of the truncated SVD of the ratings (users x movies, a missing rating counts as 0). A user
is the sum of the rated movies' rows, weighted by rating. They are not unit vectors: well-known movies are longer, and
a movie without ratings is the zero vector.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from sparse_svd import Sparse, embedding_column, truncated_svd

TAGS_PER_MOVIE = 10
LIKED = 4.0

COLUMNS = {
    "movies.csv": {"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()},
    "ratings.csv": {"userId": pa.int32(), "movieId": pa.int32(), "rating": pa.float32(), "timestamp": pa.int64()},
    "tags.csv": {"userId": pa.int32(), "movieId": pa.int64(), "tag": pa.string()},
    "links.csv": {"movieId": pa.int64(), "imdbId": pa.string()},
}


def read(folder: Path, name: str) -> pa.Table:
    """The columns that we use of one CSV file; titles and tags may hold line breaks inside quotes."""
    types = COLUMNS[name]
    return pyarrow.csv.read_csv(
        folder / name,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=name in ("movies.csv", "tags.csv")),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types)),
    )


def tags_of_movies(folder: Path) -> dict[int, list[str]]:
    """The tags of each movie in lower case, those that most users gave first, at most 10."""
    table = read(folder, "tags.csv")
    table = table.set_column(2, "tag", pc.utf8_lower(pc.utf8_trim_whitespace(table["tag"])))
    counts = table.filter(pc.not_equal(table["tag"], "")).group_by(["movieId", "tag"])
    counts = counts.aggregate([("userId", "count_distinct")])
    counts = counts.sort_by([("movieId", "ascending"), ("userId_count_distinct", "descending"), ("tag", "ascending")])
    tags: dict[int, list[str]] = {}
    for movie, tag in zip(counts["movieId"].to_pylist(), counts["tag"].to_pylist(), strict=True):
        of_movie = tags.setdefault(movie, [])
        if len(of_movie) < TAGS_PER_MOVIE:
            of_movie.append(tag)
    return tags


def read_movies(folder: Path) -> pa.Table:
    """One row a movie, by id: item_id, title, year, genres, tags, imdb_id."""
    movies = read(folder, "movies.csv").sort_by("movieId")
    ids, titles = movies["movieId"].to_pylist(), movies["title"].to_pylist()
    links = read(folder, "links.csv")
    imdb = dict(zip(links["movieId"].to_pylist(), links["imdbId"].to_pylist(), strict=True))
    tags = tags_of_movies(folder)
    years = [re.search(r"\((\d{4})\)\s*$", title) for title in titles]
    genres = [[] if text.startswith("(") else text.split("|") for text in movies["genres"].to_pylist()]
    return pa.table(
        {
            "item_id": pa.array(ids, pa.int64()),
            "title": pa.array(titles, pa.string()),
            "year": pa.array([int(match[1]) if match else None for match in years], pa.int64()),
            "genres": pa.array(genres, pa.list_(pa.string())),
            "tags": pa.array([tags.get(movie, []) for movie in ids], pa.list_(pa.string())),
            "imdb_id": pa.array([f"tt{imdb[movie]}" if imdb.get(movie) else None for movie in ids], pa.string()),
        }
    )


class Ratings:
    """All ratings, sorted by user and time; movies are row numbers of the item table.

    Attributes:
        user_ids: int64 [U], ascending.
        offsets: int64 [U + 1]; the ratings of user u are `offsets[u] … offsets[u + 1] - 1`.
        movies: int32 [R].
        values: float32 [R], 0.5 … 5.
        times: int64 [R], seconds.
        held_out: bool [R], the last ratings of each user, which the embeddings must not see.
    """

    def __init__(self, folder: Path, item_ids: np.ndarray, holdout: int) -> None:
        table = read(folder, "ratings.csv")
        users = table["userId"].to_numpy()
        unknown = np.setdiff1d(table["movieId"].to_numpy(), item_ids)
        if len(unknown):
            raise SystemExit(
                f"{folder / 'ratings.csv'}: movieId {unknown[0]} is not in movies.csv; the folder is not whole"
            )
        order = np.lexsort((table["timestamp"].to_numpy(), users))
        self.user_ids, starts = np.unique(users[order], return_index=True)
        self.offsets = np.append(starts, len(order))
        self.movies = np.searchsorted(item_ids, table["movieId"].to_numpy()[order]).astype(np.int32)
        self.values = table["rating"].to_numpy()[order]
        self.times = table["timestamp"].to_numpy()[order]
        lengths = np.diff(self.offsets)
        from_end = np.repeat(self.offsets[1:], lengths) - np.arange(len(order))
        self.held_out = from_end <= np.repeat(np.minimum(holdout, lengths // 2), lengths)

    def training_matrix(self, num_movies: int) -> Sparse:
        """The ratings that are not held out: float32 [U, num_movies]."""
        users = np.repeat(np.arange(len(self.user_ids), dtype=np.int32), np.diff(self.offsets))
        keep = ~self.held_out
        return Sparse(users[keep], self.movies[keep], self.values[keep], (len(self.user_ids), num_movies))

    def interactions(self, item_ids: np.ndarray) -> pa.Table:
        """One row a rating: user_id, item_id, timestamp, and like (at least 4 stars)."""
        return pa.table(
            {
                "user_id": pa.array(np.repeat(self.user_ids, np.diff(self.offsets)), pa.int64()),
                "item_id": pa.array(item_ids[self.movies], pa.int64()),
                "timestamp": pa.array(self.times, pa.int64()),
                "like": pa.array(self.values >= LIKED),
            }
        )

    def lists(self, keep: np.ndarray, item_ids: np.ndarray) -> pa.Array:
        """A list of item ids per user: the ratings where `keep` (bool [R]) is set, oldest first."""
        ends = np.concatenate(([0], np.cumsum(keep)))[self.offsets]
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(item_ids[self.movies[keep]], pa.int64()))


def literal(text: str) -> str:
    """A string of the filter language."""
    return "'" + text.replace("'", "''") + "'"


def make_filter(number: int, genres: list[str], tags: list[str], year: int | None) -> str | None:
    """What user `number` asks for tonight: a filter that the movie with these features satisfies, or None.

    The shapes take turns; one that the movie has no features for falls back to no filter.
    """
    genre = f"genres = {literal(genres[number % len(genres)])}" if genres else None
    tag = f"tags = {literal(tags[number % len(tags)])}" if tags else None
    other = next(name for name in ("Horror", "Western", "Musical", "War") if name not in genres)
    shapes = [
        None,
        genre,
        tag and genre and f"{tag} OR {genre} AND year >= 1990",
        genre and f"{genre} AND NOT genres = {literal(other)}",
        genre and year and f"{genre} AND year BETWEEN {year - 10} AND {year + 10}",
        tag,
    ]
    return shapes[number % len(shapes)] or None


def read_queries(items: pa.Table, ratings: Ratings, embeddings: np.ndarray) -> pa.Table:
    """One row a user. The filter fits one of the relevant movies, so that there is something to find."""
    item_ids = items["item_id"].to_numpy()
    liked = ratings.held_out & (ratings.values >= LIKED)
    features = items.select(["genres", "tags", "year"]).to_pylist()
    filters: list[str | None] = []
    for number, (start, end) in enumerate(zip(ratings.offsets[:-1], ratings.offsets[1:], strict=True)):
        relevant = ratings.movies[start:end][liked[start:end]]
        filters.append(make_filter(number, **features[relevant[0]]) if len(relevant) else None)
    return pa.table(
        {
            "query_id": pa.array(ratings.user_ids, pa.int64()),
            "filter": pa.array(filters, pa.string()),
            "seen": ratings.lists(~ratings.held_out, item_ids),
            "relevant": ratings.lists(liked, item_ids),
            "embedding": embedding_column(embeddings),
        }
    )


def convert(folder: Path, out: Path, dim: int = 64, holdout: int = 5) -> None:
    """Write `items.parquet`, `queries.parquet` and `interactions.parquet` into `out`.

    A folder of ml-32m's size (32 million ratings) takes 2.8 GB of memory and 1.5 minutes on two cores.
    """
    items = read_movies(folder)
    ratings = Ratings(folder, items["item_id"].to_numpy(), holdout)
    print(
        f"{len(items):,} movies, {len(ratings.user_ids):,} users, {len(ratings.values):,} ratings; embedding them ..."
    )
    matrix = ratings.training_matrix(len(items))
    vectors, _ = truncated_svd(matrix, dim)
    queries = read_queries(items, ratings, matrix.times(vectors))
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(items.append_column("embedding", embedding_column(vectors)), out / "items.parquet")
    pq.write_table(queries, out / "queries.parquet", row_group_size=65_536)
    pq.write_table(ratings.interactions(items["item_id"].to_numpy()), out / "interactions.parquet")
    print(f"{out}: {len(items):,} items, {len(queries):,} queries")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and convert the folder."""
    parser = argparse.ArgumentParser(description="Turn a MovieLens folder into items.parquet and queries.parquet.")
    parser.add_argument("folder", type=Path, help="with movies.csv, ratings.csv, tags.csv and links.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if it is not there")
    parser.add_argument("--dim", type=int, default=64, help="dimensions of the embeddings (default 64)")
    parser.add_argument("--holdout", type=int, default=5, help="last ratings a user to hold out (default 5)")
    arguments = parser.parse_args(argv)
    missing = [name for name in COLUMNS if not (arguments.folder / name).is_file()]
    if missing:
        parser.error(
            f"{arguments.folder}: no {', '.join(missing)} there; download ml-latest-small or ml-32m and unpack"
        )
    if arguments.dim < 1 or arguments.holdout < 1:
        parser.error(f"--dim {arguments.dim}, --holdout {arguments.holdout}: both must be at least 1")
    convert(arguments.folder, arguments.out, arguments.dim, arguments.holdout)


if __name__ == "__main__":
    main()
