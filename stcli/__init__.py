"""stcli: filtered embedding retrieval over Parquet, as one model artifact.

After the SilverTorch paper, arXiv 2511.14881.

The commands as Python calls: `build_index`, `pack_model`, `update`, `retrieve`, `bench`, `inspect`; and
`open_artifact`, which gives the packed model as an `nn.Module`. The options of the calls are the fields of the
classes in `stcli.config`. Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import os
from typing import Any

__version__ = "0.1.0"

if "OMP_WAIT_POLICY" not in os.environ:
    # Threads of GNU OpenMP, which torch brings, spin after each of its operations: up to 300,000 rounds, some
    # milliseconds, on cores that our own threads want. Called from Python, the filtered queries of Corpus R take 1.00 s
    # so, 0.76 with 1,000 rounds (2 cores of AMD EPYC Zen 4); with none, small operations of torch take three times as
    # long. Most commands give torch one thread, which has no other to spin. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOMES = {
    "build_index": "stcli.pipeline.build_index",
    "pack_model": "stcli.pipeline.pack_model",
    "update": "stcli.pipeline.update",
    "retrieve": "stcli.pipeline.retrieve",
    "bench": "stcli.pipeline.bench",
    "compare": "stcli.pipeline.compare",
    "inspect": "stcli.pipeline.inspect",
    "explain": "stcli.pipeline.explain",
    "open_artifact": "stcli.model.open",
    "scoring_options": "stcli.pipeline.scoring",
    "Retriever": "stcli.model.retriever",
    "Results": "stcli.model.results",
    "StcliError": "stcli.errors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stcli' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
