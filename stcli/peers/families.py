"""The peers by the names that `--against` takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec

from stcli.peers.protocol import Peer

NEEDS: dict[str, str | None] = {"faiss": "faiss", "torch": None, "paper": None}
"""Names, and the module that must be installed."""

INSTALL = {"faiss": "pip install 'stcli[bench]'"}


def missing(family: str) -> str | None:
    """Why a family cannot take part and what to do about it, or None."""
    module = NEEDS[family]
    if module is None or find_spec(module) is not None:
        return None
    return f"{module} is not installed; {INSTALL[family]}"


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the libraries behind some families."""
    modules = sorted(module for name in names if (module := NEEDS[name]) is not None)
    return {module: str(import_module(module).__version__) for module in modules}


def members(family: str) -> Sequence[Peer]:
    """The peers of a family, in the order they are to be built."""
    if family == "torch":
        from stcli.peers.torch_exact import TorchExact

        return [TorchExact()]
    if family == "paper":
        from stcli.peers.paper import Paper

        return [Paper()]
    from stcli.peers.faiss_flat import FaissFlat
    from stcli.peers.faiss_hybrid import FaissHybrid
    from stcli.peers.faiss_ivf import Coarse, FaissIvf

    coarse = Coarse()
    eight_bit, full, flat = FaissIvf("SQ8", coarse), FaissIvf("Flat", coarse), FaissFlat()
    return [eight_bit, full, flat, FaissHybrid(flat, eight_bit)]
