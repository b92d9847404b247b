"""DuckDB as a second opinion on the filters of the examples: which items of a table satisfy a filter text.

SQL knows a third truth value, our filters do not, so every condition is closed by coalesce; on a list column it asks
whether any element satisfies it.
"""

from __future__ import annotations

import re

import duckdb
import pyarrow as pa

STRING = r"'(?:[^']|'')*'"
NUMBER = r"-?[0-9][0-9.e+-]*"
CONDITION = re.compile(
    rf"(?P<feature>[a-z]+) (?P<test>(?:=|<=|>=|<|>) (?:{STRING}|{NUMBER})"
    rf"|IN \((?:{STRING}|, )+\)|BETWEEN {NUMBER} AND {NUMBER}|IS NULL)|{STRING}"
)


def count_eligible(items: pa.Table, filters: list[str]) -> list[int]:
    """How many items satisfy each filter."""
    lists = {field.name for field in items.schema if pa.types.is_list(field.type)}

    def translate(match: re.Match[str]) -> str:
        feature, test = match["feature"], match["test"]
        if feature in lists and test == "IS NULL":
            return f"coalesce(len({feature}), 0) = 0"
        if feature in lists:
            return f"coalesce(len(list_filter({feature}, lambda x: x {test})), 0) > 0"
        return f"coalesce({feature} {test}, false)"

    columns = sorted({match["feature"] for text in filters for match in CONDITION.finditer(text) if match["feature"]})
    with duckdb.connect() as connection:
        connection.register("given", items.select(columns))
        connection.execute("CREATE TABLE items AS SELECT * FROM given")
        counts = {}
        for text in set(filters):
            sql = CONDITION.sub(translate, text)
            counts[text] = connection.execute(f"SELECT count(*) FROM items WHERE {sql}").fetchone()[0]
    return [counts[text] for text in filters]
