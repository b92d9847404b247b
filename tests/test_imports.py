"""Imports point one way, heavy libraries enter where they are needed, and `import stcli` stays light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stcli

ROOT = Path(stcli.__file__).parent

LAYERS = [
    ["cli"],
    ["pipeline"],
    ["measure"],
    ["peers"],
    ["model", "index"],
    ["filters", "formulas"],
    ["ops", "storage"],
    ["types", "config"],
    ["errors", "events"],
]
"""A file imports from layers after its own, or from its own folder; two names of one layer never import each other."""

HOMES = {
    "cupy": ["ops/cuda.py"],
    "typer": ["cli/"],
    "rich": ["cli/"],
    # Data files are opened in storage and nowhere else; tables in memory may be handled elsewhere.
    "pyarrow.csv": ["storage/"],
    "pyarrow.dataset": ["storage/"],
    "pyarrow.fs": ["storage/"],
    "pyarrow.parquet": ["storage/"],
    "safetensors": ["storage/"],
}
"""Libraries that only these files import."""

STRANGERS = {"torch": ["errors.py", "config.py"], "pyarrow": ["errors.py", "config.py", "types.py", "ops/"]}
"""Libraries that these files never import."""


def imported(source: str, package: list[str]) -> list[tuple[int, str]]:
    """(line, dotted name) of every import; `from a.b import c` gives a.b.c; relative ones are made absolute."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{prefix}.{alias.name}") for alias in node.names]
    return found


def rank(name: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if name in layer), None)


def is_of(name: str, library: str) -> bool:
    return name == library or name.startswith(library + ".")


def problems(path: str, source: str) -> list[str]:
    """What is wrong with the imports of one file; `path` is relative to stcli/."""
    parts = Path(path).parts
    own = parts[0].removesuffix(".py")
    found = []
    for line, name in imported(source, ["stcli", *parts[:-1]]):
        say = f"stcli/{path}:{line} imports {name}"
        if is_of(name, "stcli"):
            other = [*name.split("."), ""][1]
            if own in ("__init__", "__main__") or other in (own, "__version__"):
                continue
            above, below = rank(own), rank(other)
            if above is None or below is None or above >= below:
                found.append(f"{say}, which is not in a layer below {own}")
        for library, homes in HOMES.items():
            if is_of(name, library) and not path.startswith(tuple(homes)):
                found.append(f"{say}; only {', '.join(homes)} may")
        for library, where in STRANGERS.items():
            if is_of(name, library) and path.startswith(tuple(where)):
                found.append(f"{say}; {path} must not")
    return found


def test_imports_point_one_way() -> None:
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 10
    found = [
        problem
        for file in files
        if "_kernels" not in file.parts
        for problem in problems(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/rescore.py", "from stcli.filters import parse"),
        ("ops/rescore.py", "from stcli.storage.parquet import scan"),
        ("ops/rescore.py", "def f():\n    import stcli.model.open"),
        ("index/build.py", "from stcli.model import open"),
        ("model/open.py", "from stcli import pipeline"),
        ("filters/parse.py", "from ..index import build"),
        ("errors.py", "from stcli.types import Quantized"),
        ("types.py", "from stcli import config"),
        ("pipeline/retrieve.py", "import stcli"),
        ("errors.py", "import torch"),
        ("pipeline/bench.py", "import rich.table"),
        ("pipeline/bench.py", "import pyarrow.parquet as pq"),
        ("pipeline/bench.py", "from pyarrow import parquet"),
        ("ops/rescore.py", "import cupy"),
    ],
)
def test_a_wrong_import_is_found(path: str, source: str) -> None:
    assert problems(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/main.py", "import typer\nfrom stcli.pipeline import retrieve"),
        ("ops/cuda.py", "import cupy\nfrom .checks import Shapes"),
        ("model/open.py", "from stcli.storage.artifact import read\nfrom stcli import __version__"),
        ("storage/parquet.py", "import pyarrow.parquet as pq\nfrom stcli.errors import InputError"),
    ],
)
def test_a_right_import_is_not(path: str, source: str) -> None:
    assert problems(path, source) == []


def test_the_tests_for_a_gpu_need_no_more_than_its_image_has() -> None:
    """`make gpu` runs on one without hypothesis, DuckDB and the like."""
    image = {"numpy", "pyarrow", "pytest", "stcli", "torch"}
    tree, seen, left = Path(__file__).parents[1], set(), {"tests.test_gpu", "tests.conftest"}
    while left:
        name = left.pop()
        seen.add(name)
        file = tree.joinpath(*name.split(".")).with_suffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else []:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for other in names:
                root = other.partition(".")[0]
                assert root in image | {"tests"} | sys.stdlib_module_names, f"{name} imports {other}"
                if root == "tests" and other not in seen:
                    left.add(other)
    assert "tests.ops.search_cases" in seen


def test_import_stcli_loads_neither_torch_nor_cupy() -> None:
    code = "import sys, stcli; print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'cupy'}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=str,
)
def test_torchs_threads_do_not_spin_long_unless_the_user_says_so(given, count):
    code = "import os, stcli; print(os.environ.get('GOMP_SPINCOUNT'))"
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=True)
    assert done.stdout == f"{count}\n"
