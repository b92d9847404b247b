"""stcli: filtered embedding retrieval over Parquet, as one model artifact.

After the SilverTorch paper, arXiv 2511.14881.

The commands as Python calls: `build_index`, `pack_model`, `update`, `retrieve`, `bench`, `inspect`; and
`open_artifact`, which gives the packed model as an `nn.Module`. Names load on first use, so that
importing the package costs nothing.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

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
