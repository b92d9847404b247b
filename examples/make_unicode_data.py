"""Make the example data: Unicode characters as items, phrases with filters as queries.

    python examples/make_unicode_data.py --out demo

`items.parquet` holds one row a named character: its features and an embedding of its name. `queries.parquet` holds
phrases in everyday words, embedded the same way, most with a filter. Everything comes from Python's own `unicodedata`,
so nothing is downloaded; the number of characters differs between Python versions (3.11: 43,591).

The embedding is latent semantic analysis: words and letter trigrams of the name, hashed, weighted by TF-IDF and reduced
to 128 dimensions by a truncated SVD. Trigrams bring "hearts" close to "heart".
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparse_svd import Sparse, embedding_column, truncated_svd

DIM = 128
BUCKETS = 1 << 16

PHRASES: list[tuple[str, str | None]] = [
    ("smiling face with heart", "category = 'So'"),
    ("letter e with acute", "category = 'Lu' AND NOT script = 'LATIN'"),
    ("letter e with acute", "script = 'LATIN'"),
    ("fraction one half", "numeric BETWEEN 0.25 AND 0.75"),
    ("roman numeral", "numeric >= 10 AND numeric < 1000"),
    ("snowman", None),
    ("black chess queen", "category = 'So' AND NOT words = 'WHITE'"),
    ("cat face with tears of joy", "words = 'CAT'"),
    ("arrow pointing left", "category = 'Sm'"),
    ("arrow pointing left", "category = 'So' AND NOT words IN ('DOUBLE', 'TRIPLE')"),
    ("musical note", "NOT words = 'SYMBOL'"),
    ("musical note", "words = 'GREEK' OR words = 'BYZANTINE'"),
    ("euro currency sign", "category = 'Sc'"),
    ("rupee", "category = 'Sc' AND bidirectional = 'ET'"),
    ("greek small letter omega", "script = 'GREEK' AND category = 'Ll'"),
    ("small letter omega", "category = 'Ll' AND NOT script IN ('GREEK', 'COPTIC')"),
    ("cyrillic letter zhe", "script = 'CYRILLIC'"),
    ("hebrew letter shin", "bidirectional = 'R'"),
    ("arabic letter with three dots", "bidirectional = 'AL' AND category = 'Lo'"),
    ("digit seven", "category = 'Nd'"),
    ("digit seven", "numeric = 7 AND NOT category = 'Nd'"),
    ("number one hundred thousand", "numeric > 1000"),
    ("vulgar fraction", "numeric > 0 AND numeric < 1"),
    ("full moon with face", "width = 'W'"),
    ("fullwidth latin letter", "width = 'F' AND category = 'Lu'"),
    ("halfwidth katakana letter", "width = 'H'"),
    ("katakana letter ka", "script = 'KATAKANA'"),
    ("left square bracket", "category = 'Ps'"),
    ("right double quotation mark", "category IN ('Pf', 'Po')"),
    ("dash", "category = 'Pd'"),
    ("combining acute accent", "category = 'Mn' AND bidirectional = 'NSM'"),
    ("zero width space", "category = 'Cf'"),
    ("egyptian hieroglyph bird", "NOT numeric IS NULL OR words = 'EGYPTIAN'"),
    ("mathematical bold capital", "words = 'BOLD' AND NOT words = 'ITALIC'"),
    ("circled number", "numeric BETWEEN 21 AND 50 AND words = 'CIRCLED'"),
    ("playing card ace of spades", "(words = 'ACE' OR words = 'KING') AND words = 'SPADES'"),
    ("domino tile", "words = 'DOMINO' AND NOT words = 'VERTICAL'"),
    ("zodiac fish", "category = 'So' AND script IS NULL"),
    ("house with garden", "width = 'W' AND category = 'So'"),
    ("train", "words IN ('TRAIN', 'RAILWAY', 'TRAMWAY', 'LOCOMOTIVE')"),
]


def named_characters() -> list[tuple[str, str]]:
    """Every (character, name) of this Python's Unicode database, in code point order.

    Names that are only a code point, such as CJK UNIFIED IDEOGRAPH-4E00, are left out: a dash and 4 to 6 hexadecimal
    digits at the end. A few hundred names that read the same (BRAILLE PATTERN DOTS-1234) go with them.
    """
    code_point = re.compile(r"-[0-9A-F]{4,6}$")
    pairs = ((chr(code), unicodedata.name(chr(code), "")) for code in range(sys.maxunicode + 1))
    return [(char, name) for char, name in pairs if name and not code_point.search(name)]


def split_words(text: str) -> list[str]:
    """The words of a name or phrase in capitals: "HEART-SHAPED EYES" has three."""
    return re.findall(r"[A-Z0-9]+", text.upper())


# ---- embedding -----------------------------------------------------------------------------------------


class NameEncoder:
    """Embeds names and phrases; fitted once on all names."""

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self._parts: dict[str, tuple[list[int], list[float]]] = {}
        counts = self._count(names)
        frequency = np.bincount(counts.columns, minlength=BUCKETS)
        self._idf = np.log(len(names) / np.maximum(frequency, 1)).astype(np.float32)
        self._idf[frequency == 0] = 0  # a bucket that no name uses says nothing about a phrase
        directions, sizes = truncated_svd(self._weigh(counts), DIM, seed)
        # Divided by its size every direction counts the same; otherwise LETTER and SYLLABLE would drown the rest.
        self._projection = directions / np.maximum(sizes, 1e-12)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [len(texts), 128]; zero for a text without a known word or trigram."""
        vectors = self._weigh(self._count(texts)).times(self._projection)
        return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def _parts_of(self, word: str) -> tuple[list[int], list[float]]:
        """Buckets and weights of one word: itself, and its trigrams, which together weigh more than it does.

        With the word at half the weight of its trigrams, 64 % of the made phrases have their character among the ten
        nearest of all; at equal weight 59 %.
        """
        if word not in self._parts:
            padded = f"<{word}>"
            trigrams = [padded[i : i + 3] for i in range(len(word))]
            buckets = [zlib.crc32(part.encode()) % BUCKETS for part in [f"{word}=", *trigrams]]
            self._parts[word] = buckets, [0.5] + [len(trigrams) ** -0.5] * len(trigrams)
        return self._parts[word]

    def _count(self, texts: Sequence[str]) -> Sparse:
        rows: list[int] = []
        columns: list[int] = []
        weights: list[float] = []
        for row, text in enumerate(texts):
            for word in split_words(text):
                buckets, shares = self._parts_of(word)
                rows.extend([row] * len(buckets))
                columns.extend(buckets)
                weights.extend(shares)
        key, inverse = np.unique(np.array(rows, np.int64) * BUCKETS + np.array(columns, np.int64), return_inverse=True)
        values = np.bincount(inverse, weights=np.array(weights), minlength=len(key)).astype(np.float32)
        return Sparse(key // BUCKETS, key % BUCKETS, values, (len(texts), BUCKETS))

    def _weigh(self, counts: Sparse) -> Sparse:
        """Times the inverse document frequency, each row of length 1."""
        values = counts.values * self._idf[counts.columns]
        lengths = np.sqrt(np.bincount(counts.rows, weights=values**2, minlength=counts.shape[0]))
        values = (values / np.maximum(lengths, 1e-12)[counts.rows]).astype(np.float32)
        return Sparse(counts.rows, counts.columns, values, counts.shape)


# ---- tables --------------------------------------------------------------------------------------------


def item_table(chars: Sequence[str], names: Sequence[str], embeddings: np.ndarray) -> pa.Table:
    """One row a character; `script` is the first word of a letter's name and null for other characters."""
    categories = [unicodedata.category(char) for char in chars]
    scripts = [name.split()[0] if cat[0] == "L" else None for name, cat in zip(names, categories, strict=True)]
    return pa.table(
        {
            "item_id": pa.array([ord(char) for char in chars], pa.int64()),
            "char": pa.array(chars, pa.string()),
            "name": pa.array(names, pa.string()),
            "category": pa.array(categories, pa.string()),
            "bidirectional": pa.array([unicodedata.bidirectional(char) for char in chars], pa.string()),
            "width": pa.array([unicodedata.east_asian_width(char) for char in chars], pa.string()),
            "script": pa.array(scripts, pa.string()),
            "numeric": pa.array([unicodedata.numeric(char, None) for char in chars], pa.float64()),
            "words": pa.array([list(dict.fromkeys(split_words(name))) for name in names], pa.list_(pa.string())),
            "embedding": embedding_column(embeddings),
        }
    )


def query_table(texts: Sequence[str], filters: Sequence[str | None], embeddings: np.ndarray) -> pa.Table:
    """One row a phrase; `filter` is null where every character may be found, `own_words` are for a template."""
    return pa.table(
        {
            "query_id": pa.array(range(len(texts)), pa.int64()),
            "text": pa.array(texts, pa.string()),
            "filter": pa.array(filters, pa.string()),
            "own_words": pa.array([text.upper().split() for text in texts], pa.list_(pa.string())),
            "embedding": embedding_column(embeddings),
        }
    )


def made_phrases(items: pa.Table, count: int, seed: int = 1) -> list[tuple[str, str | None]]:
    """Phrases from shortened words of random names, each with a filter that its character satisfies (or none)."""
    rng = np.random.default_rng(seed)
    columns = items.drop_columns(["embedding"]).take(rng.integers(len(items), size=count)).to_pylist()
    return [(shortened(row["words"], rng), random_filter(row, rng)) for row in columns]


def shortened(words: list[str], rng: np.random.Generator) -> str:
    """Some of the words in their order, each without up to two letters at its end."""
    chosen = np.sort(rng.choice(len(words), size=min(len(words), int(rng.integers(2, 5))), replace=False))
    return " ".join(words[i][: max(4, len(words[i]) - int(rng.integers(3)))].lower() for i in chosen)


def random_filter(item: dict, rng: np.random.Generator) -> str | None:
    """A filter that `item` satisfies, of one of eight shapes; None for one item in eight."""
    category, script = item["category"], item["script"]
    word, last = item["words"][int(rng.integers(len(item["words"])))], item["words"][-1]
    is_script = "script IS NULL" if script is None else f"script = '{script}'"
    other_script, other_category = "GREEK" if script == "LATIN" else "LATIN", "So" if category == "Lo" else "Lo"
    shapes = [
        None,
        f"category = '{category}'",
        is_script,
        f"words = '{word}'",
        f"category IN ('{category}', 'Sm', 'Lu') AND NOT width = '{'N' if item['width'] == 'W' else 'W'}'",
        f"(words = '{word}' OR words = '{last}') AND bidirectional = '{item['bidirectional']}'",
        f"NOT (script = '{other_script}' OR category = '{other_category}')",
        numeric_range(item["numeric"]),
    ]
    return shapes[int(rng.integers(len(shapes)))]


def numeric_range(value: float | None) -> str:
    """A range that holds `value`: from its half to its double."""
    if value is None:
        return "numeric IS NULL"
    low, high = sorted((value / 2, value * 2))  # TIBETAN DIGIT HALF ZERO is -0.5
    return f"numeric BETWEEN {low!r} AND {high!r}"


def make(out: Path, num_queries: int, say: Callable[[str], None] = print) -> None:
    """Write `items.parquet` and `queries.parquet` into the folder `out`; the same files each time on one machine."""
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    chars, names = zip(*named_characters(), strict=True)
    say(f"{len(chars):,} characters have a name; embedding the names ...")
    encoder = NameEncoder(names)
    items = item_table(chars, names, encoder.encode(names))
    pq.write_table(items, out / "items.parquet", row_group_size=16_384)
    phrases = [*PHRASES, *made_phrases(items, max(0, num_queries - len(PHRASES)))][:num_queries]
    texts, filters = zip(*phrases, strict=True)
    pq.write_table(query_table(texts, filters, encoder.encode(texts)), out / "queries.parquet")
    say(f"{out}: {len(items):,} items, {len(texts):,} queries ({time.perf_counter() - start:.1f} s)")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and make the files."""
    parser = argparse.ArgumentParser(description="Make items.parquet and queries.parquet from Python's unicodedata.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if it is not there")
    parser.add_argument("--queries", type=int, default=1000, help="queries to make (default 1000, at least 1)")
    arguments = parser.parse_args(argv)
    if arguments.queries < 1:
        parser.error(f"--queries {arguments.queries}: at least 1 is needed")
    make(arguments.out, arguments.queries)


if __name__ == "__main__":
    main()
