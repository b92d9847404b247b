"""Corpora made on the device: embeddings like those of Corpora R and H, an index, and filters of known rates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stcli.index import kmeans
from stcli.ops.quantize_rows import quantize_rows
from stcli.types import LEAF_OWN, OP_AND, BitMatrix, Clusters, Embeddings, Postings, Program, Quantized, SearchIndex

DIM = 128
RATES = (0.5, 0.3, 0.1, 0.03)
"""Share of the items in each group of own rows; filters are ANDs of two or three of them: 15 % to 0.09 %."""

ROWS_A_RATE = 16
TERMS_AN_ITEM = 19


@dataclass
class Corpus:
    """One corpus on the device.

    Attributes:
        name: R or H.
        index: int8 rows in cluster order.
        embeddings: float16 [N, 128], in row order.
        matrix: own rows of known rates.
        queries: float32 [B, 128].
        program: as many filters as queries.
        terms: 19 terms an item.
    """

    name: str
    index: SearchIndex
    embeddings: Embeddings
    matrix: BitMatrix
    queries: torch.Tensor
    program: Program
    terms: Postings

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.index.scales)


def make_corpus(
    name: str, num_items: int, num_queries: int, device: torch.device, backend: str, seed: int = 0
) -> Corpus:
    """Make a corpus.

    R: unit vectors around planted centres, queries beside items. H: no centres, lengths vary log-normally, a decaying
    spectrum, queries from another distribution.
    """
    torch.manual_seed(seed)
    vectors = torch.empty(num_items, DIM, dtype=torch.float16, device=device)
    centres = torch.nn.functional.normalize(torch.randn(max(num_items // 200, 1), DIM, device=device), dim=1)
    spectrum = torch.arange(1, DIM + 1, device=device).float() ** -0.4
    step = 1 << 20
    for start in range(0, num_items, step):
        count = min(step, num_items - start)
        noise = torch.randn(count, DIM, device=device)
        if name == "R":
            chosen = centres[torch.randint(len(centres), (count,), device=device)]
            part = torch.nn.functional.normalize(chosen + noise / DIM**0.5, dim=1)
        else:
            part = torch.nn.functional.normalize(noise * spectrum, dim=1) * torch.exp(
                0.3 * torch.randn(count, 1, device=device)
            )
        vectors[start : start + count] = part.half()
    if name == "R":
        near = vectors[torch.randint(num_items, (num_queries,), device=device)].float()
        queries = torch.nn.functional.normalize(
            near + 0.6 * torch.randn(num_queries, DIM, device=device) / DIM**0.5, dim=1
        )
    else:
        queries = torch.nn.functional.normalize(torch.randn(num_queries, DIM, device=device) * spectrum.sqrt(), dim=1)
    num_clusters = kmeans.default_num_clusters(num_items)
    sample = torch.randperm(num_items, device=device)[: num_clusters * kmeans.POINTS_PER_CLUSTER].sort().values
    centroids = kmeans.train(vectors[sample].float(), num_clusters, backend=backend)
    chosen = torch.empty(num_items, dtype=torch.int64, device=device)
    for start in range(0, num_items, step):
        rows = quantize_rows(vectors[start : start + step], backend=backend)
        chosen[start : start + step] = kmeans.assign(rows, centroids, backend=backend)
    order = chosen.sort(stable=True).indices
    vectors = vectors[order]
    offsets = torch.nn.functional.pad(torch.bincount(chosen, minlength=num_clusters).cumsum(0), (1, 0))
    rows = quantize_rows(vectors, backend=backend)
    norms = torch.cat([part.float().norm(dim=1) for part in vectors.split(step)])
    index = SearchIndex(rows.codes, rows.scales, 0.01 * norms, norms, Clusters(centroids, offsets))
    matrix, program = make_filters(num_items, num_queries, device)
    return Corpus(name, index, Embeddings(vectors, None), matrix, queries, program, make_terms(num_items, device))


def make_filters(num_items: int, num_queries: int, device: torch.device) -> tuple[BitMatrix, Program]:
    """Own rows of the RATES, and for each query the AND of two or three of them."""
    num_words = -(-num_items // 64)
    own = torch.empty(len(RATES) * ROWS_A_RATE, num_words, dtype=torch.int64, device=device)
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=device)
    for row in range(len(own)):
        bits = torch.rand(num_words * 8, 8, device=device) < RATES[row // ROWS_A_RATE]
        own[row] = (bits * weights).sum(1, dtype=torch.uint8).view(torch.int64)
    none = torch.empty(0, 64, dtype=torch.int64, device=device)
    blocks = -(-num_items // 4096)
    matrix = BitMatrix(own, none, torch.zeros(blocks + 1, dtype=torch.int64, device=device), 1, num_items)
    leaves = torch.zeros(len(own), 4, dtype=torch.int64)
    leaves[:, 0], leaves[:, 1] = LEAF_OWN, torch.arange(len(own))
    ops, lengths = [], [0]
    generator = torch.Generator().manual_seed(5)
    for query in range(num_queries):
        groups = ((0, 1), (0, 1, 2), (1, 2, 3), (0, 2))[query % 4]
        picked = [g * ROWS_A_RATE + int(torch.randint(ROWS_A_RATE, (), generator=generator)) for g in groups]
        ops += [*picked, *[OP_AND] * (len(picked) - 1)]
        lengths.append(len(ops))
    program = Program(
        leaves.to(device),
        torch.tensor(ops, dtype=torch.int32, device=device),
        torch.tensor(lengths, device=device),
        torch.ones(num_queries, dtype=torch.bool, device=device),
        3,
    )
    return matrix, program


def make_terms(num_items: int, device: torch.device) -> Postings:
    """19 ascending terms an item, of 19,000."""
    terms = torch.randint(1000, (num_items, TERMS_AN_ITEM), dtype=torch.int32, device=device)
    terms += 1000 * torch.arange(TERMS_AN_ITEM, dtype=torch.int32, device=device)
    offsets = TERMS_AN_ITEM * torch.arange(num_items + 1, device=device)
    return Postings(terms.flatten(), offsets)


def quantized(corpus: Corpus, count: int, backend: str) -> Quantized:
    """The first queries."""
    return quantize_rows(corpus.queries[:count], backend=backend)


def batch_for(k: int, batch: int) -> int:
    """Fewer queries where each has many results."""
    return batch if k < 10_000 else max(batch // 4, 1)
