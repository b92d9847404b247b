"""The forms that every operation of the search is tested in."""

import pytest

from stcli.ops import cuda, native
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING

LEVELS = {"native-portable": 0, "native-avx2": 1, "native-avx512": 2}


@pytest.fixture(params=["torch", "cuda", *LEVELS])
def form(request):
    """Backend name: the definition, and the C++ library with each set of instructions that this CPU has."""
    if request.param == "torch":
        yield "torch"
        return
    if request.param == "cuda":
        if COMPILER is None:
            pytest.skip(WHY_MISSING)
        with cuda.launching_with(Emulated()):
            yield "cuda"
        return
    library = native.library()
    if library is None:
        pytest.skip(native.why_missing())
    level = LEVELS[request.param]
    if library.stcli_force_isa(level) != level:
        pytest.skip(f"this CPU has no {request.param.removeprefix('native-')}")
    yield "native"
    library.stcli_force_isa(max(LEVELS.values()))
