"""Open a packed artifact as a module."""

from __future__ import annotations

from pathlib import Path

import torch

from stcli.model.placement import Placement, Spread
from stcli.model.program import ProgramTower
from stcli.model.retriever import Retriever
from stcli.storage.artifact_set import open_files


def open_artifact(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    verify: bool = False,
    placement: Placement | Spread | None = None,
    allow_model_code: bool = False,
) -> Retriever:
    """Open an artifact made by `pack_model`, or a set of them; tensors are mapped and load when they are touched.

    Args:
        path: the .safetensors file, or the directory of a set.
        device: where the search tensors go; the CPU maps the file, a GPU copies it.
        backend: see `ops/dispatch.py`.
        verify: check the hash of every tensor first.
        placement: which tensors go to the GPU, or to which of several, see `stcli.model.placement`; None: all but ids
            and exact terms.
        allow_model_code: a tower that is a `torch.export` program may run. It is code: allow it only from where you
            would install a package.

    Returns:
        A `Retriever`, ready to be called.

    Raises:
        FormatError: not an artifact, truncated, edited or of another version; or a file of a set is missing or foreign.
    """
    retriever = Retriever(open_files(Path(path), verify), backend)
    if isinstance(retriever.tower, ProgramTower):
        retriever.tower.allowed = allow_model_code
    if placement is None:
        return retriever.to(device).eval()
    if isinstance(placement, Placement):
        there = torch.device(device)
        placement = Spread((there,) * len(retriever.segments), {there: placement})
    retriever.place(placement)
    return retriever.eval()
