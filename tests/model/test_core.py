"""The heart of the search, exported: the graph alone gives what the model gives."""

import io
from dataclasses import replace

import pytest
import torch

import stcli
from stcli.errors import InputError
from stcli.model.core import Core

FILTERS = ["price < 70", None, "NOT color = 'red'", "tags = 't03' OR tags = 't44'", "year BETWEEN 2003 AND 2008"]


def batch_of(model, tiny, first, count):
    """User vectors and filters of some queries, and what the model finds for them."""
    texts = [FILTERS[(first + number) % len(FILTERS)] for number in range(count)]
    vectors = torch.from_numpy(tiny.vectors[first : first + count])
    return vectors, model.planner.batch(texts), model(vectors, texts, 5, probes=9)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_search_needs_no_python(tiny):
    """It is saved and loaded, and searches another number of queries with other filters than it was made of."""
    model = stcli.open_artifact(tiny.model)
    vectors, filters, _ = batch_of(model, tiny, 0, 4)
    given = (vectors, *Core.inputs(filters))
    everywhere = torch.utils._pytree.tree_map(lambda tensor: {0: torch.export.Dim.AUTO}, given)
    program = torch.export.export(Core(model, 5, 9), given, dynamic_shapes=everywhere)
    called = {node.target for node in program.graph.nodes if node.op == "call_function" and "stcli" in str(node.target)}
    assert len(called) == 7
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    graph = torch.export.load(file).module()
    for first, count in ((7, 30), (60, 11)):
        vectors, filters, expected = batch_of(model, tiny, first, count)
        rows, scores = graph(vectors, *Core.inputs(filters))
        assert int((expected.counts == 5).sum()) == count, "no query is searched a second time"
        assert torch.equal(rows, expected.rows)
        assert torch.equal(scores, expected.score_matrix)


def test_what_a_graph_cannot_take(tiny):
    model = stcli.open_artifact(tiny.model)
    with pytest.raises(InputError, match="no query of the batch has a filter"):
        Core.inputs(model.planner.batch([None, None]))
    deep = model.planner.batch(["price < 1"])
    with pytest.raises(InputError, match="needs a stack of 40; a graph has 32"):
        Core.inputs(replace(deep, program=replace(deep.program, max_depth=40)))
