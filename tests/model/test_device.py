"""Which device a name stands for, and what is said where that may surprise."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stcli
from stcli.errors import DeviceError
from stcli.model import device as devices
from stcli.model.device import choose_device, choose_devices, describe_device, device_warnings, why_no_gpu
from stcli.ops import cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(params=["no CUDA", "no GPU"])
def without(request, monkeypatch):
    """Torch cannot use a GPU, for one of two reasons."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None if request.param == "no CUDA" else "12.8")
    return {"no CUDA": "torch was built without CUDA", "no GPU": "torch finds no usable GPU"}[request.param]


@pytest.fixture
def with_gpus(monkeypatch):
    """Torch finds three GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Toy GPU")


def test_auto_falls_back_and_says_so_in_one_line(without, monkeypatch, tiny, tmp_path):
    monkeypatch.setattr(devices, "_driver_is_there", lambda: False)
    assert choose_device("auto") == CPU
    assert describe_device(CPU, "auto").endswith(f"; no GPU: {without})")
    assert device_warnings("auto", CPU) == [], "most machines have no GPU"
    built = stcli.build_index(tiny.items, tmp_path / "index")
    assert built["device"] == f"cpu (no GPU: {without})"
    told = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", exact=True, limit=1)
    assert (told["device"], told["warnings"]) == (describe_device(CPU, "auto"), [])


def test_a_gpu_that_is_not_used_is_worth_a_warning(without, monkeypatch):
    monkeypatch.setattr(devices, "_driver_is_there", lambda: True)
    assert device_warnings("auto", CPU) == [f"a GPU is there, but the CPU is used: {without}"]
    assert device_warnings("cpu", CPU) == []


def test_the_cpu_that_was_asked_for_needs_no_reason(without):
    assert why_no_gpu("cpu", CPU) is None
    assert "GPU" not in describe_device(CPU, "cpu")


def test_a_gpu_that_cannot_be_had_is_one_sentence(without):
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=f"^--device {name}: {without}; use --device cpu, or install .*$"):
            choose_device(name)
    with pytest.raises(DeviceError, match=f"^--device cuda:all: {without}; use --device cpu, or install .*$"):
        choose_devices("cuda:all")


WRONG = (
    "",
    "gpu",
    "CUDA",
    "cuda:",
    "cuda:-1",
    "cuda:one",
    "cuda: 1",
    "cuda:²",
    "cuda:0\n",
    "cpu:0",
    "meta",
    "mps",
    "all",
)


@pytest.mark.parametrize("name", WRONG)
def test_an_unknown_name_is_one_sentence_that_lists_the_known_ones(name, with_gpus):
    said = re.escape(f"--device {name!r}: is unknown; expected auto, cpu, cuda")
    with pytest.raises(DeviceError, match=f"^{said} or cuda:<number>$"):
        choose_device(name)
    with pytest.raises(DeviceError, match=f"^{said}, cuda:<number> or cuda:all$"):
        choose_devices(name)


def test_all_gpus_are_for_retrieve_only(tiny, tmp_path, with_gpus):
    said = "^--device cuda:all: only retrieve works on several GPUs; expected auto, cpu, cuda or cuda:<number>$"
    out, to_delete = tmp_path / "out", tmp_path / "ids.parquet"
    pq.write_table(pa.table({"item_id": [3]}), to_delete)
    for work in (
        lambda: stcli.build_index(tiny.items, out, device="cuda:all"),
        lambda: stcli.bench(tiny.model, tiny.queries, out, device="cuda:all"),
        lambda: stcli.update(tiny.model, out, delete=to_delete, device="cuda:all"),
    ):
        with pytest.raises(DeviceError, match=said):
            work()
    assert not out.exists()


def test_a_gpu_is_taken(with_gpus, monkeypatch):
    monkeypatch.setattr(cuda, "why_not", lambda device: None)
    assert choose_device("auto") == torch.device("cuda")
    assert describe_device(GPU, "auto") == "cuda:0 (Toy GPU, kernels)"
    assert device_warnings("auto", GPU) == []
    assert [str(device) for device in choose_devices("cuda:all")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [str(device) for device in choose_devices("cuda:2")] == ["cuda:2"]


@pytest.mark.parametrize(("count", "known"), [(1, "cuda:0"), (3, "cuda:0 … cuda:2")])
@pytest.mark.parametrize("name", ["cuda:3", "cuda:256", f"cuda:{10**30}"])  # torch takes numbers modulo 256
def test_a_gpu_that_is_not_there(with_gpus, monkeypatch, name, count, known):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(DeviceError, match=f"^--device {name}: is not on this machine; expected {known}, auto or cpu$"):
        choose_device(name)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_without_cupy_torch_works_in_place_of_the_kernels(with_gpus, monkeypatch, name):
    monkeypatch.setattr(cuda, "why_not", lambda device: "CuPy cannot be imported; install stcli[gpu]")
    (text,) = device_warnings(name, GPU)
    assert text == (
        "cuda:0: torch's own operations run in place of the kernels: CuPy cannot be imported; install stcli[gpu]"
    )
    assert "torch forms: CuPy cannot be imported" in describe_device(GPU, name)
