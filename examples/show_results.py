"""Show the results of `make demo` as text: each phrase, its filter, and the characters found.

python examples/show_results.py demo/results --queries 8
"""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = ["text", "filter", "char", "name", "score"]


def read_results(folder: Path) -> Iterator[dict]:
    """The rows of a results directory, in the order of the queries."""
    for part in sorted(folder.glob("part-*.parquet")):
        for batch in pq.ParquetFile(part).iter_batches(columns=COLUMNS):
            yield from batch.to_pylist()


def printable(char: str) -> str:
    """The character itself; on a dotted circle if it combines with the one before, empty if it is invisible."""
    category = unicodedata.category(char)
    return f"\u25cc{char}" if category[0] == "M" else "" if category[0] in "CZ" else char


def heading(row: dict) -> Text:
    """`snowman` or `letter e with acute, where script = 'LATIN'`."""
    return Text(row["text"], style="bold").append(f", where {row['filter']}" if row["filter"] else "", style="not bold")


def found_table(row: dict, top: int) -> Table:
    """The first `top` characters found for one query."""
    table = Table(box=None, show_header=False)
    table.add_column(width=2)
    table.add_column(min_width=50)
    for char, name, score in list(zip(row["char"], row["name"], row["score"], strict=True))[:top]:
        table.add_row(printable(char), name, f"{score:.3f}")
    if not row["char"]:
        table.add_row("", "(nothing is eligible)", "")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description="Print phrases and the characters found for them.")
    parser.add_argument("results", type=Path, help="results directory of stcli retrieve")
    parser.add_argument("--queries", type=int, default=8, help="queries to show (default 8)")
    parser.add_argument("--top", type=int, default=5, help="characters to show for each (default 5)")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    for row in islice(read_results(arguments.results), arguments.queries):
        console.print(heading(row), found_table(row, arguments.top), "")


if __name__ == "__main__":
    main()
