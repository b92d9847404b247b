"""The forms that every operation of the search is tested in."""

import pytest

from stcli.ops import cuda, native
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING

LEVELS = {"native-portable": 0, "native-avx2": 1, "native-avx512": 2}

HAVE_KERNELS = (
    "choose_probes",
    "filter_match",
    "filter_probes",
    "rescore",
    "search_clusters",
    "search_rows",
    "take_best",
    "verify_terms",
)
"""For the other operations `cuda` is torch on the GPU, so that its test would be that of torch once more."""


def pytest_generate_tests(metafunc):
    """Each operation's tests in each of its forms."""
    if "form" in metafunc.fixturenames:
        kernels = ["cuda"] if metafunc.module.__name__.rpartition("test_")[2] in HAVE_KERNELS else []
        metafunc.parametrize("form", ["torch", *kernels, *LEVELS], indirect=True)


@pytest.fixture
def form(request):
    """Backend name: the definition, the emulated kernels, the C++ library with each set of instructions of this CPU."""
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
