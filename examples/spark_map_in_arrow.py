"""The same retrieval on Spark: `mapInArrow`, with the artifact opened once in each Python worker.

    pip install pyspark        # no dependency of stcli; it needs Java
    spark-submit examples/spark_map_in_arrow.py model.safetensors queries.parquet results

Queries have `query_id`, `embedding` and `filter`; the artifact must be readable on every worker. The recall is
calibrated once, on the driver, so that rows do not depend on how Spark cuts the table.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

import stcli
from stcli.filters.source import GivenFilters
from stcli.model.calibrate import calibrate
from stcli.model.device import limit_threads
from stcli.model.planner import Calibration
from stcli.model.retriever import Retriever

SCHEMA = "query_id long, item_id array<long>, score array<float>"
K, SAMPLE = 100, 2_000

Batches = Iterator[pa.RecordBatch]


@functools.cache
def open_model(path: str) -> Retriever:
    """The artifact of this process: mapped, so that the workers of a host share its pages."""
    limit_threads(1)  # Spark has a worker for each core
    return stcli.open_artifact(path)


def columns_of(batch: pa.RecordBatch) -> tuple[np.ndarray, list[str | None]]:
    """Queries float32 [B, D] and their filters."""
    vectors = batch.column("embedding")
    flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(vectors), -1), batch.column("filter").to_pylist()


def plan(path: str, sample: pa.RecordBatch, k: int, total: int) -> dict[str, Any]:
    """The calibration for `total` queries, from some of them, as data that Spark can send."""
    model, (vectors, filters) = open_model(path), columns_of(sample)
    users = model.check_queries(vectors)
    return calibrate(model, users, GivenFilters(model.planner, filters), k, total=total).to_json()


def answering(path: str, calibration: dict[str, Any], k: int) -> Callable[[Batches], Batches]:
    """What Spark calls with the batches of each partition."""

    def answer(batches: Batches) -> Batches:
        for batch in batches:
            vectors, filters = columns_of(batch)
            found = open_model(path)(vectors, filters, k, calibration=Calibration.from_json(calibration))
            lists = [pa.array(found.item_ids, pa.list_(pa.int64())), pa.array(found.scores, pa.list_(pa.float32()))]
            yield pa.RecordBatch.from_arrays([batch.column("query_id"), *lists], ["query_id", "item_id", "score"])

    return answer


def main(model: str, queries: str, results: str) -> None:
    """Answer a table of queries."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    spark.sparkContext.addPyFile(__file__)
    from spark_map_in_arrow import answering  # by the name of its module; out of __main__ each task would open anew

    table = spark.read.parquet(queries).select("query_id", "embedding", "filter")
    (sample,) = table.limit(SAMPLE).toArrow().combine_chunks().to_batches()
    calibration = plan(model, sample, K, table.count())
    table.mapInArrow(answering(model, calibration, K), SCHEMA).write.parquet(results)


if __name__ == "__main__":
    main(*sys.argv[1:])
