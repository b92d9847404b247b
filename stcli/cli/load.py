"""The call behind a command, loaded only when the command runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def load(command: str, threads: int | None) -> Callable[..., dict[str, Any]]:
    """The pipeline call of a command; torch is loaded here, so that help is quick.

    The native library has threads of its own, and small torch operations are faster on one.
    """
    import torch

    from stcli.ops import native

    all_threads = threads or native.num_threads()
    torch.set_num_threads(1 if native.library() is not None and command != "pack_model" else all_threads)
    return getattr(importlib.import_module(f"stcli.pipeline.{command}"), command)
